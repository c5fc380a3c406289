#include "backend/cpu.h"

#include "backend/cpu_codec.h"

#include "backend/cpu_topology.h"
#include "base/clock.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

enum {
    ROW_UNIT = 16, /* rows of a matrix are dealt out in cache lines of the result */
    /* Elements. A hand-over costs 0.1 µs there and back and these take 1–5 µs, but on a machine with other work each
     * one is also a chance to wait; a step of S1-mini keeps to the 360 that pay. */
    WORTH_HANDING_OVER = 16384
};

/* Stands before every block that alloc returns. */
struct block_head {
    void             *raw;
    size_t            bytes;
    enum memory_class cls;
};

enum { BLOCK_ALIGN = 64 };
_Static_assert(sizeof(struct block_head) <= BLOCK_ALIGN, "a block's head stands in one cache line before it");

/* ---- opening, memory --------------------------------------------------------------------------------------------- */

static status_t cpu_open(const struct backend_options *options, struct backend **out)
{
    const struct cpu_kernels *kernels = cpu_kernels_find(NULL);
    if (!kernels)
        return FAIL(ST_EUSAGE, "QSWEEP_CPU=%s: not here, want portable%s%s", getenv("QSWEEP_CPU"),
                    cpu_topology_get()->avx2 ? ", avx2" : "", cpu_topology_get()->avx512 ? ", avx512" : "");
    struct cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        return FAIL(ST_ENOMEM, "cpu: no host memory for the backend");
    cpu->base.ops = &cpu_ops;
    cpu->base.options = *options;
    cpu->kernels = kernels;
    memory_ledger_init(&cpu->base.memory, options->memory_limit);
    status_t st = cpu_team_open(options->n_threads, options->pin, &cpu->team);
    if (st != ST_OK) {
        free(cpu);
        return st;
    }
    *out = (struct backend *)(void *)cpu;
    return ST_OK;
}

static void cpu_close(struct backend *be)
{
    if (!be)
        return;
    cpu_team_close(cpu_of(be)->team);
    free(cpu_of(be)->scores);
    free(cpu_of(be));
}

/* Zeroed pages come when they are first written, so that a long cache costs memory only as far as it is filled. No large
 * pages here: the first prefill would clear all of a cache that has a row in every 2 MB (0.46 s for 470 MB). */
static status_t cpu_alloc(struct backend *be, enum memory_class cls, size_t bytes, void **d_out)
{
    if (bytes > SIZE_MAX / 2)
        return FAIL(ST_EOOM, "cpu: %zu bytes of %s wanted", bytes, memory_class_name(cls));
    struct block_head head = {.bytes = bytes, .cls = cls};
    TRY(memory_take(backend_memory(be), cls, bytes));
    head.raw = calloc(1, bytes + 2 * BLOCK_ALIGN);
    if (!head.raw) {
        memory_give(backend_memory(be), cls, bytes);
        return FAIL(ST_EOOM, "cpu: the system has no %zu bytes for %s", bytes, memory_class_name(cls));
    }
    char *aligned = (char *)head.raw + (2 * BLOCK_ALIGN - (uintptr_t)head.raw % BLOCK_ALIGN);
    memcpy(aligned - BLOCK_ALIGN, &head, sizeof head);
    *d_out = aligned;
    return ST_OK;
}

static void cpu_free(struct backend *be, void *d_ptr)
{
    struct block_head head;
    if (!d_ptr)
        return;
    memcpy(&head, (char *)d_ptr - BLOCK_ALIGN, sizeof head);
    memory_give(backend_memory(be), head.cls, head.bytes);
    free(head.raw);
}

static status_t cpu_upload(struct backend *be, void *d_dst, const void *src, size_t bytes)
{
    memcpy(d_dst, src, bytes);
    return ST_OK;
}

static status_t cpu_download(struct backend *be, void *dst, const void *d_src, size_t bytes)
{
    memcpy(dst, d_src, bytes);
    return ST_OK;
}

static status_t cpu_sync(struct backend *be)
{
    return ST_OK;
}

static size_t matrix_bytes(const struct matrix *m)
{
    return (size_t)m->rows * (size_t)m->cols * dtype_size(m->format) + (m->bias ? (size_t)m->rows * sizeof(float) : 0);
}

