/* The CUDA backend: device, memory with its ledger, and the operations of the `ops` engine. The fused engine is
 * cuda_graph.c. Everything runs on one stream; an operation enqueues and returns. */
#include "backend/cuda.h"

#include "backend/cuda_codec.h"
#include "base/log.h"
#include "kernels/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

extern const struct backend_ops cuda_ops;

/* From so many tokens on cuBLAS multiplies BF16 and INT8 matrices (prefill). Its order of addition, hence the last bit,
 * depends on the number of tokens; below, and in FP32, it never does. */
enum { BLAS_TOKENS = 32 };

enum { SLOT_INDICES, SLOT_ACTIVATIONS, SLOT_WEIGHTS };

struct cuda_block {
    void             *d_ptr;
    size_t            bytes;
    enum memory_class cls;
};

static bool rounds(struct backend *be)
{
    return cuda_of(be)->base.options.rounding == ROUND_BF16;
}

/* ---- device ------------------------------------------------------------------------------------------------------- */

enum { UUID_TEXT = 48 };

/* The UUID of CUDA's device, as NVML writes that of a whole card. */
static status_t uuid_of(int device, char out[UUID_TEXT])
{
    struct cudaDeviceProp p;
    TRY(CUDA_DO(cudaGetDeviceProperties(&p, device)));
    const unsigned char *u = (const unsigned char *)p.uuid.bytes;
    snprintf(out, UUID_TEXT, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
             u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    return ST_OK;
}

/* Which of CUDA's devices has this UUID. An instance of a divided card is the only one CUDA shows to a process; older
 * drivers give its card's UUID there, so being alone is what identifies it. */
static status_t find_uuid(const char *uuid, int count, int *device)
{
    char own[UUID_TEXT];
    for (int i = 0; i < count; i++) {
        TRY(uuid_of(i, own));
        if (strcasecmp(own + 4, uuid + 4) == 0 || (strncmp(uuid, "MIG-", 4) == 0 && count == 1)) {
            *device = i;
            return ST_OK;
        }
    }
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return FAIL(ST_EUNSUPPORTED, "device \"cuda:%s\": not among the %d that CUDA shows here (CUDA_VISIBLE_DEVICES %s%s)", uuid,
                count, visible ? "= " : "is unset", visible ? visible : "");
}

static status_t open_device(struct cuda *cu)
{
    int count = 0, major = 0, minor = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice || count == 0)
        return FAIL(ST_EUNSUPPORTED, "device \"cuda\": no usable NVIDIA GPU or driver here (%s); use --device cpu",
                    e == cudaSuccess ? "no device" : cudaGetErrorString(e));
    TRY(CUDA_DO(e));
    if (cu->base.options.uuid[0])
        TRY(find_uuid(cu->base.options.uuid, count, &cu->device));
    if (cu->device < 0 || cu->device >= count)
        return FAIL(ST_EUSAGE, "device \"cuda:%d\": this machine has %d (0..%d)", cu->device, count, count - 1);
    TRY(CUDA_DO(cudaSetDevice(cu->device)));
    TRY(CUDA_DO(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cu->device)));
    TRY(CUDA_DO(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, cu->device)));
    TRY(CUDA_DO(cudaDeviceGetAttribute(&cu->sms, cudaDevAttrMultiProcessorCount, cu->device)));
    cu->capability = 10 * major + minor;
    if (cu->capability < 80)
        return FAIL(ST_EUNSUPPORTED, "device \"cuda:%d\": compute capability %d.%d, want 8.0 or newer", cu->device, major, minor);
    return CUDA_DO(cudaStreamCreateWithFlags(&cu->stream, cudaStreamNonBlocking));
}

static void cuda_close(struct backend *be)
{
    if (!be)
        return;
    struct cuda *cu = cuda_of(be);
    if (cu->stream)
        cudaStreamSynchronize(cu->stream);
    for (int i = 0; i < 3; i++)
        cuda_ops.free(be, cu->d_scratch[i]);
    for (size_t i = 0; i < cu->n_blocks; i++)
        cudaFree(cu->blocks[i].d_ptr);
    cuda_blas_close(cu->blas);
    if (cu->stream)
        cudaStreamDestroy(cu->stream);
    free(cu->blocks);
    free(cu);
}

