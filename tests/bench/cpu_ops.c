/* cpu_ops.c — what the ops between the matrix products of a frame cost, at S1-mini's shapes, on the CPU backend.
 *
 *   make build/tests/bench/cpu_ops && build/tests/bench/cpu_ops [CONTEXT]     (QSWEEP_CPU chooses the kernels)
 *
 * Prints the least and the median time of an op, its calls in a frame and their product. The data stay in the caches,
 * as between two products of a step. The least time is what to compare on a machine with other work on it. */
#include "backend/cpu.h"
#include "base/clock.h"
#include "model/bf16.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 1024, FFN = 3072, HEADS = 16, GROUPS = 8, SLOW_D = 128, FAST_D = 64, REPEATS = 400, SLOW_LAYERS = 28,
       FAST_PASSES = 9, FAST_LAYERS = 4 };

struct bed {
    struct backend    *be;
    float             *x, *y, *g, *u, *norm, *qkv, *table, *logits;
    struct kv_cache    slow, fast;
    struct matrix      small;
    int                context;
};

static void nothing(void *ctx, int thread, int n_threads)
{
    (void)ctx;
}

static const struct token_batch *at(const int *pos)
{
    static const int          sequence = 0;
    static struct token_batch tokens;
    tokens = (struct token_batch){1, &sequence, pos};
    return &tokens;
}

static void hand_over(struct bed *b)
{
    cpu_team_run(cpu_of(b->be)->team, nothing, NULL);
}

static void rmsnorm(struct bed *b)
{
    cpu_ops.rmsnorm(b->be, b->y, b->x, b->norm, 1, DIM, 1e-6f);
}

static void add(struct bed *b)
{
    cpu_ops.add(b->be, b->y, b->x, 1, DIM);
}

static void silu_mul(struct bed *b)
{
    cpu_ops.silu_mul(b->be, b->y, b->g, b->u, 1, FFN);
}

static void slow_rope(struct bed *b)
{
    const struct rope_args args = {HEADS, GROUPS, SLOW_D, b->norm, b->norm, 1e-6f, b->table};
    const int              pos = b->context - 1;
    cpu_ops.rope_append(b->be, b->qkv, &args, &b->slow, at(&pos));
}

static void fast_rope(struct bed *b)
{
    const struct rope_args args = {HEADS, GROUPS, FAST_D, NULL, NULL, 1e-6f, b->table};
    const int              pos = 5;
    cpu_ops.rope_append(b->be, b->qkv, &args, &b->fast, at(&pos));
}

static void slow_attention(struct bed *b)
{
    const int pos = b->context - 1;
    cpu_ops.attention(b->be, b->y, b->qkv, HEADS, &b->slow, at(&pos), false);
}

static void fast_attention(struct bed *b)
{
    const int pos = 5;
    cpu_ops.attention(b->be, b->y, b->qkv, HEADS, &b->fast, at(&pos), true);
}

/* 64 × 1024 INT8: a hand-over and 4 µs of work, weights in the cache. */
static void small_matmul(struct bed *b)
{
    cpu_ops.matmul(b->be, b->y, 64, &b->small, 0, 64, b->x, 1);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double report(struct bed *b, const char *name, void (*op)(struct bed *), int calls)
{
    double us[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        const int64_t t0 = clock_ns();
        for (int k = 0; k < 10; k++)
            op(b);
        us[i] = (double)(clock_ns() - t0) * 1e-4;
    }
    qsort(us, REPEATS, sizeof *us, ascending);
    printf("%-28s %8.3f %8.3f %6d %9.1f\n", name, us[0], us[REPEATS / 2], calls, us[0] * calls);
    return us[0] * calls;
}

static float *floats(struct backend *be, size_t n)
{
    void *p;
    if (cpu_ops.alloc(be, MEM_WORKSPACE, n * sizeof(float), &p) != ST_OK)
        exit(1);
    for (size_t i = 0; i < n; i++)
        ((float *)p)[i] = bf16_round((float)((int)(i * 7919 % 2001) - 1000) * 1e-3f);
    return p;
}

static struct kv_cache cache(struct backend *be, int length, int head_dim)
{
    struct kv_cache kv = {.format = KV_BF16, .n_seq = 1, .n_kv_heads = GROUPS, .max_len = length, .head_dim = head_dim};
    kv.d_k = floats(be, (size_t)GROUPS * (size_t)length * (size_t)head_dim / 2);
    kv.d_v = floats(be, (size_t)GROUPS * (size_t)length * (size_t)head_dim / 2);
    return kv;
}

int main(int argc, char **argv)
{
    struct bed             b = {.context = argc > 1 ? atoi(argv[1]) : 128};
    struct backend_options o = {.pin = true, .rounding = ROUND_BF16};
    if (b.context < 1 || cpu_ops.open(&o, &b.be) != ST_OK)
        return 1;
    b.x = floats(b.be, 4 * DIM), b.y = floats(b.be, 4 * DIM), b.g = floats(b.be, FFN), b.u = floats(b.be, FFN);
    b.norm = floats(b.be, DIM), b.qkv = floats(b.be, 4 * DIM), b.table = floats(b.be, (size_t)b.context * SLOW_D + 6 * FAST_D);
    b.slow = cache(b.be, b.context, SLOW_D);
    b.fast = cache(b.be, 10, FAST_D);
    b.small = (struct matrix){.format = DT_I8, .rows = 64, .cols = DIM, .w = floats(b.be, 64 * DIM / 4), .scales = b.norm,
                              .scale_dtype = DT_F32};
    const int fast = FAST_PASSES * FAST_LAYERS, both = SLOW_LAYERS + fast;
    printf("%s, %d threads, context %d\n%-28s %8s %8s %6s %9s\n", cpu_isa(b.be), cpu_threads(b.be), b.context, "op", "least us",
           "median", "calls", "us/frame");
    double total = 0;
    total += report(&b, "hand-over (matmul, attention)", hand_over, 5 * both + SLOW_LAYERS);
    total += report(&b, "rmsnorm 1024", rmsnorm, 2 * both);
    total += report(&b, "add 1024", add, 2 * both);
    total += report(&b, "silu_mul 3072", silu_mul, both);
    total += report(&b, "slow rope, norms, append", slow_rope, SLOW_LAYERS);
    total += report(&b, "fast rope, append", fast_rope, fast);
    total += report(&b, "slow attention", slow_attention, SLOW_LAYERS);
    total += report(&b, "fast attention", fast_attention, fast);
    printf("%-53s %9.1f\n", "together", total);
    report(&b, "matmul 64 x 1024 int8", small_matmul, 0);
    cpu_ops.close(b.be);
    return 0;
}
