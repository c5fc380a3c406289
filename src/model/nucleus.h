/* nucleus.h — how many candidates sampling sees: the size of the top-p nucleus while a checkpoint decodes. */
#ifndef QSWEEP_MODEL_NUCLEUS_H
#define QSWEEP_MODEL_NUCLEUS_H

#include "base/status.h"

/* Medians over n_frames frames (slow: one nucleus a frame; fast: one for each residual codebook). */
struct nucleus {
    int    n_frames;
    int    slow, slow_least, slow_most;
    int    fast, fast_least, fast_most;
    double slow_sigma, fast_sigma; /* standard deviation of the logits of semantic rows, of residual rows   */
    double semantic_mass;          /* probability of semantic tokens among all rows, mean                   */
    double im_end_mass;            /* probability of <|im_end|>, mean                                       */
};

/* Decode n_frames (≥ 1) frames of the checkpoint in dir on the CPU in BF16 with the defaults of its family at temperature
 * 0.7 and top-p 0.8, full head, from a fixed prompt of text ids, and look at the logits before the repetition penalty. */
status_t nucleus_measure(const char *dir, int n_frames, struct nucleus *out);

#endif
