/* cpu_codec.c — the codec's operations on the fast CPU backend: packed panels, tiles in registers, a team of threads.
 *
 * Rows of the input are taken ROW_BLOCK at a time; a thread keeps their sums for one panel in its first-level cache
 * while the panel streams through the second. Every sum takes its products in one order, so neither the number of rows
 * in a call nor the number of threads changes a bit. */
#include "backend/cpu_codec.h"

#include "backend/cpu.h"
#include "backend/cpu_codec_kernels.h"
#include "backend/cpu_ref_codec.h"
#include "model/bf16.h"

#include <stdlib.h>
#include <string.h>

enum { ROW_BLOCK = 64, PANEL_BYTES = 256 * 1024 };

static enum codec_form fast_input(enum codec_mode mode)
{
    (void)mode;
    return ROWS_PLAIN;
}

static const struct codec_kernels *kernels_now(void)
{
    static const struct codec_kernels
        *found; /* written once with one value: a race would be benign, calls are serial */
    if (!found)
        found = codec_kernels_find(NULL);
    return found;
}

/* ---- packing: [panel][k][width], pairs of k interleaved where the BF16 kernel multiplies pairs ---- */

static size_t panels_of(int rows, int width)
{
    return ((size_t)rows + (size_t)width - 1) / (size_t)width;
}

/* k of one tap rounded up to even, so that a pair never spans two taps. */
static size_t padded_cols(const struct codec_matrix *m, bool pairs)
{
    return pairs ? ((size_t)m->cols + 1) & ~(size_t)1 : (size_t)m->cols;
}

static bool in_pairs(const struct codec_kernels *k, const struct codec_matrix *m)
{
    return k->pairs && m->format == DT_BF16;
}

static void pack(const struct codec_kernels *k, const struct codec_matrix *m, char *to)
{
    size_t size = dtype_size(m->format), width = (size_t)k->width, taps = (size_t)m->taps, cols = (size_t)m->cols;
    bool   pairs = in_pairs(k, m);
    size_t depth = padded_cols(m, pairs);
    for (size_t r = 0; r < (size_t)m->rows; r++) {
        char *panel = to + r / width * taps * depth * width * size;
        for (size_t tap = 0; tap < taps; tap++)
            for (size_t c = 0; c < cols; c++) {
                size_t at = tap * depth + c, lane = r % width;
                size_t slot = pairs ? (at & ~(size_t)1) * width + 2 * lane + (at & 1) : at * width + lane;
                memcpy(panel + slot * size, (const char *)m->w + ((r * taps + tap) * cols + c) * size, size);
            }
    }
}

static status_t fast_adopt(struct backend *be, const struct codec_matrix *host, struct codec_matrix *out)
{
    const struct backend_ops   *ops = backend_ops_of(be);
    const struct codec_kernels *k = kernels_now();
    size_t                      depth = padded_cols(host, in_pairs(k, host)) * (size_t)host->taps;
    size_t              bytes = panels_of(host->rows, k->width) * depth * (size_t)k->width * dtype_size(host->format);
    struct codec_matrix made = *host;
    void               *w = NULL, *scales = NULL, *bias = NULL;
    status_t            st = ST_OK;
    size_t              row_bytes = (size_t)host->rows * sizeof(float);
    TRY_OUT(ops->alloc(be, MEM_CODEC, bytes, &w));
    pack(k, host, w);
    if (host->scales) {
        TRY_OUT(ops->alloc(be, MEM_CODEC, row_bytes, &scales));
        memcpy(scales, host->scales, row_bytes);
    }
    if (host->bias) {
        TRY_OUT(ops->alloc(be, MEM_CODEC, row_bytes, &bias));
        memcpy(bias, host->bias, row_bytes);
    }
    made.w = w;
    made.scales = scales;
    made.bias = bias;
    *out = made;
    return ST_OK;
out:
    ops->free(be, w);
    ops->free(be, scales);
    ops->free(be, bias);
    return st;
}

/* ---- convolution ---- */

