/* The fused engine `graph`: everything of one frame, sampling included, as one captured CUDA graph. All state that changes
 * lives on the device, so the same graph serves every frame; the host launches it and reads finished frames from mapped
 * memory. Kernels overlap by programmatic dependent launch on sm_90 and later (kernels/device.cuh).
 *
 * Who may read what before its wait: the frame's last kernel ends before anything of the next frame starts, so the
 * state, positions and caches of earlier frames are settled; every sampler lets its successor start only after its own
 * wait, so that the fast caches of earlier passes are settled in the next pass. */
#include "backend/bump.h"
#include "backend/cuda_model.h"
#include "base/clock.h"
#include "kernels/attention.h"
#include "kernels/sample.h"
#include "model/bf16.h"
#include "model/decode.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum {
    PREFILL_TOKENS = 64, /* columns that share one pass over the weights                       */
    AHEAD          = 3   /* graphs in flight: hides the 5 us from launch to start, wastes few frames at a stop */
};

/* Activations of one stack, [tokens][stride] BF16. The columns beyond the width stay zero. */
struct activations {
    uint16_t *d_x, *d_qkv, *d_attention, *d_act;
    int       x_stride, qkv_stride, attention_stride, act_stride;
};

struct utterance {
    int  prompt, length;
    bool stopped;
};

struct fused {
    struct cuda                 *cu;
    const struct decode_options *options;
    struct cuda_model           *m;
    int                          batch, tokens; /* tokens: most in one pass of the slow stack */
    bool                         pdl;
    struct attention_layer      *slow_attention, *fast_attention;
    struct activations           slow, fast;
    uint16_t                    *d_logits;      /* [batch][logit_stride]                       */
    uint16_t                    *d_residual;    /* [codebooks − 1][batch][residual_stride]     */
    int                          logit_stride, residual_stride;
    uint16_t                    *d_decode_x;    /* [batch][x_stride]: hidden states in decoding */
    float                       *d_partial;
    unsigned                    *d_arrived;
    int                         *d_seq, *d_pos, *d_decode_pos;
    int32_t                     *d_cols, *d_forced;
    struct sample_state         *d_state;
    void                        *d_workspace, *d_kv;
    struct sample_model          sample;
    volatile uint64_t           *ring_frames, *ring_ends; /* shared with the device: sample.h  */
    cudaGraphExec_t              first, frame;  /* without and with the slow stack             */
    size_t                       graph_bytes;
    uint64_t                     launched;      /* frames since the engine was opened          */
    unsigned                     stages;        /* what enqueue_frame() enqueues: all, but in a benchmark */
    int                          n_kernels;     /* enqueued by it                              */
    unsigned                     late;          /* stages that trigger after their wait        */
    struct utterance            *utterances;
    float                       *host_values;   /* tap */
    uint16_t                    *host_bits;
};

