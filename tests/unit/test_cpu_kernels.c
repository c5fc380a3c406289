/* The vector kernels below the ops: the exponential's error, conversions at their corners, the register paths' common
 * order of summation, reading everything. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/cpu_kernels.h"
#include "guarded.h"

static const char *const names[] = {"portable", "avx2", "avx512"};

static const struct cpu_kernels *next(size_t *i)
{
    while (*i < sizeof names / sizeof *names) {
        const struct cpu_kernels *k = cpu_kernels_find(names[(*i)++]);
        if (k)
            return k;
    }
    return NULL;
}

static double exp_error_ulp(float x, float got)
{
    const double exact = exp((double)x);
    int          exponent;
    frexp(exact, &exponent);
    return fabs((double)got - exact) / ldexp(1.0, exponent - 24);
}

static void the_exponential_errs_by_less_than_its_bound(void **state)
{
    enum { N = 1 << 16 };
    static float x[N], y[N];
    size_t       i = 0;
    for (const struct cpu_kernels *k; (k = next(&i));) {
        double worst = 0;
        for (int round = 0; round < 8; round++) {
            for (int j = 0; j < N; j++)
                x[j] = round == 0 ? -87.3f + (float)j * (175.9f / N) : random_float() * (round < 4 ? 87.0f : 1.0f);
            k->exponential(y, x, N);
            for (int j = 0; j < N; j++) {
                const double error = exp_error_ulp(x[j], y[j]);
                worst = error > worst ? error : worst;
                if (!(error <= CPU_EXP_MAX_ULP))
                    fail_msg("%s: exp(%.9g) = %.9g, %.3f ulp off, bound %g", k->name, x[j], y[j], error, CPU_EXP_MAX_ULP);
            }
        }
        printf("# %s: exp errs by at most %.3f ulp\n", k->name, worst);
    }
}

static void the_exponential_has_the_right_corners(void **state)
{
    const float x[] = {0.0f, -0.0f, -INFINITY, INFINITY, 89.0f, -104.5f, NAN, -100.0f, 88.7f};
    float       y[9];
    size_t      i = 0;
    for (const struct cpu_kernels *k; (k = next(&i));) {
        k->exponential(y, x, 9);
        assert_true(y[0] == 1.0f && y[1] == 1.0f);
        assert_true(y[2] == 0.0f && y[5] == 0.0f);
        assert_true(isinf(y[3]) && isinf(y[4]));
        assert_true(isnan(y[6]));
        assert_true(fabsf(y[7] - 3.78e-44f) < 2e-45f); /* subnormal */
        assert_true(isfinite(y[8]) && y[8] > 3.3e38f);
    }
}

/* Every bit pattern's neighbourhood: ties, subnormals, infinities and NaN, against bf16.h. */
static void rounding_to_bf16_equals_the_scalar_conversion(void **state)
{
    enum { N = 4096 + 5 };
    static float    x[N], y[N];
    static uint16_t h[N];
    size_t          i = 0;
    for (int j = 0; j < N; j++) {
        static const uint32_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
        const uint32_t bits = j < 3072 ? (random_u32() & 0xffff0000u) | low[j % 6] : random_u32() | (j % 2 ? 0x7f800000u : 0);
        memcpy(&x[j], &bits, 4);
    }
    for (const struct cpu_kernels *k; (k = next(&i));) {
        memcpy(y, x, sizeof y);
        k->scale(y, 1.0f, N, true);
        k->narrow_bf16(h, x, N);
        for (int j = 0; j < N; j++) {
            const float want = bf16_round(x[j]);
            if (isnan(x[j]))
                assert_true(isnan(y[j]) && isnan(bf16_to_f32(h[j])));
            else if (memcmp(&y[j], &want, 4) != 0 || h[j] != bf16_from_f32(x[j]))
                fail_msg("%s: %a rounds to %a and %04x, want %a", k->name, x[j], y[j], h[j], want);
        }
    }
}

static void int8_rows_round_half_to_even_and_zero_rows_stay_zero(void **state)
{
    float  x[37];
    int8_t q[37];
    size_t i = 0;
    for (const struct cpu_kernels *k; (k = next(&i));) {
        for (int n = 1; n <= 37; n++) {
            for (int j = 0; j < n; j++)
                x[j] = ((float)random_below(509) - 254.0f) * 0.25f; /* halves of the step below are ties */
            x[random_below(n)] = random_below(2) ? 63.5f : -63.5f;
            memset(q, 0x55, sizeof q);
            assert_true(k->narrow_i8(q, x, (size_t)n) == 0.5f);
            for (int j = 0; j < n; j++)
                assert_int_equal(q[j], (int)rintf(x[j] / 0.5f));
            for (int j = n; j < 37; j++)
                assert_int_equal(q[j], 0x55);
        }
        memset(x, 0, sizeof x);
        assert_true(k->narrow_i8(q, x, 37) == 0.0f);
        for (int j = 0; j < 37; j++)
            assert_int_equal(q[j], 0);
    }
}

