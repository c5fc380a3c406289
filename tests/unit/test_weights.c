/* Weights in the three precisions from checkpoints made in memory. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/bf16.h"
#include "model/quantize.h"
#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 24, FAST_DIM = 16, VOCAB = 100, CODES = 30, BOOKS = 3 };

struct source {
    struct checkpoint c;
    void             *memory[256];
    int               n_memory;
    uint64_t          state;
};

static struct model_config tiny(void)
{
    return (struct model_config){
        .slow = {.n_layer = 2, .n_head = 2, .n_kv_heads = 1, .head_dim = 8, .dim = DIM, .intermediate_size = 40, .qk_norm = true,
                 .qkv_bias = true},
        .fast = {.n_layer = 1, .n_head = 2, .n_kv_heads = 2, .head_dim = 4, .dim = FAST_DIM, .intermediate_size = 20, .o_bias = true},
        .vocab_size = VOCAB, .codebook_size = CODES, .num_codebooks = BOOKS, .max_seq_len = 64, .rope_base = 10000, .norm_eps = 1e-6f,
        .semantic_begin_id = 60, .semantic_end_id = 89, .im_end_id = 50,
    };
}

/* Random values; half-precision formats get the nearest bits they have. */
static void add(struct source *s, enum dtype dtype, int misalign, const char *name, int rows, int cols)
{
    const size_t n = (size_t)rows * (size_t)(cols ? cols : 1), size = dtype_size(dtype);
    char        *memory = malloc(n * size + 16), *data = memory + misalign;
    for (size_t i = 0; i < n; i++) {
        s->state = s->state * 6364136223846793005u + 1442695040888963407u;
        float    f = (float)((double)(s->state >> 33) / 2147483648.0 - 0.5);
        bf16_t   b = bf16_from_f32(f);
        double   d = (double)f;
        uint16_t h = (uint16_t)((s->state >> 40 & 0x8000) | ((12 + (s->state >> 57 & 3)) << 10) | (s->state >> 20 & 0x3ff));
        memcpy(data + i * size, dtype == DT_F32 ? (void *)&f : dtype == DT_F64 ? (void *)&d : dtype == DT_F16 ? (void *)&h : (void *)&b, size);
    }
    struct tensor t = {.name = name, .dtype = dtype, .rank = cols ? 2 : 1, .shape = {rows, cols}, .data = data, .bytes = n * size};
    s->memory[s->n_memory++] = memory;
    assert_int_equal(tensor_set_add(&s->c.tensors, &t), ST_OK);
}

static void add_stack(struct source *s, enum dtype dtype, int misalign, const char *prefix, const struct stack_config *k)
{
    char name[96];
    int  q = k->n_head * k->head_dim, kv = k->n_kv_heads * k->head_dim;
    for (int l = 0; l < k->n_layer; l++) {
#define ADD(what, rows, cols) (snprintf(name, sizeof name, "%s.%d.%s", prefix, l, what), add(s, dtype, misalign, name, rows, cols))
        ADD("attention.wqkv.weight", q + 2 * kv, k->dim);
        ADD("attention.wo.weight", k->dim, q);
        ADD("feed_forward.w1.weight", k->intermediate_size, k->dim);
        ADD("feed_forward.w3.weight", k->intermediate_size, k->dim);
        ADD("feed_forward.w2.weight", k->dim, k->intermediate_size);
        ADD("attention_norm.weight", k->dim, 0);
        ADD("ffn_norm.weight", k->dim, 0);
        if (k->qk_norm) {
            ADD("attention.q_norm.weight", k->head_dim, 0);
            ADD("attention.k_norm.weight", k->head_dim, 0);
        }
        if (k->qkv_bias)
            ADD("attention.wqkv.bias", q + 2 * kv, 0);
        if (k->o_bias)
            ADD("attention.wo.bias", k->dim, 0);
#undef ADD
    }
}

static void source_open(struct source *s, const struct model_config *c, enum dtype dtype, int misalign)
{
    *s = (struct source){.state = 1};
    strcpy(s->c.weights_path, "memory");
    s->c.config = *c;
    add(s, dtype, misalign, "embeddings.weight", VOCAB, DIM);
    add(s, dtype, misalign, "codebook_embeddings.weight", BOOKS * CODES, DIM);
    add(s, dtype, misalign, "fast_embeddings.weight", CODES, c->fast.dim);
    if (!c->tie_word_embeddings)
        add(s, dtype, misalign, "output.weight", VOCAB, DIM);
    add(s, dtype, misalign, "fast_output.weight", CODES, c->fast.dim);
    add(s, dtype, misalign, "norm.weight", DIM, 0);
    add(s, dtype, misalign, "fast_norm.weight", c->fast.dim, 0);
    if (c->fast.dim != DIM) {
        add(s, dtype, misalign, "fast_project_in.weight", c->fast.dim, DIM);
        add(s, dtype, misalign, "fast_project_in.bias", c->fast.dim, 0);
    }
    add_stack(s, dtype, misalign, "layers", &c->slow);
    add_stack(s, dtype, misalign, "fast_layers", &c->fast);
    assert_int_equal(tensor_set_sort(&s->c.tensors, "memory"), ST_OK);
}

