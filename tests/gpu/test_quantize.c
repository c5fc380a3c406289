/* The GPU's INT8 rows against the host's, bit for bit, for every recipe and kind of weights, with rows that provoke ties,
 * zeros, tiny and huge scales. */
#include "tests/gpu/tap.h"

#include "backend/cuda.h"
#include "kernels/quantize.h"
#include "model/bf16.h"
#include "model/int8_rows.h"

enum { ROWS = 96, COLS = 1037 };

static void fill(float *w, unsigned seed)
{
    uint32_t x = seed;
    for (int r = 0; r < ROWS; r++) {
        const float size = r % 7 == 0 ? 1e-9f : r % 5 == 0 ? 1e9f : 0.03f;
        for (int j = 0; j < COLS; j++) {
            x             = x * 1664525u + 1013904223u;
            const float u = (float)(int32_t)x / 2147483648.0f;
            w[r * COLS + j] = r % 11 == 0 ? 0.0f : r % 3 == 0 ? (float)((int)(u * 255) | 1) * 0.5f : u * size;
        }
    }
}

static void rows_equal_the_hosts(struct backend *be, enum recipe recipe, bool bf16, unsigned seed)
{
    const struct backend_ops *ops = backend_ops_of(be);
    const size_t              n = (size_t)ROWS * COLS, element = bf16 ? 2 : 4;
    const enum dtype          dtype = bf16 ? DT_BF16 : DT_F32;
    const size_t              scale = dtype_size(recipe_scale_dtype(recipe, dtype));
    float                    *f = malloc(n * sizeof *f);
    uint16_t                 *h = malloc(n * sizeof *h);
    int8_t                   *q = malloc(n), *got = malloc(n);
    char                     *s = calloc(ROWS, 4), *got_s = calloc(ROWS, 4);
    void                     *d_w, *d_q, *d_s, *d_bad;
    int                       bad = ROWS;
    fill(f, seed);
    for (size_t i = 0; i < n; i++)
        h[i] = bf16_from_f32(f[i]);
    const void *w = bf16 ? (const void *)h : (const void *)f;
    if (quantize_rows(recipe, "test", 0, w, dtype, ROWS, COLS, q, s) != ST_OK || ops->alloc(be, MEM_STAGING, n * element, &d_w) ||
        ops->alloc(be, MEM_STAGING, n, &d_q) || ops->alloc(be, MEM_STAGING, ROWS * 4, &d_s) ||
        ops->alloc(be, MEM_STAGING, sizeof bad, &d_bad) || ops->upload(be, d_w, w, n * element) ||
        ops->upload(be, d_bad, &bad, sizeof bad))
        tap_because("%s", status_last());
    else {
        memset(got, 0x55, n); /* poison */
        ops->upload(be, d_q, got, n);
        const enum quantize_rule rule = recipe == RECIPE_LEGACY ? QUANTIZE_LEGACY
                                        : recipe == RECIPE_TORCHAO ? QUANTIZE_TORCHAO : QUANTIZE_TORCHAO_V2;
        if (CUDA_DO(quantize_rows_launch(rule, d_w, bf16, ROWS, COLS, d_q, d_s, d_bad, cuda_of(be)->stream)) ||
            ops->download(be, got, d_q, n) || ops->download(be, got_s, d_s, ROWS * 4) || ops->download(be, &bad, d_bad, sizeof bad))
            tap_because("%s", status_last());
        for (size_t i = 0; i < n; i++)
            if (q[i] != got[i])
                tap_because("seed %u row %zu column %zu: %d, the host has %d", seed, i / COLS, i % COLS, got[i], q[i]);
        if (memcmp(s, got_s, ROWS * scale) != 0)
            tap_because("seed %u: scales differ", seed);
        if (bad != ROWS)
            tap_because("row %d was called not finite", bad);
        ops->free(be, d_w), ops->free(be, d_q), ops->free(be, d_s), ops->free(be, d_bad);
    }
    tap_ok(1, "%s of %s: %d rows of codes and scales equal the host's", recipe_name(recipe), bf16 ? "BF16" : "FP32", ROWS);
    free(f), free(h), free(q), free(got), free(s), free(got_s);
}

int main(void)
{
    const struct backend_options o = {.rounding = ROUND_BF16};
    struct backend              *be;
    if (backend_open("cuda", &o, &be) != ST_OK) {
        printf("ok 1 - quantizer # skip: no GPU\n1..1\n");
        return 0;
    }
    for (int recipe = RECIPE_TORCHAO; recipe <= RECIPE_LEGACY; recipe++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            rows_equal_the_hosts(be, (enum recipe)recipe, bf16, 7u + (unsigned)recipe);
    backend_close(be);
    return tap_done();
}
