/* A quantized directory: what is in it, that it reads back, and that nothing else is ever left on the disk. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/file.h"
#include "checkpoint/companions.h"
#include "checkpoint/layout.h"
#include "checkpoint/safetensors.h"
#include "model/bf16.h"
#include "model/floats.h"
#include "model/quantize.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define DUALAR "tests/golden/dualar-a"

static char folder[64]; /* of one test; a fresh one each */

static int make_folder(void **state)
{
    strcpy(folder, "/tmp/qsweep-quantize-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    companions_remove(folder);
    return 0;
}

static const char *in_folder(const char *name)
{
    static char paths[4][256];
    static int  next;
    next = (next + 1) % 4;
    snprintf(paths[next], sizeof paths[next], "%s/%s", folder, name);
    return paths[next];
}

static int n_entries(const char *dir)
{
    DIR *d = opendir(dir);
    int  n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.' || (e->d_name[1] && e->d_name[1] != '.');
    closedir(d);
    return n;
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "wx");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

/* A copy of the golden checkpoint as <folder>/name, with `edit` applied to its tensors (NULL: none). */
static const char *make_checkpoint(const char *name, void (*edit)(struct tensor *t, void **own))
{
    const char        *dir = in_folder(name);
    struct checkpoint *c   = NULL;
    struct safetensors_writer *w = NULL;
    assert_int_equal(mkdir(dir, 0777), 0);
    assert_int_equal(checkpoint_open(DUALAR, &c), ST_OK);
    struct tensor *list = malloc(c->tensors.count * sizeof *list);
    void         **own  = calloc(c->tensors.count, sizeof *own);
    assert_true(list && own);
    for (size_t i = 0; i < c->tensors.count; i++) {
        list[i] = c->tensors.items[i];
        if (edit)
            edit(&list[i], &own[i]);
    }
    char path[512], *bytes;
    size_t size;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(safetensors_writer_begin(path, list, c->tensors.count, NULL, &w), ST_OK);
    for (size_t i = 0; i < c->tensors.count; i++)
        assert_int_equal(safetensors_writer_data(w, list[i].data, list[i].bytes), ST_OK);
    assert_int_equal(safetensors_writer_end(w), ST_OK);
    for (size_t i = 0; i < c->tensors.count; i++)
        free(own[i]);
    free(list);
    free(own);
    checkpoint_close(c);
    static const char *const files[] = {"config.json", "tokenizer.tiktoken", "special_tokens.json"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, DUALAR "/%s", files[i]);
        assert_int_equal(file_read(path, 1 << 20, &bytes, &size), ST_OK);
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        write_file(path, bytes);
        free(bytes);
    }
    return dir;
}

static status_t quantize(const char *from, const char *to, enum recipe recipe, int n_threads, struct quantize_report *r)
{
    struct checkpoint      *c       = NULL;
    struct quantize_options options = {.recipe = recipe, .n_threads = n_threads};
    assert_int_equal(checkpoint_open(from, &c), ST_OK);
    status_t st = quantize_checkpoint(c, to, &options, r);
    checkpoint_close(c);
    return st;
}

/* ---- which tensors ---- */

static void exactly_the_linear_weights_of_any_layout_are_quantized(void **state)
{
    for (int variant = 0; variant < 16; variant++) {
        struct model_config config = {.vocab_size = 512, .codebook_size = 64, .num_codebooks = 3, .max_seq_len = 32};
        config.slow = (struct stack_config){12, 4, 2, 8, 32, 64, variant & 1, variant & 2, true};
        config.fast = (struct stack_config){2, 2, 1, 8, variant & 4 ? 16 : 32, 64, variant & 2, variant & 1, false};
        config.tie_word_embeddings = variant & 8;
        struct layout layout;
        int           n = 0;
        assert_int_equal(layout_build(&config, &layout), ST_OK);
        for (size_t i = 0; i < layout.count; i++) {
            assert_int_equal(quantize_applies(&config, layout.entries[i].name), layout.entries[i].kind == LAYOUT_LINEAR);
            n += layout.entries[i].kind == LAYOUT_LINEAR;
        }
        assert_int_equal(n, 14 * 5 + 1 + !(variant & 8) + !!(variant & 4));
        layout_free(&layout);
        static const char *const others[] = {"layers.12.attention.wo.weight", "layers.1.attention.wo", "xlayers.1.attention.wo.weight",
                                             "layers.-1.attention.wo.weight", "layers..attention.wo.weight", "output.weights",
                                             "layers.1.attention.wo.weight.x", "layers.99999999999999999999.attention.wo.weight"};
        for (size_t i = 0; i < sizeof others / sizeof *others; i++)
            assert_false(quantize_applies(&config, others[i]));
    }
}

