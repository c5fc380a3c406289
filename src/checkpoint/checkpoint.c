#include "checkpoint/checkpoint.h"

#include "base/filemap.h"
#include "base/log.h"
#include "checkpoint/layout.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tokenizer.h"
#include "checkpoint/torch_file.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { MAX_CONFIG_BYTES = 1 << 20, MAX_INDEX_BYTES = 64 << 20, MAX_SHARDS = 1024 };

struct checkpoint_files {
    struct torch_file   *torch;
    struct safetensors **shards;
    size_t               n_shards;
    void               **fused; /* buffers of wq|wk|wv that were put together */
    size_t               n_fused;
};

static status_t join(const char *dir, const char *name, char *out, size_t size)
{
    int n = snprintf(out, size, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= size)
        return FAIL(ST_EINPUT, "%.80s…: the path is too long", dir);
    return ST_OK;
}

/* ---- identity of the files ---- */

/* Add one file's place and times to the identity; an absent file adds its absence. */
static void identify(XXH3_state_t *state, const char *path)
{
    struct stat info;
    bool        there = stat(path, &info) == 0;
    int64_t     facts[6] = {there};
    if (there) {
        facts[1] = (int64_t)info.st_size;
        facts[2] = (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec;
        facts[3] = (int64_t)info.st_ctim.tv_sec * 1000000000 + info.st_ctim.tv_nsec;
        facts[4] = (int64_t)info.st_ino;
        facts[5] = (int64_t)info.st_dev;
    }
    XXH3_128bits_update(state, facts, sizeof facts);
}

static void identify_small_files(XXH3_state_t *state, const char *dir)
{
    static const char *const names[] = {"config.json", "tokenizer.tiktoken", "special_tokens.json"};
    char                     path[4200];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        identify(state, path);
    }
}

static void identity_text(const XXH3_state_t *state, char out[33])
{
    XXH128_canonical_t digest;
    XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", digest.digest[i]);
}

/* ---- opening the weights ---- */

static status_t open_shard(struct checkpoint_files *f, const char *path)
{
    struct safetensors **shards = realloc(f->shards, (f->n_shards + 1) * sizeof *shards);
    if (!shards)
        return FAIL(ST_ENOMEM, "%s: no memory", path);
    f->shards = shards;
    TRY(safetensors_open(path, &f->shards[f->n_shards]));
    filemap_will_need(safetensors_map(f->shards[f->n_shards]));
    f->n_shards++;
    return ST_OK;
}

static status_t add_all(struct tensor_set *raw, const struct tensor_set *from)
{
    for (size_t i = 0; i < from->count; i++)
        TRY(tensor_set_add(raw, &from->items[i]));
    return ST_OK;
}

/* The tensors that the index names, each from the file it names. */
static status_t open_index(struct checkpoint *c, struct tensor_set *raw, XXH3_state_t *identity)
{
    struct filemap           map   = {0};
    struct safetensors_index index = {0};
    char                     path[4200];
    size_t                  *shard_of = NULL, *first = NULL, n_first = 0;
    status_t                 st       = ST_OK;
    TRY(filemap_open(c->weights_path, MAX_INDEX_BYTES, &map));
    TRY_OUT(safetensors_index_parse((const char *)map.data, map.size, c->weights_path, &index));

    shard_of = calloc(index.count, sizeof *shard_of); /* of each tensor                                   */
    first    = calloc(MAX_SHARDS, sizeof *first);     /* of each shard: the first tensor that names it    */
    if (!shard_of || !first) {
        st = FAIL(ST_ENOMEM, "%s: no memory", c->weights_path);
        goto out;
    }
    for (size_t i = 0; i < index.count; i++) {
        size_t k = 0;
        while (k < n_first && strcmp(index.files[first[k]], index.files[i]) != 0)
            k++;
        if (k == n_first) {
            if (n_first == MAX_SHARDS) {
                st = FAIL(ST_EINPUT, "%s: more than %d files", c->weights_path, MAX_SHARDS);
                goto out;
            }
            first[n_first++] = i;
            TRY_OUT(join(c->dir, index.files[i], path, sizeof path));
            identify(identity, path);
            TRY_OUT(open_shard(c->files, path));
        }
        shard_of[i] = k;
    }
    for (size_t i = 0; i < index.count; i++) {
        const struct tensor *t = tensor_set_find(safetensors_tensors(c->files->shards[shard_of[i]]), index.tensors[i]);
        if (!t) {
            st = FAIL(ST_EINPUT, "%s: tensor \"%s\" is not in %s", c->weights_path, index.tensors[i], index.files[i]);
            goto out;
        }
        TRY_OUT(tensor_set_add(raw, t));
    }
out:
    free(shard_of);
    free(first);
    safetensors_index_free(&index);
    filemap_close(&map);
    return st;
}

