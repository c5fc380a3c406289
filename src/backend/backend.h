/* backend.h — the seam between the decode graph and a device: one table of functions.
 *
 * A backend implements the graph op by op (cpu_ref, cpu, and cuda's `ops` engine). It may also offer fused hooks that
 * prefill and decode whole frames on the device (cuda's `graph` and `persistent` engines); they are NULL where absent.
 *
 * Activations are FP32 arrays in device memory, [tokens][width] row-major. With ROUND_BF16 every op rounds its results to
 * BF16 exactly where the original does (decode.md §3–§6), so an activation array then only holds BF16 values; with
 * ROUND_NONE nothing is rounded but the RoPE tables, which are BF16 in both. Sums are FP32 (FP64 in cpu_ref) in an order
 * that does not depend on the number of tokens or of other sequences: results are bit-repeatable and the same for any
 * batch.
 * Ops enqueue or run at once; `sync` waits. Pointers named d_* are device memory of this backend. */
#ifndef QSWEEP_BACKEND_BACKEND_H
#define QSWEEP_BACKEND_BACKEND_H

#include "backend/memory.h"
#include "model/precision.h"
#include "model/weights.h"

#include <stdbool.h>
#include <stdint.h>

enum rounding { ROUND_NONE, ROUND_BF16 };

struct backend_options {
    int           device;      /* index for cuda; ignored on the CPU                         */
    char          uuid[64];    /* cuda: "GPU-…" or "MIG-…" instead of the index; "" = by index */
    int           n_threads;   /* CPU: 0 = all allowed cores                                 */
    bool          pin;         /* CPU: pin thread i to the i-th allowed core                 */
    enum rounding rounding;
    size_t        memory_limit; /* bytes, 0 = none: a big card behaves like a small one      */
};

/* One layer's cache. Layout [sequence][kv_head][position][head_dim] of `format`; KV_INT8 has one FP32 scale per
 * (sequence, head, position) for k and for v (absmax/127 over head_dim, round half to even). */
struct kv_cache {
    enum kv_format format;
    int            n_seq, n_kv_heads, max_len, head_dim;
    void          *d_k, *d_v;
    float         *d_k_scale, *d_v_scale; /* KV_INT8 only */
};

/* Everything about one attention call's tokens: host arrays [n]. Token i is at `pos[i]` of sequence `seq[i]`. */
struct token_batch {
    int        n;
    const int *seq, *pos;
};

struct rope_args {
    int          n_head, n_kv_heads, head_dim;
    const float *q_norm, *k_norm;    /* [head_dim] weights as returned by upload, or NULL */
    float        eps;
    const float *d_cos_sin;          /* [max_len][head_dim/2][2], BF16-rounded values     */
};

struct embed_args {
    const struct matrix *embeddings, *codebook_embeddings; /* as returned by `adopt`                   */
    int     num_codebooks, codebook_size, semantic_begin, semantic_end;
    bool    scale; /* divide semantic columns by sqrt(num_codebooks + 1)                                 */
};

struct backend;   /* opaque; every backend's struct starts with struct backend_base */
struct fused;     /* opaque; a fused engine                                         */
struct decode_options;
struct prompt;
struct codec_ops; /* codec_ops.h */

struct backend_ops {
    const char *name; /* "cpu_ref", "cpu", "cuda" */
    status_t (*open)(const struct backend_options *options, struct backend **out);
    void (*close)(struct backend *be); /* NULL is accepted */

    status_t (*alloc)(struct backend *be, enum memory_class cls, size_t bytes, void **d_out); /* zeroed */
    void (*free)(struct backend *be, void *d_ptr);                                             /* NULL ok */
    status_t (*upload)(struct backend *be, void *d_dst, const void *src, size_t bytes);
    status_t (*download)(struct backend *be, void *dst, const void *d_src, size_t bytes); /* synchronizes */
    status_t (*sync)(struct backend *be);

    /* Make a host matrix usable: the CPU may keep it mapped (accounted in full) or repack it, a device copies it. */
    status_t (*adopt)(struct backend *be, const struct matrix *host, struct matrix *out);
    void (*release)(struct backend *be, struct matrix *m); /* m->w NULL: nothing to do */

