/* qsweep inspect — what a checkpoint holds, whether it is a published one, and what it needs to run. */
#include "checkpoint/checkpoint.h"
#include "checkpoint/published.h"
#include "cmd/command.h"
#include "model/footprint.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct request {
    const char *dir;
    bool        json, tensors, hash;
};

/* Everything that is printed, in either form. */
struct findings {
    const struct checkpoint *c;
    struct published_file    files[PUBLISHED_FILES];
    char                     fingerprint[33];
    long long                codec_parameters;
};

/* Parts of the model as people speak of them; the first whose prefix fits takes a tensor. */
static const struct part {
    const char *prefix, *title;
} parts[] = {
    {"embeddings.", "text embedding"},      {"codebook_embeddings.", "codebook embedding"},
    {"layers.", "slow layers"},             {"norm.", "slow norm"},
    {"output.", "LM head"},                 {"fast_project_in.", "fast input projection"},
    {"fast_embeddings.", "fast embedding"}, {"fast_layers.", "fast layers"},
    {"fast_norm.", "fast norm"},            {"fast_output.", "fast head"},
};

enum { PARTS = sizeof parts / sizeof *parts };

struct sum {
    size_t    tensors, bytes;
    long long parameters; /* scales are not parameters */
    unsigned  dtypes;     /* bit set of enum dtype     */
};

static bool is_scales(const char *name)
{
    size_t n = strlen(name);
    return n > 7 && strcmp(name + n - 7, ".scales") == 0;
}

static void add_tensor(struct sum *s, const struct tensor *t)
{
    s->tensors++;
    s->bytes += t->bytes;
    s->parameters += is_scales(t->name) ? 0 : tensor_elements(t);
    s->dtypes |= 1u << t->dtype;
}

static void sum_parts(const struct tensor_set *set, struct sum by_part[PARTS], struct sum *all)
{
    memset(by_part, 0, PARTS * sizeof *by_part);
    memset(all, 0, sizeof *all);
    for (size_t i = 0; i < set->count; i++) {
        add_tensor(all, &set->items[i]);
        for (int p = 0; p < PARTS; p++)
            if (strncmp(set->items[i].name, parts[p].prefix, strlen(parts[p].prefix)) == 0) {
                add_tensor(&by_part[p], &set->items[i]);
                break;
            }
    }
}

static const char *dtypes_text(unsigned dtypes, char out[96])
{
    size_t at = 0;
    out[0]    = '\0';
    for (int i = 0; i < DT_COUNT; i++)
        if (dtypes >> i & 1)
            at += (size_t)snprintf(out + at, 96 - at, "%s%s", at ? "+" : "", dtype_name((enum dtype)i));
    return out;
}

/* 1234567 → "1,234,567"; text is one of a few buffers that take turns. */
static const char *grouped(unsigned long long n)
{
    static char buffers[8][32];
    static int  turn;
    char        digits[24], *out = buffers[turn++ % 8];
    int         length = snprintf(digits, sizeof digits, "%llu", n), k = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            out[k++] = ',';
        out[k++] = digits[i];
    }
    out[k] = '\0';
    return out;
}

/* ---- predictions ---- */

struct prediction {
    enum precision   precision;
    enum kv_format   kv;
    struct footprint f;
    size_t           codec; /* FP32 beside FP32 weights, else BF16 */
};

/* An INT8 checkpoint can only run as INT8. Returns how many. */
static int predict(const struct findings *x, struct prediction out[3])
{
    const struct model_config *config = &x->c->config;
    int                        n      = 0;
    for (int p = PRECISION_FP32; p <= PRECISION_INT8; p++) {
        if (config->quantization.recipe != RECIPE_NONE && p != PRECISION_INT8)
            continue;
        enum kv_format kv = p == PRECISION_FP32 ? KV_FP32 : KV_BF16;
        out[n++]          = (struct prediction){
            (enum precision)p, kv,
            footprint_of(config, (enum precision)p, config->quantization.recipe, kv, config->max_seq_len),
            (size_t)x->codec_parameters * (p == PRECISION_FP32 ? 4 : 2)};
    }
    return n;
}

