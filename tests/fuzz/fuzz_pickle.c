/* Bytes as the data.pkl of an otherwise right archive with one storage of 256 bytes: the opcodes, the names and the checks
 * of shapes, strides and offsets, without the archive in the way. */
#include "../unit/zip_builder.h"
#include "checkpoint/torch_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const unsigned char storage[256];
    struct bytes               pickle = {(unsigned char *)data, size, size};
    struct bytes               b      = torch_build(&pickle, storage, sizeof storage);
    unsigned char             *exact  = malloc(b.size);
    struct torch_file         *f      = NULL;
    memcpy(exact, b.data, b.size);
    if (torch_file_parse(exact, b.size, "fuzz", &f) == ST_OK) {
        const struct tensor_set *set = torch_file_tensors(f);
        for (size_t i = 0; i < set->count; i++) {
            unsigned char *copy = malloc(set->items[i].bytes + 1);
            memcpy(copy, set->items[i].data, set->items[i].bytes);
            if (set->items[i].bytes > sizeof storage + b.size || !tensor_set_find(set, set->items[i].name))
                abort();
            free(copy);
        }
        torch_file_close(f);
    }
    free(exact);
    bytes_free(&b);
    return 0;
}
