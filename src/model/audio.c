#include "model/audio.h"

#include <dlfcn.h>
#include <math.h>
#include <samplerate.h>
#include <sndfile.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The few functions we call, found at run time. */
struct sndfile_api {
    SNDFILE *(*open)(const char *, int, SF_INFO *);
    sf_count_t (*readf)(SNDFILE *, float *, sf_count_t);
    sf_count_t (*writef_float)(SNDFILE *, const float *, sf_count_t);
    sf_count_t (*writef_short)(SNDFILE *, const short *, sf_count_t);
    int (*close)(SNDFILE *);
    const char *(*strerror)(SNDFILE *);
};

struct samplerate_api {
    int (*simple)(SRC_DATA *, int, int);
    const char *(*strerror)(int);
};

static status_t load(const char *library, const char *package, const char *const *names, void *table, int n)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return FAIL(ST_EUNSUPPORTED, "sound files need %s, which is not here (%s); install the package %s", library,
                    dlerror(), package);
    for (int i = 0; i < n; i++) {
        void *symbol = dlsym(handle, names[i]);
        if (!symbol) {
            dlclose(handle);
            return FAIL(ST_EUNSUPPORTED, "%s has no function %s", library, names[i]);
        }
        memcpy((char *)table + (size_t)i * sizeof symbol, &symbol, sizeof symbol);
    }
    return ST_OK; /* stays open for the life of the process */
}

static status_t sndfile_load(struct sndfile_api *api)
{
    static const char *const names[] = {"sf_open", "sf_readf_float", "sf_writef_float", "sf_writef_short", "sf_close", "sf_strerror"};
    return load("libsndfile.so.1", "libsndfile1", names, api, 6);
}

static status_t resample(float **samples, size_t *n, int from, int to)
{
    static const char *const names[] = {"src_simple", "src_strerror"};
    struct samplerate_api    api;
    TRY(load("libsamplerate.so.0", "libsamplerate0", names, &api, 2));
    double   ratio    = (double)to / from;
    size_t   capacity = (size_t)ceil((double)*n * ratio) + 16;
    float   *out      = malloc(capacity * sizeof *out);
    SRC_DATA data     = {.data_in = *samples, .data_out = out, .input_frames = (long)*n, .output_frames = (long)capacity,
                         .src_ratio = ratio};
    if (!out)
        return FAIL(ST_ENOMEM, "no memory for %zu resampled samples", capacity);
    int error = api.simple(&data, SRC_SINC_BEST_QUALITY, 1);
    if (error) {
        free(out);
        return FAIL(ST_EINPUT, "resampling from %d to %d Hz: %s", from, to, api.strerror(error));
    }
    free(*samples);
    *samples = out;
    *n       = (size_t)data.output_frames_gen;
    return ST_OK;
}

status_t audio_read(const char *path, int rate, float **samples, size_t *n)
{
    struct sndfile_api api;
    TRY(sndfile_load(&api));
    SF_INFO  info = {0};
    SNDFILE *file = api.open(path, SFM_READ, &info);
    if (!file)
        return FAIL(ST_EINPUT, "%s: %s", path, api.strerror(NULL));
    status_t st    = ST_OK;
    float   *mono  = NULL, *piece = NULL;
    size_t   count = 0, limit = (size_t)AUDIO_SECONDS_MAX * (size_t)(info.samplerate > 0 ? info.samplerate : 1);
    if (info.samplerate < 1000 || info.samplerate > 768000 || info.channels < 1 || info.channels > 64)
        TRY_OUT(FAIL(ST_EINPUT, "%s: %d channels at %d Hz cannot be used", path, info.channels, info.samplerate));
    if (info.frames < 1 || (size_t)info.frames > limit)
        TRY_OUT(FAIL(ST_EINPUT, "%s: %lld samples; 1 sample to %d seconds can be read", path, (long long)info.frames,
                     (int)AUDIO_SECONDS_MAX));
    enum { PIECE = 4096 };
    mono  = malloc((size_t)info.frames * sizeof *mono);
    piece = malloc(PIECE * (size_t)info.channels * sizeof *piece);
    if (!mono || !piece)
        TRY_OUT(FAIL(ST_ENOMEM, "%s: no memory for %lld samples", path, (long long)info.frames));
    for (sf_count_t got; (got = api.readf(file, piece, PIECE)) > 0;)
        for (sf_count_t i = 0; i < got && count < (size_t)info.frames; i++) {
            float sum = 0;
            for (int c = 0; c < info.channels; c++)
                sum += piece[i * info.channels + c];
            if (!isfinite(sum))
                TRY_OUT(FAIL(ST_EINPUT, "%s: sample %zu is not finite", path, count));
            mono[count++] = sum / (float)info.channels;
        }
    if (count == 0)
        TRY_OUT(FAIL(ST_EINPUT, "%s: holds no samples", path));
    if (info.samplerate != rate)
        TRY_OUT(resample(&mono, &count, info.samplerate, rate));
    *samples = mono;
    *n       = count;
    mono     = NULL;
out:
    api.close(file);
    free(mono);
    free(piece);
    return st;
}

status_t audio_write(const char *path, const float *samples, size_t n, int rate, bool float32)
{
    struct sndfile_api api;
    TRY(sndfile_load(&api));
    char temporary[4200];
    snprintf(temporary, sizeof temporary, "%s.tmp%d", path, (int)getpid());
    SF_INFO  info = {.samplerate = rate, .channels = 1, .format = SF_FORMAT_WAV | (float32 ? SF_FORMAT_FLOAT : SF_FORMAT_PCM_16)};
    SNDFILE *file = api.open(temporary, SFM_WRITE, &info);
    if (!file)
        return FAIL(ST_EIO, "%s: cannot be written: %s", path, api.strerror(NULL));
    size_t written = 0;
    if (float32) {
        written = (size_t)api.writef_float(file, samples, (sf_count_t)n);
    } else {
        short piece[4096];
        while (written < n) {
            size_t m = n - written < 4096 ? n - written : 4096;
            for (size_t i = 0; i < m; i++) {
                float v  = samples[written + i] * 32767.0f;
                piece[i] = (short)lrintf(v > 32767.0f ? 32767.0f : v < -32768.0f ? -32768.0f : v);
            }
            if (api.writef_short(file, piece, (sf_count_t)m) != (sf_count_t)m)
                break;
            written += m;
        }
    }
    int error = api.close(file);
    if (error || written != n || rename(temporary, path)) {
        unlink(temporary);
        return FAIL(ST_EIO, "%s: only %zu of %zu samples could be written (is the disk full?)", path, written, n);
    }
    return ST_OK;
}
