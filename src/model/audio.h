/* audio.h — sound files: mono samples in and out through libsndfile, resampled by libsamplerate.
 *
 * Both libraries are opened at run time (libsndfile.so.1, libsamplerate.so.0), so that the program starts on machines
 * without them; a call that needs a missing one is ST_EUNSUPPORTED and names the package. */
#ifndef QSWEEP_MODEL_AUDIO_H
#define QSWEEP_MODEL_AUDIO_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

/* Longest sound that is read: 190 s is what the codec's position table holds. */
enum { AUDIO_SECONDS_MAX = 600 };

/* Read any format libsndfile knows, average the channels, resample to `rate` (best sinc). *samples is malloc'ed. */
status_t audio_read(const char *path, int rate, float **samples, size_t *n);

/* Write a mono WAV: 16-bit PCM (×32767, rounded, clipped), or 32-bit float. Under a temporary name, then renamed;
 * an existing file is replaced. */
status_t audio_write(const char *path, const float *samples, size_t n, int rate, bool float32);

#endif