static status_t cuda_open(const struct backend_options *options, struct backend **out)
{
    struct cuda *cu = calloc(1, sizeof *cu);
    if (!cu)
        return FAIL(ST_ENOMEM, "no host memory for the CUDA backend");
    cu->base.ops     = &cuda_ops;
    cu->base.options = *options;
    cu->device       = options->device;
    memory_ledger_init(&cu->base.memory, options->memory_limit);
    status_t st = open_device(cu);
    if (st != ST_OK) {
        cuda_close((struct backend *)(void *)cu);
        return st;
    }
    *out = (struct backend *)(void *)cu;
    return ST_OK;
}

/* ---- memory ------------------------------------------------------------------------------------------------------- */

static status_t cuda_alloc(struct backend *be, enum memory_class cls, size_t bytes, void **d_out)
{
    struct cuda *cu = cuda_of(be);
    if (cu->n_blocks == cu->capacity) {
        const size_t       capacity = cu->capacity ? 2 * cu->capacity : 64;
        struct cuda_block *grown    = realloc(cu->blocks, capacity * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no host memory for the list of device blocks");
        cu->blocks   = grown;
        cu->capacity = capacity;
    }
    TRY(memory_take(&cu->base.memory, cls, bytes));
    void       *d_ptr = NULL;
    cudaError_t e     = cudaMalloc(&d_ptr, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        size_t available = 0, total = 0;
        cudaGetLastError(); /* not sticky, but remembered */
        cudaMemGetInfo(&available, &total);
        memory_give(&cu->base.memory, cls, bytes);
        return FAIL(ST_EOOM, "out of memory: %zu bytes of %s wanted, %zu of the device's %zu are free: %zu bytes missing",
                    bytes, memory_class_name(cls), available, total, bytes > available ? bytes - available : (size_t)0);
    }
    status_t st = CUDA_DO(e);
    if (st == ST_OK)
        st = CUDA_DO(cudaMemsetAsync(d_ptr, 0, bytes, cu->stream));
    if (st != ST_OK) {
        cudaFree(d_ptr);
        memory_give(&cu->base.memory, cls, bytes);
        return st;
    }
    cu->blocks[cu->n_blocks++] = (struct cuda_block){d_ptr, bytes, cls};
    *d_out                     = d_ptr;
    return ST_OK;
}

static void cuda_free(struct backend *be, void *d_ptr)
{
    struct cuda *cu = cuda_of(be);
    for (size_t i = 0; d_ptr && i < cu->n_blocks; i++)
        if (cu->blocks[i].d_ptr == d_ptr) {
            cudaStreamSynchronize(cu->stream);
            cudaFree(d_ptr);
            memory_give(&cu->base.memory, cu->blocks[i].cls, cu->blocks[i].bytes);
            cu->blocks[i] = cu->blocks[--cu->n_blocks];
            return;
        }
}

static status_t cuda_upload(struct backend *be, void *d_dst, const void *src, size_t bytes)
{
    TRY(CUDA_DO(cudaMemcpyAsync(d_dst, src, bytes, cudaMemcpyHostToDevice, cuda_of(be)->stream)));
    return CUDA_DO(cudaStreamSynchronize(cuda_of(be)->stream)); /* the caller may reuse src */
}

static status_t cuda_download(struct backend *be, void *dst, const void *d_src, size_t bytes)
{
    TRY(CUDA_DO(cudaMemcpyAsync(dst, d_src, bytes, cudaMemcpyDeviceToHost, cuda_of(be)->stream)));
    return CUDA_DO(cudaStreamSynchronize(cuda_of(be)->stream));
}

static status_t cuda_sync(struct backend *be)
{
    return CUDA_DO(cudaStreamSynchronize(cuda_of(be)->stream));
}

status_t cuda_scratch(struct cuda *cu, int slot, size_t bytes, void **d_out)
{
    struct backend *be = (struct backend *)(void *)cu;
    if (cu->scratch_bytes[slot] < bytes) {
        cuda_free(be, cu->d_scratch[slot]);
        cu->d_scratch[slot]     = NULL;
        cu->scratch_bytes[slot] = 0;
        TRY(cuda_alloc(be, MEM_WORKSPACE, bytes, &cu->d_scratch[slot]));
        cu->scratch_bytes[slot] = bytes;
    }
    *d_out = cu->d_scratch[slot];
    return ST_OK;
}

/* ---- matrices ----------------------------------------------------------------------------------------------------- */

static status_t place(struct backend *be, enum memory_class cls, const void *src, size_t bytes, const void **out)
{
    void *d_ptr;
    if (!src)
        return ST_OK;
    TRY(cuda_alloc(be, cls, bytes, &d_ptr));
    *out = d_ptr;
    return cuda_upload(be, d_ptr, src, bytes);
}

static void cuda_release(struct backend *be, struct matrix *m)
{
    cuda_free(be, (void *)(uintptr_t)m->w);
    cuda_free(be, (void *)(uintptr_t)m->scales);
    cuda_free(be, (void *)(uintptr_t)m->bias);
    *m = (struct matrix){0};
}

static status_t cuda_adopt(struct backend *be, const struct matrix *host, struct matrix *out)
{
    struct matrix m  = *host;
    const void   *bias = NULL;
    m.w = m.scales = NULL;
    m.bias         = NULL;
    status_t st = place(be, MEM_WEIGHTS, host->w, (size_t)host->rows * (size_t)host->cols * dtype_size(host->format), &m.w);
    if (st == ST_OK && host->scales)
        st = place(be, MEM_SCALES, host->scales, (size_t)host->rows * dtype_size(host->scale_dtype), &m.scales);
    if (st == ST_OK)
        st = place(be, MEM_WEIGHTS, host->bias, (size_t)host->rows * sizeof(float), &bias);
    m.bias = bias;
    if (st != ST_OK) {
        cuda_release(be, &m);
        return st;
    }
    *out = m;
    return ST_OK;
}

/* ---- operations --------------------------------------------------------------------------------------------------- */

static struct ops_matrix ops_matrix_of(const struct matrix *m)
{
    return (struct ops_matrix){.d_w = m->w, .d_scales = m->scales, .d_bias = m->bias,
                               .format = m->format == DT_F32 ? OPS_F32 : m->format == DT_BF16 ? OPS_BF16 : OPS_I8,
                               .scales_f32 = m->scale_dtype == DT_F32, .rows = m->rows, .cols = m->cols};
}

static struct ops_cache ops_cache_of(const struct kv_cache *kv)
{
    return (struct ops_cache){.format = kv->format == KV_FP32 ? OPS_F32 : kv->format == KV_BF16 ? OPS_BF16 : OPS_I8,
                              .n_kv_heads = kv->n_kv_heads, .max_len = kv->max_len, .head_dim = kv->head_dim,
                              .d_k = kv->d_k, .d_v = kv->d_v, .d_k_scale = kv->d_k_scale, .d_v_scale = kv->d_v_scale};
}

/* Two host index arrays side by side on the device; pageable copies are staged before the call returns. */
static status_t indices(struct cuda *cu, const int *a, int n_a, const int *b, int n_b, int **d_a, int **d_b)
{
    void *d_ptr;
    TRY(cuda_scratch(cu, SLOT_INDICES, (size_t)(n_a + n_b) * sizeof(int), &d_ptr));
    *d_a = d_ptr;
    *d_b = *d_a + n_a;
    TRY(CUDA_DO(cudaMemcpyAsync(*d_a, a, (size_t)n_a * sizeof *a, cudaMemcpyHostToDevice, cu->stream)));
    return n_b ? CUDA_DO(cudaMemcpyAsync(*d_b, b, (size_t)n_b * sizeof *b, cudaMemcpyHostToDevice, cu->stream)) : ST_OK;
}

static status_t cuda_embed(struct backend *be, const struct embed_args *args, const int32_t *cols, int n, float *d_x)
{
    int *d_cols, *unused;
    const struct ops_embed e = {.embeddings = ops_matrix_of(args->embeddings),
                                .codebook_embeddings = ops_matrix_of(args->codebook_embeddings),
                                .num_codebooks = args->num_codebooks, .codebook_size = args->codebook_size,
                                .semantic_begin = args->semantic_begin, .semantic_end = args->semantic_end,
                                .scale = args->scale};
    TRY(indices(cuda_of(be), cols, n * (1 + args->num_codebooks), NULL, 0, &d_cols, &unused));
    return CUDA_DO(ops_embed_launch(&e, d_cols, n, d_x, rounds(be), cuda_of(be)->stream));
}

static status_t cuda_gather(struct backend *be, const struct matrix *table, const int32_t *ids, int n, float *d_x)
{
    int *d_ids, *unused;
    const struct ops_matrix m = ops_matrix_of(table);
    TRY(indices(cuda_of(be), ids, n, NULL, 0, &d_ids, &unused));
    return CUDA_DO(ops_gather_launch(&m, d_ids, n, d_x, rounds(be), cuda_of(be)->stream));
}

static status_t cuda_rmsnorm(struct backend *be, float *d_y, const float *d_x, const float *d_w, int n, int dim, float eps)
{
    return CUDA_DO(ops_rmsnorm_launch(d_y, d_x, d_w, n, dim, eps, rounds(be), cuda_of(be)->stream));
}

/* Many tokens at once: activations and INT8 weights as BF16 (both exactly), the library's product, our roundings. */
static status_t blas_matmul(struct cuda *cu, float *d_y, int ldy, const struct ops_matrix *w, int row0, int rows,
                            const float *d_x, int n, bool *done)
{
    const size_t k = (size_t)w->cols;
    void        *d_xb, *d_wb;
    const void  *d_rows = (const uint16_t *)w->d_w + (size_t)row0 * k;
    TRY(cuda_scratch(cu, SLOT_ACTIVATIONS, (size_t)n * k * 2, &d_xb));
    TRY(CUDA_DO(ops_to_bf16_launch(d_xb, d_x, (size_t)n * k, cu->stream)));
    if (w->format == OPS_I8) {
        TRY(cuda_scratch(cu, SLOT_WEIGHTS, (size_t)rows * k * 2, &d_wb));
        TRY(CUDA_DO(ops_widen_int8_launch(d_wb, (const int8_t *)w->d_w + (size_t)row0 * k, (size_t)rows * k, cu->stream)));
        d_rows = d_wb;
    }
    *done = cuda_blas_bf16(cu, d_y, ldy, d_rows, rows, d_xb, w->cols, n);
    return *done ? CUDA_DO(ops_finish_launch(d_y, ldy, w, row0, rows, n, true, cu->stream)) : ST_OK;
}

static status_t cuda_matmul(struct backend *be, float *d_y, int ldy, const struct matrix *w, int row0, int row_count,
                            const float *d_x, int n)
{
    const struct ops_matrix m    = ops_matrix_of(w);
    bool                    done = false;
    if (n >= BLAS_TOKENS && rounds(be) && m.format != OPS_F32)
        TRY(blas_matmul(cuda_of(be), d_y, ldy, &m, row0, row_count, d_x, n, &done));
    if (done)
        return ST_OK;
    return CUDA_DO(ops_matmul_launch(d_y, ldy, &m, row0, row_count, d_x, n, rounds(be), cuda_of(be)->stream));
}

static status_t cuda_rope_append(struct backend *be, float *d_qkv, const struct rope_args *args, struct kv_cache *kv,
                                 const struct token_batch *tokens)
{
    int *d_seq, *d_pos;
    const struct ops_rope  r = {.n_head = args->n_head, .n_kv_heads = args->n_kv_heads, .head_dim = args->head_dim,
                                .d_q_norm = args->q_norm, .d_k_norm = args->k_norm, .d_cos_sin = args->d_cos_sin,
                                .eps = args->eps};
    const struct ops_cache c = ops_cache_of(kv);
    TRY(indices(cuda_of(be), tokens->seq, tokens->n, tokens->pos, tokens->n, &d_seq, &d_pos));
    return CUDA_DO(ops_rope_append_launch(d_qkv, &r, &c, d_seq, d_pos, tokens->n, rounds(be), cuda_of(be)->stream));
}

static status_t cuda_attention(struct backend *be, float *d_y, const float *d_qkv, int n_head, const struct kv_cache *kv,
                               const struct token_batch *tokens, bool fast)
{
    int *d_seq, *d_pos;
    const struct ops_cache c = ops_cache_of(kv);
    TRY(indices(cuda_of(be), tokens->seq, tokens->n, tokens->pos, tokens->n, &d_seq, &d_pos));
    return CUDA_DO(ops_attention_launch(d_y, d_qkv, n_head, &c, d_seq, d_pos, tokens->n, fast, rounds(be),
                                        cuda_of(be)->stream));
}

static status_t cuda_silu_mul(struct backend *be, float *d_y, const float *d_gate, const float *d_up, int n, int dim)
{
    return CUDA_DO(ops_silu_mul_launch(d_y, d_gate, d_up, (size_t)n * (size_t)dim, rounds(be), cuda_of(be)->stream));
}

static status_t cuda_add(struct backend *be, float *d_x, const float *d_y, int n, int dim)
{
    return CUDA_DO(ops_add_launch(d_x, d_y, (size_t)n * (size_t)dim, rounds(be), cuda_of(be)->stream));
}

/* The card, its driver and the CUDA versions; NVML's part is left out where it is not to be had. */
static void cuda_describe(struct backend *be, void (*tell)(void *ctx, const char *key, const char *value), void *ctx)
{
    struct cudaDeviceProp p;
    char                  text[64];
    int                   runtime = 0, driver = 0;
    if (cudaGetDeviceProperties(&p, cuda_of(be)->device) != cudaSuccess)
        return;
    if (cuda_of(be)->base.options.uuid[0])
        snprintf(text, sizeof text, "%s", cuda_of(be)->base.options.uuid); /* an instance has one that CUDA may not tell */
    else if (uuid_of(cuda_of(be)->device, text) != ST_OK)
        return;
    tell(ctx, "gpu_uuid", text);
    tell(ctx, "gpu_name", p.name);
    if (cudaRuntimeGetVersion(&runtime) == cudaSuccess && cudaDriverGetVersion(&driver) == cudaSuccess) {
        char versions[64];
        snprintf(versions, sizeof versions, "%d.%d", runtime / 1000, runtime % 1000 / 10);
        tell(ctx, "cuda_runtime", versions);
        snprintf(versions, sizeof versions, "%d.%d", driver / 1000, driver % 1000 / 10);
        tell(ctx, "cuda_driver", versions);
    }
}

const struct backend_ops cuda_ops = {
    .name = "cuda",
    .describe = cuda_describe,
    .open = cuda_open,
    .close = cuda_close,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .sync = cuda_sync,
    .adopt = cuda_adopt,
    .release = cuda_release,
    .embed = cuda_embed,
    .gather = cuda_gather,
    .rmsnorm = cuda_rmsnorm,
    .matmul = cuda_matmul,
    .rope_append = cuda_rope_append,
    .attention = cuda_attention,
    .silu_mul = cuda_silu_mul,
    .add = cuda_add,
    .fused_open = graph_open,
    .fused_close = graph_close,
    .fused_prefill = graph_prefill,
    .fused_run = graph_run,
    .fused_frame_bytes = graph_frame_bytes,
    .fused_engine = graph_engine,
    .codec = &cuda_codec_ops,
};
