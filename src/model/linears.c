/* Which tensors of a dual-AR model are Linear weights: quantize_applies() of quantize.h. */
#include "model/quantize.h"

#include <stdlib.h>
#include <string.h>

static bool is_one_of(const char *name, const char *const *names)
{
    while (*names && strcmp(name, *names))
        names++;
    return *names != NULL;
}

/* "<prefix>.<layer>.<part>" with a layer below n_layer and the part a Linear of a block. */
static bool is_block_linear(const char *name, const char *prefix, int n_layer)
{
    static const char *const parts[] = {"attention.wqkv.weight",  "attention.wo.weight",    "feed_forward.w1.weight",
                                        "feed_forward.w2.weight", "feed_forward.w3.weight", NULL};
    size_t length = strlen(prefix);
    if (strncmp(name, prefix, length) || name[length] != '.' || name[length + 1] < '0' || name[length + 1] > '9')
        return false;
    char *end;
    long  layer = strtol(name + length + 1, &end, 10);
    return layer < n_layer && *end == '.' && is_one_of(end + 1, parts);
}

bool quantize_applies(const struct model_config *config, const char *tensor_name)
{
    /* With tied embeddings the head is a product with the embedding table, not a Linear, and stays as it is. */
    if (strcmp(tensor_name, "output.weight") == 0)
        return !config->tie_word_embeddings;
    static const char *const singles[] = {"fast_output.weight", "fast_project_in.weight", NULL};
    return is_one_of(tensor_name, singles) || is_block_linear(tensor_name, "layers", config->slow.n_layer) ||
           is_block_linear(tensor_name, "fast_layers", config->fast.n_layer);
}