struct conv_call {
    const struct codec_kernels  *k;
    const struct codec_matrix   *w;
    const struct codec_epilogue *e;
    const float                 *x;
    float                       *alpha, *inverse; /* Snake's, spread over the outputs; NULL without */
    char                        *scratch;         /* [threads][scratch_bytes]: inputs of a row block, rounded to BF16 */
    size_t                       scratch_bytes, depth;
    int                          n, stride, dilation, row_blocks, panels;
    bool                         pairs;
};

static size_t block_inputs(const struct conv_call *c, int rows)
{
    return (size_t)(rows - 1) * (size_t)c->stride + (size_t)(c->w->taps - 1) * (size_t)c->dilation + 1;
}

/* Sums of one panel to results, one step at a time over the row: each loop is plain enough to vectorise. */
static void finish_row(const struct conv_call *c, float *restrict v, int first, int count, size_t at)
{
    const struct codec_matrix   *w = c->w;
    const struct codec_epilogue *e = c->e;
    if (w->scales)
        for (int i = 0; i < count; i++)
            v[i] *= w->scales[first + i];
    if (w->bias)
        for (int i = 0; i < count; i++)
            v[i] += w->bias[first + i];
    if (e->act != ACT_NONE)
        for (int i = 0; i < count; i++)
            v[i] = codec_activate(e->act, v[i]);
    if (e->d_gamma)
        for (int i = 0; i < count; i++)
            v[i] *= e->d_gamma[first + i];
    if (e->d_residual)
        for (int i = 0; i < count; i++)
            v[i] = e->d_residual[at + (size_t)i] + v[i];
    if (e->d_y)
        memcpy(e->d_y + at, v, (size_t)count * sizeof *v);
    if (e->d_next && c->alpha)
        c->k->snake((float *)e->d_next + at, v, c->alpha + first, c->inverse + first, count);
    else if (e->d_next)
        memcpy((float *)e->d_next + at, v, (size_t)count * sizeof *v);
}

static void finish_tile(const struct conv_call *c, float *sums, int t0, int rows, int panel)
{
    int width = c->k->width, first = panel * width;
    int count = c->w->rows - first < width ? c->w->rows - first : width;
    for (int t = 0; t < rows; t++)
        finish_row(c, sums + (size_t)t * (size_t)width, first, count,
                   (size_t)(t0 + t) * (size_t)c->w->rows + (size_t)first);
}

static void conv_block(const struct conv_call *c, const void *x, size_t row_items, int t0, int rows, int panel)
{
    float  sums[ROW_BLOCK * CODEC_PANEL_MAX];
    size_t width = (size_t)c->k->width, item = dtype_size(c->w->format), x_item = c->pairs ? 2 : 4;
    size_t stretch = PANEL_BYTES / (width * item) & ~(size_t)1; /* k of one stretch of the panel */
    memset(sums, 0, (size_t)rows * width * sizeof *sums);
    const char *p = (const char *)c->w->w + (size_t)panel * (size_t)c->w->taps * c->depth * width * item;
    for (int tap = 0; tap < c->w->taps; tap++)
        for (size_t k0 = 0; k0 < c->depth; k0 += stretch) {
            size_t      n = c->depth - k0 < stretch ? c->depth - k0 : stretch;
            const char *part = p + ((size_t)tap * c->depth + k0) * width * item;
            for (int t = 0; t < rows; t += c->k->rows) {
                int         m = rows - t < c->k->rows ? rows - t : c->k->rows;
                const char *in =
                    (const char *)x +
                    (((size_t)t * (size_t)c->stride + (size_t)tap * (size_t)c->dilation) * row_items + k0) * x_item;
                float *s = sums + (size_t)t * width;
                size_t stride = (size_t)c->stride * row_items;
                if (c->w->format == DT_F32)
                    c->k->f32(s, (const float *)(const void *)in, stride, (const float *)(const void *)part, (int)n, m);
                else if (c->w->format == DT_BF16)
                    c->k->bf16(s, in, stride, (const uint16_t *)(const void *)part, (int)n, m);
                else
                    c->k->i8(s, (const float *)(const void *)in, stride, (const int8_t *)part, (int)n, m);
            }
        }
    finish_tile(c, sums, t0, rows, panel);
}

