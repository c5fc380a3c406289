#include "checkpoint/config.h"

#include "base/log.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bounds far above any model, low enough that every product of two sizes times two bytes fits 63 bits. */
enum {
    MAX_LAYERS    = 1024,
    MAX_HEADS     = 1 << 12,
    MAX_WIDTH     = 1 << 20,
    MAX_VOCAB     = 1 << 24,
    MAX_CODEBOOKS = 256,
    MAX_ROWS      = 1 << 28, /* of one matrix: fused qkv, codebook table */
};

/* One JSON object being read. Keys that are asked for are marked, the rest are reported. */
struct section {
    json_t     *object;
    const char *label;  /* the file                         */
    const char *prefix; /* "", "text_config." for messages  */
    json_t     *asked;  /* object used as a set of keys     */
};

/* Keys that describe training, provenance or other programs; they change nothing here. */
static const char *const ignored_keys[] = {
    "dropout", "use_gradient_checkpointing", "initializer_range", "architectures", "dtype", "torch_dtype",
    "transformers_version", "pad_token_id", "audio_pad_token_id", "bos_token_id", "model_type", "use_cache", "auto_map",
    "text_config", "audio_decoder_config", "quantization", NULL,
};

/* The value of key, NULL when absent or null: both mean the default. */
static const json_t *value_of(struct section *s, const char *key)
{
    json_object_set_new(s->asked, key, json_true());
    const json_t *v = json_object_get(s->object, key);
    return json_is_null(v) ? NULL : v;
}

static status_t read_int(struct section *s, const char *key, int fallback, int lowest, int highest, int *out)
{
    const json_t *v = value_of(s, key);
    if (!v) {
        *out = fallback;
        return ST_OK;
    }
    if (!json_is_integer(v))
        return FAIL(ST_EINPUT, "%s: %s%s is not an integer", s->label, s->prefix, key);
    json_int_t n = json_integer_value(v);
    if (n < lowest || n > highest)
        return FAIL(ST_EINPUT, "%s: %s%s = %lld, want %d to %d", s->label, s->prefix, key, (long long)n, lowest, highest);
    *out = (int)n;
    return ST_OK;
}

static status_t read_bool(struct section *s, const char *key, bool fallback, bool *out)
{
    const json_t *v = value_of(s, key);
    if (v && !json_is_boolean(v))
        return FAIL(ST_EINPUT, "%s: %s%s is neither true nor false", s->label, s->prefix, key);
    *out = v ? json_is_true(v) : fallback;
    return ST_OK;
}

static status_t read_real(struct section *s, const char *key, double fallback, double above, double highest, float *out)
{
    const json_t *v = value_of(s, key);
    double        x = fallback;
    if (v && !json_is_number(v))
        return FAIL(ST_EINPUT, "%s: %s%s is not a number", s->label, s->prefix, key);
    if (v)
        x = json_number_value(v);
    if (!(x > above && x <= highest))
        return FAIL(ST_EINPUT, "%s: %s%s = %g, want more than %g and at most %g", s->label, s->prefix, key, x, above,
                    highest);
    *out = (float)x;
    return ST_OK;
}

/* Keys of one stack. The fast stack of the flat form has the prefix "fast_" and takes the slow stack's value where a key
 * is absent, null or 0 (Python's `or`). */
struct stack_keys {
    const char *n_layer, *n_head, *n_local_heads, *head_dim, *dim, *intermediate_size, *qkv_bias, *o_bias, *qk_norm;
};

static const struct stack_keys plain_keys = {"n_layer", "n_head", "n_local_heads", "head_dim", "dim", "intermediate_size",
                                             "attention_qkv_bias", "attention_o_bias", "attention_qk_norm"};
static const struct stack_keys fast_keys  = {
    "n_fast_layer", "fast_n_head", "fast_n_local_heads", "fast_head_dim", "fast_dim", "fast_intermediate_size",
    "fast_attention_qkv_bias", "fast_attention_o_bias", "fast_attention_qk_norm"};

/* SwiGLU width when the file gives none: 2/3 · 4 · dim, rounded up to 256 (fish-speech, llama.py, __post_init__). */
static int default_intermediate(int dim)
{
    long long n = 8LL * dim / 3;
    return (int)((n + 255) / 256 * 256);
}

