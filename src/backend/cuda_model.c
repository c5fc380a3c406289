#include "backend/cuda_model.h"

#include "backend/bump.h"
#include "model/bf16.h"
#include "model/decode.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { S1_RESIDUAL_ROWS = 1024, STAGE_BYTES = 64 << 20 };

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* ---- placing: run once to count and once to assign ---------------------------------------------------------------- */

struct placer {
    struct cuda_model    *m;
    const struct weights *w;
    struct bump           weights, scales;
};

static void place_linear(struct placer *p, struct linear *l, int rows, const struct matrix *w, bool paired, bool normed)
{
    linear_plan(l, rows, w->cols, w->format == DT_I8, paired, normed);
    l->d_w = bump_take(&p->weights, linear_weight_bytes(l));
    if (w->format == DT_I8)
        l->d_scale = bump_take(&p->scales, linear_scale_bytes(l));
    if (w->bias)
        l->d_bias = bump_take(&p->weights, (size_t)l->tiles * 16 * sizeof(float));
}

static void place_block(struct placer *p, struct cuda_layer *l, const struct block *b, const struct stack_config *c)
{
    const size_t norm = (size_t)linear_padded_cols(c->dim) * sizeof(float);
    place_linear(p, &l->wqkv, b->wqkv.rows, &b->wqkv, false, true);
    place_linear(p, &l->wo, b->wo.rows, &b->wo, false, false);
    place_linear(p, &l->w13, b->w1.rows, &b->w1, true, true);
    place_linear(p, &l->w2, b->w2.rows, &b->w2, false, false);
    l->d_attention_norm = bump_take(&p->weights, norm);
    l->d_ffn_norm       = bump_take(&p->weights, norm);
    if (b->q_norm) {
        l->d_q_norm = bump_take(&p->weights, (size_t)c->head_dim * sizeof(float));
        l->d_k_norm = bump_take(&p->weights, (size_t)c->head_dim * sizeof(float));
    }
}

/* In order of use, so that a frame walks the arena from its start to its end. */
static void place(struct placer *p)
{
    struct cuda_model         *m = p->m;
    const struct weights      *w = p->w;
    const struct model_config *c = &w->config;
    for (int i = 0; i < c->slow.n_layer; i++)
        place_block(p, &m->slow[i], &w->layers[i], &c->slow);
    place_linear(p, &m->head, m->head_rows, &w->output, false, true);
    m->d_norm = bump_take(&p->weights, (size_t)linear_padded_cols(c->slow.dim) * sizeof(float));
    if (w->fast_project_in.w)
        place_linear(p, &m->project_in, w->fast_project_in.rows, &w->fast_project_in, false, c->norm_fastlayer_input);
    for (int i = 0; i < c->fast.n_layer; i++)
        place_block(p, &m->fast[i], &w->fast_layers[i], &c->fast);
    place_linear(p, &m->residual_head, m->residual_rows, &w->fast_output, false, true);
    m->d_fast_norm           = bump_take(&p->weights, (size_t)linear_padded_cols(c->fast.dim) * sizeof(float));
    m->d_embeddings          = bump_take(&p->weights, (size_t)w->embeddings.rows * (size_t)w->embeddings.cols * 2);
    m->d_codebook_embeddings = bump_take(&p->weights, (size_t)w->codebook_embeddings.rows * (size_t)w->codebook_embeddings.cols * 2);
    m->d_fast_embeddings     = bump_take(&p->weights, (size_t)w->fast_embeddings.rows * (size_t)w->fast_embeddings.cols * 2);
}

/* ---- filling ------------------------------------------------------------------------------------------------------ */

static status_t upload(struct cuda_model *m, void *d_dst, const void *src, size_t bytes)
{
    return CUDA_DO(cudaMemcpyAsync(d_dst, src, bytes, cudaMemcpyHostToDevice, cuda_of(m->be)->stream));
}

/* Rows [row0, row0 + rows) of w become output rows to… of l, through the staging buffer a piece at a time. The stream
 * orders each copy behind the kernel that read the piece before it. */
static status_t pack(struct cuda_model *m, struct linear *l, const struct matrix *w, int row0, int rows, int to, int part)
{
    const size_t element = dtype_size(w->format), row_bytes = (size_t)w->cols * element;
    const int    piece = min_int(rows, (int)(STAGE_BYTES / 2 / row_bytes) > 0 ? (int)(STAGE_BYTES / 2 / row_bytes) : 1);
    cudaStream_t stream = cuda_of(m->be)->stream;
    for (int done = 0; done < rows; done += piece) {
        const int n = min_int(piece, rows - done);
        char     *d_rows = m->d_stage, *d_scales = d_rows + STAGE_BYTES;
        TRY(upload(m, d_rows, (const char *)w->w + (size_t)(row0 + done) * row_bytes, (size_t)n * row_bytes));
        if (w->scales) {
            const size_t s = dtype_size(w->scale_dtype);
            TRY(upload(m, d_scales, (const char *)w->scales + (size_t)(row0 + done) * s, (size_t)n * s));
        }
        TRY(CUDA_DO(linear_pack_launch(l, (void *)(uintptr_t)l->d_w, (float *)(uintptr_t)l->d_scale, d_rows,
                                       w->scales ? d_scales : NULL, w->scale_dtype == DT_F32, to + done, n, part, stream)));
    }
    if (w->bias)
        TRY(upload(m, (float *)(uintptr_t)l->d_bias + to, w->bias + row0, (size_t)rows * sizeof(float)));
    return ST_OK;
}