/* Find the weights and collect their tensors under the names they have in the file. */
static status_t open_weights(struct checkpoint *c, struct tensor_set *raw, char *first_key, size_t first_key_size,
                             XXH3_state_t *identity)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "model.pth"};
    size_t                   which   = 0;
    for (; which < 3; which++) {
        TRY(join(c->dir, names[which], c->weights_path, sizeof c->weights_path));
        if (access(c->weights_path, F_OK) == 0)
            break;
    }
    identify(identity, c->weights_path);
    first_key[0] = '\0';
    switch (which) {
    case 0:
        TRY(open_shard(c->files, c->weights_path));
        TRY(add_all(raw, safetensors_tensors(c->files->shards[0])));
        break;
    case 1:
        TRY(open_index(c, raw, identity));
        break;
    case 2:
        TRY(torch_file_open(c->weights_path, &c->files->torch));
        filemap_will_need(torch_file_map(c->files->torch));
        snprintf(first_key, first_key_size, "%s", torch_file_first_key(c->files->torch));
        return add_all(raw, torch_file_tensors(c->files->torch));
    default:
        return FAIL(ST_EINPUT, "%s: no weights: model.safetensors, model.safetensors.index.json or model.pth", c->dir);
    }
    if (raw->count)
        snprintf(first_key, first_key_size, "%s", raw->items[0].name);
    return ST_OK;
}

/* ---- names ---- */

static void remove_all(char *text, const char *what)
{
    size_t n = strlen(what);
    for (char *at = strstr(text, what); at; at = strstr(at, what))
        memmove(at, at + n, strlen(at + n) + 1);
}

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* The name in the model of a tensor called `raw` in the file, in out (which has room for raw and 8 bytes more); false
 * when the rules drop it. Source: fish-speech, llama.py, from_pretrained (d3df505; S2: 3dd1f85). */
static bool clean_name(const char *raw, bool strip_model, enum model_family family, char *out)
{
    if (family == FAMILY_S2 && starts_with(raw, "text_model.model.")) {
        strcpy(out, raw + strlen("text_model.model."));
        return true;
    }
    if (family == FAMILY_S2 && starts_with(raw, "audio_decoder.")) {
        const char *rest = raw + strlen("audio_decoder.");
        strcpy(out, starts_with(rest, "codebook_embeddings.") ? "" : "fast_");
        strcat(out, rest);
        return true;
    }
    strcpy(out, raw);
    if (strip_model)
        remove_all(out, "model.");
    return !strstr(out, "audio_");
}

static bool mentions_lora(const char *name)
{
    return strcasestr(name, "lora") != NULL;
}

static status_t clean_names(const struct checkpoint *c, const struct tensor_set *raw, const char *first_key,
                            struct tensor_set *out)
{
    char name[TENSOR_MAX_NAME + 16];
    bool strip_model = starts_with(first_key, "model.");
    for (size_t i = 0; i < raw->count; i++) {
        struct tensor t = raw->items[i];
        if (mentions_lora(t.name))
            return FAIL(ST_EINPUT, "%s: tensor \"%s\": a LoRA checkpoint is not a full model; merge it into its base",
                        c->weights_path, t.name);
        if (!clean_name(t.name, strip_model, c->config.family, name))
            continue;
        t.name = name;
        TRY(tensor_set_add(out, &t));
    }
    return tensor_set_sort(out, c->weights_path);
}

/* ---- wq | wk | wv → wqkv ---- */

static bool same_but_rows(const struct tensor *a, const struct tensor *b)
{
    return a->dtype == b->dtype && a->rank == b->rank && a->rank >= 1 && (a->rank < 2 || a->shape[1] == b->shape[1]) &&
           a->rank <= 2;
}

