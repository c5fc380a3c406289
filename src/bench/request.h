/* request.h — one request of a cell: a text decoded by `batch` utterances together, timed step by step. */
#ifndef QSWEEP_BENCH_REQUEST_H
#define QSWEEP_BENCH_REQUEST_H

#include "bench/session.h"

#include <signal.h>

/* Noise sequence numbers of sample i are i·batch … i·batch + batch − 1: utterances differ within a batch, and a
 * sample's noise does not depend on the process or order it ran in. Warm-up requests count from here. */
#define WARMUP_SEQUENCE 0x80000000u

struct request {
    const char *text;
    int         max_new_tokens;
    uint32_t    first_sequence;
    const char *audio_path; /* where to keep the first utterance's sound, NULL = nowhere */
};

/* Prompt, prefill, decode. Fills sample's prompt_tokens, frames, stop, all times, audio_s, codes_hash, steps, t0_ns and
 * first_audio_ms' stand-in NaN; s->step_ms holds the steps. *first_frame_ns is when the first frame was there.
 * *step_bytes_sum gains decoder_step_bytes() summed over the steps (mean of start and end times the number of steps).
 * *stop is looked at between pieces of about a quarter of a second: ST_EINTERRUPTED, and the sample is void. */
status_t request_run(struct session *s, const struct request *request, const volatile sig_atomic_t *stop,
                     struct sample *sample, int64_t *first_frame_ns, double *step_bytes_sum);

#endif