static status_t fill_block(struct cuda_model *m, struct cuda_layer *l, const struct block *b, const struct stack_config *c)
{
    TRY(pack(m, &l->wqkv, &b->wqkv, 0, b->wqkv.rows, 0, 0));
    TRY(pack(m, &l->wo, &b->wo, 0, b->wo.rows, 0, 0));
    TRY(pack(m, &l->w13, &b->w1, 0, b->w1.rows, 0, 0));
    TRY(pack(m, &l->w13, &b->w3, 0, b->w3.rows, 0, 1));
    TRY(pack(m, &l->w2, &b->w2, 0, b->w2.rows, 0, 0));
    TRY(upload(m, l->d_attention_norm, b->attention_norm, (size_t)c->dim * sizeof(float)));
    TRY(upload(m, l->d_ffn_norm, b->ffn_norm, (size_t)c->dim * sizeof(float)));
    if (b->q_norm) {
        TRY(upload(m, l->d_q_norm, b->q_norm, (size_t)c->head_dim * sizeof(float)));
        TRY(upload(m, l->d_k_norm, b->k_norm, (size_t)c->head_dim * sizeof(float)));
    }
    return ST_OK;
}

static status_t fill_table(struct cuda_model *m, uint16_t *d_to, const struct matrix *table)
{
    return upload(m, d_to, table->w, (size_t)table->rows * (size_t)table->cols * sizeof(bf16_t));
}

static status_t fill(struct cuda_model *m, const struct weights *w, enum head_mode head)
{
    const struct model_config *c = &w->config;
    for (int i = 0; i < c->slow.n_layer; i++)
        TRY(fill_block(m, &m->slow[i], &w->layers[i], &c->slow));
    if (head == HEAD_SEMANTIC) {
        TRY(pack(m, &m->head, &w->output, c->semantic_begin_id, m->head_rows - 1, 0, 0));
        TRY(pack(m, &m->head, &w->output, c->im_end_id, 1, m->head_rows - 1, 0));
    } else
        TRY(pack(m, &m->head, &w->output, 0, m->head_rows, 0, 0));
    TRY(upload(m, m->d_norm, w->norm, (size_t)c->slow.dim * sizeof(float)));
    if (w->fast_project_in.w)
        TRY(pack(m, &m->project_in, &w->fast_project_in, 0, w->fast_project_in.rows, 0, 0));
    for (int i = 0; i < c->fast.n_layer; i++)
        TRY(fill_block(m, &m->fast[i], &w->fast_layers[i], &c->fast));
    TRY(pack(m, &m->residual_head, &w->fast_output, 0, m->residual_rows, 0, 0));
    TRY(upload(m, m->d_fast_norm, w->fast_norm, (size_t)c->fast.dim * sizeof(float)));
    TRY(fill_table(m, m->d_embeddings, &w->embeddings));
    TRY(fill_table(m, m->d_codebook_embeddings, &w->codebook_embeddings));
    return fill_table(m, m->d_fast_embeddings, &w->fast_embeddings);
}