static int width_of(const struct fused *f)
{
    return 1 + f->m->config.num_codebooks;
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

static void place_activations(struct bump *b, struct activations *a, const struct stack_config *c, int tokens)
{
    const size_t n = (size_t)tokens * sizeof(uint16_t);
    a->x_stride         = linear_padded_cols(c->dim);
    a->qkv_stride       = ((c->n_head + 2 * c->n_kv_heads) * c->head_dim + 63) / 64 * 64;
    a->attention_stride = linear_padded_cols(c->n_head * c->head_dim);
    a->act_stride       = linear_padded_cols(c->intermediate_size);
    a->d_x              = bump_take(b, n * (size_t)a->x_stride);
    a->d_qkv            = bump_take(b, n * (size_t)a->qkv_stride);
    a->d_attention      = bump_take(b, n * (size_t)a->attention_stride);
    a->d_act            = bump_take(b, n * (size_t)a->act_stride);
}

static void place_workspace(struct fused *f, struct bump *b)
{
    const struct model_config *c = &f->m->config;
    const size_t               n = (size_t)f->batch;
    place_activations(b, &f->slow, &c->slow, f->tokens);
    place_activations(b, &f->fast, &c->fast, 2 * f->batch);
    f->d_decode_x      = bump_take(b, n * (size_t)f->slow.x_stride * sizeof(uint16_t));
    f->logit_stride    = (f->m->head_rows + 63) / 64 * 64;
    f->residual_stride = (f->m->residual_rows + 63) / 64 * 64;
    f->d_logits        = bump_take(b, n * (size_t)f->logit_stride * sizeof(uint16_t));
    f->d_residual      = bump_take(b, (size_t)(c->num_codebooks - 1) * n * (size_t)f->residual_stride * sizeof(uint16_t));
    f->d_partial       = bump_take(b, attention_partial_floats(&f->slow_attention[0], f->tokens) * sizeof(float));
    f->d_arrived       = bump_take(b, (size_t)f->tokens * (size_t)c->slow.n_head * sizeof(unsigned));
    f->d_seq           = bump_take(b, (size_t)f->tokens * sizeof(int));
    f->d_pos           = bump_take(b, (size_t)f->tokens * sizeof(int));
    f->d_decode_pos    = bump_take(b, n * sizeof(int));
    f->d_cols          = bump_take(b, (size_t)f->tokens * (size_t)width_of(f) * sizeof(int32_t));
    f->d_state         = bump_take(b, n * sizeof *f->d_state);
    f->sample.d_finished = bump_take(b, 2 * sizeof(unsigned));
    f->sample.d_hidden = f->options->tap ? bump_take(b, n * (size_t)c->fast.dim * sizeof(uint16_t)) : NULL;
    f->d_forced = f->options->forced
                      ? bump_take(b, n * (size_t)f->options->n_forced * (size_t)width_of(f) * sizeof(int32_t)) : NULL;
}

static void place_cache(struct bump *b, struct attention_layer *a, const struct stack_config *c, const struct cuda_layer *l,
                        const uint32_t *d_rope, float eps, int batch, int max_len, bool int8)
{
    *a = (struct attention_layer){.n_head = c->n_head, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
                                  .row = attention_row(c->head_dim), .max_len = max_len, .int8 = int8,
                                  .d_q_norm = l->d_q_norm, .d_k_norm = l->d_k_norm, .eps = eps, .d_rope = d_rope};
    const size_t rows = (size_t)batch * (size_t)c->n_kv_heads * (size_t)max_len, bytes = rows * (size_t)a->row * (int8 ? 1 : 2);
    a->d_k = bump_take(b, bytes);
    a->d_v = bump_take(b, bytes);
    if (int8) {
        a->d_k_scale = bump_take(b, rows * sizeof(float));
        a->d_v_scale = bump_take(b, rows * sizeof(float));
    }
}

static void place_caches(struct fused *f, struct bump *b)
{
    const struct model_config *c = &f->m->config;
    for (int i = 0; i < c->slow.n_layer; i++)
        place_cache(b, &f->slow_attention[i], &c->slow, &f->m->slow[i], f->m->d_slow_rope, c->norm_eps, f->batch,
                    f->options->max_seq_len, f->options->kv == KV_INT8);
    for (int i = 0; i < c->fast.n_layer; i++)
        place_cache(b, &f->fast_attention[i], &c->fast, &f->m->fast[i], f->m->d_fast_rope, c->norm_eps, f->batch,
                    c->num_codebooks, false);
}

static status_t check_supported(const struct backend *be, const struct weights *w, const struct decode_options *o)
{
    const struct model_config *c = &w->config;
    if (o->engine == ENGINE_PERSISTENT)
        return FAIL(ST_EUNSUPPORTED, "engine \"persistent\" is not in this build; use graph");
    if (((const struct backend_base *)(const void *)be)->options.rounding != ROUND_BF16 || w->precision == PRECISION_FP32)
        return FAIL(ST_EUNSUPPORTED, "engine \"graph\" computes with BF16 activations; use --engine ops for fp32");
    if (o->kv == KV_FP32)
        return FAIL(ST_EUNSUPPORTED, "engine \"graph\" keeps a BF16 or INT8 cache, not fp32");
    if (c->num_codebooks < 2 || c->num_codebooks > ATTENTION_MAX_FAST)
        return FAIL(ST_EUNSUPPORTED, "engine \"graph\" wants 2..%d codebooks, the model has %d", ATTENTION_MAX_FAST,
                    c->num_codebooks);
    if (c->slow.head_dim > 256 || c->fast.head_dim > 256 || c->slow.head_dim % 2 || c->fast.head_dim % 2)
        return FAIL(ST_EUNSUPPORTED, "engine \"graph\" takes even head sizes up to 256");
    if (c->slow.n_head % c->slow.n_kv_heads || c->fast.n_head % c->fast.n_kv_heads)
        return FAIL(ST_EUNSUPPORTED, "engine \"graph\" wants query heads in whole groups");
    if (c->vocab_size > SAMPLE_MAX_CANDIDATES)
        return FAIL(ST_EUNSUPPORTED, "engine \"graph\" samples from at most %d ids", SAMPLE_MAX_CANDIDATES);
    const struct stack_config *stacks[] = {&c->slow, &c->fast};
    for (int i = 0; i < 2; i++)
        if (stacks[i]->dim % 8 || stacks[i]->dim > 12288)
            return FAIL(ST_EUNSUPPORTED, "engine \"graph\" takes widths that are multiples of 8 up to 12288, not %d",
                        stacks[i]->dim);
    return ST_OK;
}

static void describe_sampling(struct fused *f)
{
    const struct model_config   *c = &f->m->config;
    const struct decode_options *o = f->options;
    struct sample_model         *s = &f->sample;
    s->num_codebooks  = c->num_codebooks;
    s->codebook_size  = c->codebook_size;
    s->semantic_begin = c->semantic_begin_id;
    s->semantic_end   = c->semantic_end_id;
    s->im_end         = c->im_end_id;
    s->max_len        = o->max_seq_len;
    s->dim            = c->slow.dim;
    s->fast_dim       = c->fast.dim;
    s->d_embeddings          = f->m->d_embeddings;
    s->d_codebook_embeddings = f->m->d_codebook_embeddings;
    s->d_fast_embeddings     = f->m->d_fast_embeddings;
    s->scale_embeddings = c->scale_codebook_embeddings;
    s->norm_hidden      = c->norm_fastlayer_input;
    s->has_project_in   = f->m->project_in.d_w != NULL;
    s->d_norm           = f->m->d_norm;
    s->eps              = c->norm_eps;
    s->s2               = o->sampling.rules == SAMPLING_S2;
    s->greedy           = o->sampling.greedy;
    s->faithful         = o->sampling.history == HISTORY_FAITHFUL;
    s->fixed_length     = o->fixed_length;
    s->temperature      = o->sampling.temperature;
    s->top_p            = o->sampling.top_p;
    s->penalty          = o->sampling.repetition_penalty;
    s->top_k            = o->sampling.top_k;
    s->seed             = o->sampling.seed;
    s->d_state          = f->d_state;
    s->d_pos            = f->d_decode_pos;
    s->d_forced         = f->d_forced;
    s->n_forced         = o->n_forced;
    s->batch            = f->batch;
    s->d_x              = f->d_decode_x;
    s->d_fast_x         = f->fast.d_x;
    s->x_stride         = f->slow.x_stride;
    s->fast_x_stride    = f->fast.x_stride;
}

static status_t open_ring(struct fused *f)
{
    const size_t frames = (size_t)SAMPLE_RING * (size_t)f->batch * (size_t)width_of(f) * sizeof(uint64_t);
    void        *h_frames, *h_ends;
    TRY(CUDA_DO(cudaHostAlloc(&h_frames, frames, cudaHostAllocMapped)));
    f->ring_frames = memset(h_frames, 0, frames);
    TRY(CUDA_DO(cudaHostAlloc(&h_ends, SAMPLE_RING * sizeof(uint64_t), cudaHostAllocMapped)));
    f->ring_ends = memset(h_ends, 0, SAMPLE_RING * sizeof(uint64_t));
    TRY(CUDA_DO(cudaHostGetDevicePointer((void **)&f->sample.ring_frames, h_frames, 0)));
    return CUDA_DO(cudaHostGetDevicePointer((void **)&f->sample.ring_ends, h_ends, 0));
}

/* ---- one pass of a stack ------------------------------------------------------------------------------------------ */

/* Count the kernel and say whether it is wanted. */
static bool wanted(struct fused *f, enum graph_stage stage)
{
    const bool yes = f->stages >> stage & 1;
    f->n_kernels += yes;
    return yes;
}

static status_t product(struct fused *f, enum graph_stage stage, const struct linear *l, struct linear_call call)
{
    if (!wanted(f, stage))
        return ST_OK;
    call.eps = f->m->config.norm_eps;
    call.pdl = f->pdl;
    call.late = f->late >> stage & 1;
    if (call.x_step == 0)
        call.x_step = 1;
    if (call.y_step == 0)
        call.y_step = 1;
    return CUDA_DO(linear_launch(l, &call, f->cu->stream));
}

/* Who the tokens of a slow pass are. */
struct tokens {
    int        n;
    const int *d_seq, *d_pos;
    bool       decode; /* one newest token a sequence: norm, RoPE and append happen inside attention */
};

static status_t slow_layer(struct fused *f, int i, uint16_t *d_x, const struct tokens *t)
{
    const struct cuda_layer  *l = &f->m->slow[i];
    const struct activations *a = &f->slow;
    const struct attention_call call = {.d_qkv = a->d_qkv, .qkv_stride = a->qkv_stride, .d_y = a->d_attention,
                                        .y_stride = a->attention_stride, .d_seq = t->d_seq, .d_pos = t->d_pos,
                                        .tokens = t->n, .d_partial = f->d_partial, .d_arrived = f->d_arrived,
                                        .append = t->decode, .pdl = f->pdl,
                                        .late = f->late >> STAGE_SLOW_ATTENTION & 1};
    TRY(product(f, STAGE_SLOW_QKV, &l->wqkv, (struct linear_call){.d_x = d_x, .x_stride = a->x_stride, .d_norm = l->d_attention_norm,
                                                  .d_y = a->d_qkv, .y_stride = a->qkv_stride, .tokens = t->n}));
    if (!t->decode)
        TRY(CUDA_DO(attention_append_launch(&f->slow_attention[i], &call, f->cu->stream)));
    if (wanted(f, STAGE_SLOW_ATTENTION))
        TRY(CUDA_DO(attention_launch(&f->slow_attention[i], &call, f->cu->stream)));
    TRY(product(f, STAGE_SLOW_O, &l->wo, (struct linear_call){.d_x = a->d_attention, .x_stride = a->attention_stride, .d_y = d_x,
                                                .y_stride = a->x_stride, .end = LINEAR_ADD, .tokens = t->n}));
    TRY(product(f, STAGE_SLOW_GATE_UP, &l->w13, (struct linear_call){.d_x = d_x, .x_stride = a->x_stride, .d_norm = l->d_ffn_norm,
                                                 .d_y = a->d_act, .y_stride = a->act_stride, .end = LINEAR_SWIGLU,
                                                 .tokens = t->n}));
    return product(f, STAGE_SLOW_DOWN, &l->w2, (struct linear_call){.d_x = a->d_act, .x_stride = a->act_stride, .d_y = d_x,
                                                   .y_stride = a->x_stride, .end = LINEAR_ADD, .tokens = t->n});
}

/* n_new tokens a sequence (rows b·n_new … of d_x) at positions first …. */
static status_t fast_layer(struct fused *f, int i, int n_new, int first)
{
    const struct cuda_layer  *l = &f->m->fast[i];
    const struct activations *a = &f->fast;
    const int                 n = n_new * f->batch;
    const struct attention_call call = {.d_qkv = a->d_qkv, .qkv_stride = a->qkv_stride, .d_y = a->d_attention,
                                        .y_stride = a->attention_stride, .tokens = n, .pdl = f->pdl,
                                        .late = f->late >> STAGE_FAST_ATTENTION & 1};
    TRY(product(f, STAGE_FAST_QKV, &l->wqkv, (struct linear_call){.d_x = a->d_x, .x_stride = a->x_stride, .d_norm = l->d_attention_norm,
                                                  .d_y = a->d_qkv, .y_stride = a->qkv_stride, .tokens = n}));
    if (wanted(f, STAGE_FAST_ATTENTION))
        TRY(CUDA_DO(attention_fast_launch(&f->fast_attention[i], &call, f->batch, n_new, first, f->cu->stream)));
    TRY(product(f, STAGE_FAST_O, &l->wo, (struct linear_call){.d_x = a->d_attention, .x_stride = a->attention_stride,
                                                              .d_y = a->d_x, .y_stride = a->x_stride, .end = LINEAR_ADD,
                                                              .tokens = n}));
    TRY(product(f, STAGE_FAST_GATE_UP, &l->w13, (struct linear_call){.d_x = a->d_x, .x_stride = a->x_stride, .d_norm = l->d_ffn_norm,
                                                 .d_y = a->d_act, .y_stride = a->act_stride, .end = LINEAR_SWIGLU,
                                                 .tokens = n}));
    return product(f, STAGE_FAST_DOWN, &l->w2, (struct linear_call){.d_x = a->d_act, .x_stride = a->act_stride, .d_y = a->d_x,
                                                   .y_stride = a->x_stride, .end = LINEAR_ADD, .tokens = n});
}

static status_t slow_token(struct fused *f)
{
    const struct model_config *c  = &f->m->config;
    const bool                 s2 = f->sample.s2, semantic = f->options->head == HEAD_SEMANTIC;
    struct sample_call         s  = {.d_logits = f->d_logits, .stride = f->logit_stride, .n = f->m->head_rows, .last_id = -1,
                                     .pdl = f->pdl};
    TRY(product(f, STAGE_HEAD, &f->m->head, (struct linear_call){.d_x = f->d_decode_x, .x_stride = f->slow.x_stride,
                                                     .d_norm = f->m->d_norm, .d_y = f->d_logits,
                                                     .y_stride = f->logit_stride, .tokens = f->batch}));
    if (f->m->project_in.d_w)
        TRY(product(f, STAGE_HEAD, &f->m->project_in,
                    (struct linear_call){.d_x = f->d_decode_x, .x_stride = f->slow.x_stride,
                                         .d_norm = c->norm_fastlayer_input ? f->m->d_norm : NULL, .d_y = f->fast.d_x,
                                         .y_stride = f->fast.x_stride, .y_step = 2, .tokens = f->batch}));
    if (semantic || s2) {
        s.first_id = c->semantic_begin_id;
        s.last_id  = c->im_end_id;
        s.n        = c->semantic_end_id - c->semantic_begin_id + 2;
        s.by_id    = !semantic;
    }
    return wanted(f, STAGE_SLOW_SAMPLE) ? CUDA_DO(sample_launch(&f->sample, &s, f->cu->stream)) : ST_OK;
}

/* Positions 0 (hidden state) and 1 (code 0) share the first pass, so codebook c ≥ 1 costs one pass each. */
static status_t residual_code(struct fused *f, int codebook)
{
    const int pass_tokens = codebook == 1 ? 2 : 1;
    uint16_t *d_logits    = f->d_residual + (size_t)(codebook - 1) * (size_t)f->batch * (size_t)f->residual_stride;
    for (int i = 0; i < f->m->config.fast.n_layer; i++)
        TRY(fast_layer(f, i, pass_tokens, codebook == 1 ? 0 : codebook));
    TRY(product(f, STAGE_RESIDUAL_HEAD, &f->m->residual_head,
                (struct linear_call){.d_x = f->fast.d_x, .x_stride = f->fast.x_stride, .x_step = pass_tokens,
                                     .x_first = pass_tokens - 1, .d_norm = f->m->d_fast_norm, .d_y = d_logits,
                                     .y_stride = f->residual_stride, .tokens = f->batch}));
    const struct sample_call s = {.codebook = codebook, .d_logits = d_logits, .stride = f->residual_stride,
                                  .n = f->m->residual_rows, .last_id = -1, .pdl = f->pdl};
    return wanted(f, STAGE_RESIDUAL_SAMPLE) ? CUDA_DO(sample_launch(&f->sample, &s, f->cu->stream)) : ST_OK;
}

static status_t enqueue_frame(struct fused *f, bool slow)
{
    const struct tokens t = {.n = f->batch, .d_pos = f->d_decode_pos, .decode = true};
    for (int i = 0; slow && i < f->m->config.slow.n_layer; i++)
        TRY(slow_layer(f, i, f->d_decode_x, &t));
    TRY(slow_token(f));
    for (int c = 1; c < f->m->config.num_codebooks; c++)
        TRY(residual_code(f, c));
    return ST_OK;
}

static status_t capture(struct fused *f, bool slow, cudaGraphExec_t *out)
{
    cudaGraph_t graph = NULL;
    TRY(CUDA_DO(cudaStreamBeginCapture(f->cu->stream, cudaStreamCaptureModeThreadLocal)));
    status_t st  = enqueue_frame(f, slow);
    status_t end = CUDA_DO(cudaStreamEndCapture(f->cu->stream, &graph));
    if (st == ST_OK)
        st = end;
    if (st == ST_OK)
        st = CUDA_DO(cudaGraphInstantiate(out, graph, 0));
    if (st == ST_OK)
        st = CUDA_DO(cudaGraphUpload(*out, f->cu->stream));
    if (graph)
        cudaGraphDestroy(graph);
    return st;
}

/* The driver does not say what a graph holds; the free memory before and after does, in its own granularity. */
static status_t open_graphs(struct fused *f)
{
    size_t before = 0, after = 0, total;
    TRY(CUDA_DO(cudaStreamSynchronize(f->cu->stream)));
    TRY(CUDA_DO(cudaMemGetInfo(&before, &total)));
    TRY(capture(f, false, &f->first));
    TRY(capture(f, true, &f->frame));
    TRY(CUDA_DO(cudaStreamSynchronize(f->cu->stream)));
    TRY(CUDA_DO(cudaMemGetInfo(&after, &total)));
    const size_t bytes = before > after ? before - after : 0;
    TRY(memory_take(&f->cu->base.memory, MEM_GRAPH, bytes));
    f->graph_bytes = bytes;
    return ST_OK;
}

static status_t check_forced(const struct fused *f)
{
    const struct model_config *c = &f->m->config;
    const size_t               n = (size_t)f->batch * (size_t)f->options->n_forced * (size_t)width_of(f);
    for (size_t i = 0; f->options->forced && i < n; i++) {
        const int32_t v = f->options->forced[i], limit = i % (size_t)width_of(f) ? c->codebook_size : c->vocab_size;
        if (v < 0 || v >= limit)
            return FAIL(ST_EINPUT, "forced frames: value %d is outside 0..%d", (int)v, limit - 1);
    }
    return ST_OK;
}

status_t graph_open(struct backend *be, const struct weights *w, const struct decode_options *options, struct fused **out)
{
    const struct backend_ops *ops = backend_ops_of(be);
    struct bump               b   = {0};
    status_t                  st  = check_supported(be, w, options);
    if (st != ST_OK)
        return st;
    struct fused *f = calloc(1, sizeof *f);
    if (!f)
        return FAIL(ST_ENOMEM, "no host memory for the engine");
    f->cu      = cuda_of(be);
    f->options = options;
    f->batch   = options->batch;
    f->stages  = ~0u;
    /* Found by flipping one stage after the other on an H200 (s1-mini, batch 1): BF16 936 to 914 us, INT8 893 to 863
     * against the two sets before. A kernel that starts too early takes room and bandwidth from the one that everybody
     * waits for. */
    f->late = 1u << STAGE_FAST_GATE_UP | 1u << STAGE_FAST_DOWN |
              (w->precision == PRECISION_INT8 ? 1u << STAGE_SLOW_QKV | 1u << STAGE_FAST_QKV | 1u << STAGE_FAST_O
                                              : 1u << STAGE_SLOW_ATTENTION);
    f->tokens  = options->batch > PREFILL_TOKENS ? options->batch : PREFILL_TOKENS;
    f->pdl     = f->cu->capability >= 90;
    TRY_OUT(cuda_model_open(be, w, options, &f->m));
    f->slow_attention = calloc((size_t)w->config.slow.n_layer, sizeof *f->slow_attention);
    f->fast_attention = calloc((size_t)w->config.fast.n_layer, sizeof *f->fast_attention);
    f->utterances     = calloc((size_t)f->batch, sizeof *f->utterances);
    const size_t values = (size_t)f->m->head_rows + (size_t)f->m->residual_rows + (size_t)w->config.fast.dim;
    f->host_values = malloc(values * sizeof *f->host_values);
    f->host_bits   = malloc(values * sizeof *f->host_bits);
    if (!f->slow_attention || !f->fast_attention || !f->utterances || !f->host_values || !f->host_bits) {
        st = FAIL(ST_ENOMEM, "no host memory for the engine");
        goto out;
    }
    TRY_OUT(check_forced(f));
    place_caches(f, &b);
    TRY_OUT(ops->alloc(be, MEM_KV, b.used, &f->d_kv));
    b = (struct bump){.base = f->d_kv};
    place_caches(f, &b);
    b = (struct bump){0};
    place_workspace(f, &b);
    TRY_OUT(ops->alloc(be, MEM_WORKSPACE, b.used, &f->d_workspace));
    b = (struct bump){.base = f->d_workspace};
    place_workspace(f, &b);
    if (options->forced)
        TRY_OUT(ops->upload(be, f->d_forced, options->forced,
                            (size_t)f->batch * (size_t)options->n_forced * (size_t)width_of(f) * sizeof(int32_t)));
    TRY_OUT(open_ring(f));
    describe_sampling(f);
    TRY_OUT(open_graphs(f));
    *out = f;
    f    = NULL;
out:
    graph_close(f);
    return st;
}

void graph_close(struct fused *f)
{
    if (!f)
        return;
    struct backend           *be  = (struct backend *)(void *)f->cu;
    const struct backend_ops *ops = backend_ops_of(be);
    cudaStreamSynchronize(f->cu->stream);
    if (f->first)
        cudaGraphExecDestroy(f->first);
    if (f->frame)
        cudaGraphExecDestroy(f->frame);
    memory_give(&f->cu->base.memory, MEM_GRAPH, f->graph_bytes);
    cudaFreeHost((void *)(uintptr_t)f->ring_frames); /* NULL is accepted */
    cudaFreeHost((void *)(uintptr_t)f->ring_ends);
    ops->free(be, f->d_kv);
    ops->free(be, f->d_workspace);
    cuda_model_close(f->m);
    free(f->slow_attention);
    free(f->fast_attention);
    free(f->utterances);
    free(f->host_values);
    free(f->host_bits);
    free(f);
}

/* ---- prefill ------------------------------------------------------------------------------------------------------ */

struct chunk {
    int     n;
    int     seq[PREFILL_TOKENS], pos[PREFILL_TOKENS];
    int32_t cols[PREFILL_TOKENS * (1 + SAMPLE_MAX_CODEBOOKS)];
};

static status_t copy_in(struct fused *f, void *d_dst, const void *src, size_t bytes)
{
    return CUDA_DO(cudaMemcpyAsync(d_dst, src, bytes, cudaMemcpyHostToDevice, f->cu->stream));
}

static status_t prefill_chunk(struct fused *f, struct chunk *k)
{
    const struct tokens t = {.n = k->n, .d_seq = f->d_seq, .d_pos = f->d_pos};
    cudaStream_t        stream = f->cu->stream;
    if (k->n == 0)
        return ST_OK;
    TRY(copy_in(f, f->d_seq, k->seq, (size_t)k->n * sizeof *k->seq));
    TRY(copy_in(f, f->d_pos, k->pos, (size_t)k->n * sizeof *k->pos));
    TRY(copy_in(f, f->d_cols, k->cols, (size_t)k->n * (size_t)width_of(f) * sizeof *k->cols));
    TRY(CUDA_DO(sample_embed_launch(&f->sample, f->d_cols, k->n, f->slow.d_x, stream)));
    for (int i = 0; i < f->m->config.slow.n_layer; i++)
        TRY(slow_layer(f, i, f->slow.d_x, &t));
    const size_t row = (size_t)f->slow.x_stride;
    for (int i = 0; i < k->n; i++)
        if (k->pos[i] == f->utterances[k->seq[i]].prompt - 1)
            TRY(CUDA_DO(cudaMemcpyAsync(f->d_decode_x + (size_t)k->seq[i] * row, f->slow.d_x + (size_t)i * row,
                                        row * sizeof(uint16_t), cudaMemcpyDeviceToDevice, stream)));
    k->n = 0;
    return ST_OK;
}

status_t graph_prefill(struct fused *f, const struct prompt *prompts)
{
    struct chunk        k = {.n = 0};
    struct sample_state s;
    for (int b = 0; b < f->batch; b++) {
        f->utterances[b] = (struct utterance){.prompt = prompts[b].columns};
        memset(&s, 0, sizeof s);
        s.prompt = prompts[b].columns;
        s.id     = f->options->sequence_ids[b];
        TRY(copy_in(f, &f->d_state[b], &s, sizeof s));
    }
    for (int b = 0; b < f->batch; b++)
        for (int col = 0; col < prompts[b].columns; col++) {
            for (int row = 0; row < width_of(f); row++)
                k.cols[(size_t)k.n * (size_t)width_of(f) + (size_t)row] =
                    prompts[b].values[(size_t)row * (size_t)prompts[b].columns + (size_t)col];
            k.seq[k.n] = b;
            k.pos[k.n] = col;
            if (++k.n == PREFILL_TOKENS)
                TRY(prefill_chunk(f, &k));
        }
    TRY(prefill_chunk(f, &k));
    return CUDA_DO(cudaStreamSynchronize(f->cu->stream));
}

/* ---- decoding ----------------------------------------------------------------------------------------------------- */

static int active(const struct fused *f)
{
    int n = 0;
    for (int b = 0; b < f->batch; b++)
        n += !f->utterances[b].stopped;
    return n;
}

static status_t fetch_row(struct fused *f, const uint16_t *d_row, int n)
{
    TRY(CUDA_DO(cudaMemcpy(f->host_bits, d_row, (size_t)n * sizeof *d_row, cudaMemcpyDeviceToHost)));
    for (int i = 0; i < n; i++)
        f->host_values[i] = bf16_to_f32(f->host_bits[i]);
    return ST_OK;
}

/* The frame just made, in the order in which `ops` would have shown it. */
static status_t show(struct fused *f)
{
    const struct decode_tap *tap = f->options->tap;
    TRY(CUDA_DO(cudaStreamSynchronize(f->cu->stream)));
    for (int b = 0; b < f->batch; b++) {
        const struct utterance *u = &f->utterances[b];
        if (u->stopped)
            continue;
        if (tap->logits) {
            TRY(fetch_row(f, f->d_logits + (size_t)b * (size_t)f->logit_stride, f->m->head_rows));
            tap->logits(tap->ctx, b, u->length, 0, f->host_values, f->m->head_rows);
        }
        if (tap->hidden) {
            TRY(fetch_row(f, f->sample.d_hidden + (size_t)b * (size_t)f->m->config.fast.dim, f->m->config.fast.dim));
            tap->hidden(tap->ctx, b, u->length, f->host_values, f->m->config.fast.dim);
        }
        for (int c = 1; tap->logits && c < f->m->config.num_codebooks; c++) {
            TRY(fetch_row(f, f->d_residual + ((size_t)(c - 1) * (size_t)f->batch + (size_t)b) * (size_t)f->residual_stride,
                          f->m->residual_rows));
            tap->logits(tap->ctx, b, u->length, c, f->host_values, f->m->residual_rows);
        }
    }
    return ST_OK;
}

/* Spin until *word carries frame number `number` (24 or 32 bits above `shift`); look for a device error now and then. */
static status_t await_word(struct fused *f, volatile const uint64_t *word, int shift, uint64_t number)
{
    const uint64_t want = number & (~UINT64_C(0) >> shift);
    for (unsigned spins = 1; *word >> shift != want; spins++) {
        if (spins % 4096)
            continue;
        const cudaError_t e = cudaStreamQuery(f->cu->stream);
        if (e != cudaErrorNotReady && *word >> shift != want)
            return e == cudaSuccess ? FAIL(ST_EINTERNAL, "the frame graph ended without a frame") : CUDA_DO(e);
        sched_yield();
    }
    return ST_OK;
}

/* Frame `index` (since opening) into column k of frames [batch][n][width]; the same stop rule as the device's. */
static status_t collect(struct fused *f, uint64_t index, int32_t *frames, int n, int k)
{
    const size_t             width = (size_t)width_of(f);
    volatile const uint64_t *rows  = f->ring_frames + (size_t)(index % SAMPLE_RING) * (size_t)f->batch * width;
    for (int b = 0; b < f->batch; b++) {
        struct utterance *u   = &f->utterances[b];
        int32_t          *out = frames + ((size_t)b * (size_t)n + (size_t)k) * width;
        for (size_t i = 0; i < width; i++) {
            TRY(await_word(f, &rows[(size_t)b * width + i], 32, index + 1));
            out[i] = (int32_t)(uint32_t)rows[(size_t)b * width + i];
        }
        if (u->stopped)
            continue;
        u->length++;
        u->stopped = (!f->options->fixed_length && u->length > 1 && out[0] == f->m->config.im_end_id) ||
                     u->prompt + u->length >= f->options->max_seq_len;
    }
    return await_word(f, &f->ring_ends[index % SAMPLE_RING], 40, index + 1);
}

/* Milliseconds between the ends of frames index − 1 and index: the device's clock, 40 bits of nanoseconds. */
static double step_time(const struct fused *f, uint64_t index)
{
    const uint64_t mask = (UINT64_C(1) << 40) - 1;
    return (double)((f->ring_ends[index % SAMPLE_RING] - f->ring_ends[(index - 1) % SAMPLE_RING]) & mask) * 1e-6;
}

/* Frames that will surely be made: no sequence can fill the cache before. */
static int room(const struct fused *f)
{
    int most = 0;
    for (int b = 0; b < f->batch; b++)
        if (!f->utterances[b].stopped) {
            int left = f->options->max_seq_len - f->utterances[b].prompt - f->utterances[b].length;
            most     = left > most ? left : most;
        }
    return most;
}

status_t graph_run(struct fused *f, int n, int32_t *frames, double *step_ms, int *n_done)
{
    const uint64_t base = f->launched;
    const int      ahead = f->options->tap ? 1 : AHEAD, most = room(f) < n ? room(f) : n;
    int64_t        t0 = clock_ns();
    int            got = 0, sent = 0;
    bool           first = false;
    for (int b = 0; b < f->batch; b++)
        first |= f->utterances[b].length == 0;
    while (got < most && active(f) > 0) {
        for (; sent < most && sent - got < ahead; sent++, f->launched++)
            TRY(CUDA_DO(cudaGraphLaunch(first && sent == 0 ? f->first : f->frame, f->cu->stream)));
        if (f->options->tap)
            TRY(show(f));
        TRY(collect(f, base + (uint64_t)got, frames, n, got));
        if (step_ms)
            step_ms[got] = got == 0 ? clock_ms_since(t0) : step_time(f, base + (uint64_t)got);
        got++;
    }
    /* Frames sent beyond a stop changed nothing; wait them out so that the next prefill finds a quiet device. */
    TRY(CUDA_DO(cudaStreamSynchronize(f->cu->stream)));
    *n_done = got;
    return ST_OK;
}

size_t graph_frame_bytes(const struct fused *f, int context)
{
    const struct stack_config *c   = &f->m->config.slow;
    const size_t               row = (size_t)c->head_dim * (f->options->kv == KV_INT8 ? 1 : 2) +
                       (f->options->kv == KV_INT8 ? sizeof(float) : 0);
    return f->m->step_weight_bytes +
           2 * (size_t)c->n_layer * (size_t)c->n_kv_heads * row * (size_t)context * (size_t)f->batch;
}

const char *graph_engine(const struct fused *f)
{
    return "graph";
}

/* ---- where the time goes ------------------------------------------------------------------------------------------ */

const char *graph_stage_name(enum graph_stage stage)
{
    static const char *const names[STAGE_COUNT] = {
        "slow qkv", "slow attention", "slow o", "slow gate/up", "slow down", "head", "slow sample", "fast qkv",
        "fast attention", "fast o", "fast gate/up", "fast down", "residual head", "residual sample"};
    return (int)stage >= 0 && stage < STAGE_COUNT ? names[stage] : "?";
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

enum { MAX_RUNS = 256 };

status_t graph_stage_us(struct fused *f, unsigned mask, int runs, double *us, int *n_kernels)
{
    status_t        st = ST_OK;
    cudaGraphExec_t exec = NULL;
    cudaEvent_t     begin = NULL, end = NULL;
    float           ms[MAX_RUNS];
    runs         = runs < 1 ? 1 : runs > MAX_RUNS ? MAX_RUNS : runs;
    f->stages    = mask;
    f->n_kernels = 0;
    st           = capture(f, true, &exec);
    *n_kernels   = f->n_kernels;
    f->stages    = ~0u;
    if (st != ST_OK)
        return st;
    TRY_OUT(CUDA_DO(cudaEventCreate(&begin)));
    TRY_OUT(CUDA_DO(cudaEventCreate(&end)));
    for (int i = -3; i < runs; i++) {
        TRY_OUT(CUDA_DO(cudaEventRecord(begin, f->cu->stream)));
        TRY_OUT(CUDA_DO(cudaGraphLaunch(exec, f->cu->stream)));
        TRY_OUT(CUDA_DO(cudaEventRecord(end, f->cu->stream)));
        TRY_OUT(CUDA_DO(cudaEventSynchronize(end)));
        if (i >= 0)
            TRY_OUT(CUDA_DO(cudaEventElapsedTime(&ms[i], begin, end)));
    }
    qsort(ms, (size_t)runs, sizeof *ms, by_value);
    *us = 1e3 * (double)ms[runs / 2];
out:
    if (begin)
        cudaEventDestroy(begin);
    if (end)
        cudaEventDestroy(end);
    cudaGraphExecDestroy(exec);
    return st;
}