/* The inputs of a row block as the kernel wants them: FP32 as they are, rounded FP32, or BF16 with even rows. */
static const void *prepare(const struct conv_call *c, int t0, int rows, char *scratch, size_t *row_items)
{
    size_t       cols = (size_t)c->w->cols, inputs = block_inputs(c, rows);
    const float *x = c->x + (size_t)t0 * (size_t)c->stride * cols;
    *row_items = c->pairs ? c->depth : cols;
    if (c->w->format == DT_F32)
        return x;
    if (!c->pairs)
        c->k->round((float *)(void *)scratch, x, inputs * cols);
    else if (c->depth == cols)
        c->k->narrow((uint16_t *)(void *)scratch, x, inputs * cols);
    else
        for (size_t i = 0; i < inputs; i++) {
            uint16_t *row = (uint16_t *)(void *)scratch + i * c->depth;
            c->k->narrow(row, x + i * cols, cols);
            row[cols] = 0;
        }
    return scratch;
}

/* Row blocks are dealt to threads while there are enough of them; panels otherwise. */
static void conv_task(void *ctx, int thread, int n_threads)
{
    const struct conv_call *c = ctx;
    char                   *scratch = c->scratch ? c->scratch + (size_t)thread * c->scratch_bytes : NULL;
    bool                    by_rows = c->row_blocks >= 4 * n_threads;
    int                     b0 = 0, b1 = c->row_blocks, p0 = 0, p1 = c->panels;
    if (by_rows)
        cpu_team_part(c->row_blocks, 1, thread, n_threads, &b0, &b1);
    else
        cpu_team_part(c->panels, 1, thread, n_threads, &p0, &p1);
    for (int b = b0; b < b1 && p0 < p1; b++) {
        int         t0 = b * ROW_BLOCK, rows = c->n - t0 < ROW_BLOCK ? c->n - t0 : ROW_BLOCK;
        size_t      row_items;
        const void *x = prepare(c, t0, rows, scratch, &row_items);
        for (int p = p0; p < p1; p++)
            conv_block(c, x, row_items, t0, rows, p);
    }
}

/* One output: a dot product over taps·cols for every row; panels would waste their lanes. */
static void single_task(void *ctx, int thread, int n_threads)
{
    const struct conv_call *c = ctx;
    int                     t0, t1;
    size_t                  cols = (size_t)c->w->cols;
    float                   sums[CODEC_PANEL_MAX];
    cpu_team_part(c->n, 1, thread, n_threads, &t0, &t1);
    for (int t = t0; t < t1; t++) {
        float total = 0;
        memset(sums, 0, sizeof sums);
        for (int tap = 0; tap < c->w->taps; tap++) {
            const float *x = c->x + ((size_t)t * (size_t)c->stride + (size_t)tap * (size_t)c->dilation) * cols;
            const float *w = (const float *)c->w->w + (size_t)tap * cols * (size_t)c->k->width;
            for (size_t i = 0; i < cols; i++)
                sums[i % 16] += x[i] * w[i * (size_t)c->k->width];
        }
        for (int i = 0; i < 16; i++)
            total += sums[i];
        sums[0] = total;
        finish_tile(c, sums, t, 1, 0);
    }
}

/* Snake's factors for every output: a panel may begin in the middle of a row's channels. */
static status_t spread_alpha(struct conv_call *c)
{
    int channels = c->e->channels ? c->e->channels : c->w->rows, rows = c->w->rows;
    if (!c->e->d_alpha)
        return ST_OK;
    c->alpha = malloc(2 * (size_t)rows * sizeof *c->alpha);
    if (!c->alpha)
        return FAIL(ST_ENOMEM, "codec: no memory for %d factors", 2 * rows);
    c->inverse = c->alpha + rows;
    for (int r = 0; r < rows; r++) {
        c->alpha[r] = c->e->d_alpha[r % channels];
        c->inverse[r] = c->e->d_alpha[channels + r % channels];
    }
    return ST_OK;
}