static size_t matrix_scale_bytes(const struct matrix *m)
{
    return m->scales ? (size_t)m->rows * dtype_size(m->scale_dtype) : 0;
}

/* Bring every page in now, so that neither disk nor page faults are part of the first frame; and learn now, not by a
 * SIGBUS later, that a mapped file has become shorter. */
static status_t populate(const void *p, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t from = (uintptr_t)p / page * page, to = ((uintptr_t)p + bytes + page - 1) / page * page;
    madvise((void *)from, to - from, MADV_HUGEPAGE);
    if (madvise((void *)from, to - from, MADV_POPULATE_READ) == 0)
        return ST_OK;
    if (errno == EFAULT)
        return FAIL(ST_EIO, "weights: %zu mapped bytes can no longer be read; the file was cut short or its disk failed",
                    bytes);
    madvise((void *)from, to - from, MADV_WILLNEED);
    return ST_OK;
}

static status_t cpu_adopt(struct backend *be, const struct matrix *host, struct matrix *out)
{
    struct memory_ledger *memory = backend_memory(be);
    TRY(memory_take(memory, MEM_WEIGHTS, matrix_bytes(host)));
    status_t st = memory_take(memory, MEM_SCALES, matrix_scale_bytes(host));
    if (st != ST_OK) {
        memory_give(memory, MEM_WEIGHTS, matrix_bytes(host));
        return st;
    }
    st = populate(host->w, (size_t)host->rows * (size_t)host->cols * dtype_size(host->format));
    if (st == ST_OK && host->scales)
        st = populate(host->scales, matrix_scale_bytes(host));
    if (st != ST_OK) {
        memory_give(memory, MEM_WEIGHTS, matrix_bytes(host));
        memory_give(memory, MEM_SCALES, matrix_scale_bytes(host));
        return st;
    }
    *out = *host;
    return ST_OK;
}

static void cpu_release(struct backend *be, struct matrix *m)
{
    if (!m->w)
        return;
    memory_give(backend_memory(be), MEM_WEIGHTS, matrix_bytes(m));
    memory_give(backend_memory(be), MEM_SCALES, matrix_scale_bytes(m));
    *m = (struct matrix){0};
}

/* ---- ops --------------------------------------------------------------------------------------------------------- */

void cpu_run(struct cpu *cpu, size_t work, cpu_task task, void *ctx)
{
    if (work < WORTH_HANDING_OVER)
        task(ctx, 0, 1);
    else
        cpu_team_run(cpu->team, task, ctx);
}

/* One op's operands; each op uses those it needs. */
struct job {
    const struct cpu_kernels *k;
    bool                      round;
    float                    *y;
    const float              *x, *z;
    int                       n, dim;
    float                     eps;
    const struct matrix      *w;
    int                       row0, row_count, ldy;
    const struct embed_args  *embed;
    const int32_t            *ids;
};

static void matmul_part(void *ctx, int thread, int n_threads)
{
    const struct job    *j = ctx;
    const struct matrix *w = j->w;
    int                  from, to;
    cpu_team_part(j->row_count, ROW_UNIT, thread, n_threads, &from, &to);
    if (from == to)
        return;
    const size_t row = (size_t)(j->row0 + from), cols = (size_t)w->cols;
    const char  *scales = w->format == DT_I8 ? (const char *)w->scales + row * dtype_size(w->scale_dtype) : NULL;
    j->k->dot(w->format, j->y + from, (size_t)j->ldy, (const char *)w->w + row * cols * dtype_size(w->format), to - from,
              w->cols, j->x, cols, j->n, NULL);
    if (!scales && !w->bias && !j->round)
        return;
    for (int t = 0; t < j->n; t++)
        j->k->finish(j->y + (size_t)t * (size_t)j->ldy + from, to - from, scales, w->scale_dtype,
                     w->bias ? w->bias + row : NULL, j->round);
}

static status_t cpu_matmul(struct backend *be, float *d_y, int ldy, const struct matrix *w, int row0, int row_count,
                           const float *d_x, int n)
{
    struct cpu *cpu = cpu_of(be);
    struct job  j = {.k = cpu->kernels, .round = cpu_rounds(cpu), .y = d_y, .ldy = ldy, .w = w, .row0 = row0,
                     .row_count = row_count, .x = d_x, .n = n};
    cpu_run(cpu, (size_t)row_count * (size_t)w->cols * (size_t)n, matmul_part, &j);
    return ST_OK;
}