static status_t fuse(struct checkpoint *c, const struct tensor *parts[3], const char *name, struct tensor_set *out)
{
    struct checkpoint_files *f = c->files;
    struct tensor            t = *parts[0];
    t.name                     = name;
    for (int i = 1; i < 3; i++) {
        if (!same_but_rows(parts[0], parts[i]))
            return FAIL(ST_EINPUT, "%s: \"%s\" and \"%s\" differ in dtype or columns", c->weights_path, parts[0]->name,
                        parts[i]->name);
        if (__builtin_add_overflow(t.shape[0], parts[i]->shape[0], &t.shape[0]))
            return FAIL(ST_EINPUT, "%s: \"%s\" has too many rows", c->weights_path, parts[i]->name);
        t.bytes += parts[i]->bytes;
    }
    void **fused = realloc(f->fused, (f->n_fused + 1) * sizeof *fused);
    if (fused)
        f->fused = fused;
    unsigned char *buffer = malloc(t.bytes + 1);
    if (!fused || !buffer) {
        free(buffer);
        return FAIL(ST_ENOMEM, "%s: no memory for \"%s\" (%zu bytes)", c->weights_path, name, t.bytes);
    }
    f->fused[f->n_fused++] = buffer;
    t.data                 = buffer;
    for (int i = 0; i < 3; i++) {
        memcpy(buffer, parts[i]->data, parts[i]->bytes);
        buffer += parts[i]->bytes;
    }
    return tensor_set_add(out, &t);
}

/* Copy the set, with every wq, wk, wv (weight, bias, scales) replaced by their concatenation along the rows. */
static status_t fuse_qkv(struct checkpoint *c, const struct tensor_set *in, struct tensor_set *out)
{
    static const char *const letters = "qkv";
    char                     name[TENSOR_MAX_NAME + 16];
    for (size_t i = 0; i < in->count; i++) {
        const char *at = strstr(in->items[i].name, ".attention.w");
        if (!at || !strchr(letters, at[12]) || at[13] != '.') {
            TRY(tensor_set_add(out, &in->items[i]));
            continue;
        }
        const struct tensor *parts[3];
        size_t               letter = (size_t)(at + 12 - in->items[i].name);
        for (int k = 0; k < 3; k++) {
            strcpy(name, in->items[i].name);
            name[letter] = letters[k];
            parts[k]     = tensor_set_find(in, name);
            if (!parts[k])
                return FAIL(ST_EINPUT, "%s: \"%s\" is there, but \"%s\" is missing", c->weights_path, in->items[i].name,
                            name);
        }
        if (parts[0] != &in->items[i])
            continue; /* once for the three */
        snprintf(name, sizeof name, "%.*sqkv%s", (int)letter, parts[0]->name, parts[0]->name + letter + 1);
        TRY(fuse(c, parts, name, out));
    }
    return tensor_set_sort(out, c->weights_path);
}

/* ---- what the model needs ---- */

static bool shape_is(const struct tensor *t, int rank, const int64_t *shape)
{
    return t->rank == rank && memcmp(t->shape, shape, (size_t)rank * sizeof *shape) == 0;
}

static status_t refuse_shape(const struct checkpoint *c, const struct tensor *t, int rank, const int64_t *shape)
{
    struct tensor want = {.rank = rank};
    char          has_text[256], want_text[256];
    memcpy(want.shape, shape, (size_t)rank * sizeof *shape);
    tensor_shape_text(t, has_text, sizeof has_text);
    tensor_shape_text(&want, want_text, sizeof want_text);
    return FAIL(ST_EINPUT, "%s: tensor \"%s\" has the shape %s, config.json asks for %s", c->weights_path, t->name,
                has_text, want_text);
}

static bool is_float(enum dtype dtype)
{
    return dtype == DT_F32 || dtype == DT_BF16 || dtype == DT_F16;
}

/* The scales of INT8 weight t, one per row; added to *out. */
static status_t take_scales(const struct checkpoint *c, const struct tensor_set *from, const struct tensor *t,
                            struct tensor_set *out)
{
    char   name[TENSOR_MAX_NAME + 16];
    size_t stem = strlen(t->name) - strlen("weight");
    snprintf(name, sizeof name, "%.*sscales", (int)stem, t->name);
    const struct tensor *scales = tensor_set_find(from, name);
    if (!scales)
        return FAIL(ST_EINPUT, "%s: \"%s\" is INT8, but \"%s\" is missing", c->weights_path, t->name, name);
    if (!shape_is(scales, 1, t->shape))
        return refuse_shape(c, scales, 1, t->shape);
    bool wide = scales->dtype == DT_F32, narrow = scales->dtype == DT_BF16;
    if (!wide && (!narrow || c->config.quantization.recipe == RECIPE_TORCHAO_V2))
        return FAIL(ST_EINPUT, "%s: \"%s\" has the dtype %s, want %s", c->weights_path, name, dtype_name(scales->dtype),
                    c->config.quantization.recipe == RECIPE_TORCHAO_V2 ? "F32" : "BF16 or F32");
    return tensor_set_add(out, scales);
}