static status_t fast_conv(struct backend *be, enum codec_form form, const struct codec_matrix *w, const void *d_x,
                          int n, int stride, int dilation, const struct codec_epilogue *e)
{
    (void)form;
    struct cpu      *cpu = cpu_of(be);
    struct conv_call c = {.k = kernels_now(),
                          .w = w,
                          .e = e,
                          .x = d_x,
                          .n = n,
                          .stride = stride,
                          .dilation = dilation,
                          .row_blocks = (n + ROW_BLOCK - 1) / ROW_BLOCK};
    c.pairs = in_pairs(c.k, w);
    c.depth = padded_cols(w, c.pairs);
    c.panels = (int)panels_of(w->rows, c.k->width);
    TRY(spread_alpha(&c));
    size_t work = (size_t)n * (size_t)w->rows * (size_t)w->taps * c.depth;
    if (w->rows == 1 && w->format == DT_F32) {
        cpu_run(cpu, work, single_task, &c);
        free(c.alpha);
        return ST_OK;
    }
    if (w->format != DT_F32) {
        int rows = n < ROW_BLOCK ? n : ROW_BLOCK;
        c.scratch_bytes = (block_inputs(&c, rows) * c.depth * (c.pairs ? 2 : 4) + 63) & ~(size_t)63;
        c.scratch = malloc(c.scratch_bytes * (size_t)cpu_team_size(cpu->team));
        if (!c.scratch) {
            free(c.alpha);
            return FAIL(ST_ENOMEM, "codec: no memory for %zu bytes of inputs", c.scratch_bytes);
        }
    }
    cpu_run(cpu, work, conv_task, &c);
    free(c.scratch);
    free(c.alpha);
    return ST_OK;
}

/* ---- element by element ---- */

struct snake_call {
    const struct codec_kernels *k;
    const float                *x, *alpha;
    float                      *y;
    int                         n, channels;
};

static void snake_task(void *ctx, int thread, int n_threads)
{
    const struct snake_call *c = ctx;
    int                      t0, t1;
    cpu_team_part(c->n, 1, thread, n_threads, &t0, &t1);
    for (int t = t0; t < t1; t++) {
        size_t at = (size_t)t * (size_t)c->channels;
        c->k->snake(c->y + at, c->x + at, c->alpha, c->alpha + c->channels, c->channels);
    }
}

static status_t fast_snake(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_alpha,
                           int n, int channels)
{
    (void)form;
    struct snake_call c = {.k = kernels_now(), .x = d_x, .alpha = d_alpha, .y = d_y, .n = n, .channels = channels};
    cpu_run(cpu_of(be), (size_t)n * (size_t)channels * 8, snake_task, &c);
    return ST_OK;
}

/* The operations that make up less than 3 % of the time stay the twin's plain loops, rows dealt to the team. */
struct rows_call {
    struct backend *be;
    const void     *x;
    void           *y;
    const float    *w, *b;
    int             n, channels, taps;
    float           eps;
    int             kind; /* 0 depthwise, 1 layernorm, 2 rmsnorm, 3 silu_mul */
};

static void rows_task(void *ctx, int thread, int n_threads)
{
    const struct rows_call *c = ctx;
    int                     t0, t1;
    cpu_team_part(c->n, 1, thread, n_threads, &t0, &t1);
    if (t0 >= t1)
        return;
    size_t       width = (size_t)c->channels;
    const float *x = (const float *)c->x + (size_t)t0 * width * (c->kind == 3 ? 2 : 1);
    float       *y = (float *)c->y + (size_t)t0 * width;
    switch (c->kind) {
    case 0:
        cpu_ref_codec_ops.depthwise(c->be, y, x, c->w, c->b, t1 - t0, c->channels, c->taps);
        break;
    case 1:
        cpu_ref_codec_ops.layernorm(c->be, ROWS_PLAIN, y, x, c->w, c->b, t1 - t0, c->channels, c->eps);
        break;
    case 2:
        cpu_ref_codec_ops.rmsnorm(c->be, ROWS_PLAIN, y, x, c->w, t1 - t0, c->channels, c->eps);
        break;
    default:
        cpu_ref_codec_ops.silu_mul(c->be, ROWS_PLAIN, y, x, t1 - t0, c->channels);
        break;
    }
}

