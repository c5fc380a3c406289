/* codec.h — the modified DAC codec: codes to 44.1 kHz samples and back (codec.md), streamed in chunks.
 *
 * Everything in the codec is causal, so a chunk needs only the state the one before it left: the last inputs of every
 * convolution and the last window of keys and values. One shot is the same path over chunks; the samples do not depend
 * on the chunking. Memory: weights plus buffers for one chunk, whatever the length of the utterance. */
#ifndef QSWEEP_MODEL_CODEC_H
#define QSWEEP_MODEL_CODEC_H

#include "backend/backend.h"
#include "model/codec_config.h"
#include "model/prompt.h"

struct codec;

struct codec_options {
    enum codec_mode mode;         /* CODEC_FP32, CODEC_BF16, CODEC_INT8 (linear layers INT8, the rest BF16)          */
    bool            decoder, encoder; /* which paths to load; the other's tensors are never read                     */
    int             chunk_frames; /* most code frames of one pass, 0 = 16: the buffers' size                         */
};

/* path: a folder with codec.pth (and codec.json), or the file itself. The backend must offer codec ops and outlive it. */
status_t codec_open(struct backend *be, const char *path, const struct codec_options *options, struct codec **out);
void     codec_close(struct codec *c); /* NULL is accepted */

const struct codec_config *codec_config_of(const struct codec *c);
size_t codec_weight_bytes(const struct codec *c); /* as this mode stores them */
int    codec_codebooks(const struct codec *c);    /* 1 + residual            */
int    codec_hop(const struct codec *c);          /* samples per frame, 2048 */

/* Forget the state: the next frames are an utterance's first. */
status_t codec_decode_begin(struct codec *c);
/* n ≤ chunk_frames more frames: codes [codebooks][stride], columns 0…n−1 → wav [n·hop] in (−1, 1). Codes above a
 * codebook's size are clamped as in the original, negative ones are ST_EINPUT; so is a frame beyond max_frames. */
status_t codec_decode_push(struct codec *c, const int32_t *codes, size_t stride, int n, float *wav);
/* A whole utterance, codes [codebooks][frames] → wav [frames·hop]. */
status_t codec_decode(struct codec *c, const struct codes *codes, float *wav);

/* The latent after the quantizer and the upsampling [4·n][latent] of the last push; for tests. */
status_t codec_latent(struct codec *c, float *latent);

/* Samples at the codec's rate [n] (zero-padded to whole frames) → codes [codebooks][ceil(n/hop)], out->values malloc'ed. */
status_t codec_encode(struct codec *c, const float *wav, size_t n, struct codes *out);

#endif
