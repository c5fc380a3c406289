/* Bytes as a safetensors file and as the index of a sharded one. Accepted tensors must tile the buffer. */
#include "checkpoint/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors      *s     = NULL;
    struct safetensors_index index = {0};
    if (safetensors_parse(data, size, "fuzz", &s) == ST_OK) {
        const struct tensor_set *set = safetensors_tensors(s);
        size_t                   sum = 0;
        for (size_t i = 0; i < set->count; i++) {
            const char *begin = set->items[i].data;
            if (begin < (const char *)data || begin + set->items[i].bytes > (const char *)data + size)
                abort();
            sum += set->items[i].bytes;
        }
        uint64_t header = 0;
        for (int i = 7; i >= 0; i--)
            header = header << 8 | data[i];
        if (sum + header + 8 != size)
            abort();
        safetensors_close(s);
    }
    if (safetensors_index_parse((const char *)data, size, "fuzz", &index) == ST_OK) {
        for (size_t i = 0; i < index.count; i++)
            if (strchr(index.files[i], '/') || index.files[i][0] == '.')
                abort();
        safetensors_index_free(&index);
    }
    return 0;
}