/* ---- the directory ---- */

static void the_directory_reads_back_with_the_codes_of_the_scalar_definition(void **state)
{
    static const enum recipe recipes[] = {RECIPE_TORCHAO, RECIPE_TORCHAO_V2, RECIPE_LEGACY};
    struct checkpoint       *before = NULL;
    char                     hash[33];
    assert_int_equal(checkpoint_open(make_checkpoint("source", NULL), &before), ST_OK);
    assert_int_equal(checkpoint_fingerprint(before, hash), ST_OK);
    for (int k = 0; k < 3; k++) {
        struct checkpoint     *after = NULL;
        struct quantize_report report;
        const char            *out = in_folder(recipe_name(recipes[k]));
        assert_int_equal(quantize(before->dir, out, recipes[k], 2, &report), ST_OK);
        assert_string_equal(report.output, out);
        assert_int_equal(checkpoint_open(out, &after), ST_OK);
        assert_int_equal(after->config.quantization.recipe, recipes[k]);
        assert_string_equal(after->config.quantization.mode, "int8");
        assert_string_equal(after->config.quantization.source_hash, hash);
        assert_int_equal(report.bytes_before, before->weight_bytes);
        assert_int_equal(report.bytes_after, after->weight_bytes);
        assert_int_equal(after->tensors.count, before->tensors.count + (size_t)report.n_quantized);
        for (size_t i = 0; i < before->tensors.count; i++) {
            const struct tensor *t = &before->tensors.items[i], *u = tensor_set_find(&after->tensors, t->name);
            assert_non_null(u);
            if (!quantize_applies(&before->config, t->name)) {
                assert_int_equal(u->dtype, t->dtype);
                assert_int_equal(u->bytes, t->bytes);
                assert_memory_equal(u->data, t->data, t->bytes);
                continue;
            }
            char name[256];
            snprintf(name, sizeof name, "%.*sscales", (int)strlen(t->name) - 6, t->name);
            const struct tensor *scales = tensor_set_find(&after->tensors, name);
            assert_non_null(scales);
            assert_int_equal(u->dtype, DT_I8);
            assert_int_equal(scales->dtype, recipes[k] == RECIPE_TORCHAO_V2 ? DT_F32 : DT_BF16);
            int8_t *q = malloc(u->bytes);
            char   *s = malloc(scales->bytes);
            assert_true(q && s);
            assert_int_equal(quantize_rows_by(INT8_SCALAR, recipes[k], t->data, DT_BF16, t->shape[0], t->shape[1], q, s), t->shape[0]);
            assert_memory_equal(u->data, q, u->bytes);
            assert_memory_equal(scales->data, s, scales->bytes);
            free(q);
            free(s);
        }
        checkpoint_close(after);
    }
    checkpoint_close(before);
}

static void the_number_of_threads_does_not_change_a_byte(void **state)
{
    char  *first = NULL, *other = NULL, path[256];
    size_t first_size = 0, size = 0;
    struct quantize_report report;
    const char            *source = make_checkpoint("source", NULL);
    for (int n = 1; n <= 7; n += 3) {
        snprintf(path, sizeof path, "%s/threads-%d", folder, n);
        assert_int_equal(quantize(source, path, RECIPE_TORCHAO, n, &report), ST_OK);
        assert_int_equal(report.n_threads, n);
        strcat(path, "/model.safetensors");
        assert_int_equal(file_read(path, 1 << 24, &other, &size), ST_OK);
        if (first) {
            assert_int_equal(size, first_size);
            assert_memory_equal(first, other, size);
            free(other);
        } else {
            first      = other;
            first_size = size;
        }
    }
    free(first);
}

