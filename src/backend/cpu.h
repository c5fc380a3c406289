/* cpu.h — the fast CPU backend: every op of backend.h over vectorised kernels and a team of threads.
 *
 * Weights stay where they are (mapped files included) and are accounted in full. Every element of a result is computed
 * by one thread with one order of summation that depends on the width of the matrix alone: the number of threads, of
 * tokens and of sequences changes nothing. */
#ifndef QSWEEP_BACKEND_CPU_H
#define QSWEEP_BACKEND_CPU_H

#include "backend/backend.h"
#include "backend/cpu_kernels.h"
#include "backend/cpu_team.h"

/* open: ST_EUSAGE when environment variable QSWEEP_CPU names kernels that this machine or build does not have. */
extern const struct backend_ops cpu_ops;

/* Private to cpu*.c. */
struct cpu {
    struct backend_base       base;
    struct cpu_team          *team;
    const struct cpu_kernels *kernels;
    float                    *scores; /* attention: [threads][scores_len] */
    size_t                    scores_len;
};

static inline struct cpu *cpu_of(struct backend *be)
{
    return (struct cpu *)(void *)be;
}

static inline bool cpu_rounds(const struct cpu *cpu)
{
    return cpu->base.options.rounding == ROUND_BF16;
}

/* Run task on the team when work (in elements touched) is worth the hand-over, on the caller alone otherwise. */
void cpu_run(struct cpu *cpu, size_t work, cpu_task task, void *ctx);

/* cpu_attention.c */
status_t cpu_rope_append(struct backend *be, float *d_qkv, const struct rope_args *args, struct kv_cache *kv,
                         const struct token_batch *tokens);
status_t cpu_attention(struct backend *be, float *d_y, const float *d_qkv, int n_head, const struct kv_cache *kv,
                       const struct token_batch *tokens, bool fast);

/* For `qsweep bench`: read size bytes once with all threads of the backend, each its own part as in a matrix product;
 * seconds taken. */
double cpu_read(struct backend *be, const void *bytes, size_t size);

/* "avx512, 2 threads": what really runs; valid as long as the backend. */
const char *cpu_isa(struct backend *be);
int         cpu_threads(struct backend *be);

#endif
