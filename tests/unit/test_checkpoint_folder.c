/* Checkpoint folders: the original's key rules, every way a folder can be wrong, and identity. The tensors are those of
 * tests/golden/dualar-a, written anew under other names, dtypes and containers. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/layout.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_file.h"
#include "checkpoint/torch_writer.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GOLDEN "tests/golden/dualar-a"

static char               folder[64];
static struct torch_file *golden;

/* A list of tensors that a test changes before it is written. Names are owned. */
struct list {
    struct tensor *items;
    size_t         n;
};

static struct list golden_list(void)
{
    const struct tensor_set *set = torch_file_tensors(golden);
    struct list              l   = {calloc(set->count + 64, sizeof(struct tensor)), set->count};
    for (size_t i = 0; i < l.n; i++) {
        l.items[i]      = set->items[i];
        l.items[i].name = strdup(set->items[i].name);
    }
    return l;
}

static struct tensor *find(struct list *l, const char *name)
{
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->items[i].name, name) == 0)
            return &l->items[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static void rename_tensor(struct tensor *t, const char *name)
{
    free((void *)t->name);
    t->name = strdup(name);
}

static void add(struct list *l, const char *name, struct tensor like)
{
    like.name       = strdup(name);
    l->items[l->n++] = like;
}

static void drop(struct list *l, const char *name)
{
    struct tensor *t = find(l, name);
    free((void *)t->name);
    *t = l->items[--l->n];
}

static void free_list(struct list *l)
{
    for (size_t i = 0; i < l->n; i++)
        free((void *)l->items[i].name);
    free(l->items);
}

/* ---- the folder ---- */

static void in_folder(const char *name, char out[256])
{
    snprintf(out, 256, "%s/%s", folder, name);
}

static void write_file(const char *name, const char *text, size_t n)
{
    char path[256];
    in_folder(name, path);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

static void copy_golden(const char *name)
{
    char   path[256], *bytes;
    size_t size;
    snprintf(path, sizeof path, GOLDEN "/%s", name);
    assert_int_equal(file_read(path, 1 << 20, &bytes, &size), ST_OK);
    write_file(name, bytes, size);
    free(bytes);
}

static void write_config(const char *from, const char *to)
{
    char   *bytes, *at, text[4096];
    size_t  size;
    assert_int_equal(file_read(GOLDEN "/config.json", 1 << 20, &bytes, &size), ST_OK);
    at = strstr(bytes, from);
    assert_non_null(at);
    int n = snprintf(text, sizeof text, "%.*s%s%s", (int)(at - bytes), bytes, to, at + strlen(from));
    write_file("config.json", text, (size_t)n);
    free(bytes);
}

static int open_folder(void **state)
{
    strcpy(folder, "/tmp/test_checkpoint.XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    copy_golden("config.json");
    copy_golden("tokenizer.tiktoken");
    copy_golden("special_tokens.json");
    return torch_file_open(GOLDEN "/model.pth", &golden);
}

static int close_folder(void **state)
{
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    torch_file_close(golden);
    return rmdir(folder);
}

static void write_torch(const struct list *l)
{
    char                 path[256];
    struct torch_writer *w = NULL;
    in_folder("model.pth", path);
    unlink(path);
    assert_int_equal(torch_writer_begin(path, "archive", l->items, l->n, &w), ST_OK);
    for (size_t i = 0; i < l->n; i++)
        assert_int_equal(torch_writer_data(w, l->items[i].data, l->items[i].bytes), ST_OK);
    assert_int_equal(torch_writer_end(w), ST_OK);
}

static void write_safetensors(const char *name, const struct tensor *items, size_t n)
{
    char                       path[256];
    struct safetensors_writer *w = NULL;
    in_folder(name, path);
    unlink(path);
    assert_int_equal(safetensors_writer_begin(path, items, n, NULL, &w), ST_OK);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(safetensors_writer_data(w, items[i].data, items[i].bytes), ST_OK);
    assert_int_equal(safetensors_writer_end(w), ST_OK);
}

static struct checkpoint *accept(void)
{
    struct checkpoint *c = NULL;
    if (checkpoint_open(folder, &c) != ST_OK)
        fail_msg("refused: %s", status_last());
    return c;
}

static void refuse(const char *reason)
{
    struct checkpoint *c  = NULL;
    status_t           st = checkpoint_open(folder, &c);
    if (st != ST_EINPUT && st != ST_EIO)
        fail_msg("want a refusal for \"%s\", got status %d", reason, st);
    if (!strstr(status_last(), reason) || !strstr(status_last(), folder))
        fail_msg("want the folder and the reason \"%s\", got \"%s\"", reason, status_last());
}

static void assert_same_model(const struct checkpoint *c)
{
    const struct tensor_set *want = torch_file_tensors(golden);
    assert_int_equal(c->tensors.count, want->count);
    for (size_t i = 0; i < want->count; i++) {
        assert_string_equal(c->tensors.items[i].name, want->items[i].name);
        assert_int_equal(c->tensors.items[i].bytes, want->items[i].bytes);
        assert_memory_equal(c->tensors.items[i].data, want->items[i].data, want->items[i].bytes);
    }
}

static void fingerprint(const struct checkpoint *c, char out[33])
{
    assert_int_equal(checkpoint_fingerprint(c, out), ST_OK);
    assert_int_equal(strspn(out, "0123456789abcdef"), 32);
}

/* ---- the rules of the original's loader ---- */

static void a_model_prefix_is_removed_when_the_first_key_has_it(void **state)
{
    struct list l = golden_list();
    for (size_t i = 0; i < l.n; i++) {
        char name[256];
        snprintf(name, sizeof name, "model.%s", l.items[i].name);
        rename_tensor(&l.items[i], name);
    }
    write_torch(&l);
    struct checkpoint *c = accept();
    assert_same_model(c);
    checkpoint_close(c);

    /* Only the first key decides: with another one in front, the names stay as they are and nothing is found. */
    rename_tensor(&l.items[0], "unrelated");
    write_torch(&l);
    refuse("missing");
    free_list(&l);
}

static void audio_tensors_are_dropped_silently_and_others_are_ignored(void **state)
{
    struct list l = golden_list();
    add(&l, "audio_projector.weight", *find(&l, "norm.weight"));
    add(&l, "something.else", *find(&l, "norm.weight"));
    write_torch(&l);
    struct checkpoint *c = accept();
    assert_same_model(c);
    checkpoint_close(c);
    free_list(&l);
}

static void split_query_key_value_weights_are_joined_in_this_order(void **state)
{
    struct list l = golden_list();
    for (int i = 0; i < 3; i++) {
        static const int64_t rows[3] = {128, 64, 64}; /* 4 heads, 2 and 2 of 32 */
        char                 name[64];
        snprintf(name, sizeof name, "layers.%d.attention.wqkv.weight", i);
        struct tensor whole = *find(&l, name), part = whole;
        drop(&l, name);
        for (int k = 2; k >= 0; k--) { /* the order in the file does not matter */
            part.shape[0] = rows[k];
            part.bytes    = (size_t)rows[k] * 64 * 2;
            part.data     = (const char *)whole.data + (k == 0 ? 0 : k == 1 ? 128 : 192) * 64 * 2;
            snprintf(name, sizeof name, "layers.%d.attention.w%c.weight", i, "qkv"[k]);
            add(&l, name, part);
        }
    }
    write_torch(&l);
    struct checkpoint *c = accept();
    assert_same_model(c);
    checkpoint_close(c);

    drop(&l, "layers.1.attention.wk.weight");
    write_torch(&l);
    refuse("\"layers.1.attention.wk.weight\" is missing");
    free_list(&l);
}

static void the_same_model_in_any_container_has_the_same_fingerprint(void **state)
{
    char        a[33], b[33], d[33], path[256];
    struct list l = golden_list();
    write_torch(&l);
    struct checkpoint *c = accept();
    fingerprint(c, a);
    checkpoint_close(c);
    c = accept();
    fingerprint(c, b); /* from the cache */
    checkpoint_close(c);
    assert_string_equal(a, b);
    in_folder(".qsweep-fingerprint", path);
    assert_int_equal(access(path, F_OK), 0);

    in_folder("model.pth", path);
    unlink(path);
    write_safetensors("model.safetensors", l.items, l.n);
    c = accept();
    assert_same_model(c);
    fingerprint(c, b);
    checkpoint_close(c);
    assert_string_equal(a, b);

    /* One bit of one weight: the cache must notice that the file is another. */
    unsigned char  changed[128];
    struct tensor *t = find(&l, "norm.weight");
    memcpy(changed, t->data, 128);
    changed[17] ^= 1;
    t->data = changed;
    write_safetensors("model.safetensors", l.items, l.n);
    c = accept();
    fingerprint(c, d);
    checkpoint_close(c);
    assert_string_not_equal(a, d);

    /* A cache that says nonsense is not believed. */
    write_file(".qsweep-fingerprint", "qsweep-fingerprint 1 zzz zzz\n", 29);
    c = accept();
    fingerprint(c, b);
    checkpoint_close(c);
    assert_string_equal(b, d);
    free_list(&l);
}

/* ---- what is refused ---- */

static void missing_and_misshapen_tensors_are_named(void **state)
{
    struct list l = golden_list();
    drop(&l, "fast_layers.1.feed_forward.w3.weight");
    write_torch(&l);
    refuse("tensor \"fast_layers.1.feed_forward.w3.weight\" is missing");
    drop(&l, "norm.weight");
    write_torch(&l);
    refuse("and 1 more of 48 are missing");
    free_list(&l);

    l                = golden_list();
    struct tensor *t = find(&l, "layers.2.attention.wo.weight");
    t->shape[0]      = 128;
    t->shape[1]      = 64;
    write_torch(&l);
    refuse("\"layers.2.attention.wo.weight\" has the shape [128, 64], config.json asks for [64, 128]");
    free_list(&l);

    l = golden_list();
    t = find(&l, "output.weight");
    t->rank = 1;
    t->shape[0] *= 64;
    write_torch(&l);
    refuse("has the shape [292288]");
    free_list(&l);

    l = golden_list();
    write_torch(&l);
    write_config("\"n_layer\": 3", "\"n_layer\": 4");
    refuse("\"layers.3.attention.wqkv.weight\" and 8 more of 57 are missing");
    write_config("\"intermediate_size\": 128", "\"intermediate_size\": 130");
    refuse("asks for");
    free_list(&l);
}

static void wrong_dtypes_are_refused(void **state)
{
    struct list    l = golden_list();
    struct tensor *t = find(&l, "norm.weight");
    t->dtype         = DT_I16;
    write_torch(&l);
    refuse("\"norm.weight\" has the dtype I16");
    free_list(&l);

    l        = golden_list();
    t        = find(&l, "embeddings.weight"); /* never quantized */
    t->dtype = DT_I8;
    t->bytes /= 2;
    write_torch(&l);
    refuse("\"embeddings.weight\" has the dtype I8");
    free_list(&l);
}

static void lora_files_and_empty_folders_are_refused(void **state)
{
    char        path[256];
    struct list l = golden_list();
    add(&l, "layers.0.attention.wqkv.lora_A", *find(&l, "norm.weight"));
    write_torch(&l);
    refuse("LoRA");
    free_list(&l);
    in_folder("model.pth", path);
    unlink(path);
    refuse("no weights");
    assert_int_equal(mkdir(path, 0777), 0);
    refuse("not a regular file");
    rmdir(path);
    write_file("model.pth", "", 0);
    refuse("empty");
    in_folder("config.json", path);
    unlink(path);
    refuse("config.json");
    strcat(folder, "/none");
    struct checkpoint *c = NULL;
    assert_int_equal(checkpoint_open(folder, &c), ST_EINPUT);
    folder[strlen(folder) - 5] = '\0';
}

static void a_vocabulary_smaller_than_the_tokenizer_is_refused(void **state)
{
    struct list    l = golden_list();
    struct tensor *e = find(&l, "embeddings.weight"), *o = find(&l, "output.weight");
    e->shape[0] = o->shape[0] = 4566;
    e->bytes = o->bytes = 4566 * 64 * 2;
    write_torch(&l);
    write_config("\"vocab_size\": 4567", "\"vocab_size\": 4566");
    refuse("the tokenizer has 4567 tokens, vocab_size in config.json is 4566");
    free_list(&l);
}

/* ---- INT8 ---- */

/* Every linear weight becomes zeros of I8 with scales of this dtype. */
static struct list int8_list(enum dtype scale_dtype)
{
    static unsigned char zeros[4567 * 64 * 4];
    struct list          l = golden_list();
    struct model_config  config;
    struct layout        layout;
    char                *bytes;
    size_t               size;
    assert_int_equal(file_read(GOLDEN "/config.json", 1 << 20, &bytes, &size), ST_OK);
    assert_int_equal(config_parse(bytes, size, "config.json", &config), ST_OK);
    assert_int_equal(layout_build(&config, &layout), ST_OK);
    for (size_t i = 0; i < layout.count; i++) {
        if (layout.entries[i].kind != LAYOUT_LINEAR)
            continue;
        struct tensor *t = find(&l, layout.entries[i].name);
        struct tensor  s = {.dtype = scale_dtype, .rank = 1, .shape = {t->shape[0]}, .data = zeros,
                            .bytes = (size_t)t->shape[0] * dtype_size(scale_dtype)};
        char           name[128];
        t->dtype = DT_I8;
        t->bytes /= 2;
        t->data = zeros;
        snprintf(name, sizeof name, "%.*sscales", (int)(strlen(t->name) - 6), t->name);
        add(&l, name, s);
    }
    layout_free(&layout);
    free(bytes);
    return l;
}

#define QUANTIZED(recipe) \
    "\"vocab_size\": 4567, \"quantization\": {\"method\":\"qsweep\",\"mode\":\"int8\",\"recipe\":\"" recipe "\"}"

static void int8_weights_are_recognised_with_and_without_a_word_in_the_configuration(void **state)
{
    struct list l = int8_list(DT_BF16);
    write_torch(&l);
    struct checkpoint *c = accept();
    assert_int_equal(c->config.quantization.recipe, RECIPE_LEGACY);
    assert_string_equal(c->config.quantization.mode, "int8");
    assert_int_equal(c->tensors.count, 48 + 27); /* 5 of each of 5 layers, output, fast_output */
    checkpoint_close(c);

    write_safetensors("model.safetensors", l.items, l.n);
    write_config("\"vocab_size\": 4567", QUANTIZED("torchao"));
    c = accept();
    assert_int_equal(c->config.quantization.recipe, RECIPE_TORCHAO);
    checkpoint_close(c);
    write_config("\"vocab_size\": 4567", QUANTIZED("torchao-v2"));
    refuse("has the dtype BF16, want F32");
    free_list(&l);

    l = int8_list(DT_F32);
    write_safetensors("model.safetensors", l.items, l.n);
    c = accept();
    assert_int_equal(c->config.quantization.recipe, RECIPE_TORCHAO_V2);
    checkpoint_close(c);
    free_list(&l);
}

static void int8_weights_that_do_not_fit_together_are_refused(void **state)
{
    struct list l = int8_list(DT_BF16);
    drop(&l, "output.scales");
    write_torch(&l);
    refuse("\"output.weight\" is INT8, but \"output.scales\" is missing");
    free_list(&l);

    l                = int8_list(DT_BF16);
    struct tensor *t = find(&l, "output.scales");
    t->shape[0] -= 1;
    t->bytes -= 2;
    write_torch(&l);
    refuse("\"output.scales\" has the shape [4566], config.json asks for [4567]");
    free_list(&l);

    l        = int8_list(DT_BF16);
    t        = find(&l, "output.scales");
    t->dtype = DT_F16;
    write_torch(&l);
    refuse("\"output.scales\" has the dtype F16");
    free_list(&l);

    l = int8_list(DT_BF16);
    drop(&l, "fast_output.weight");
    add(&l, "fast_output.weight", *tensor_set_find(torch_file_tensors(golden), "fast_output.weight"));
    write_torch(&l);
    refuse("26 of 27 linear weights are INT8");
    free_list(&l);

    l = golden_list();
    write_torch(&l);
    write_config("\"vocab_size\": 4567", QUANTIZED("legacy"));
    refuse("the weights are not INT8");
    free_list(&l);
}

/* ---- shards of S2 ---- */

static const char nested[] =
    "{\"model_type\":\"fish_qwen3_omni\",\"semantic_start_token_id\":471,\"semantic_end_token_id\":4566,\"eos_token_id\":460,"
    "\"text_config\":{\"vocab_size\":4567,\"n_layer\":3,\"n_head\":4,\"n_local_heads\":2,\"head_dim\":32,\"dim\":64,"
    "\"intermediate_size\":128,\"rope_base\":1000000,\"norm_eps\":1e-06,\"max_seq_len\":512,\"attention_qk_norm\":true,"
    "\"tie_word_embeddings\":false},\"audio_decoder_config\":{\"vocab_size\":4096,\"n_layer\":2,\"n_head\":4,"
    "\"n_local_heads\":2,\"head_dim\":16,\"dim\":64,\"intermediate_size\":96,\"num_codebooks\":4,\"max_seq_len\":5}}";

static void write_index(const struct list *l, size_t cut, const char *second)
{
    char   path[256];
    in_folder("model.safetensors.index.json", path);
    FILE *f = fopen(path, "w");
    fprintf(f, "{\"metadata\":{},\"weight_map\":{");
    for (size_t i = 0; i < l->n; i++)
        fprintf(f, "%s\"%s\":\"%s\"", i ? "," : "", l->items[i].name, i < cut ? "model-1.safetensors" : second);
    fprintf(f, "}}");
    fclose(f);
}

static void shards_with_s2_names_are_put_together(void **state)
{
    struct list l = golden_list();
    for (size_t i = 0; i < l.n; i++) {
        char        name[256];
        const char *old = l.items[i].name;
        if (strncmp(old, "fast_", 5) == 0)
            snprintf(name, sizeof name, "audio_decoder.%s", old + 5);
        else if (strncmp(old, "codebook", 8) == 0)
            snprintf(name, sizeof name, "audio_decoder.%s", old);
        else
            snprintf(name, sizeof name, "text_model.model.%s", old);
        rename_tensor(&l.items[i], name);
    }
    write_file("config.json", nested, strlen(nested));
    write_safetensors("model-1.safetensors", l.items, 20);
    write_safetensors("model-2.safetensors", l.items + 20, l.n - 20);
    write_index(&l, 20, "model-2.safetensors");
    struct checkpoint *c = accept();
    assert_same_model(c);
    assert_int_equal(c->config.family, FAMILY_S2);
    assert_int_equal(c->config.im_end_id, 460);
    checkpoint_close(c);

    write_index(&l, 21, "model-2.safetensors"); /* tensor 20 is in the other file */
    refuse("is not in model-1.safetensors");
    write_index(&l, 20, "model-3.safetensors");
    refuse("model-3.safetensors");
    write_index(&l, 20, "../model-2.safetensors");
    refuse("no folders");
    free_list(&l);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_folder, close_folder)

int main(void)
{
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        TEST(a_model_prefix_is_removed_when_the_first_key_has_it),
        TEST(audio_tensors_are_dropped_silently_and_others_are_ignored),
        TEST(split_query_key_value_weights_are_joined_in_this_order),
        TEST(the_same_model_in_any_container_has_the_same_fingerprint),
        TEST(missing_and_misshapen_tensors_are_named),
        TEST(wrong_dtypes_are_refused),
        TEST(lora_files_and_empty_folders_are_refused),
        TEST(a_vocabulary_smaller_than_the_tokenizer_is_refused),
        TEST(int8_weights_are_recognised_with_and_without_a_word_in_the_configuration),
        TEST(int8_weights_that_do_not_fit_together_are_refused),
        TEST(shards_with_s2_names_are_put_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