static void metadata_name_the_scheme_and_config_keeps_every_value(void **state)
{
    struct quantize_report report;
    struct safetensors    *s      = NULL;
    char                   path[256];
    const char            *source = make_checkpoint("source", NULL);
    assert_int_equal(quantize(source, in_folder("out"), RECIPE_TORCHAO, 1, &report), ST_OK);
    snprintf(path, sizeof path, "%s/out/model.safetensors", folder);
    assert_int_equal(safetensors_open(path, &s), ST_OK);
    assert_string_equal(safetensors_metadata(s, "scheme"), "torchao-v1-bf16");
    assert_string_equal(safetensors_metadata(s, "recipe"), "torchao");
    safetensors_close(s);

    json_t *before = json_load_file(DUALAR "/config.json", 0, NULL);
    snprintf(path, sizeof path, "%s/out/config.json", folder);
    json_t *after = json_load_file(path, 0, NULL);
    assert_true(before && after);
    json_t *added = json_object_get(after, "quantization");
    assert_string_equal(json_string_value(json_object_get(added, "method")), "qsweep");
    assert_true(json_is_null(json_object_get(added, "group_size")));
    assert_int_equal(json_object_size(added), 5);
    json_object_del(after, "quantization");
    assert_true(json_equal(before, after)); /* exact for reals, too */
    json_decref(before);
    json_decref(after);
}

static void companions_travel_and_caches_do_not(void **state)
{
    const char            *source = make_checkpoint("source", NULL);
    struct quantize_report report;
    char                   path[512];
    static const char *const folders[] = {".git", ".cache", "__pycache__", "voices", "voices/deep"};
    static const char *const files[]   = {"README.md", ".git/config", ".cache/x", "__pycache__/x", "voices/deep/a.npy",
                                          "codec.pth", "model.pth", "model-00001-of-00002.safetensors",
                                          "model.safetensors.index.json.old", "voices/model.pth"};
    static const char *const travel[]  = {"README.md", "voices/deep/a.npy", "codec.pth", "voices/model.pth", "link",
                                          "tokenizer.tiktoken", "special_tokens.json", "config.json", "model.safetensors"};
    static const char *const stay[]    = {".git", ".cache", "__pycache__", "model.pth", "model-00001-of-00002.safetensors",
                                          "model.safetensors.index.json.old", "loop", ".qsweep-fingerprint", "fifo"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        snprintf(path, sizeof path, "%s/%s", source, folders[i]);
        assert_int_equal(mkdir(path, 0777), 0);
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", source, files[i]);
        write_file(path, files[i]);
    }
    snprintf(path, sizeof path, "%s/link", source);
    assert_int_equal(symlink("README.md", path), 0);
    snprintf(path, sizeof path, "%s/loop", source);
    assert_int_equal(symlink(".", path), 0);
    snprintf(path, sizeof path, "%s/fifo", source);
    assert_int_equal(mkfifo(path, 0666), 0);
    assert_int_equal(quantize(source, in_folder("out"), RECIPE_LEGACY, 1, &report), ST_OK);
    for (size_t i = 0; i < sizeof travel / sizeof *travel; i++) {
        snprintf(path, sizeof path, "%s/out/%s", folder, travel[i]);
        if (!file_exists(path))
            fail_msg("%s did not travel", travel[i]);
    }
    for (size_t i = 0; i < sizeof stay / sizeof *stay; i++) {
        snprintf(path, sizeof path, "%s/out/%s", folder, stay[i]);
        if (file_exists(path))
            fail_msg("%s travelled", stay[i]);
    }
    char  *bytes;
    size_t size;
    snprintf(path, sizeof path, "%s/out/link", folder);
    assert_int_equal(file_read(path, 100, &bytes, &size), ST_OK);
    assert_string_equal(bytes, "README.md"); /* the content, not a link */
    free(bytes);
}

/* ---- other floats ---- */

static uint16_t half_of(float f) /* exact for the values it is given, else the test is wrong */
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    int32_t exponent = (int32_t)(bits >> 23 & 0xff) - 127 + 15;
    if (exponent <= 0 || exponent >= 31)
        return (uint16_t)(bits >> 16 & 0x8000); /* too small for a half: zero */
    return (uint16_t)((bits >> 16 & 0x8000) | (uint32_t)exponent << 10 | (bits >> 13 & 0x3ff));
}

static void widen(struct tensor *t, void **own)
{
    size_t n = t->bytes / 2;
    float *f = *own = malloc(n * sizeof *f);
    assert_non_null(f);
    for (size_t i = 0; i < n; i++)
        f[i] = float_element(t, i);
    t->dtype = DT_F32;
    t->data  = f;
    t->bytes = n * sizeof *f;
}

