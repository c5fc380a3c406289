/* Bytes as config.json. What is accepted must have a layout whose elements add up to its parameters. */
#include "checkpoint/config.h"
#include "checkpoint/layout.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config config;
    struct layout       layout;
    char                text[1024];
    long long           sum = 0;
    if (config_parse((const char *)data, size, "fuzz", &config) != ST_OK)
        return 0;
    config_canonical(&config, text, sizeof text);
    if (layout_build(&config, &layout) != ST_OK)
        abort();
    for (size_t i = 0; i < layout.count; i++)
        if (__builtin_add_overflow(sum, layout_elements(&layout.entries[i]), &sum))
            abort();
    if (sum != config_parameters(&config) || sum <= 0 || config.semantic_end_id >= config.vocab_size)
        abort();
    layout_free(&layout);
    return 0;
}
