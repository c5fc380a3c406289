#include "checkpoint/synth.h"

#include "base/outfile.h"
#include "checkpoint/layout.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/synth_tokenizer.h"
#include "checkpoint/synth_weights.h"
#include "checkpoint/torch_writer.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { MAX_SHARDS = 8 };

/* A published shard ends below this many bytes; a smaller model is cut at four fifths, so that it has two all the same. */
static const uint64_t SHARD_BYTES = 5000000000u;

struct synth {
    const struct synth_options *options;
    char                        dir[PATH_MAX]; /* the temporary folder */
    uint64_t                    done, total;   /* bytes of tensors     */
};

static status_t path_in(const struct synth *s, const char *name, char out[PATH_MAX])
{
    int n = snprintf(out, PATH_MAX, "%s/%s", s->dir, name);
    return n > 0 && n < PATH_MAX ? ST_OK : FAIL(ST_EUSAGE, "%.80s…: the path is too long", s->dir);
}

__attribute__((format(printf, 3, 4))) static status_t write_text(const struct synth *s, const char *name, const char *fmt,
                                                                 ...)
{
    char            path[PATH_MAX], *text = NULL;
    struct outfile *f = NULL;
    va_list         args;
    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    if (n < 0)
        return FAIL(ST_ENOMEM, "%s: no memory", name);
    status_t st = ST_OK;
    TRY_OUT(path_in(s, name, path));
    TRY_OUT(outfile_open(path, &f));
    TRY_OUT(outfile_write(f, text, (size_t)n));
    st = outfile_commit(f);
    f  = NULL;
out:
    outfile_abort(f);
    free(text);
    return st;
}

/* ---- config.json ---- */

static const char *truth(bool b)
{
    return b ? "true" : "false";
}

/* As json.dump(…, indent=4, sort_keys=True) writes it: for s1-mini byte for byte the published file. */
static status_t write_flat_config(const struct synth *s)
{
    const struct shape        *shape = s->options->shape;
    const struct model_config *c     = &shape->config;
    return write_text(
        s, "config.json",
        "{\n"
        "    \"attention_o_bias\": %s,\n    \"attention_qk_norm\": %s,\n    \"attention_qkv_bias\": %s,\n"
        "    \"codebook_size\": %d,\n    \"dim\": %d,\n    \"dropout\": 0.0,\n"
        "    \"fast_attention_o_bias\": %s,\n    \"fast_attention_qk_norm\": %s,\n    \"fast_attention_qkv_bias\": %s,\n"
        "    \"fast_dim\": %d,\n    \"fast_head_dim\": %d,\n    \"fast_intermediate_size\": %d,\n"
        "    \"fast_n_head\": %d,\n    \"fast_n_local_heads\": %d,\n    \"head_dim\": %d,\n"
        "    \"initializer_range\": %s,\n    \"intermediate_size\": %d,\n    \"max_seq_len\": %d,\n"
        "    \"model_type\": \"dual_ar\",\n    \"n_fast_layer\": %d,\n    \"n_head\": %d,\n    \"n_layer\": %d,\n"
        "    \"n_local_heads\": %d,\n    \"norm_eps\": 1e-06,\n    \"num_codebooks\": %d,\n    \"rope_base\": %d,\n"
        "    \"scale_codebook_embeddings\": %s,\n    \"tie_word_embeddings\": %s,\n"
        "    \"use_gradient_checkpointing\": true,\n    \"vocab_size\": %d\n}",
        truth(c->slow.o_bias), truth(c->slow.qk_norm), truth(c->slow.qkv_bias), c->codebook_size, c->slow.dim,
        truth(c->fast.o_bias), truth(c->fast.qk_norm), truth(c->fast.qkv_bias), c->fast.dim, c->fast.head_dim,
        c->fast.intermediate_size, c->fast.n_head, c->fast.n_kv_heads, c->slow.head_dim, shape->initializer_range,
        c->slow.intermediate_size, c->max_seq_len, c->fast.n_layer, c->slow.n_head, c->slow.n_layer, c->slow.n_kv_heads,
        c->num_codebooks, (int)c->rope_base, truth(c->scale_codebook_embeddings), truth(c->tie_word_embeddings),
        c->vocab_size);
}

