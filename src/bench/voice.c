#include "bench/voice.h"

#include "model/sampler.h"

#include <stdlib.h>
#include <string.h>

/* A sequence number that no request uses (requests count up from 0), so that the voice shares no noise with them. */
static const uint32_t VOICE_SEQUENCE = 0xFFFFFFFFu;

status_t voice_make(const struct model_config *config, int frames, uint64_t seed, struct voice *out)
{
    size_t   n = (size_t)frames * (size_t)config->num_codebooks;
    int32_t *values = malloc(n * sizeof *values + 1);
    if (!values)
        return FAIL(ST_ENOMEM, "no memory for a reference voice of %d frames", frames);
    for (int c = 0; c < config->num_codebooks; c++)
        for (int t = 0; t < frames; t++) {
            uint32_t         word[4];
            struct noise_key key = {.sequence = VOICE_SEQUENCE, .frame = (uint32_t)t, .codebook = (uint32_t)c};
            noise_block(seed, key, 0, word);
            values[(size_t)c * (size_t)frames + (size_t)t] =
                (int32_t)(((uint64_t)word[0] * (uint64_t)config->codebook_size) >> 32);
        }
    *out = (struct voice){
        .text = "This is the reference voice of the benchmark.",
        .codes = {.codebooks = config->num_codebooks, .frames = frames, .values = values},
    };
    return ST_OK;
}

void voice_free(struct voice *v)
{
    free(v->codes.values);
    memset(v, 0, sizeof *v);
}