static void source_close(struct source *s)
{
    tensor_set_free(&s->c.tensors);
    for (int i = 0; i < s->n_memory; i++)
        free(s->memory[i]);
}

static const struct tensor *tensor(const struct source *s, const char *name)
{
    const struct tensor *t = tensor_set_find(&s->c.tensors, name);
    assert_non_null(t);
    return t;
}

/* Element of a float tensor by its own decoder. */
static double value(const struct tensor *t, size_t i)
{
    const char *at = (const char *)t->data + i * dtype_size(t->dtype);
    uint16_t    h;
    float       f;
    double      d;
    if (t->dtype == DT_F32)
        return memcpy(&f, at, 4), (double)f;
    if (t->dtype == DT_F64)
        return memcpy(&d, at, 8), d;
    memcpy(&h, at, 2);
    if (t->dtype == DT_BF16)
        return (double)bf16_to_f32(h);
    double m = (h >> 10 & 31 ? 1024 : 0) + (h & 1023), e = (h >> 10 & 31 ? h >> 10 & 31 : 1) - 25;
    for (; e < 0; e++)
        m /= 2;
    for (; e > 0; e--)
        m *= 2;
    return h & 0x8000 ? -m : m;
}

static const enum dtype sources[] = {DT_F32, DT_BF16, DT_F16, DT_F64};

static void fp32_and_bf16_hold_the_nearest_value_of_every_source_format(void **unused)
{
    const struct model_config c = tiny();
    for (int f = 0; f < 4; f++)
        for (int misalign = 0; misalign < 2; misalign++) {
            struct source   s;
            struct weights *w;
            source_open(&s, &c, sources[f], misalign);
            const struct tensor *emb = tensor(&s, "embeddings.weight"), *w2 = tensor(&s, "layers.1.feed_forward.w2.weight");
            assert_int_equal(weights_open(&s.c, PRECISION_FP32, RECIPE_NONE, 3, &w), ST_OK);
            assert_int_equal(w->embeddings.format, DT_F32);
            assert_int_equal((uintptr_t)w->embeddings.w % 4, 0);
            for (size_t i = 0; i < VOCAB * DIM; i++)
                assert_true(((const float *)w->embeddings.w)[i] == (float)value(emb, i));
            for (size_t i = 0; i < DIM * 40; i++)
                assert_true(((const float *)w->layers[1].w2.w)[i] == (float)value(w2, i));
            weights_close(w);
            assert_int_equal(weights_open(&s.c, PRECISION_BF16, RECIPE_NONE, 2, &w), ST_OK);
            assert_int_equal((uintptr_t)w->embeddings.w % 2, 0);
            for (size_t i = 0; i < VOCAB * DIM; i++)
                assert_int_equal(((const bf16_t *)w->embeddings.w)[i], bf16_from_f32((float)value(emb, i)));
            for (int i = 0; i < 32; i++) {
                assert_true(w->layers[0].wqkv.bias[i] == (float)value(tensor(&s, "layers.0.attention.wqkv.bias"), (size_t)i));
                assert_true(w->norm[i % DIM] == (float)value(tensor(&s, "norm.weight"), (size_t)i % DIM));
            }
            weights_close(w);
            source_close(&s);
        }
}

static void bf16_weights_stay_where_they_are(void **unused)
{
    const struct model_config c = tiny();
    struct source             s;
    struct weights           *w;
    source_open(&s, &c, DT_BF16, 0);
    assert_int_equal(weights_open(&s.c, PRECISION_BF16, RECIPE_NONE, 1, &w), ST_OK);
    assert_ptr_equal(w->output.w, tensor(&s, "output.weight")->data);
    assert_ptr_equal(w->codebook_embeddings.w, tensor(&s, "codebook_embeddings.weight")->data);
    assert_ptr_equal(w->layers[0].wqkv.w, tensor(&s, "layers.0.attention.wqkv.weight")->data);
    assert_ptr_equal(w->fast_layers[0].w3.w, tensor(&s, "fast_layers.0.feed_forward.w3.weight")->data);
    assert_ptr_equal(w->fast_project_in.w, tensor(&s, "fast_project_in.weight")->data);
    assert_int_equal(w->layers[0].wqkv.rows, 32);
    assert_int_equal(w->layers[0].wqkv.cols, DIM);
    weights_close(w);
    source_close(&s);
}