/* stack.c's table (FP32 frequency and angle, rounded cosine and sine), a pair a word. */
static status_t open_rope(struct cuda_model *m, const struct stack_config *c, int positions, uint32_t **d_out)
{
    const int half  = c->head_dim / 2;
    uint32_t *table = malloc((size_t)positions * (size_t)half * sizeof *table);
    status_t  st    = ST_OK;
    if (!table)
        return FAIL(ST_ENOMEM, "no host memory for a RoPE table of %d positions", positions);
    for (int j = 0; j < half; j++) {
        const float frequency = 1.0f / (float)pow((double)m->config.rope_base, (double)((float)(2 * j) / (float)c->head_dim));
        for (int pos = 0; pos < positions; pos++) {
            const double angle = (double)((float)pos * frequency);
            table[(size_t)pos * (size_t)half + (size_t)j] =
                bf16_from_f32((float)cos(angle)) | (uint32_t)bf16_from_f32((float)sin(angle)) << 16;
        }
    }
    const size_t bytes = (size_t)positions * (size_t)half * sizeof *table;
    TRY_OUT(backend_ops_of(m->be)->alloc(m->be, MEM_WORKSPACE, bytes, (void **)d_out));
    TRY_OUT(backend_ops_of(m->be)->upload(m->be, *d_out, table, bytes));
out:
    free(table);
    return st;
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

static bool decodable(const struct matrix *m)
{
    return m->format == DT_BF16 || m->format == DT_I8;
}

static status_t check_formats(const struct weights *w)
{
    const struct matrix *tables[] = {&w->embeddings, &w->codebook_embeddings, &w->fast_embeddings};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (tables[i]->format != DT_BF16)
            return FAIL(ST_EUNSUPPORTED, "the fused CUDA engines decode BF16 and INT8 weights; use --engine ops for fp32");
    if (!decodable(&w->output) || !decodable(&w->layers[0].wqkv))
        return FAIL(ST_EUNSUPPORTED, "the fused CUDA engines decode BF16 and INT8 weights; use --engine ops for fp32");
    return ST_OK;
}

static size_t layer_bytes(const struct cuda_layer *l)
{
    const struct linear *all[] = {&l->wqkv, &l->wo, &l->w13, &l->w2};
    size_t               n     = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        n += (size_t)all[i]->rows * (all[i]->paired ? 2 : 1) *
             ((size_t)all[i]->cols * (all[i]->int8 ? 1 : 2) + (all[i]->int8 ? sizeof(float) : 0));
    return n;
}

/* Fewest bytes: the matrices without padding, the fast stack once a pass. */
static size_t step_weight_bytes(const struct cuda_model *m)
{
    const struct model_config *c    = &m->config;
    const size_t               head = m->head.int8 ? 1 : 2, rest = m->residual_head.int8 ? 1 : 2;
    size_t                     n    = (size_t)m->head_rows * (size_t)c->slow.dim * head, fast = 0;
    for (int i = 0; i < c->slow.n_layer; i++)
        n += layer_bytes(&m->slow[i]);
    for (int i = 0; i < c->fast.n_layer; i++)
        fast += layer_bytes(&m->fast[i]);
    fast += (size_t)m->residual_rows * (size_t)c->fast.dim * rest;
    return n + (size_t)(c->num_codebooks - 1) * fast;
}

status_t cuda_model_open(struct backend *be, const struct weights *w, const struct decode_options *options,
                         struct cuda_model **out)
{
    const struct model_config *c  = &w->config;
    const struct backend_ops  *ops = backend_ops_of(be);
    status_t                   st = check_formats(w);
    if (st != ST_OK)
        return st;
    struct cuda_model *m = calloc(1, sizeof *m);
    if (!m)
        return FAIL(ST_ENOMEM, "no host memory for the model");
    m->be     = be;
    m->config = *c;
    m->slow   = calloc((size_t)c->slow.n_layer, sizeof *m->slow);
    m->fast   = calloc((size_t)c->fast.n_layer, sizeof *m->fast);
    if (!m->slow || !m->fast) {
        st = FAIL(ST_ENOMEM, "no host memory for the model");
        goto out;
    }
    m->head_rows     = options->head == HEAD_SEMANTIC ? c->semantic_end_id - c->semantic_begin_id + 2 : c->vocab_size;
    m->residual_rows = options->sampling.rules == SAMPLING_S1 ? min_int(S1_RESIDUAL_ROWS, c->codebook_size) : c->codebook_size;
    struct placer count = {.m = m, .w = w};
    place(&count);
    TRY_OUT(ops->alloc(be, MEM_WEIGHTS, count.weights.used, &m->d_arena));
    if (count.scales.used)
        TRY_OUT(ops->alloc(be, MEM_SCALES, count.scales.used, &m->d_scale_arena));
    struct placer assign = {.m = m, .w = w, .weights = {.base = m->d_arena}, .scales = {.base = m->d_scale_arena}};
    place(&assign);
    TRY_OUT(ops->alloc(be, MEM_STAGING, 2 * (size_t)STAGE_BYTES, &m->d_stage));
    TRY_OUT(fill(m, w, options->head));
    TRY_OUT(ops->sync(be));
    ops->free(be, m->d_stage);
    m->d_stage = NULL;
    TRY_OUT(open_rope(m, &c->slow, options->max_seq_len, &m->d_slow_rope));
    TRY_OUT(open_rope(m, &c->fast, c->num_codebooks, &m->d_fast_rope));
    m->step_weight_bytes = step_weight_bytes(m);
    *out                 = m;
    m                    = NULL;
out:
    cuda_model_close(m);
    return st;
}

void cuda_model_close(struct cuda_model *m)
{
    if (!m)
        return;
    const struct backend_ops *ops = backend_ops_of(m->be);
    void *memory[] = {m->d_arena, m->d_scale_arena, m->d_stage, m->d_slow_rope, m->d_fast_rope};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        ops->free(m->be, memory[i]);
    free(m->slow);
    free(m->fast);
    free(m);
}