static int stack_json(const struct stack_config *k, char *out, size_t size)
{
    return snprintf(out, size,
                    "        \"attention_o_bias\": %s,\n        \"attention_qk_norm\": %s,\n"
                    "        \"attention_qkv_bias\": %s,\n        \"dim\": %d,\n        \"head_dim\": %d,\n"
                    "        \"intermediate_size\": %d,\n        \"n_head\": %d,\n        \"n_layer\": %d,\n"
                    "        \"n_local_heads\": %d,\n        \"norm_eps\": 1e-06,\n        \"rope_base\": 1000000,\n",
                    truth(k->o_bias), truth(k->qk_norm), truth(k->qkv_bias), k->dim, k->head_dim, k->intermediate_size,
                    k->n_head, k->n_layer, k->n_kv_heads);
}

static status_t write_nested_config(const struct synth *s)
{
    const struct shape        *shape = s->options->shape;
    const struct model_config *c     = &shape->config;
    char                       slow[1024], fast[1024];
    stack_json(&c->slow, slow, sizeof slow);
    stack_json(&c->fast, fast, sizeof fast);
    /* 151669, 151677 and 151678 of S2-pro follow one another; a smaller shape keeps their distances. */
    return write_text(s, "config.json",
                      "{\n    \"audio_decoder_config\": {\n%s"
                      "        \"max_seq_len\": %d,\n        \"num_codebooks\": %d,\n        \"vocab_size\": %d\n    },\n"
                      "    \"audio_pad_token_id\": %d,\n    \"dtype\": \"bfloat16\",\n    \"eos_token_id\": %d,\n"
                      "    \"model_type\": \"fish_qwen3_omni\",\n    \"pad_token_id\": %d,\n"
                      "    \"semantic_end_token_id\": %d,\n    \"semantic_start_token_id\": %d,\n"
                      "    \"text_config\": {\n%s"
                      "        \"initializer_range\": %s,\n        \"max_seq_len\": %d,\n"
                      "        \"tie_word_embeddings\": %s,\n        \"vocab_size\": %d\n    }\n}",
                      fast, c->num_codebooks + 1, c->num_codebooks, c->codebook_size, c->semantic_begin_id - 1,
                      c->im_end_id, c->semantic_begin_id - 9, c->semantic_end_id, c->semantic_begin_id, slow,
                      shape->initializer_range, c->max_seq_len, truth(c->tie_word_embeddings), c->vocab_size);
}

/* ---- weights ---- */

struct sink {
    struct synth              *synth;
    struct torch_writer       *torch; /* one of the two */
    struct safetensors_writer *safe;
};

static status_t sink_write(void *context, const void *data, size_t bytes)
{
    struct sink                *sink = context;
    const struct synth_options *o    = sink->synth->options;
    if (o->stop && *o->stop)
        return FAIL(ST_EINTERRUPTED, "%s: interrupted; nothing is left behind", o->dir);
    TRY(sink->torch ? torch_writer_data(sink->torch, data, bytes) : safetensors_writer_data(sink->safe, data, bytes));
    sink->synth->done += bytes;
    if (o->progress)
        o->progress(sink->synth->done, sink->synth->total);
    return ST_OK;
}

/* Tensors to write, in file order, with what fills each. Names belong to the layout, or to `names`. */
struct plan {
    struct tensor  *tensors;
    struct filling *fillings;
    char          (*names)[96];
    size_t          count;
};

static status_t plan_make(struct plan *p, size_t count)
{
    p->tensors  = calloc(count, sizeof *p->tensors);
    p->fillings = calloc(count, sizeof *p->fillings);
    p->names    = calloc(count, sizeof *p->names);
    p->count    = count;
    return p->tensors && p->fillings && p->names ? ST_OK : FAIL(ST_ENOMEM, "no memory for %zu tensors", count);
}

static void plan_free(struct plan *p)
{
    free(p->tensors);
    free(p->fillings);
    free(p->names);
}

/* The name in a published S2 file of what we call `name`. */
static void s2_name(const char *name, char out[96])
{
    if (strncmp(name, "fast_", 5) == 0)
        snprintf(out, 96, "audio_decoder.%s", name + 5);
    else if (strncmp(name, "codebook_embeddings.", 20) == 0)
        snprintf(out, 96, "audio_decoder.%s", name);
    else
        snprintf(out, 96, "text_model.model.%s", name);
}

