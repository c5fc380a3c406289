/* voice.h — a seeded synthetic reference voice: the `context` axis of a sweep, N frames of random codes. */
#ifndef QSWEEP_BENCH_VOICE_H
#define QSWEEP_BENCH_VOICE_H

#include "model/prompt.h"

/* Codes uniform in [0, codebook_size) from Philox blocks keyed by the seed: every machine makes the same voice. The
 * transcript is fixed, so that the axis changes the number of frames alone. Free with voice_free(). */
status_t voice_make(const struct model_config *config, int frames, uint64_t seed, struct voice *out);
void     voice_free(struct voice *v);

#endif
