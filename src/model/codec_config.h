/* codec_config.h — shape of a modified-DAC codec: the published model's values, or those of a codec.json beside it. */
#ifndef QSWEEP_MODEL_CODEC_CONFIG_H
#define QSWEEP_MODEL_CODEC_CONFIG_H

#include "base/status.h"

#include <stddef.h>

enum { CODEC_RATES = 4, CODEC_DOWNSAMPLES = 2 };

struct codec_config {
    int latent;              /* width of the quantizer's latent, 1024                        */
    int encoder_dim;         /* channels after the encoder's first convolution, 64           */
    int decoder_dim;         /* channels after the decoder's first convolution, 1536         */
    int residual_codebooks;  /* 9; the semantic one comes in addition                        */
    int layers, n_head, head_dim, intermediate, window; /* pre and post transformers         */
    int encoder_window;      /* window of the transformer at the encoder's end, 512          */
    int rates[CODEC_RATES];  /* decoder strides, 8 8 4 2; the encoder's are these reversed   */
    int sample_rate;         /* 44100                                                        */
    int max_frames;          /* length of the RoPE table at 21.53 Hz, 4096                   */
};

/* Samples one code frame stands for: the product of the rates times the two halvings; 2048. */
int codec_config_hop(const struct codec_config *c);

void     codec_config_published(struct codec_config *out);
/* Overwrite what codec.json names (dim, enc, dec, ncb, layers, window, head_dim, n_head, intermediate, rates,
 * sample_rate; other keys are informative). */
status_t codec_config_parse(const char *json, size_t size, const char *label, struct codec_config *inout);

#endif