static status_t plan_weights(const struct synth_options *o, const struct layout *layout, struct plan *p)
{
    TRY(plan_make(p, layout->count));
    for (size_t i = 0; i < layout->count; i++) {
        const struct layout_entry *e = &layout->entries[i];
        if (o->shape->config.family == FAMILY_S2)
            s2_name(e->name, p->names[i]);
        else
            snprintf(p->names[i], sizeof p->names[i], "%s", e->name);
        p->tensors[i] = (struct tensor){.name = p->names[i], .dtype = DT_BF16, .rank = e->rank};
        memcpy(p->tensors[i].shape, e->shape, sizeof e->shape);
        p->tensors[i].bytes = (size_t)layout_elements(e) * 2;
        p->fillings[i]      = filling_for_weight(o->shape, o->seed, e);
    }
    return ST_OK;
}

static status_t plan_codec(const struct synth_options *o, const struct codec_layout *layout, struct plan *p)
{
    TRY(plan_make(p, layout->count));
    for (size_t i = 0; i < layout->count; i++) {
        const struct codec_entry *e = &layout->entries[i];
        p->tensors[i]               = (struct tensor){.name = e->name, .dtype = e->dtype, .rank = e->rank};
        memcpy(p->tensors[i].shape, e->shape, sizeof e->shape);
        p->tensors[i].bytes = (size_t)codec_entry_elements(e) * dtype_size(e->dtype);
        p->fillings[i]      = filling_for_codec(o->seed, e);
    }
    return ST_OK;
}

/* Tensors [first, last) of the plan into the open sink. */
static status_t plan_write(const struct plan *p, size_t first, size_t last, struct sink *sink)
{
    for (size_t i = first; i < last; i++)
        TRY(filling_write(&p->fillings[i], &p->tensors[i], sink_write, sink));
    return ST_OK;
}

static status_t write_torch(struct synth *s, const struct plan *p, const char *name, const char *folder)
{
    char        path[PATH_MAX];
    struct sink sink = {.synth = s};
    TRY(path_in(s, name, path));
    TRY(torch_writer_begin(path, folder, p->tensors, p->count, &sink.torch));
    status_t st = plan_write(p, 0, p->count, &sink);
    if (st == ST_OK)
        return torch_writer_end(sink.torch);
    torch_writer_abort(sink.torch);
    return st;
}

static status_t write_shard(struct synth *s, const struct plan *p, size_t first, size_t last, const char *name)
{
    char        path[PATH_MAX];
    struct sink sink = {.synth = s};
    TRY(path_in(s, name, path));
    TRY(safetensors_writer_begin(path, p->tensors + first, last - first, "{\"format\":\"pt\"}", &sink.safe));
    status_t st = plan_write(p, first, last, &sink);
    if (st == ST_OK)
        return safetensors_writer_end(sink.safe);
    safetensors_writer_abort(sink.safe);
    return st;
}

/* First tensor of each shard; ends[n] = count. */
static int cut_shards(const struct plan *p, uint64_t total, size_t ends[MAX_SHARDS + 1])
{
    uint64_t limit = total / 5 * 4 < SHARD_BYTES ? total / 5 * 4 : SHARD_BYTES, in_shard = 0;
    int      n     = 0;
    ends[0]        = 0;
    for (size_t i = 0; i < p->count; i++) {
        if (i > ends[n] && in_shard + p->tensors[i].bytes > limit && n + 1 < MAX_SHARDS) {
            ends[++n] = i;
            in_shard  = 0;
        }
        in_shard += p->tensors[i].bytes;
    }
    ends[++n] = p->count;
    return n;
}

static void shard_name(int i, int n, char out[64])
{
    snprintf(out, 64, "model-%05d-of-%05d.safetensors", i + 1, n);
}