    /* x [n][dim] from token columns (host) cols [n][1 + num_codebooks]: decode.md §3. */
    status_t (*embed)(struct backend *be, const struct embed_args *args, const int32_t *cols, int n, float *d_x);
    /* x [n][cols of table] = rows ids[i] (host) of table, as FP32. */
    status_t (*gather)(struct backend *be, const struct matrix *table, const int32_t *ids, int n, float *d_x);
    /* y [n][dim] = BF16(BF16(x·rsqrt(mean x² + eps)) · w): two roundings. */
    status_t (*rmsnorm)(struct backend *be, float *d_y, const float *d_x, const float *d_w, int n, int dim, float eps);
    /* y [n][row_count], leading dimension ldy ≥ row_count, = rows row0 … row0+row_count of W times x [n][cols]. */
    status_t (*matmul)(struct backend *be, float *d_y, int ldy, const struct matrix *w, int row0, int row_count,
                       const float *d_x, int n);
    /* qkv [n][q|k|v]: per-head norms, interleaved RoPE in place on q and k, then k and v appended to the cache. */
    status_t (*rope_append)(struct backend *be, float *d_qkv, const struct rope_args *args, struct kv_cache *kv,
                            const struct token_batch *tokens);
    /* y [n][n_head·head_dim] = softmax(q·kᵀ/√head_dim) v over positions 0…pos of the token's own sequence.
     * fast: the fast stack's explicit BF16 products (decode.md §6): scores and probabilities rounded too. */
    status_t (*attention)(struct backend *be, float *d_y, const float *d_qkv, int n_head, const struct kv_cache *kv,
                          const struct token_batch *tokens, bool fast);
    /* y [n][dim] = BF16(BF16(SiLU(g)) · up); d_y may be d_gate. */
    status_t (*silu_mul)(struct backend *be, float *d_y, const float *d_gate, const float *d_up, int n, int dim);
    /* x [n][dim] = BF16(x + y). */
    status_t (*add)(struct backend *be, float *d_x, const float *d_y, int n, int dim);

    /* ---- optional: a fused engine (NULL on backends without one). Same results within named bounds. ---- */
    status_t (*fused_open)(struct backend *be, const struct weights *w, const struct decode_options *options,
                           struct fused **out);
    void (*fused_close)(struct fused *f);
    /* Fill the cache of every sequence from its prompt and keep its last hidden state. prompts [batch]. */
    status_t (*fused_prefill)(struct fused *f, const struct prompt *prompts);
    /* Decode up to n more frames; see decoder_run(). */
    status_t (*fused_run)(struct fused *f, int n, int32_t *frames, double *step_ms, int *n_done);
    /* Bytes one frame must move at this context (weights once, KV read), for the roofline. */
    size_t (*fused_frame_bytes)(const struct fused *f, int context);

    const struct codec_ops *codec; /* the codec's operations, NULL where the backend has none */
    /* "graph" or "persistent": what AUTO became. */
    const char *(*fused_engine)(const struct fused *f);

    /* ---- optional: provenance. Tell keys and texts (valid during the call) about how this backend runs here. ---- */
    void (*describe)(struct backend *be, void (*tell)(void *ctx, const char *key, const char *value), void *ctx);
};

/* What every backend's struct starts with. */
struct backend_base {
    const struct backend_ops *ops;
    struct memory_ledger      memory;
    struct backend_options    options;
};

static inline const struct backend_ops *backend_ops_of(const struct backend *be)
{
    return ((const struct backend_base *)(const void *)be)->ops;
}

static inline struct memory_ledger *backend_memory(struct backend *be)
{
    return &((struct backend_base *)(void *)be)->memory;
}

/* registry.c: the table for a name — "cpu", "cpu_ref" or "cuda"; ST_EUNSUPPORTED with the reason if it is not built in. */
status_t backend_find(const char *name, const struct backend_ops **out);
/* Was the CUDA half built in? */
bool     backend_has_cuda(void);
/* "cpu", "cpu_ref", "cuda", "cuda:1", "cuda:GPU-…", "cuda:MIG-…" → table and options.device or .uuid; ST_EUSAGE if it is none of these. */
status_t backend_open(const char *device, const struct backend_options *options, struct backend **out);
void     backend_close(struct backend *be); /* NULL is accepted */

#endif
