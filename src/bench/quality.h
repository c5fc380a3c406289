/* quality.h — what a cell's precision costs: its predictions against those of the reference precision, teacher-forced.
 *
 * The reference decodes a text as the cell would (same prompt, noise, sampling rules); the cell's precision is forced to
 * the same frames, step by step beside it, and their logits are compared before any penalty (divergence.h). The reference
 * of int8 is bf16; that of bf16 is fp32, which shows how large figures are that mean nothing (CPU). Both run engine `ops`
 * at batch 1; the reference keeps its KV cache in its own format, so an INT8 cache is part of what is measured. The first
 * frame that differs in a free run is looked for with the cell's own decoder, engine and batch included.
 *
 * Nothing here is timed, and it comes after the memory peaks were noted: two models are open at once. */
#ifndef QSWEEP_BENCH_QUALITY_H
#define QSWEEP_BENCH_QUALITY_H

#include "bench/session.h"

#include <signal.h>

enum { QUALITY_FRAMES = 64, QUALITY_PRODUCT_FRAMES = 16 }; /* a text; the first of them that compare linear layers */

/* Precision that p is compared with, or −1: fp32 is compared with nothing. */
int quality_reference(enum precision p);

/* Fill out's quality rows, texts, linear layers and the facts quality_reference, quality_s, synthetic_weights. s is an
 * open session of work's cell; its decoder is closed on the way. ST_EINTERRUPTED when *stop becomes true. */
status_t quality_measure(struct session *s, const struct work *work, const volatile sig_atomic_t *stop, struct result *out);

/* ---- gates: initial ones for weights of 8 bits ------------------------------------------------------------------- */

struct quality_gate {
    const char *name, *units;
    double      value, limit;
    bool        at_least; /* value has to be ≥ limit, else ≤ */
    bool        known, passed;
};
enum { QUALITY_GATES = 4 };
/* Mean KL ≤ 2e-3 nat, top-1 ≥ 98.5 %, |NLL change| ≤ 0.5 % (all codebooks alike), median output SQNR ≥ 38 dB. A figure that
 * was not measured is not known and not passed. */
void quality_gates(const struct result *r, struct quality_gate gates[QUALITY_GATES]);

/* Medians over the linear layers; NaN without any. ST_ENOMEM. */
status_t quality_sqnr(const struct result *r, double *weight_db, double *output_db);

#endif
