#include "model/footprint.h"

#include "base/file.h"
#include "checkpoint/layout.h"
#include "checkpoint/torch_file.h"
#include "model/stack.h"

#include <stdio.h>
#include <string.h>

static size_t matrix_bytes(const struct layout_entry *e, enum precision precision)
{
    size_t n = (size_t)layout_elements(e);
    if (precision == PRECISION_FP32)
        return 4 * n;
    return precision == PRECISION_INT8 && e->kind == LAYOUT_LINEAR ? n : 2 * n;
}

struct footprint footprint_of(const struct model_config *config, enum precision precision, enum recipe recipe,
                              enum kv_format kv, int max_seq_len)
{
    struct footprint f     = {0};
    struct layout    l     = {0};
    size_t           scale = recipe == RECIPE_TORCHAO_V2 ? 4 : 2;
    if (layout_build(config, &l) != ST_OK)
        return f;
    for (size_t i = 0; i < l.count; i++) {
        const struct layout_entry *e = &l.entries[i];
        if (e->kind == LAYOUT_NORM || e->kind == LAYOUT_BIAS)
            f.weights += 4 * (size_t)layout_elements(e);
        else
            f.weights += matrix_bytes(e, precision);
        if (e->kind == LAYOUT_LINEAR && precision == PRECISION_INT8)
            f.scales += scale * (size_t)e->shape[0];
    }
    layout_free(&l);
    f.kv = stack_kv_bytes(&config->slow, kv) * (size_t)max_seq_len +
           stack_kv_bytes(&config->fast, kv) * (size_t)config->num_codebooks;
    return f;
}

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* True for what decoding reads. The file's names may carry a prefix up to "generator.". */
static bool is_decode_path(const struct tensor *t)
{
    const char *generator = strstr(t->name, "generator."), *name = generator ? generator + 10 : t->name;
    if (t->dtype == DT_BOOL || strstr(name, "freqs_cis") || strstr(name, ".in_proj."))
        return false;
    return starts_with(name, "decoder.") || starts_with(name, "quantizer.upsample.") ||
           starts_with(name, "quantizer.post_module.") || starts_with(name, "quantizer.semantic_quantizer.") ||
           starts_with(name, "quantizer.quantizer.");
}

status_t footprint_codec_parameters(const char *dir, long long *out)
{
    char               path[4400];
    struct torch_file *f = NULL;
    long long          n = 0;
    snprintf(path, sizeof path, "%s/codec.pth", dir);
    *out = 0;
    if (!file_exists(path))
        return ST_OK;
    TRY(torch_file_open(path, &f));
    const struct tensor_set *set = torch_file_tensors(f);
    for (size_t i = 0; i < set->count; i++)
        if (is_decode_path(&set->items[i]))
            n += tensor_elements(&set->items[i]);
    torch_file_close(f);
    *out = n;
    return ST_OK;
}

const struct card cards[] = {
    {"8 GB (RTX 4060, RTX 3070)", 8188},       {"12 GB (RTX 3060, RTX 4070)", 12282},
    {"16 GB (T4)", 15360},                     {"24 GB (L4, A10)", 23028},
    {"24 GB (RTX 3090, RTX 4090)", 24564},     {"32 GB (RTX 5090)", 32607},
    {"40 GB (A100)", 40960},                   {"48 GB (L40S, RTX A6000)", 46068},
    {"80 GB (A100, H100)", 81559},             {"141 GB (H200)", 143771},
    {NULL, 0},
};

long footprint_batch(const struct footprint *f, size_t codec_bytes, const struct card *card)
{
    unsigned long long memory = (unsigned long long)card->mib << 20;
    unsigned long long fixed  = f->weights + f->scales + codec_bytes + FOOTPRINT_CONTEXT_BYTES;
    return memory > fixed && f->kv ? (long)((memory - fixed) / f->kv) : 0;
}