static status_t write_index(struct synth *s, const struct plan *p, const size_t *ends, int n, uint64_t total)
{
    char     *text = NULL, name[64];
    size_t    size = 0;
    FILE     *f    = open_memstream(&text, &size);
    if (!f)
        return FAIL(ST_ENOMEM, "no memory for the index");
    fprintf(f, "{\n  \"metadata\": {\n    \"total_size\": %" PRIu64 "\n  },\n  \"weight_map\": {", total);
    for (int k = 0; k < n; k++) {
        shard_name(k, n, name);
        for (size_t i = ends[k]; i < ends[k + 1]; i++)
            fprintf(f, "%s\n    \"%s\": \"%s\"", i ? "," : "", p->tensors[i].name, name);
    }
    fprintf(f, "\n  }\n}\n");
    if (fclose(f) != 0) {
        free(text);
        return FAIL(ST_ENOMEM, "no memory for the index");
    }
    status_t st = write_text(s, "model.safetensors.index.json", "%s", text);
    free(text);
    return st;
}

static status_t write_weights(struct synth *s)
{
    const struct synth_options *o      = s->options;
    struct layout               layout = {0};
    struct plan                 p      = {0};
    size_t                      ends[MAX_SHARDS + 1];
    char                        name[64];
    uint64_t                    total = synth_bytes(o->shape, false);
    status_t                    st    = ST_OK;
    TRY_OUT(layout_build(&o->shape->config, &layout));
    TRY_OUT(plan_weights(o, &layout, &p));
    if (o->shape->config.family == FAMILY_S1) {
        TRY_OUT(write_torch(s, &p, "model.pth", "model"));
        goto out;
    }
    int n = cut_shards(&p, total, ends);
    for (int i = 0; i < n; i++) {
        shard_name(i, n, name);
        TRY_OUT(write_shard(s, &p, ends[i], ends[i + 1], name));
    }
    TRY_OUT(write_index(s, &p, ends, n, total));
out:
    plan_free(&p);
    layout_free(&layout);
    return st;
}

static status_t write_codec(struct synth *s)
{
    const struct codec_dims *d      = s->options->shape->codec;
    struct codec_layout      layout = {0};
    struct plan              p      = {0};
    status_t                 st     = ST_OK;
    TRY_OUT(codec_layout_build(d, &layout));
    TRY_OUT(plan_codec(s->options, &layout, &p));
    TRY_OUT(write_torch(s, &p, "codec.pth", "codec"));
    if (d != &codec_dims_published)
        TRY_OUT(write_text(s, "codec.json",
                           "{\n  \"dim\": %d,\n  \"enc\": %d,\n  \"dec\": %d,\n  \"ncb\": %d,\n  \"layers\": %d,\n"
                           "  \"window\": %d,\n  \"head_dim\": %d,\n  \"n_head\": %d,\n  \"intermediate\": %d,\n"
                           "  \"rates\": [8, 8, 4, 2],\n  \"sample_rate\": 44100\n}\n",
                           d->latent, d->encoder_width, d->decoder_width, d->residual_books, d->layers, d->window,
                           d->head_dim, d->n_head, d->intermediate));
out:
    plan_free(&p);
    codec_layout_free(&layout);
    return st;
}

/* ---- record ---- */

/* Entries of the top-p nucleus of `rows` Gaussian logits of standard deviation sigma: the mass above x·sigma is
 * 1 − Φ(x − sigma), the share of rows above it 1 − Φ(x). p = 0.8, Φ⁻¹(p) = 0.8416. */
static long nucleus_size(double rows, double sigma)
{
    return lround(rows * 0.5 * erfc((sigma - 0.8416) / sqrt(2.0)));
}

static status_t write_record(const struct synth *s)
{
    const struct shape *shape = s->options->shape;
    double              slow = head_sigma(shape, false), fast = head_sigma(shape, true);
    char                measured[512] = "";
    if (s->options->measure)
        s->options->measure(s->dir, measured, sizeof measured);
    return write_text(s, "synth.json",
                      "{\n  \"made_by\": \"qsweep synth\",\n  \"shape\": \"%s\",\n  \"seed\": %" PRIu64 ",\n"
                      "  \"parameters\": %lld,\n  \"codec\": %s,\n"
                      "  \"head\": {\"logit_sigma\": %.2f, \"rows\": 4096, \"predicted_nucleus\": %ld},\n"
                      "  \"fast_head\": {\"logit_sigma\": %.2f, \"rows\": 1024, \"predicted_nucleus\": %ld},\n"
                      "  \"nucleus_rule\": \"top-p 0.8 of Gaussian logits: rows * (1 - Phi(logit_sigma - 0.8416))\",\n"
                      "  \"measured\": %s\n}\n",
                      shape->name, s->options->seed, config_parameters(&shape->config), truth(s->options->codec), slow,
                      nucleus_size(4096, slow), fast, nucleus_size(1024, fast), measured[0] ? measured : "null");
}

