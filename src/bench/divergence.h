/* divergence.h — how far two predictions of the same tokens are apart: KL, agreement, probability and likelihood.
 *
 * A position is one codebook of one frame: two rows of logits, before any penalty or temperature, and the token that the
 * reference decoded. Log-probabilities are computed in FP64 from FP32 logits. */
#ifndef QSWEEP_BENCH_DIVERGENCE_H
#define QSWEEP_BENCH_DIVERGENCE_H

#include "bench/result.h"

struct divergence;

/* Frames that make one block of the bootstrap: errors of neighbouring frames are alike, their context is the same. */
enum { DIVERGENCE_BLOCK = 8, DIVERGENCE_BLOCKS_MIN = 6, DIVERGENCE_RESAMPLES = 1000 };

status_t divergence_open(int num_codebooks, struct divergence **out);
void     divergence_close(struct divergence *d); /* NULL is accepted */

/* One position; positions of every codebook come in the same order of texts and frames. ST_EINTERNAL when a logit is not
 * finite, with the codebook; ST_ENOMEM. */
status_t divergence_add(struct divergence *d, int codebook, const float *reference, const float *mode, int n, int target);

/* rows [num_codebooks + 1]: all codebooks (QUALITY_ALL), then each. KL is KL(reference ‖ mode) in nats. Top-1 agrees when
 * no token is likelier under the mode than the reference's likeliest (equal logits agree: BF16 logits often are). RMS Δp is
 * of the target's probability, as llama.cpp's perplexity tool defines it. Intervals: percentiles of a bootstrap over blocks
 * of DIVERGENCE_BLOCK frames, NaN below DIVERGENCE_BLOCKS_MIN blocks; p99 NaN below 100 positions. Without positions all
 * figures are NaN. ST_ENOMEM. */
status_t divergence_rows(const struct divergence *d, uint64_t seed, struct quality_row *rows);

/* Signal and noise of values against a reference: 10·log10(Σ reference² / Σ (value − reference)²); NaN when there is no
 * noise or no signal. */
struct sqnr {
    double signal, noise;
};
void   sqnr_add(struct sqnr *s, const float *reference, const float *value, size_t n);
double sqnr_db(const struct sqnr *s);

#endif
