/* Bytes as a file of codes and as a ready prompt; what is accepted must be inside its bounds. */
#include "model/prompt.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct codes        codes  = {0};
    struct prompt       prompt = {0};
    struct model_config config = {.vocab_size = 300, .codebook_size = 128, .num_codebooks = 2, .max_seq_len = 64};
    if (codes_parse(data, size, "fuzz", 128, 20, &codes) == ST_OK)
        for (int i = 0; i < codes.codebooks * codes.frames; i++)
            if (codes.values[i] < 0 || codes.values[i] >= 128)
                abort();
    if (prompt_ids_parse(data, size, "fuzz", &config, &prompt) == ST_OK) {
        if (prompt.rows != 3 || prompt.columns < 1 || prompt.columns >= 64)
            abort();
        for (int i = 0; i < prompt.rows * prompt.columns; i++)
            if (prompt.values[i] < 0 || prompt.values[i] >= (i < prompt.columns ? 300 : 128))
                abort();
    }
    codes_free(&codes);
    prompt_free(&prompt);
    return 0;
}