static void halve(struct tensor *t, void **own)
{
    size_t    n = t->bytes / 2;
    uint16_t *h = *own = malloc(n * sizeof *h);
    assert_non_null(h);
    for (size_t i = 0; i < n; i++)
        h[i] = half_of(float_element(t, i));
    t->dtype = DT_F16;
    t->data  = h;
}

static void f32_and_f16_checkpoints_pass_through_bf16(void **state)
{
    struct quantize_report report;
    struct checkpoint     *bf16 = NULL, *f32 = NULL, *f16 = NULL, *f16_source = NULL;
    char                   a[128], b[128], c[128];
    strcpy(a, make_checkpoint("bf16", NULL));
    strcpy(b, make_checkpoint("f32", widen));
    strcpy(c, make_checkpoint("f16", halve));
    assert_int_equal(quantize(a, in_folder("bf16-int8"), RECIPE_TORCHAO, 2, &report), ST_OK);
    assert_int_equal(quantize(b, in_folder("f32-int8"), RECIPE_TORCHAO, 2, &report), ST_OK);
    assert_int_equal(quantize(c, in_folder("f16-int8"), RECIPE_TORCHAO, 2, &report), ST_OK);
    assert_int_equal(checkpoint_open(in_folder("bf16-int8"), &bf16), ST_OK);
    assert_int_equal(checkpoint_open(in_folder("f32-int8"), &f32), ST_OK);
    assert_int_equal(checkpoint_open(in_folder("f16-int8"), &f16), ST_OK);
    assert_int_equal(checkpoint_open(c, &f16_source), ST_OK);
    for (size_t i = 0; i < bf16->tensors.count; i++) {
        const struct tensor *t = &bf16->tensors.items[i], *u = tensor_set_find(&f32->tensors, t->name);
        const struct tensor *v = tensor_set_find(&f16->tensors, t->name), *w = tensor_set_find(&f16_source->tensors, t->name);
        assert_true(u && v);
        if (t->dtype == DT_I8) {
            assert_memory_equal(t->data, u->data, t->bytes);
            int8_t *q      = malloc(t->bytes);
            bf16_t *row    = malloc(2 * t->bytes), *scales = malloc((size_t)t->shape[0] * 2);
            assert_true(w && q && row && scales);
            for (size_t k = 0; k < t->bytes; k++)
                row[k] = bf16_from_f32(float_element(w, k));
            assert_int_equal(quantize_rows(RECIPE_TORCHAO, w->name, 0, row, DT_BF16, t->shape[0], t->shape[1], q, scales), ST_OK);
            assert_memory_equal(q, v->data, v->bytes);
            free(q);
            free(row);
            free(scales);
        } else if (strstr(t->name, "scales")) {
            assert_memory_equal(t->data, u->data, t->bytes);
        } else {
            assert_int_equal(u->dtype, DT_F32); /* what is not quantized stays as it was */
            assert_int_equal(v->dtype, DT_F16);
        }
    }
    checkpoint_close(bf16);
    checkpoint_close(f32);
    checkpoint_close(f16);
    checkpoint_close(f16_source);
}

/* ---- failures leave nothing ---- */

static void poison(struct tensor *t, void **own)
{
    if (strcmp(t->name, "layers.2.feed_forward.w2.weight"))
        return;
    bf16_t *copy = *own = malloc(t->bytes);
    assert_non_null(copy);
    memcpy(copy, t->data, t->bytes);
    copy[41 * t->shape[1] + 7] = 0x7fc0;
    t->data                    = copy;
}

static void a_weight_that_is_not_a_number_is_named_and_nothing_is_left(void **state)
{
    struct quantize_report report = {.seconds = -1};
    const char            *source = make_checkpoint("source", poison);
    assert_int_equal(quantize(source, in_folder("out"), RECIPE_TORCHAO, 3, &report), ST_EINPUT);
    assert_non_null(strstr(status_last(), "layers.2.feed_forward.w2.weight, row 41 "));
    assert_true(report.seconds == -1);
    assert_int_equal(n_entries(folder), 1);
}

static volatile sig_atomic_t stop;
static int                   calls_before_stop;