/* ---- the folder ---- */

uint64_t synth_bytes(const struct shape *shape, bool codec)
{
    uint64_t            bytes  = 2 * (uint64_t)config_parameters(&shape->config);
    struct codec_layout layout = {0};
    if (codec && codec_layout_build(shape->codec, &layout) == ST_OK)
        for (size_t i = 0; i < layout.count; i++)
            bytes += (uint64_t)codec_entry_elements(&layout.entries[i]) * dtype_size(layout.entries[i].dtype);
    codec_layout_free(&layout);
    return bytes;
}

/* mkdir -p of the folder above path. */
static status_t make_parents(const char *path)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(copy, 0777) != 0 && errno != EEXIST)
            return FAIL(ST_EIO, "%s: cannot create: %s", copy, strerror(errno));
        *slash = '/';
    }
    return ST_OK;
}

/* Tensor data, tokenizer and a little for directories, headers and metadata. */
static status_t check_space(const struct synth *s)
{
    char           copy[PATH_MAX];
    struct statvfs info;
    uint64_t       needed = s->total + s->total / 1000 + synth_tokenizer_bytes(s->options->shape->n_ranks) + (1 << 20);
    snprintf(copy, sizeof copy, "%s", s->dir);
    const char *parent = dirname(copy);
    if (statvfs(parent, &info) != 0)
        return FAIL(ST_EIO, "%s: %s", parent, strerror(errno));
    uint64_t free_bytes = (uint64_t)info.f_bavail * info.f_frsize;
    if (free_bytes < needed)
        return FAIL(ST_EIO, "%s: %s needs %" PRIu64 " MB, %" PRIu64 " MB are free here", parent, s->options->shape->name,
                    needed / 1000000 + 1, free_bytes / 1000000);
    return ST_OK;
}

/* Remove the temporary folder and the files in it (there are no folders in it). */
static void remove_folder(const char *dir)
{
    DIR *d = opendir(dir);
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d))
        unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
    rmdir(dir);
}

static status_t fill_folder(struct synth *s)
{
    const struct shape *shape = s->options->shape;
    TRY(shape->config.family == FAMILY_S2 ? write_nested_config(s) : write_flat_config(s));
    if (shape->n_ranks)
        TRY(synth_tokenizer_write(s->dir, shape->n_ranks));
    TRY(write_weights(s));
    if (s->options->codec)
        TRY(write_codec(s));
    return write_record(s);
}

status_t synth_run(const struct synth_options *options)
{
    struct synth s = {.options = options, .total = synth_bytes(options->shape, options->codec)};
    struct stat  info;
    char         final[PATH_MAX];
    size_t       n = strlen(options->dir);
    while (n > 1 && options->dir[n - 1] == '/')
        n--;
    if (n == 0 || n + 64 > PATH_MAX)
        return FAIL(ST_EUSAGE, "the folder's name is %s", n ? "too long" : "empty");
    snprintf(final, sizeof final, "%.*s", (int)n, options->dir);
    if (lstat(final, &info) == 0)
        return FAIL(ST_EUSAGE, "%s exists already and is never overwritten; remove it or choose another name", final);
    snprintf(s.dir, sizeof s.dir, "%.*s.tmp.%ld", (int)n, final, (long)getpid());

    TRY(make_parents(s.dir));
    TRY(check_space(&s));
    if (mkdir(s.dir, 0777) != 0)
        return FAIL(ST_EIO, "%s: cannot create: %s", s.dir, strerror(errno));
    status_t st = fill_folder(&s);
    if (st == ST_OK)
        st = outfile_rename_new(s.dir, final);
    if (st != ST_OK)
        remove_folder(s.dir);
    return st;
}
