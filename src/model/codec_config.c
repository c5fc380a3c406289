#include "model/codec_config.h"

#include <jansson.h>
#include <string.h>

int codec_config_hop(const struct codec_config *c)
{
    int hop = 1;
    for (int i = 0; i < CODEC_RATES; i++)
        hop *= c->rates[i];
    return hop << CODEC_DOWNSAMPLES;
}

void codec_config_published(struct codec_config *out)
{
    /* fishaudio/fish-speech, fish_speech/configs/modded_dac_vq.yaml (d3df505). */
    *out = (struct codec_config){.latent = 1024,
                                 .encoder_dim = 64,
                                 .decoder_dim = 1536,
                                 .residual_codebooks = 9,
                                 .layers = 8,
                                 .n_head = 16,
                                 .head_dim = 64,
                                 .intermediate = 3072,
                                 .window = 128,
                                 .encoder_window = 512,
                                 .rates = {8, 8, 4, 2},
                                 .sample_rate = 44100,
                                 .max_frames = 4096};
}

static status_t read_int(const json_t *root, const char *key, const char *label, int low, int high, int *out)
{
    const json_t *v = json_object_get(root, key);
    if (!v)
        return ST_OK;
    if (!json_is_integer(v) || json_integer_value(v) < low || json_integer_value(v) > high)
        return FAIL(ST_EINPUT, "%s: %s is not an integer in %d..%d", label, key, low, high);
    *out = (int)json_integer_value(v);
    return ST_OK;
}

static status_t read_rates(const json_t *root, const char *label, int *rates)
{
    const json_t *v = json_object_get(root, "rates");
    if (!v)
        return ST_OK;
    if (!json_is_array(v) || json_array_size(v) != CODEC_RATES)
        return FAIL(ST_EINPUT, "%s: rates is not an array of %d integers", label, CODEC_RATES);
    for (int i = 0; i < CODEC_RATES; i++) {
        const json_t *e = json_array_get(v, (size_t)i);
        if (!json_is_integer(e) || json_integer_value(e) < 1 || json_integer_value(e) > 16)
            return FAIL(ST_EINPUT, "%s: rates[%d] is not an integer in 1..16", label, i);
        rates[i] = (int)json_integer_value(e);
    }
    return ST_OK;
}

status_t codec_config_parse(const char *json, size_t size, const char *label, struct codec_config *inout)
{
    json_error_t error;
    json_t      *root = json_loadb(json, size, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return FAIL(ST_EINPUT, "%s:%d: not JSON: %s", label, error.line, error.text);
    status_t            st = ST_OK;
    struct codec_config c  = *inout;
    if (!json_is_object(root)) {
        st = FAIL(ST_EINPUT, "%s: not a JSON object", label);
        goto out;
    }
    TRY_OUT(read_int(root, "dim", label, 1, 1 << 15, &c.latent));
    TRY_OUT(read_int(root, "enc", label, 1, 1 << 12, &c.encoder_dim));
    TRY_OUT(read_int(root, "dec", label, 1 << CODEC_RATES, 1 << 15, &c.decoder_dim));
    TRY_OUT(read_int(root, "ncb", label, 0, 63, &c.residual_codebooks));
    TRY_OUT(read_int(root, "layers", label, 0, 256, &c.layers));
    TRY_OUT(read_int(root, "window", label, 1, 1 << 14, &c.window));
    TRY_OUT(read_int(root, "encoder_window", label, 1, 1 << 14, &c.encoder_window));
    TRY_OUT(read_int(root, "head_dim", label, 2, 1 << 10, &c.head_dim));
    TRY_OUT(read_int(root, "n_head", label, 1, 1 << 10, &c.n_head));
    TRY_OUT(read_int(root, "intermediate", label, 1, 1 << 16, &c.intermediate));
    TRY_OUT(read_int(root, "sample_rate", label, 1000, 384000, &c.sample_rate));
    TRY_OUT(read_rates(root, label, c.rates));
    if (c.decoder_dim % (1 << CODEC_RATES))
        TRY_OUT(FAIL(ST_EINPUT, "%s: dec = %d cannot be halved %d times", label, c.decoder_dim, CODEC_RATES));
    if (c.head_dim % 2)
        TRY_OUT(FAIL(ST_EINPUT, "%s: head_dim = %d is odd", label, c.head_dim));
    *inout = c;
out:
    json_decref(root);
    return st;
}