static void stop_soon(void *ctx, size_t done, size_t total)
{
    assert_true(done <= total);
    if (--calls_before_stop <= 0)
        stop = 1;
}

static void a_stop_at_any_moment_leaves_nothing(void **state)
{
    struct checkpoint      *c       = NULL;
    struct quantize_options options = {.recipe = RECIPE_LEGACY, .n_threads = 2, .stop = &stop, .progress = stop_soon};
    struct quantize_report  report;
    int                     n = 0;
    assert_int_equal(checkpoint_open(make_checkpoint("source", NULL), &c), ST_OK);
    for (int calls = 0;; calls++) {
        calls_before_stop = calls;
        stop              = 0;
        status_t st       = quantize_checkpoint(c, in_folder("out"), &options, &report);
        if (st == ST_OK)
            break; /* more calls than there are */
        assert_int_equal(st, ST_EINTERRUPTED);
        assert_int_equal(n_entries(folder), 1);
        n++;
    }
    assert_true(n > 48); /* at least one look around for each tensor */
    checkpoint_close(c);
}

static void an_existing_output_is_refused_and_untouched(void **state)
{
    struct quantize_report report;
    char                   source[128], path[256];
    strcpy(source, make_checkpoint("source", NULL));
    assert_int_equal(mkdir(in_folder("out"), 0777), 0);
    snprintf(path, sizeof path, "%s/out/precious", folder);
    write_file(path, "x");
    assert_int_equal(quantize(source, in_folder("out"), RECIPE_TORCHAO, 1, &report), ST_EUSAGE);
    assert_int_equal(quantize(source, in_folder("out///"), RECIPE_TORCHAO, 1, &report), ST_EUSAGE);
    assert_int_equal(quantize(source, source, RECIPE_TORCHAO, 1, &report), ST_EUSAGE);
    assert_int_equal(symlink("nowhere", in_folder("dangling")), 0);
    assert_int_equal(quantize(source, in_folder("dangling"), RECIPE_TORCHAO, 1, &report), ST_EUSAGE);
    assert_int_equal(quantize(source, "", RECIPE_TORCHAO, 1, &report), ST_EUSAGE);
    assert_int_equal(quantize(source, in_folder("none/out"), RECIPE_TORCHAO, 1, &report), ST_EIO);
    assert_int_equal(n_entries(folder), 3);
    assert_int_equal(n_entries(in_folder("out")), 1);
}

static void a_quantized_checkpoint_is_not_quantized_again(void **state)
{
    struct quantize_report report;
    const char            *source = make_checkpoint("source", NULL);
    assert_int_equal(quantize(source, in_folder("out"), RECIPE_TORCHAO, 1, &report), ST_OK);
    assert_int_equal(quantize(in_folder("out"), in_folder("twice"), RECIPE_TORCHAO, 1, &report), ST_EINPUT);
    assert_int_equal(n_entries(folder), 2);
}