static void dot(const struct cpu_kernels *k, enum dtype format, float *y, const void *w, int rows, int cols, const float *x,
                int n)
{
    k->dot(format, y, (size_t)rows, w, rows, cols, x, (size_t)cols, n, NULL);
}

/* The documented order of summation, one operation at a time. */
static float dot_in_order(const float *w, const float *x, int cols, int fused)
{
    float lane[64] = {0};
    for (int k = 0; k < cols; k++)
        lane[k % 64] = fused ? fmaf(w[k], x[k], lane[k % 64]) : lane[k % 64] + w[k] * x[k];
    for (int l = 0; l < 16; l++)
        lane[l] = (lane[l] + lane[16 + l]) + (lane[32 + l] + lane[48 + l]);
    for (int half = 8; half >= 1; half /= 2)
        for (int l = 0; l < half; l++)
            lane[l] += lane[l + half];
    return lane[0];
}

static void sums_have_the_documented_order_for_every_width_and_batch(void **state)
{
    size_t i = 0;
    for (const struct cpu_kernels *k; (k = next(&i));)
        for (int trial = 0; trial < 150; trial++) {
            const int rows = 1 + random_below(11), cols = 1 + random_below(300), n = 1 + random_below(16);
            float    *w = random_floats((size_t)(rows * cols), 1.0f, 0), *x = random_floats((size_t)(n * cols), 1.0f, 0);
            float    *y = guarded((size_t)(rows * n) * 4);
            dot(k, DT_F32, y, w, rows, cols, x, n);
            for (int t = 0; t < n; t++)
                for (int r = 0; r < rows; r++) {
                    const int   fused = strcmp(k->name, "portable") != 0;
                    const float want = dot_in_order(w + r * cols, x + t * cols, cols, fused);
#ifndef __x86_64__
                    if (fabsf(y[t * rows + r] - want) > 1e-4f) /* the compiler may fuse where the target can */
#else
                    if (y[t * rows + r] != want)
#endif
                        fail_msg("%s: row %d of %d × %d, token %d of %d: %.9g, want %.9g (QSWEEP_SEED=%llu)", k->name, r,
                                 rows, cols, t, n, y[t * rows + r], want, (unsigned long long)seed_first);
                }
            guarded_free_all();
        }
}

/* Narrow weights are the same numbers: widening them first must give the same bits. */
static void narrow_weights_give_the_bits_of_their_widened_values(void **state)
{
    size_t i = 0;
    for (const struct cpu_kernels *k; (k = next(&i));)
        for (int trial = 0; trial < 100; trial++) {
            const int    rows = 1 + random_below(11), cols = 1 + random_below(200), n = 1 + random_below(14);
            const size_t size = (size_t)(rows * cols);
            uint16_t    *h = guarded(size * 2);
            int8_t      *q = guarded(size);
            float       *wide = guarded(size * 4), *x = random_floats((size_t)(n * cols), 1.0f, 0);
            float       *y = guarded((size_t)(rows * n) * 4), *z = guarded((size_t)(rows * n) * 4);
            for (size_t j = 0; j < size; j++)
                wide[j] = bf16_to_f32(h[j] = bf16_from_f32(random_float()));
            dot(k, DT_BF16, y, h, rows, cols, x, n);
            dot(k, DT_F32, z, wide, rows, cols, x, n);
            assert_memory_equal(y, z, (size_t)(rows * n) * 4);
            for (size_t j = 0; j < size; j++)
                wide[j] = q[j] = (int8_t)(random_below(256) - 128);
            dot(k, DT_I8, y, q, rows, cols, x, n);
            dot(k, DT_F32, z, wide, rows, cols, x, n);
            assert_memory_equal(y, z, (size_t)(rows * n) * 4);
            guarded_free_all();
        }
}

static void reading_depends_on_every_byte(void **state)
{
    size_t i = 0;
    for (const struct cpu_kernels *k; (k = next(&i));)
        for (size_t size = 0; size < 1100; size += 61) {
            unsigned char *p = guarded(size + 1);
            for (size_t j = 0; j <= size; j++)
                p[j] = (unsigned char)random_u32();
            const uint64_t before = k->read(p + 1, size);
            for (size_t j = 1; j <= size; j++) {
                p[j] ^= 1;
                assert_true(k->read(p + 1, size) != before);
                p[j] ^= 1;
            }
            guarded_free_all();
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_exponential_errs_by_less_than_its_bound),
        cmocka_unit_test(the_exponential_has_the_right_corners),
        cmocka_unit_test(rounding_to_bf16_equals_the_scalar_conversion),
        cmocka_unit_test(int8_rows_round_half_to_even_and_zero_rows_stay_zero),
        cmocka_unit_test(sums_have_the_documented_order_for_every_width_and_batch),
        cmocka_unit_test(narrow_weights_give_the_bits_of_their_widened_values),
        cmocka_unit_test(reading_depends_on_every_byte),
    };
    seed_print();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