static void bytes_are_those_of_the_precision(void **unused)
{
    struct model_config c = tiny();
    for (int tied = 0; tied < 2; tied++) {
        struct source   s;
        struct weights *w;
        c.tie_word_embeddings = tied;
        source_open(&s, &c, DT_BF16, 0);
        const size_t n = (size_t)config_parameters(&c);
        size_t       linear = 0, rows = 0;
        for (size_t i = 0; i < s.c.tensors.count; i++)
            if (quantize_applies(&c, s.c.tensors.items[i].name)) {
                linear += (size_t)tensor_elements(&s.c.tensors.items[i]);
                rows += (size_t)s.c.tensors.items[i].shape[0];
            }
        assert_int_equal(weights_open(&s.c, PRECISION_FP32, RECIPE_NONE, 1, &w), ST_OK);
        assert_int_equal(w->bytes, 4 * n);
        weights_close(w);
        assert_int_equal(weights_open(&s.c, PRECISION_BF16, RECIPE_NONE, 1, &w), ST_OK);
        assert_int_equal(w->bytes, 2 * n);
        assert_int_equal(w->scale_bytes, 0);
        weights_close(w);
        assert_int_equal(weights_open(&s.c, PRECISION_INT8, RECIPE_LEGACY, 1, &w), ST_OK);
        assert_int_equal(w->scale_bytes, 2 * rows);
        assert_int_equal(w->bytes, 2 * n - linear + 2 * rows);
        weights_close(w);
        source_close(&s);
    }
}

static void int8_quantizes_every_linear_weight_by_the_recipe_and_nothing_else(void **unused)
{
    const struct model_config c = tiny();
    static const enum recipe  recipes[] = {RECIPE_NONE, RECIPE_TORCHAO, RECIPE_TORCHAO_V2, RECIPE_LEGACY};
    for (int f = 0; f < 4; f++)
        for (int k = 0; k < 4; k++) {
            struct source   s;
            struct weights *w;
            source_open(&s, &c, sources[f], f % 2);
            const enum recipe    recipe = recipes[k] == RECIPE_NONE ? RECIPE_TORCHAO : recipes[k];
            const struct tensor *t      = tensor(&s, "fast_layers.0.feed_forward.w1.weight");
            bf16_t               rounded[20 * FAST_DIM];
            int8_t               q[20 * FAST_DIM];
            unsigned char        scales[20 * 4];
            assert_int_equal(weights_open(&s.c, PRECISION_INT8, recipes[k], 2, &w), ST_OK);
            for (size_t i = 0; i < 20 * FAST_DIM; i++)
                rounded[i] = bf16_from_f32((float)value(t, i));
            assert_int_equal(quantize_rows(recipe, "w1", 0, rounded, DT_BF16, 20, FAST_DIM, q, scales), ST_OK);
            const struct matrix *m = &w->fast_layers[0].w1;
            assert_int_equal(m->format, DT_I8);
            assert_int_equal(m->scale_dtype, recipe == RECIPE_TORCHAO_V2 ? DT_F32 : DT_BF16);
            assert_memory_equal(m->w, q, sizeof q);
            assert_memory_equal(m->scales, scales, 20 * dtype_size(m->scale_dtype));
            const struct matrix *linear[] = {&w->output, &w->fast_output, &w->fast_project_in, &w->layers[1].wo, &w->layers[0].w2};
            for (int i = 0; i < 5; i++)
                assert_int_equal(linear[i]->format, DT_I8);
            assert_int_equal(w->embeddings.format, DT_BF16);
            assert_int_equal(w->codebook_embeddings.format, DT_BF16);
            assert_int_equal(w->fast_embeddings.format, DT_BF16);
            weights_close(w);
            source_close(&s);
        }
}

static void tied_embeddings_are_one_matrix_and_stay_bf16(void **unused)
{
    struct model_config c = tiny();
    struct source       s;
    struct weights     *w;
    c.tie_word_embeddings = true;
    source_open(&s, &c, DT_BF16, 0);
    assert_int_equal(weights_open(&s.c, PRECISION_INT8, RECIPE_NONE, 1, &w), ST_OK);
    assert_ptr_equal(w->output.w, w->embeddings.w);
    assert_int_equal(w->output.format, DT_BF16);
    weights_close(w);
    source_close(&s);
}