static size_t total_of(const struct prediction *p)
{
    return p->f.weights + p->f.scales + p->f.kv + p->codec;
}

/* ---- text ---- */

static double mb(size_t bytes)
{
    return (double)bytes / 1e6;
}

static void print_head(const struct findings *x, const struct sum *all)
{
    const struct model_config *config = &x->c->config;
    char                       dtypes[96];
    printf("checkpoint   %s\n", x->c->dir);
    printf("weights      %s\n", x->c->weights_path);
    printf("family       %s, %d + %d layers, dim %d, %d codebooks, vocabulary %d, max_seq_len %d\n",
           config->family == FAMILY_S2 ? "S2" : "S1", config->slow.n_layer, config->fast.n_layer, config->slow.dim,
           config->num_codebooks, config->vocab_size, config->max_seq_len);
    printf("parameters   %s in %zu tensors, %s, %s bytes\n", grouped((unsigned long long)all->parameters), all->tensors,
           dtypes_text(all->dtypes, dtypes), grouped(all->bytes));
    if (config->quantization.recipe != RECIPE_NONE)
        printf("quantized    %s, recipe %s\n", config->quantization.mode, recipe_name(config->quantization.recipe));
    printf("tokens       semantic %d to %d, im_end %d\n", config->semantic_begin_id, config->semantic_end_id,
           config->im_end_id);
    printf("fingerprint  %s\n", x->fingerprint);
}

static void print_published(const struct findings *x)
{
    printf("published    %s\n", published_verified(x->files) ? "S1-mini: verified" : "unknown");
    for (int i = 0; i < PUBLISHED_FILES; i++)
        printf("  %-20s %s\n", x->files[i].name,
               x->files[i].match == PUBLISHED_SAME      ? "the published file (SHA-256)"
               : x->files[i].match == PUBLISHED_DIFFERS ? "not the published file"
                                                        : "not here");
}

static void print_parts(const struct sum by_part[PARTS], const struct sum *all)
{
    char dtypes[96];
    printf("\n%-22s %8s %-12s %15s %15s\n", "part", "tensors", "dtype", "parameters", "bytes");
    for (int p = 0; p < PARTS; p++)
        if (by_part[p].tensors)
            printf("%-22s %8zu %-12s %15s %15s\n", parts[p].title, by_part[p].tensors,
                   dtypes_text(by_part[p].dtypes, dtypes), grouped((unsigned long long)by_part[p].parameters),
                   grouped(by_part[p].bytes));
    printf("%-22s %8zu %-12s %15s %15s\n", "all", all->tensors, dtypes_text(all->dtypes, dtypes),
           grouped((unsigned long long)all->parameters), grouped(all->bytes));
}

static void print_tensors(const struct tensor_set *set)
{
    printf("\n%-52s %-7s %-20s %15s\n", "tensor", "dtype", "shape", "bytes");
    for (size_t i = 0; i < set->count; i++) {
        char shape[256];
        tensor_shape_text(&set->items[i], shape, sizeof shape);
        printf("%-52s %-7s %-20s %15s\n", set->items[i].name, dtype_name(set->items[i].dtype), shape,
               grouped(set->items[i].bytes));
    }
}