static void run_rows(struct rows_call *c)
{
    cpu_run(cpu_of(c->be), (size_t)c->n * (size_t)c->channels * 8, rows_task, c);
}

static status_t fast_depthwise(struct backend *be, float *d_y, const float *d_x, const float *d_w, const float *d_b,
                               int n, int channels, int taps)
{
    run_rows(&(struct rows_call){
        .be = be, .x = d_x, .y = d_y, .w = d_w, .b = d_b, .n = n, .channels = channels, .taps = taps});
    return ST_OK;
}

static status_t fast_layernorm(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_w,
                               const float *d_b, int n, int channels, float eps)
{
    (void)form;
    run_rows(&(struct rows_call){
        .be = be, .x = d_x, .y = d_y, .w = d_w, .b = d_b, .n = n, .channels = channels, .eps = eps, .kind = 1});
    return ST_OK;
}

static status_t fast_rmsnorm(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_w,
                             int n, int channels, float eps)
{
    (void)form;
    run_rows(&(struct rows_call){
        .be = be, .x = d_x, .y = d_y, .w = d_w, .n = n, .channels = channels, .eps = eps, .kind = 2});
    return ST_OK;
}

static status_t fast_silu_mul(struct backend *be, enum codec_form form, void *d_y, const float *d_gate_up, int n,
                              int width)
{
    (void)form;
    run_rows(&(struct rows_call){.be = be, .x = d_gate_up, .y = d_y, .n = n, .channels = width, .kind = 3});
    return ST_OK;
}

static void fast_release(struct backend *be, struct codec_matrix *m)
{
    cpu_ref_codec_ops.release(be, m);
}

static status_t fast_copy(struct backend *be, void *d_dst, const void *d_src, size_t bytes)
{
    return cpu_ref_codec_ops.copy(be, d_dst, d_src, bytes);
}

static status_t fast_attention(struct backend *be, enum codec_form form, void *d_y, float *d_qkv, float *d_new,
                               const float *d_old, const struct codec_attention *a, int n, int pos0, int past)
{
    return cpu_ref_codec_ops.attention(be, form, d_y, d_qkv, d_new, d_old, a, n, pos0, past);
}

static status_t fast_zero(struct backend *be, void *d, size_t bytes)
{
    return cpu_ref_codec_ops.zero(be, d, bytes);
}

static status_t fast_load(struct backend *be, enum codec_form form, void *d_x, const float *x, int n)
{
    return cpu_ref_codec_ops.load(be, form, d_x, x, n);
}

static status_t fast_dequantize(struct backend *be, float *d_y, const struct codec_books *books, const int32_t *codes,
                                int n)
{
    return cpu_ref_codec_ops.dequantize(be, d_y, books, codes, n);
}

static status_t fast_join(struct backend *be, void *d_rows, void *d_new, const void *d_old, int past, int n,
                          size_t row_bytes)
{
    return cpu_ref_codec_ops.join(be, d_rows, d_new, d_old, past, n, row_bytes);
}

const struct codec_ops cpu_codec_ops = {
    .input = fast_input,
    .adopt = fast_adopt,
    .release = fast_release,
    .copy = fast_copy,
    .zero = fast_zero,
    .load = fast_load,
    .dequantize = fast_dequantize,
    .join = fast_join,
    .conv = fast_conv,
    .snake = fast_snake,
    .depthwise = fast_depthwise,
    .layernorm = fast_layernorm,
    .rmsnorm = fast_rmsnorm,
    .silu_mul = fast_silu_mul,
    .attention = fast_attention,
};