static status_t take_entry(const struct checkpoint *c, const struct tensor_set *from, const struct layout_entry *e,
                           size_t *n_int8, struct tensor_set *out)
{
    const struct tensor *t = tensor_set_find(from, e->name);
    if (!shape_is(t, e->rank, e->shape))
        return refuse_shape(c, t, e->rank, e->shape);
    if (e->kind == LAYOUT_LINEAR && t->dtype == DT_I8) {
        TRY(take_scales(c, from, t, out));
        ++*n_int8;
    } else if (!is_float(t->dtype)) {
        return FAIL(ST_EINPUT, "%s: tensor \"%s\" has the dtype %s, want BF16, F32 or F16%s", c->weights_path, t->name,
                    dtype_name(t->dtype), e->kind == LAYOUT_LINEAR ? " (or I8 with scales)" : "");
    }
    return tensor_set_add(out, t);
}

static status_t check_presence(const struct checkpoint *c, const struct layout *layout, const struct tensor_set *from)
{
    size_t      missing = 0;
    const char *first   = NULL;
    for (size_t i = 0; i < layout->count; i++)
        if (!tensor_set_find(from, layout->entries[i].name) && missing++ == 0)
            first = layout->entries[i].name;
    if (missing == 1)
        return FAIL(ST_EINPUT, "%s: tensor \"%s\" is missing", c->weights_path, first);
    if (missing)
        return FAIL(ST_EINPUT, "%s: tensor \"%s\" and %zu more of %zu are missing", c->weights_path, first, missing - 1,
                    layout->count);
    return ST_OK;
}

/* Either every linear weight is INT8 or none is, and config.json agrees where it says anything. A file of INT8 weights
 * without a word in config.json is the legacy form. */
static status_t settle_recipe(struct checkpoint *c, size_t n_int8, size_t n_linear)
{
    struct quantization *q = &c->config.quantization;
    if (n_int8 != 0 && n_int8 != n_linear)
        return FAIL(ST_EINPUT, "%s: %zu of %zu linear weights are INT8; all or none must be", c->weights_path, n_int8,
                    n_linear);
    if (q->recipe != RECIPE_NONE && n_int8 == 0)
        return FAIL(ST_EINPUT, "%s: config.json says %s %s, but the weights are not INT8", c->weights_path, q->mode,
                    recipe_name(q->recipe));
    if (q->recipe == RECIPE_NONE && n_int8 != 0) {
        q->recipe = RECIPE_LEGACY;
        strcpy(q->mode, "int8");
    }
    return ST_OK;
}

static void warn_extra(const struct checkpoint *c, const struct tensor_set *from)
{
    char   list[256] = "";
    size_t extra     = 0, at = 0;
    for (size_t i = 0; i < from->count; i++) {
        if (tensor_set_find(&c->tensors, from->items[i].name))
            continue;
        if (extra++ < 3 && at < sizeof list)
            at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", at ? ", " : "", from->items[i].name);
    }
    if (extra)
        log_warn("%s: %zu tensors are not part of the model and are ignored: %s%s", c->weights_path, extra, list,
                 extra > 3 ? ", …" : "");
}

static status_t take_model(struct checkpoint *c, const struct tensor_set *from)
{
    struct layout layout = {0};
    size_t        n_int8 = 0, n_linear = 0;
    status_t      st     = ST_OK;
    TRY(layout_build(&c->config, &layout));
    TRY_OUT(check_presence(c, &layout, from));
    for (size_t i = 0; i < layout.count; i++) {
        n_linear += layout.entries[i].kind == LAYOUT_LINEAR;
        TRY_OUT(take_entry(c, from, &layout.entries[i], &n_int8, &c->tensors));
    }
    TRY_OUT(settle_recipe(c, n_int8, n_linear));
    TRY_OUT(tensor_set_sort(&c->tensors, c->weights_path));
    for (size_t i = 0; i < c->tensors.count; i++)
        c->weight_bytes += c->tensors.items[i].bytes;
    warn_extra(c, from);
out:
    layout_free(&layout);
    return st;
}

