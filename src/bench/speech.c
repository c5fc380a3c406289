#include "bench/speech.h"

#include "base/clock.h"
#include "model/audio.h"
#include "model/codec.h"

#include <stdlib.h>

/* First chunk small, so that sound starts early; later ones larger, which the device computes with less overhead. */
enum { FIRST_CHUNK = 8, CHUNK = 32 };

struct speech {
    struct codec *codec;
    int           num_codebooks, max_frames;
    int32_t      *codes; /* [num_codebooks][max_frames] */
    float        *wav;   /* [max_frames · hop]          */
    size_t        samples;
};

status_t speech_open(struct backend *be, const char *dir, enum codec_mode mode, int num_codebooks, int max_frames,
                     struct speech **out)
{
    struct speech *s = calloc(1, sizeof *s);
    if (!s)
        return FAIL(ST_ENOMEM, "codec: no memory");
    status_t             st      = ST_OK;
    struct codec_options options = {.mode = mode, .decoder = true, .chunk_frames = CHUNK};
    TRY_OUT(codec_open(be, dir, &options, &s->codec));
    if (codec_codebooks(s->codec) != num_codebooks)
        TRY_OUT(FAIL(ST_EINPUT, "%s: the codec has %d codebooks, the model %d", dir, codec_codebooks(s->codec), num_codebooks));
    s->num_codebooks = num_codebooks;
    s->max_frames    = max_frames;
    s->codes         = malloc((size_t)num_codebooks * (size_t)max_frames * sizeof *s->codes);
    s->wav           = malloc((size_t)max_frames * (size_t)codec_hop(s->codec) * sizeof *s->wav);
    if (!s->codes || !s->wav)
        TRY_OUT(FAIL(ST_ENOMEM, "codec: no memory for %d frames of sound", max_frames));
    *out = s;
    return ST_OK;
out:
    speech_close(s);
    return st;
}

void speech_close(struct speech *s)
{
    if (!s)
        return;
    codec_close(s->codec);
    free(s->codes);
    free(s->wav);
    free(s);
}

status_t speech_run(struct speech *s, const int32_t *frames, int n, struct speech_times *out)
{
    size_t hop = (size_t)codec_hop(s->codec), width = 1 + (size_t)s->num_codebooks;
    *out = (struct speech_times){0};
    if (n > s->max_frames)
        return FAIL(ST_EINTERNAL, "codec: %d frames, room for %d", n, s->max_frames);
    for (int t = 0; t < n; t++)
        for (int k = 0; k < s->num_codebooks; k++)
            s->codes[(size_t)k * (size_t)s->max_frames + (size_t)t] = frames[(size_t)t * width + 1 + (size_t)k];
    s->samples = (size_t)n * hop;
    int64_t t0 = clock_ns();
    TRY(codec_decode_begin(s->codec));
    for (int t = 0, m; t < n; t += m) {
        m = t == 0 ? FIRST_CHUNK : CHUNK;
        m = n - t < m ? n - t : m;
        TRY(codec_decode_push(s->codec, s->codes + t, (size_t)s->max_frames, m, s->wav + (size_t)t * hop));
        if (t == 0) {
            out->first_chunk_ms = clock_ms_since(t0);
            out->first_frames   = m;
        }
    }
    out->codec_ms = clock_ms_since(t0);
    out->audio_s  = (double)s->samples / codec_config_of(s->codec)->sample_rate;
    return ST_OK;
}

status_t speech_keep(const struct speech *s, const char *path)
{
    return audio_write(path, s->wav, s->samples, codec_config_of(s->codec)->sample_rate, false);
}