static void equal_widths_have_no_projection(void **unused)
{
    struct model_config c = tiny();
    struct source       s;
    struct weights     *w;
    c.fast.dim = DIM;
    source_open(&s, &c, DT_BF16, 0);
    assert_int_equal(weights_open(&s.c, PRECISION_BF16, RECIPE_NONE, 1, &w), ST_OK);
    assert_null(w->fast_project_in.w);
    weights_close(w);
    source_close(&s);
}

/* Turn one linear weight of a source into stored INT8 with scales of the given dtype (DT_COUNT: none). */
static void store_int8(struct source *s, const char *stem, enum dtype scale_dtype)
{
    char name[96];
    snprintf(name, sizeof name, "%s.weight", stem);
    struct tensor *t = (struct tensor *)(uintptr_t)tensor(s, name);
    t->dtype         = DT_I8;
    t->bytes /= 2;
    if (scale_dtype == DT_COUNT)
        return;
    snprintf(name, sizeof name, "%s.scales", stem);
    add(s, scale_dtype, scale_dtype == DT_F32 ? 2 : 0, name, (int)t->shape[0], 0);
    assert_int_equal(tensor_set_sort(&s->c.tensors, "memory"), ST_OK);
}

static void stored_int8_is_taken_and_other_precisions_of_it_are_refused(void **unused)
{
    const struct model_config c = tiny();
    for (int f = 0; f < 2; f++) {
        struct source   s;
        struct weights *w;
        source_open(&s, &c, DT_BF16, 0);
        store_int8(&s, "layers.1.attention.wo", f ? DT_F32 : DT_BF16);
        assert_int_equal(weights_open(&s.c, PRECISION_INT8, RECIPE_NONE, 1, &w), ST_OK);
        const struct matrix *m = &w->layers[1].wo;
        assert_ptr_equal(m->w, tensor(&s, "layers.1.attention.wo.weight")->data);
        assert_int_equal(m->scale_dtype, f ? DT_F32 : DT_BF16);
        assert_memory_equal(m->scales, tensor(&s, "layers.1.attention.wo.scales")->data, DIM * dtype_size(m->scale_dtype));
        assert_int_equal((uintptr_t)m->scales % dtype_size(m->scale_dtype), 0);
        weights_close(w);
        assert_int_equal(weights_open(&s.c, PRECISION_BF16, RECIPE_NONE, 1, &w), ST_EUNSUPPORTED);
        assert_int_equal(weights_open(&s.c, PRECISION_FP32, RECIPE_NONE, 1, &w), ST_EUNSUPPORTED);
        source_close(&s);
    }
}

static void wrong_tensors_are_refused(void **unused)
{
    const struct model_config c = tiny();
    struct source             s;
    struct weights           *w;
    source_open(&s, &c, DT_BF16, 0);
    store_int8(&s, "layers.0.feed_forward.w1", DT_COUNT); /* no scales */
    assert_int_equal(weights_open(&s.c, PRECISION_INT8, RECIPE_NONE, 1, &w), ST_EINPUT);
    source_close(&s);

    static const char *const names[] = {"norm.weight", "fast_output.weight", "layers.1.attention.q_norm.weight",
                                        "fast_layers.0.attention.wo.bias", "fast_project_in.bias"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int wrong = 0; wrong < 3; wrong++) {
            source_open(&s, &c, DT_BF16, 0);
            struct tensor *t = (struct tensor *)(uintptr_t)tensor(&s, names[i]);
            if (wrong == 0)
                t->shape[0]++;
            else if (wrong == 1)
                t->dtype = DT_I16;
            else
                s.c.config.slow.dim = DIM + 1; /* nothing fits any more */
            assert_int_equal(weights_open(&s.c, PRECISION_BF16, RECIPE_NONE, 1, &w), ST_EINPUT);
            source_close(&s);
        }
    s = (struct source){0};
    s.c.config = c;
    assert_int_equal(weights_open(&s.c, PRECISION_FP32, RECIPE_NONE, 1, &w), ST_EINPUT); /* an empty set */
    weights_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp32_and_bf16_hold_the_nearest_value_of_every_source_format),
        cmocka_unit_test(bf16_weights_stay_where_they_are),
        cmocka_unit_test(bytes_are_those_of_the_precision),
        cmocka_unit_test(int8_quantizes_every_linear_weight_by_the_recipe_and_nothing_else),
        cmocka_unit_test(tied_embeddings_are_one_matrix_and_stay_bf16),
        cmocka_unit_test(equal_widths_have_no_projection),
        cmocka_unit_test(stored_int8_is_taken_and_other_precisions_of_it_are_refused),
        cmocka_unit_test(wrong_tensors_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
