/* synth.h — seeded random checkpoints in the real formats: config.json, weights, tokenizer files, codec.pth.
 *
 * How the weights are scaled (σ is the standard deviation of an element, L the layers of its stack, in its columns):
 *   embeddings, codebook_embeddings, fast_embeddings   σ = 1 (a tied table: as the head)
 *   wqkv, w1, w3, fast_project_in                      σ = 1/√in
 *   wo                                                 σ = 1/√(2L·in);    w2: 5/3 of it (SwiGLU of unit inputs has σ 0.6)
 *   norms                                              1 ± 0.02
 *   output, fast_output                                σ = s/√in, so that logits have the standard deviation s
 * The residual stream then grows from σ 1 to about 1.5 over any number of layers, and the logits of N rows are Gaussian:
 * the top-p nucleus has about N·(1 − Φ(s − Φ⁻¹(p))) entries. s is a constant of the shape, chosen for tens of them.
 *
 * synth.json records this prediction and, where the caller can decode, the measured sizes.
 *
 * An untied S1 head sees 151,000 text rows beside its 4,096 semantic ones, but a trained model gives them no mass. To get
 * this without a bias, the first dim/8 (at least 16) columns of both embedding tables hold a constant, which all layers
 * carry along, and the same columns of the head lower every row that is neither semantic nor <|im_end|> by about 12. The
 * row of <|im_end|> is raised to about e⁻⁶ of the semantic mass, so that natural decoding ends after some hundred frames. */
#ifndef QSWEEP_CHECKPOINT_SYNTH_H
#define QSWEEP_CHECKPOINT_SYNTH_H

#include "checkpoint/shapes.h"

#include <signal.h>

struct synth_options {
    const char                  *dir;   /* must not exist; folders above it are made                     */
    const struct shape          *shape;
    uint64_t                     seed;
    bool                         codec; /* write codec.pth (and codec.json when it is not the published one) */
    const volatile sig_atomic_t *stop;  /* not NULL: polled; non-zero ends with ST_EINTERRUPTED           */
    void (*progress)(uint64_t done, uint64_t total); /* bytes; called now and then; may be NULL          */
    /* Measure the finished checkpoint in dir: a JSON value for synth.json's "measured", or "" when it could not be
     * measured. NULL: not measured. */
    void (*measure)(const char *dir, char *json, size_t size);
};

/* Make the checkpoint under a temporary name and rename it. Free disk is checked first (ST_EIO with both figures). The
 * bytes depend on shape, seed and codec alone. */
status_t synth_run(const struct synth_options *options);

/* Bytes of tensor data that synth_run writes. */
uint64_t synth_bytes(const struct shape *shape, bool codec);

#endif