/* fallback NULL: the slow stack, with the defaults of the original's constructor. */
static status_t read_stack(struct section *s, const struct stack_keys *k, const struct stack_config *fallback,
                           struct stack_config *out)
{
    struct stack_config c;
    int                 lowest = fallback ? 0 : 1;
    TRY(read_int(s, k->n_layer, fallback ? 4 : 32, 1, MAX_LAYERS, &c.n_layer));
    TRY(read_int(s, k->n_head, fallback ? fallback->n_head : 32, lowest, MAX_HEADS, &c.n_head));
    TRY(read_int(s, k->dim, fallback ? fallback->dim : 4096, lowest, MAX_WIDTH, &c.dim));
    if (fallback && c.n_head == 0)
        c.n_head = fallback->n_head;
    if (fallback && c.dim == 0)
        c.dim = fallback->dim;

    TRY(read_int(s, k->n_local_heads, fallback ? fallback->n_kv_heads : -1, -1, MAX_HEADS, &c.n_kv_heads));
    if (fallback && c.n_kv_heads == 0)
        c.n_kv_heads = fallback->n_kv_heads;
    if (c.n_kv_heads == -1)
        c.n_kv_heads = c.n_head;

    bool explicit_null = json_is_null(json_object_get(s->object, k->head_dim));
    TRY(read_int(s, k->head_dim, fallback ? fallback->head_dim : 64, lowest, MAX_WIDTH, &c.head_dim));
    if (fallback && c.head_dim == 0)
        c.head_dim = fallback->head_dim;
    if (!fallback && explicit_null)
        c.head_dim = c.dim / c.n_head;

    TRY(read_int(s, k->intermediate_size, fallback ? fallback->intermediate_size : 0, 0, MAX_WIDTH, &c.intermediate_size));
    if (c.intermediate_size == 0)
        c.intermediate_size = fallback ? fallback->intermediate_size : default_intermediate(c.dim);

    TRY(read_bool(s, k->qkv_bias, fallback ? fallback->qkv_bias : false, &c.qkv_bias));
    TRY(read_bool(s, k->o_bias, fallback ? fallback->o_bias : false, &c.o_bias));
    TRY(read_bool(s, k->qk_norm, fallback ? fallback->qk_norm : false, &c.qk_norm));
    *out = c;
    return ST_OK;
}

static status_t check_stack(const char *label, const char *which, const struct stack_config *c)
{
    if (c->n_kv_heads < 1 || c->n_head % c->n_kv_heads != 0)
        return FAIL(ST_EINPUT, "%s: %s stack: n_head %d is not a multiple of n_local_heads %d", label, which, c->n_head,
                    c->n_kv_heads);
    if (c->head_dim < 2 || c->head_dim % 2 != 0)
        return FAIL(ST_EINPUT, "%s: %s stack: head_dim %d is not a positive even number", label, which, c->head_dim);
    if (c->dim % c->n_head != 0)
        return FAIL(ST_EINPUT, "%s: %s stack: dim %d is not a multiple of n_head %d", label, which, c->dim, c->n_head);
    if ((long long)(c->n_head + 2 * c->n_kv_heads) * c->head_dim > MAX_ROWS)
        return FAIL(ST_EINPUT, "%s: %s stack: %d + 2·%d heads of %d are more rows than the %d that are possible", label,
                    which, c->n_head, c->n_kv_heads, c->head_dim, MAX_ROWS);
    return ST_OK;
}

static status_t check_config(const char *label, const struct model_config *c)
{
    TRY(check_stack(label, "slow", &c->slow));
    TRY(check_stack(label, "fast", &c->fast));
    if ((long long)c->codebook_size * c->num_codebooks > MAX_ROWS)
        return FAIL(ST_EINPUT, "%s: %d codebooks of %d rows are more than the %d rows that are possible", label,
                    c->num_codebooks, c->codebook_size, MAX_ROWS);
    if (c->semantic_begin_id > c->semantic_end_id || c->semantic_end_id >= c->vocab_size || c->im_end_id >= c->vocab_size)
        return FAIL(ST_EINPUT, "%s: semantic ids %d to %d and im_end %d do not fit a vocabulary of %d", label,
                    c->semantic_begin_id, c->semantic_end_id, c->im_end_id, c->vocab_size);
    return ST_OK;
}