static void embed_part(void *ctx, int thread, int n_threads)
{
    const struct job        *j = ctx;
    const struct embed_args *a = j->embed;
    const size_t             dim = (size_t)a->embeddings->cols, row_bytes = dim * dtype_size(a->embeddings->format);
    const size_t             code_bytes = dim * dtype_size(a->codebook_embeddings->format);
    int                      from, to;
    cpu_team_part(j->n, 1, thread, n_threads, &from, &to);
    for (int t = from; t < to; t++) {
        const int32_t *col = j->ids + (size_t)t * (size_t)(1 + a->num_codebooks);
        const char    *token = (const char *)a->embeddings->w + (size_t)col[0] * row_bytes;
        float         *x = j->y + (size_t)t * dim;
        if (col[0] < a->semantic_begin || col[0] > a->semantic_end) {
            j->k->widen(a->embeddings->format, x, token, dim, false);
            j->k->scale(x, 1.0f, dim, j->round);
            continue;
        }
        for (int c = 0; c < a->num_codebooks; c++) {
            const size_t row = (size_t)c * (size_t)a->codebook_size + (size_t)col[1 + c];
            j->k->widen(a->codebook_embeddings->format, x, (const char *)a->codebook_embeddings->w + row * code_bytes,
                        dim, c > 0);
        }
        j->k->scale(x, 1.0f, dim, j->round);
        j->k->widen(a->embeddings->format, x, token, dim, true);
        j->k->scale(x, 1.0f, dim, j->round);
        /* The original divides by a host scalar, which its GPU path carries out as a product with the FP32 reciprocal. */
        if (a->scale)
            j->k->scale(x, 1.0f / sqrtf((float)(a->num_codebooks + 1)), dim, j->round);
    }
}

/* Rows outside a table are our own bug: prompts are checked by the decoder, codes come from the sampler. */
static status_t check_rows(const struct matrix *table, const int32_t *ids, int n, int stride, const char *what)
{
    for (int i = 0; i < n; i++)
        if (ids[(size_t)i * (size_t)stride] < 0 || ids[(size_t)i * (size_t)stride] >= table->rows)
            return FAIL(ST_EINTERNAL, "%s: row %d of a table of %d", what, (int)ids[(size_t)i * (size_t)stride], table->rows);
    return ST_OK;
}

static status_t cpu_embed(struct backend *be, const struct embed_args *args, const int32_t *cols, int n, float *d_x)
{
    struct cpu *cpu = cpu_of(be);
    const int   width = 1 + args->num_codebooks;
    TRY(check_rows(args->embeddings, cols, n, width, "token embedding"));
    for (int t = 0; t < n; t++)
        for (int c = 1; c < width; c++)
            if (cols[t * width + c] < 0 || cols[t * width + c] >= args->codebook_size)
                return FAIL(ST_EINTERNAL, "codebook embedding: code %d of %d", (int)cols[t * width + c],
                            args->codebook_size);
    struct job j = {.k = cpu->kernels, .round = cpu_rounds(cpu), .y = d_x, .embed = args, .ids = cols, .n = n};
    cpu_run(cpu, (size_t)n * (size_t)args->embeddings->cols, embed_part, &j);
    return ST_OK;
}

static status_t cpu_gather(struct backend *be, const struct matrix *table, const int32_t *ids, int n, float *d_x)
{
    const struct cpu *cpu = cpu_of(be);
    const size_t      cols = (size_t)table->cols;
    TRY(check_rows(table, ids, n, 1, "embedding"));
    for (int t = 0; t < n; t++) {
        const char *row = (const char *)table->w + (size_t)ids[t] * cols * dtype_size(table->format);
        float      *x = d_x + (size_t)t * cols;
        cpu->kernels->widen(table->format, x, row, cols, false);
        if (cpu_rounds(cpu) && table->format == DT_F32)
            cpu->kernels->scale(x, 1.0f, cols, true);
    }
    return ST_OK;
}

static void rmsnorm_part(void *ctx, int thread, int n_threads)
{
    const struct job *j = ctx;
    int               from, to;
    cpu_team_part(j->n, 1, thread, n_threads, &from, &to);
    for (int t = from; t < to; t++)
        j->k->rmsnorm(j->y + (size_t)t * (size_t)j->dim, j->x + (size_t)t * (size_t)j->dim, j->z, j->dim, j->eps, j->round);
}

