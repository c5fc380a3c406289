#include "bench/request.h"

#include "base/clock.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

/* Pieces in which a stop request is noticed; one call into the engine per piece. */
static const double PIECE_MS = 250;

/* Frame of 2048 samples at 44.1 kHz (reference benchmark, codec off). */
static const double FRAME_S = 2048.0 / 44100.0;

/* Move frames [batch][n][width] of one piece to their place in s->frames [batch][max][width]. */
static void keep_frames(struct session *s, int at, int stride, int n, int max, size_t width)
{
    for (int b = 0; b < s->cell->batch; b++)
        memcpy(s->frames + ((size_t)b * (size_t)max + (size_t)at) * width,
               s->chunk + (size_t)b * (size_t)stride * width, (size_t)n * width * sizeof *s->frames);
}

/* Frames per call: few at first, then as many as fit PIECE_MS at the mean pace so far. */
static int piece_size(const double *step_ms, int done, int max)
{
    int    left = max - done, piece = 1;
    double sum = 0;
    for (int i = done > 16 ? done - 16 : 0; i < done; i++)
        sum += step_ms[i];
    double mean = done ? sum / (done > 16 ? 16 : done) : 0;
    if (mean > 0)
        piece = mean * left < PIECE_MS ? left : (int)(PIECE_MS / mean);
    return piece < 1 ? 1 : piece > left ? left : piece;
}

static status_t decode(struct session *s, int max, const volatile sig_atomic_t *stop, int *steps)
{
    size_t width = 1 + (size_t)s->checkpoint->config.num_codebooks;
    *steps = 0;
    while (*steps < max) {
        int piece = piece_size(s->step_ms, *steps, max), done;
        TRY(decoder_run(s->decoder, piece, s->chunk, s->step_ms + *steps, &done));
        if (done == 0)
            break;
        keep_frames(s, *steps, piece, done, max, width);
        *steps += done;
        if (*stop)
            return FAIL(ST_EINTERRUPTED, "stopped by signal %d after %d of %d frames", (int)*stop, *steps, max);
    }
    return ST_OK;
}

/* Count frames and hash codes, sequence by sequence; say why the sample ended. */
static void sum_up(const struct session *s, int max, int steps, struct sample *sample)
{
    size_t        width = 1 + (size_t)s->checkpoint->config.num_codebooks;
    int           ended = 0, batch = s->cell->batch;
    bool          fixed = s->cell->workload.length == LENGTH_FIXED;
    XXH3_state_t *hash = XXH3_createState();
    if (hash)
        XXH3_64bits_reset(hash);
    sample->frames = 0;
    for (int b = 0; b < batch; b++) {
        int frames = decoder_length(s->decoder, b);
        sample->frames += frames;
        ended += !fixed && decoder_stopped(s->decoder, b) && frames > 0;
        if (hash)
            XXH3_64bits_update(hash, s->frames + (size_t)b * (size_t)max * width,
                               (size_t)frames * width * sizeof(int32_t));
    }
    sample->codes_hash = hash ? XXH3_64bits_digest(hash) : 0;
    XXH3_freeState(hash);
    sample->stop = ended == batch ? STOP_IM_END : steps == max ? STOP_LENGTH : STOP_CACHE_FULL;
    sample->audio_s = (sample->frames - ended) * FRAME_S;
}

/* The codec's share: every utterance of the batch, one after the other. *first_ms is the time to the first sound had
 * the codec followed the decoder chunk by chunk: prefill, the first chunk's steps, the codec's first chunk. */
static status_t speak(struct session *s, const struct request *request, int max, struct sample *sample)
{
    size_t width = 1 + (size_t)s->checkpoint->config.num_codebooks;
    bool   fixed = s->cell->workload.length == LENGTH_FIXED;
    double audio = 0;
    for (int b = 0; b < s->cell->batch; b++) {
        int                 frames = decoder_length(s->decoder, b);
        struct speech_times times;
        if (!fixed && decoder_stopped(s->decoder, b) && frames > 0)
            frames--;
        TRY(speech_run(s->speech, s->frames + (size_t)b * (size_t)max * width, frames, &times));
        audio += times.audio_s;
        sample->codec_ms += times.codec_ms;
        if (b == 0 && frames > 0) {
            sample->first_audio_ms = sample->prefill_ms + times.first_chunk_ms;
            for (int i = 0; i < times.first_frames; i++)
                sample->first_audio_ms += s->step_ms[i];
        }
        /* A sound that cannot be kept (no libsndfile, no space) is no reason to lose what was measured. */
        if (request->audio_path && b == 0 && !s->audio_error[0] && speech_keep(s->speech, request->audio_path) != ST_OK)
            snprintf(s->audio_error, sizeof s->audio_error, "%s", status_last());
    }
    sample->audio_s = audio;
    return ST_OK;
}

status_t request_run(struct session *s, const struct request *request, const volatile sig_atomic_t *stop,
                     struct sample *sample, int64_t *first_frame_ns, double *step_bytes_sum)
{
    struct prompt prompt;
    int           steps = 0, batch = s->cell->batch;
    for (int b = 0; b < batch; b++)
        s->sequences[b] = request->first_sequence + (uint32_t)b;

    int64_t t0 = clock_ns();
    TRY(session_prompt(s, request->text, &prompt));
    for (int b = 0; b < batch; b++)
        s->prompts[b] = prompt;
    int64_t  t1 = clock_ns();
    status_t st = decoder_prefill(s->decoder, s->prompts, s->sequences);
    int64_t  t2 = clock_ns();
    size_t   bytes_first = decoder_step_bytes(s->decoder);
    if (st == ST_OK)
        st = decode(s, request->max_new_tokens, stop, &steps);
    int64_t t3 = clock_ns();
    int     columns = prompt.columns;
    prompt_free(&prompt);
    TRY(st);

    sample->prompt_tokens = columns;
    sample->prefill_ms = (double)(t2 - t1) * 1e-6;
    sample->decode_ms = (double)(t3 - t2) * 1e-6;
    sample->codec_ms = 0;
    sample->latency_ms = (double)(t3 - t0) * 1e-6;
    sample->first_audio_ms = sample->energy_j = sample->sm_clock_mhz = NAN;
    sample->t0_ns = t0;
    sample->steps = steps;
    sum_up(s, request->max_new_tokens, steps, sample);
    if (s->speech) {
        TRY(speak(s, request, request->max_new_tokens, sample));
        sample->latency_ms += sample->codec_ms; /* keeping the sound as a file is not the request's time */
    }
    *first_frame_ns = t2 + (steps ? (int64_t)(s->step_ms[0] * 1e6) : 0);
    /* KV grows by one position a step, so the bytes grow linearly and their mean is that of first and last. */
    *step_bytes_sum += 0.5 * ((double)bytes_first + (double)decoder_step_bytes(s->decoder)) * steps;
    return ST_OK;
}