/* ---- quantization ---- */

static const char *const recipe_names[] = {
    [RECIPE_NONE] = "none", [RECIPE_TORCHAO] = "torchao", [RECIPE_TORCHAO_V2] = "torchao-v2", [RECIPE_LEGACY] = "legacy"};

const char *recipe_name(enum recipe recipe)
{
    return recipe_names[recipe];
}

static status_t read_quantization(json_t *root, const char *label, struct quantization *out)
{
    *out            = (struct quantization){0};
    const json_t *q = json_object_get(root, "quantization");
    if (!q || json_is_null(q))
        return ST_OK;
    const char *method = json_string_value(json_object_get(q, "method"));
    const char *mode   = json_string_value(json_object_get(q, "mode"));
    const char *recipe = json_string_value(json_object_get(q, "recipe"));
    const char *hash   = json_string_value(json_object_get(q, "source_hash"));
    if (method && strcmp(method, "torchao") == 0)
        return FAIL(ST_EINPUT, "%s: quantization.method \"torchao\": such a model.pth holds pickled TorchAO objects, which "
                               "are not loaded; run `qsweep quantize` on the original checkpoint instead", label);
    if (!method || strcmp(method, "qsweep") != 0)
        return FAIL(ST_EINPUT, "%s: quantization.method is not \"qsweep\"", label);
    if (!mode || strcmp(mode, "int8") != 0)
        return FAIL(ST_EINPUT, "%s: quantization.mode \"%.20s\" is not known (want int8)", label, mode ? mode : "");
    for (int i = RECIPE_TORCHAO; recipe && i <= RECIPE_LEGACY; i++)
        if (strcmp(recipe, recipe_names[i]) == 0)
            out->recipe = (enum recipe)i;
    if (out->recipe == RECIPE_NONE)
        return FAIL(ST_EINPUT, "%s: quantization.recipe \"%.20s\" is not known (want torchao, torchao-v2 or legacy)", label,
                    recipe ? recipe : "");
    const json_t *group = json_object_get(q, "group_size");
    if (group && !json_is_null(group) && !(json_is_integer(group) && json_integer_value(group) == 0))
        return FAIL(ST_EINPUT, "%s: quantization.group_size is not null (int8 has one scale a row)", label);
    if (hash && strlen(hash) >= sizeof out->source_hash)
        return FAIL(ST_EINPUT, "%s: quantization.source_hash is longer than %zu characters", label,
                    sizeof out->source_hash - 1);
    snprintf(out->mode, sizeof out->mode, "%s", mode);
    snprintf(out->source_hash, sizeof out->source_hash, "%s", hash ? hash : "");
    return ST_OK;
}

/* ---- the two forms of the file ---- */

static bool is_ignored(const char *key)
{
    for (int i = 0; ignored_keys[i]; i++)
        if (strcmp(key, ignored_keys[i]) == 0)
            return true;
    return false;
}

/* One line for all keys of a section that mean nothing here. */
static void warn_unknown(const struct section *s)
{
    char        list[512];
    size_t      at = 0;
    const char *key;
    json_t     *value;
    json_object_foreach (s->object, key, value) {
        if (json_object_get(s->asked, key) || is_ignored(key) || at + 4 >= sizeof list)
            continue;
        int n = snprintf(list + at, sizeof list - at, "%s%s%.60s", at ? ", " : "", s->prefix, key);
        at    = (size_t)n < sizeof list - at ? at + (size_t)n : sizeof list - 1;
    }
    for (size_t i = 0; i < at; i++)
        if ((unsigned char)list[i] < 0x20)
            list[i] = '?';
    if (at)
        log_warn("%s: unknown keys are ignored: %s", s->label, list);
}