static void print_memory(const struct findings *x)
{
    struct prediction p[3];
    int               n = predict(x, p);
    printf("\npredicted memory in MB (10^6 bytes), one sequence of %d positions\n", x->c->config.max_seq_len);
    printf("%-10s %10s %8s %10s %-6s %10s %10s\n", "precision", "weights", "scales", "KV", "as", "codec", "sum");
    for (int i = 0; i < n; i++)
        printf("%-10s %10.1f %8.1f %10.1f %-6s %10.1f %10.1f\n", precision_name(p[i].precision), mb(p[i].f.weights),
               mb(p[i].f.scales), mb(p[i].f.kv), kv_format_name(p[i].kv), mb(p[i].codec), mb(total_of(&p[i])));
    if (!x->codec_parameters)
        printf("(no codec.pth here: the codec is not counted)\n");

    printf("\ncan run? sequences of that length that fit, beside %.1f GB for the driver's context; - = none\n",
           (double)FOOTPRINT_CONTEXT_BYTES / 1e9);
    int first = p[0].precision == PRECISION_FP32 && n > 1; /* FP32 weights are for the CPU */
    printf("%-30s", "card");
    for (int i = first; i < n; i++)
        printf(" %8s", precision_name(p[i].precision));
    printf("\n");
    for (int k = 0; cards[k].name; k++) {
        printf("%-30s", cards[k].name);
        for (int i = first; i < n; i++) {
            long batch = footprint_batch(&p[i].f, p[i].codec, &cards[k]);
            if (batch)
                printf(" %8ld", batch);
            else
                printf(" %8s", "-");
        }
        printf("\n");
    }
}

static void print_text(const struct findings *x, const struct request *r)
{
    struct sum by_part[PARTS], all;
    sum_parts(&x->c->tensors, by_part, &all);
    print_head(x, &all);
    if (r->hash)
        print_published(x);
    print_parts(by_part, &all);
    if (r->tensors)
        print_tensors(&x->c->tensors);
    print_memory(x);
}

/* ---- JSON ---- */

static json_t *tensors_json(const struct tensor_set *set)
{
    json_t *list = json_array();
    for (size_t i = 0; i < set->count; i++) {
        const struct tensor *t     = &set->items[i];
        json_t              *shape = json_array();
        for (int k = 0; k < t->rank; k++)
            json_array_append_new(shape, json_integer(t->shape[k]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:I}", "name", t->name, "dtype", dtype_name(t->dtype),
                                              "shape", shape, "bytes", (json_int_t)t->bytes));
    }
    return list;
}

static json_t *published_json(const struct findings *x)
{
    json_t *files = json_object();
    for (int i = 0; i < PUBLISHED_FILES; i++)
        json_object_set_new(files, x->files[i].name, json_string(published_match_name(x->files[i].match)));
    return json_pack("{s:s, s:o}", "verdict", published_verified(x->files) ? "published S1-mini: verified" : "unknown",
                     "files", files);
}

static json_t *memory_json(const struct findings *x)
{
    struct prediction p[3];
    json_t           *list = json_array();
    for (int i = 0, n = predict(x, p); i < n; i++) {
        json_t *batch = json_object();
        for (int k = 0; cards[k].name; k++)
            json_object_set_new(batch, cards[k].name, json_integer(footprint_batch(&p[i].f, p[i].codec, &cards[k])));
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:o}", "precision", precision_name(p[i].precision), "kv",
                            kv_format_name(p[i].kv), "weight_bytes", (json_int_t)p[i].f.weights, "scale_bytes",
                            (json_int_t)p[i].f.scales, "kv_bytes", (json_int_t)p[i].f.kv, "codec_bytes",
                            (json_int_t)p[i].codec, "total_bytes", (json_int_t)total_of(&p[i]), "batch_that_fits", batch));
    }
    return list;
}

