/* Bytes as a torch.save archive. What is accepted must be readable to its last byte. */
#include "checkpoint/torch_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct torch_file *f = NULL;
    if (torch_file_parse(data, size, "fuzz", &f) != ST_OK)
        return 0;
    const struct tensor_set *set = torch_file_tensors(f);
    unsigned                 sum = 0;
    for (size_t i = 0; i < set->count; i++) {
        const unsigned char *bytes = set->items[i].data;
        size_t               n     = set->items[i].bytes;
        for (size_t k = 0; k < n; k += 1 + n / 64)
            sum += bytes[k] + bytes[n - 1 - k];
    }
    *(volatile unsigned *)&sum = sum;
    torch_file_close(f);
    return 0;
}