/* Keys that both forms keep beside the slow stack. */
static status_t read_common(struct section *s, struct model_config *c)
{
    TRY(read_int(s, "vocab_size", 32000, 1, MAX_VOCAB, &c->vocab_size));
    TRY(read_int(s, "max_seq_len", 2048, 1, MAX_VOCAB, &c->max_seq_len));
    TRY(read_real(s, "rope_base", 10000, 0, 1e30, &c->rope_base));
    TRY(read_real(s, "norm_eps", 1e-5, 0, 1, &c->norm_eps));
    TRY(read_bool(s, "tie_word_embeddings", true, &c->tie_word_embeddings));
    return read_stack(s, &plain_keys, NULL, &c->slow);
}

static status_t read_flat(struct section *s, struct model_config *c)
{
    const char *type   = json_string_value(value_of(s, "model_type"));
    bool        reward = false;
    if (!type || strcmp(type, "dual_ar") != 0)
        return FAIL(ST_EINPUT, "%s: model_type \"%.40s\" is not supported (want dual_ar or fish_qwen3_omni)", s->label,
                    type ? type : "");
    c->family = FAMILY_S1;
    TRY(read_common(s, c));
    TRY(read_int(s, "codebook_size", 160, 1, MAX_WIDTH, &c->codebook_size));
    TRY(read_int(s, "num_codebooks", 4, 1, MAX_CODEBOOKS, &c->num_codebooks));
    TRY(read_bool(s, "scale_codebook_embeddings", false, &c->scale_codebook_embeddings));
    TRY(read_bool(s, "norm_fastlayer_input", false, &c->norm_fastlayer_input));
    TRY(read_int(s, "semantic_begin_id", 0, 0, MAX_VOCAB, &c->semantic_begin_id));
    TRY(read_int(s, "semantic_end_id", 0, 0, MAX_VOCAB, &c->semantic_end_id));
    TRY(read_bool(s, "is_reward_model", false, &reward));
    if (reward)
        return FAIL(ST_EINPUT, "%s: is_reward_model: a reward model has no output head and cannot decode", s->label);
    return read_stack(s, &fast_keys, &c->slow, &c->fast);
}

static status_t read_nested(struct section *s, struct section *text, struct section *audio, struct model_config *c)
{
    int fast_max_seq_len;
    c->family                    = FAMILY_S2;
    c->scale_codebook_embeddings = true; /* both forced by the S2 loader */
    c->norm_fastlayer_input      = true;
    TRY(read_common(text, c));
    TRY(read_int(audio, "vocab_size", 4096, 1, MAX_WIDTH, &c->codebook_size));
    TRY(read_int(audio, "num_codebooks", 10, 1, MAX_CODEBOOKS, &c->num_codebooks));
    TRY(read_int(audio, "max_seq_len", 11, 1, MAX_VOCAB, &fast_max_seq_len));
    if (fast_max_seq_len < c->num_codebooks)
        return FAIL(ST_EINPUT, "%s: audio_decoder_config.max_seq_len %d is less than num_codebooks %d", s->label,
                    fast_max_seq_len, c->num_codebooks);
    /* Switches do not pass from one section to the other; sizes do. */
    struct stack_config sizes = c->slow;
    sizes.qkv_bias = sizes.o_bias = sizes.qk_norm = false;
    TRY(read_stack(audio, &plain_keys, &sizes, &c->fast));

    /* The fast stack shares θ and ε with the slow one in the graph; a file that says otherwise is another model. */
    float rope_base, norm_eps;
    TRY(read_real(audio, "rope_base", c->rope_base, 0, 1e30, &rope_base));
    TRY(read_real(audio, "norm_eps", c->norm_eps, 0, 1, &norm_eps));
    if (rope_base != c->rope_base || norm_eps != c->norm_eps)
        return FAIL(ST_EINPUT, "%s: audio_decoder_config and text_config differ in rope_base or norm_eps; such a model is "
                               "not supported", s->label);

    if (!value_of(s, "semantic_start_token_id") || !value_of(s, "semantic_end_token_id") || !value_of(s, "eos_token_id"))
        return FAIL(ST_EINPUT, "%s: semantic_start_token_id, semantic_end_token_id and eos_token_id must be given",
                    s->label);
    TRY(read_int(s, "semantic_start_token_id", 0, 0, MAX_VOCAB, &c->semantic_begin_id));
    TRY(read_int(s, "semantic_end_token_id", 0, 0, MAX_VOCAB, &c->semantic_end_id));
    return read_int(s, "eos_token_id", 0, 0, MAX_VOCAB, &c->im_end_id);
}