static status_t print_json(const struct findings *x, const struct request *r)
{
    const struct model_config *config = &x->c->config;
    struct sum                 by_part[PARTS], all;
    char                       dtypes[96];
    sum_parts(&x->c->tensors, by_part, &all);
    json_t *root = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:s, s:i, s:i, s:i, s:i}", "checkpoint", x->c->dir,
                             "weights", x->c->weights_path, "family", config->family == FAMILY_S2 ? "S2" : "S1",
                             "parameters", (json_int_t)all.parameters, "tensor_count", (json_int_t)all.tensors, "bytes",
                             (json_int_t)all.bytes, "dtypes", dtypes_text(all.dtypes, dtypes), "quantization",
                             recipe_name(config->quantization.recipe), "fingerprint", x->fingerprint, "max_seq_len",
                             config->max_seq_len, "semantic_begin_id", config->semantic_begin_id, "semantic_end_id",
                             config->semantic_end_id, "im_end_id", config->im_end_id);
    if (!root)
        return FAIL(ST_EINPUT, "%s: the path cannot be written as JSON (not UTF-8)", x->c->dir);
    if (r->hash)
        json_object_set_new(root, "published", published_json(x));
    json_object_set_new(root, "codec_decode_parameters", json_integer(x->codec_parameters));
    json_object_set_new(root, "memory", memory_json(x));
    if (r->tensors)
        json_object_set_new(root, "tensors", tensors_json(&x->c->tensors));
    json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(root);
    return ST_OK;
}

/* ---- command ---- */

static int parse(int argc, char **argv, struct request *r)
{
    static const struct option options[] = {{"output", required_argument, NULL, 'o'},
                                            {"tensors", no_argument, NULL, 't'},
                                            {"no-hash", no_argument, NULL, 'n'},
                                            {NULL, 0, NULL, 0}};
    r->hash = true;
    for (int c; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;) {
        switch (c) {
        case 'o':
            r->json = strcmp(optarg, "json") == 0;
            if (!r->json && strcmp(optarg, "text") != 0) {
                fprintf(stderr, "qsweep inspect: -o \"%s\": want text or json\n", optarg);
                return 2;
            }
            break;
        case 't':
            r->tensors = true;
            break;
        case 'n':
            r->hash = false;
            break;
        default:
            fputs("`qsweep help inspect` shows the options\n", stderr);
            return 2;
        }
    }
    if (optind + 1 != argc) {
        fputs("qsweep inspect: want one folder, for example `qsweep inspect checkpoints/openaudio-s1-mini`\n", stderr);
        return 2;
    }
    r->dir = argv[optind];
    return 0;
}

static status_t inspect(const struct request *r)
{
    struct checkpoint *c  = NULL;
    struct findings    x  = {0};
    status_t           st = ST_OK;
    TRY(checkpoint_open(r->dir, &c));
    x.c = c;
    TRY_OUT(footprint_codec_parameters(r->dir, &x.codec_parameters));
    TRY_OUT(checkpoint_fingerprint(c, x.fingerprint));
    if (r->hash)
        TRY_OUT(published_check(r->dir, x.files));
    if (r->json)
        TRY_OUT(print_json(&x, r));
    else
        print_text(&x, r);
    if (fflush(stdout) != 0 || ferror(stdout))
        st = FAIL(ST_EIO, "standard output: %m");
out:
    checkpoint_close(c);
    return st;
}

static int run(int argc, char **argv)
{
    struct request r      = {0};
    int            status = parse(argc, argv, &r);
    return status ? status : status_exit(inspect(&r));
}

const struct command command_inspect = {
    .name    = "inspect",
    .summary = "what a checkpoint holds, is it a published one, which cards it fits",
    .help    = "usage: qsweep inspect CKPT [-o text|json] [--tensors] [--no-hash]\n"
               "\n"
               "Opens the checkpoint folder CKPT as every other command does (so what is wrong with it shows here), then\n"
               "prints its parts, whether its files are those of the published S1-mini (SHA-256), the memory that each\n"
               "precision will take, and how many sequences of full length fit on common cards.\n"
               "\n"
               "  -o json      one JSON object in place of the tables\n"
               "  --tensors    list every tensor\n"
               "  --no-hash    do not compare with the published files (saves reading them once)\n"
               "\n"
               "examples\n"
               "  qsweep inspect checkpoints/openaudio-s1-mini\n"
               "  qsweep inspect build/checkpoints/nano -o json --tensors\n",
    .run = run,
};