/* ---- token ids of S1 ---- */

static status_t find_tokens(struct checkpoint *c)
{
    struct tokenizer    *tokenizer = NULL;
    struct model_config *config    = &c->config;
    status_t             st        = ST_OK;
    char                 token[40];
    TRY(tokenizer_open(c->dir, &tokenizer));
    int32_t size = tokenizer_size(tokenizer), begin = tokenizer_special(tokenizer, "<|semantic:0|>"), end = begin;
    int32_t im_end = tokenizer_special(tokenizer, "<|im_end|>");
    if (size > config->vocab_size) {
        st = FAIL(ST_EINPUT, "%s: the tokenizer has %d tokens, vocab_size in config.json is %d", c->dir, (int)size,
                  config->vocab_size);
        goto out;
    }
    if (begin < 0 || im_end < 0) {
        st = FAIL(ST_EINPUT, "%s: the tokenizer has no %s", c->dir, begin < 0 ? "<|semantic:0|>" : "<|im_end|>");
        goto out;
    }
    for (;;) {
        snprintf(token, sizeof token, "<|semantic:%d|>", (int)(end + 1 - begin));
        if (tokenizer_special(tokenizer, token) != end + 1)
            break;
        end++;
    }
    config->semantic_begin_id = begin;
    config->semantic_end_id   = end;
    config->im_end_id         = im_end;
out:
    tokenizer_close(tokenizer);
    return st;
}

/* ---- the whole ---- */

static status_t read_config(struct checkpoint *c)
{
    struct filemap map = {0};
    char           path[4200];
    TRY(join(c->dir, "config.json", path, sizeof path));
    TRY(filemap_open(path, MAX_CONFIG_BYTES, &map));
    status_t st = config_parse((const char *)map.data, map.size, path, &c->config);
    filemap_close(&map);
    return st;
}

static status_t load(struct checkpoint *c, XXH3_state_t *identity)
{
    struct tensor_set raw = {0}, clean = {0}, fused = {0};
    char              first_key[TENSOR_MAX_NAME + 1];
    status_t          st = ST_OK;
    identify_small_files(identity, c->dir);
    TRY_OUT(read_config(c));
    TRY_OUT(open_weights(c, &raw, first_key, sizeof first_key, identity));
    identity_text(identity, c->identity);
    TRY_OUT(clean_names(c, &raw, first_key, &clean));
    TRY_OUT(fuse_qkv(c, &clean, &fused));
    TRY_OUT(take_model(c, &fused));
    if (c->config.family == FAMILY_S1)
        TRY_OUT(find_tokens(c));
out:
    tensor_set_free(&raw);
    tensor_set_free(&clean);
    tensor_set_free(&fused);
    return st;
}

status_t checkpoint_open(const char *dir, struct checkpoint **out)
{
    struct stat info;
    if (strlen(dir) >= sizeof((struct checkpoint *)0)->dir)
        return FAIL(ST_EINPUT, "%.80s…: the path is too long", dir);
    if (stat(dir, &info) != 0 || !S_ISDIR(info.st_mode))
        return FAIL(ST_EINPUT, "%s: no such checkpoint folder", dir);

    struct checkpoint *c        = calloc(1, sizeof *c);
    XXH3_state_t      *identity = XXH3_createState();
    status_t           st       = ST_OK;
    if (c)
        c->files = calloc(1, sizeof *c->files);
    if (!c || !c->files || !identity) {
        st = FAIL(ST_ENOMEM, "%s: no memory", dir);
        goto out;
    }
    XXH3_128bits_reset(identity);
    strcpy(c->dir, dir);
    TRY_OUT(load(c, identity));
    *out = c;
    c    = NULL;
out:
    XXH3_freeState(identity);
    checkpoint_close(c);
    return st;
}

void checkpoint_close(struct checkpoint *c)
{
    if (!c)
        return;
    struct checkpoint_files *f = c->files;
    for (size_t i = 0; f && i < f->n_shards; i++)
        safetensors_close(f->shards[i]);
    for (size_t i = 0; f && i < f->n_fused; i++)
        free(f->fused[i]);
    if (f) {
        torch_file_close(f->torch);
        free(f->shards);
        free(f->fused);
    }
    free(f);
    tensor_set_free(&c->tensors);
    free(c);
}
