/* speech.h — the codec half of a request: the frames of an utterance become samples, timed, and on wish a sound file. */
#ifndef QSWEEP_BENCH_SPEECH_H
#define QSWEEP_BENCH_SPEECH_H

#include "backend/backend.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct speech;

/* Load dir's codec in `mode` on the model's own device; room for utterances of max_frames. ST_EINPUT when the codec has
 * another number of codebooks than the model. */
status_t speech_open(struct backend *be, const char *dir, enum codec_mode mode, int num_codebooks, int max_frames,
                     struct speech **out);
void     speech_close(struct speech *s); /* NULL is accepted */

struct speech_times {
    double codec_ms;       /* all chunks                         */
    double first_chunk_ms; /* the first chunk alone              */
    int    first_frames;   /* frames in the first chunk          */
    double audio_s;
};

/* frames [n][1 + num_codebooks] as decoded, an im_end frame left out by the caller. n = 0 gives no audio. */
status_t speech_run(struct speech *s, const int32_t *frames, int n, struct speech_times *out);

/* Write the samples of the last run as 16-bit WAV. */
status_t speech_keep(const struct speech *s, const char *path);

#endif