static void a_write_that_fails_is_reported_and_nothing_is_left(void **state)
{
    struct quantize_report report;
    const char            *source = make_checkpoint("source", NULL);
    struct rlimit          limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    struct rlimit small = {1 << 20, limit.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    status_t st = quantize(source, in_folder("out"), RECIPE_TORCHAO, 2, &report);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(st, ST_EIO);
    assert_int_equal(n_entries(folder), 1);
}

/* ---- memory ---- */

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static long anonymous_kib(void)
{
    char  line[128];
    long  kib = -1;
    FILE *f   = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %ld", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

static void note_most(void *ctx, size_t done, size_t total)
{
    long now = anonymous_kib(), *most = ctx;
    *most = now > *most ? now : *most;
}

static void memory_stays_at_a_few_mib_for_any_model(void **state)
{
    /* 134 MB of zeros that take no disk: a header, and a hole after it. */
    enum { VOCABULARY = 32768, DIM = 1024, THREADS = 2, BOUND_KIB = 8 << 10 };
    const char *dir = in_folder("source");
    char        path[256];
    long        most = 0;
    assert_int_equal(mkdir(dir, 0777), 0);
    snprintf(path, sizeof path, "%s/config.json", dir);
    char config_text[1024];
    snprintf(config_text, sizeof config_text,
             "{\"model_type\": \"dual_ar\", \"vocab_size\": %d, \"dim\": %d, \"n_layer\": 1, \"n_head\": 8, \"head_dim\": 128, "
             "\"n_local_heads\": 8, \"intermediate_size\": 64, \"codebook_size\": 64, \"num_codebooks\": 1, \"n_fast_layer\": 1, "
             "\"max_seq_len\": 64, \"tie_word_embeddings\": false, \"fast_dim\": 64, \"fast_n_head\": 1, \"fast_n_local_heads\": 1, "
             "\"fast_head_dim\": 64, \"fast_intermediate_size\": 64, \"semantic_begin_id\": 0, \"semantic_end_id\": 63}",
             VOCABULARY, DIM);
    write_file(path, config_text);
    struct model_config config;
    struct layout       layout;
    assert_int_equal(config_parse(config_text, strlen(config_text), "test", &config), ST_OK);
    assert_int_equal(layout_build(&config, &layout), ST_OK);
    json_t *header = json_object();
    long    at     = 0;
    for (size_t i = 0; i < layout.count; i++) {
        const struct layout_entry *e     = &layout.entries[i];
        long                       bytes = 2 * (long)layout_elements(e);
        json_t *shape = e->rank == 2 ? json_pack("[I, I]", e->shape[0], e->shape[1]) : json_pack("[I]", e->shape[0]);
        json_object_set_new(header, e->name, json_pack("{s:s, s:o, s:[I, I]}", "dtype", "BF16", "shape", shape, "data_offsets",
                                                       (json_int_t)at, (json_int_t)(at + bytes)));
        at += bytes;
    }
    char    *text   = json_dumps(header, JSON_COMPACT);
    uint64_t length = strlen(text);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "wx");
    assert_non_null(f);
    assert_int_equal(fwrite(&length, 8, 1, f), 1);
    assert_int_equal(fwrite(text, length, 1, f), 1);
    assert_int_equal(fflush(f), 0);
    assert_int_equal(ftruncate(fileno(f), (off_t)(8 + length) + at), 0);
    fclose(f);
    free(text);
    json_decref(header);
    layout_free(&layout);
    static const char *const files[] = {"tokenizer.tiktoken", "special_tokens.json"};
    for (int i = 0; i < 2; i++) {
        char  *bytes;
        size_t size;
        snprintf(path, sizeof path, DUALAR "/%s", files[i]);
        assert_int_equal(file_read(path, 1 << 20, &bytes, &size), ST_OK);
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        write_file(path, bytes);
        free(bytes);
    }

    struct checkpoint      *c = NULL;
    struct quantize_report  report;
    struct quantize_options options = {.recipe = RECIPE_TORCHAO, .n_threads = THREADS, .progress = note_most, .ctx = &most};
    assert_int_equal(checkpoint_open(dir, &c), ST_OK);
    long before = anonymous_kib();
    assert_int_equal(quantize_checkpoint(c, in_folder("out"), &options, &report), ST_OK);
    print_message("# anonymous memory: %ld KiB before, at most %ld KiB while %zu KiB of weights were quantized\n", before, most,
                  report.bytes_before >> 10);
    assert_true(report.bytes_before > 100 << 20);
    assert_true(most > 0 && most - before < BOUND_KIB);
    checkpoint_close(c);
}
#else
static void memory_stays_at_a_few_mib_for_any_model(void **state)
{
    skip(); /* a sanitizer's own memory would be measured */
}
#endif

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exactly_the_linear_weights_of_any_layout_are_quantized),
        IN_FOLDER(the_directory_reads_back_with_the_codes_of_the_scalar_definition),
        IN_FOLDER(the_number_of_threads_does_not_change_a_byte),
        IN_FOLDER(metadata_name_the_scheme_and_config_keeps_every_value),
        IN_FOLDER(companions_travel_and_caches_do_not),
        IN_FOLDER(f32_and_f16_checkpoints_pass_through_bf16),
        IN_FOLDER(a_weight_that_is_not_a_number_is_named_and_nothing_is_left),
        IN_FOLDER(a_stop_at_any_moment_leaves_nothing),
        IN_FOLDER(an_existing_output_is_refused_and_untouched),
        IN_FOLDER(a_quantized_checkpoint_is_not_quantized_again),
        IN_FOLDER(a_write_that_fails_is_reported_and_nothing_is_left),
        IN_FOLDER(memory_stays_at_a_few_mib_for_any_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