static status_t cpu_rmsnorm(struct backend *be, float *d_y, const float *d_x, const float *d_w, int n, int dim, float eps)
{
    struct cpu *cpu = cpu_of(be);
    struct job  j = {.k = cpu->kernels, .round = cpu_rounds(cpu), .y = d_y, .x = d_x, .z = d_w, .n = n, .dim = dim, .eps = eps};
    cpu_run(cpu, n > 1 ? (size_t)n * (size_t)dim : 0, rmsnorm_part, &j);
    return ST_OK;
}

/* Element by element: the n·dim elements are dealt out without regard to tokens. */
static void silu_mul_part(void *ctx, int thread, int n_threads)
{
    const struct job *j = ctx;
    int               from, to;
    cpu_team_part(j->n, ROW_UNIT, thread, n_threads, &from, &to);
    j->k->silu_mul(j->y + from, j->x + from, j->z + from, (size_t)(to - from), j->round);
}

static void add_part(void *ctx, int thread, int n_threads)
{
    const struct job *j = ctx;
    int               from, to;
    cpu_team_part(j->n, ROW_UNIT, thread, n_threads, &from, &to);
    j->k->add(j->y + from, j->x + from, (size_t)(to - from), j->round);
}

static status_t cpu_silu_mul(struct backend *be, float *d_y, const float *d_gate, const float *d_up, int n, int dim)
{
    struct cpu *cpu = cpu_of(be);
    struct job  j = {.k = cpu->kernels, .round = cpu_rounds(cpu), .y = d_y, .x = d_gate, .z = d_up, .n = n * dim};
    cpu_run(cpu, (size_t)n * (size_t)dim, silu_mul_part, &j);
    return ST_OK;
}

static status_t cpu_add(struct backend *be, float *d_x, const float *d_y, int n, int dim)
{
    struct cpu *cpu = cpu_of(be);
    struct job  j = {.k = cpu->kernels, .round = cpu_rounds(cpu), .y = d_x, .x = d_y, .n = n * dim};
    cpu_run(cpu, (size_t)n * (size_t)dim, add_part, &j);
    return ST_OK;
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

struct read_job {
    const struct cpu_kernels *k;
    const char               *bytes;
    size_t                    size;
    _Atomic uint64_t          mixed; /* keeps the loads */
};

static void read_part(void *ctx, int thread, int n_threads)
{
    struct read_job *j = ctx;
    const size_t     from = j->size / 64 * (size_t)thread / (size_t)n_threads * 64;
    const size_t     to = thread + 1 == n_threads ? j->size : j->size / 64 * (size_t)(thread + 1) / (size_t)n_threads * 64;
    j->mixed ^= j->k->read(j->bytes + from, to - from);
}

double cpu_read(struct backend *be, const void *bytes, size_t size)
{
    struct read_job j = {.k = cpu_of(be)->kernels, .bytes = bytes, .size = size};
    const int64_t   t0 = clock_ns();
    cpu_team_run(cpu_of(be)->team, read_part, &j);
    return (double)(clock_ns() - t0) * 1e-9;
}

const char *cpu_isa(struct backend *be)
{
    return cpu_of(be)->kernels->name;
}

int cpu_threads(struct backend *be)
{
    return cpu_team_size(cpu_of(be)->team);
}

static void cpu_describe(struct backend *be, void (*tell)(void *ctx, const char *key, const char *value), void *ctx)
{
    char threads[16];
    snprintf(threads, sizeof threads, "%d", cpu_threads(be));
    tell(ctx, "cpu_kernels", cpu_isa(be));
    tell(ctx, "threads", threads);
}

const struct backend_ops cpu_ops = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .sync = cpu_sync,
    .adopt = cpu_adopt,
    .release = cpu_release,
    .embed = cpu_embed,
    .gather = cpu_gather,
    .rmsnorm = cpu_rmsnorm,
    .matmul = cpu_matmul,
    .rope_append = cpu_rope_append,
    .attention = cpu_attention,
    .silu_mul = cpu_silu_mul,
    .add = cpu_add,
    .codec = &cpu_codec_ops,
    .describe = cpu_describe,
};