static status_t read_root(json_t *root, json_t *asked[3], const char *label, struct model_config *out)
{
    struct model_config c = {0};
    struct section      s = {root, label, "", asked[0]};
    json_t             *text = json_object_get(root, "text_config"), *audio = json_object_get(root, "audio_decoder_config");
    const char         *type = json_string_value(json_object_get(root, "model_type"));
    if (text || audio || (type && strcmp(type, "fish_qwen3_omni") == 0)) {
        if (!json_is_object(text) || !json_is_object(audio))
            return FAIL(ST_EINPUT, "%s: the nested form needs the objects text_config and audio_decoder_config", label);
        struct section t = {text, label, "text_config.", asked[1]}, a = {audio, label, "audio_decoder_config.", asked[2]};
        TRY(read_nested(&s, &t, &a, &c));
        warn_unknown(&t);
        warn_unknown(&a);
    } else {
        TRY(read_flat(&s, &c));
    }
    TRY(read_quantization(root, label, &c.quantization));
    warn_unknown(&s);
    TRY(check_config(label, &c));
    *out = c;
    return ST_OK;
}

status_t config_parse(const char *bytes, size_t size, const char *label, struct model_config *out)
{
    json_error_t error;
    json_t      *root = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return FAIL(ST_EINPUT, "%s:%d: not valid JSON: %s", label, error.line, error.text);
    json_t  *asked[3] = {json_object(), json_object(), json_object()};
    status_t st       = json_is_object(root) ? read_root(root, asked, label, out)
                                             : FAIL(ST_EINPUT, "%s: the file is not a JSON object", label);
    for (int i = 0; i < 3; i++)
        json_decref(asked[i]);
    json_decref(root);
    return st;
}

/* ---- identity and size ---- */

static void stack_text(const struct stack_config *c, char *out, size_t size)
{
    snprintf(out, size, " [%d %d %d %d %d %d %d %d %d]", c->n_layer, c->n_head, c->n_kv_heads, c->head_dim, c->dim,
             c->intermediate_size, c->qkv_bias, c->o_bias, c->qk_norm);
}

void config_canonical(const struct model_config *c, char *out, size_t size)
{
    char slow[160], fast[160];
    stack_text(&c->slow, slow, sizeof slow);
    stack_text(&c->fast, fast, sizeof fast);
    snprintf(out, size, "config 1 s%d%s%s %d %d %d %d %.9g %.9g %d %d %d %d %d %d %s %s\n", c->family == FAMILY_S2 ? 2 : 1,
             slow, fast, c->vocab_size, c->codebook_size, c->num_codebooks, c->max_seq_len, (double)c->rope_base,
             (double)c->norm_eps, c->tie_word_embeddings, c->scale_codebook_embeddings, c->norm_fastlayer_input,
             c->semantic_begin_id, c->semantic_end_id, c->im_end_id, c->quantization.mode,
             recipe_name(c->quantization.recipe));
}

static long long stack_parameters(const struct stack_config *c)
{
    long long q = (long long)c->n_head * c->head_dim, kv = (long long)c->n_kv_heads * c->head_dim, qkv = q + 2 * kv;
    long long layer = qkv * c->dim + q * c->dim + 3LL * c->intermediate_size * c->dim + 2LL * c->dim;
    layer += (c->qkv_bias ? qkv : 0) + (c->o_bias ? c->dim : 0) + (c->qk_norm ? 2LL * c->head_dim : 0);
    return layer * c->n_layer;
}

long long config_parameters(const struct model_config *c)
{
    long long n = stack_parameters(&c->slow) + stack_parameters(&c->fast);
    n += (c->tie_word_embeddings ? 1LL : 2LL) * c->vocab_size * c->slow.dim;
    n += (long long)c->codebook_size * c->num_codebooks * c->slow.dim;
    n += 2LL * c->codebook_size * c->fast.dim;
    n += c->slow.dim + c->fast.dim;
    if (c->fast.dim != c->slow.dim)
        n += (long long)c->fast.dim * c->slow.dim + c->fast.dim;
    return n;
}
