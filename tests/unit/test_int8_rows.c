/* The three recipes against a twin in double precision, and every instruction set against the scalar definition. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/bf16.h"
#include "model/int8_rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const enum recipe recipes[] = {RECIPE_LEGACY, RECIPE_TORCHAO, RECIPE_TORCHAO_V2};
enum { N_RECIPES = 3, BF16_INFINITY = 0x7f80, BF16_DIGITS = 8, F32_DIGITS = 24 };

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static double uniform(uint64_t *state)
{
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

/* ---- the twin: exact or 53-bit results in double, rounded once to the format's digits ---- */

/* x to `digits` significant bits, ties to even, with the exponent range of FP32 and BF16. Rounding a quotient first to 53
 * bits changes nothing as 53 ≥ 2·24 + 2 (Figueroa 1995); products of two such numbers are exact in double. */
static double round_digits(double x, int digits)
{
    if (x == 0)
        return 0;
    int exponent;
    frexp(x, &exponent);
    int unit = exponent - digits < -125 - digits ? -125 - digits : exponent - digits;
    return ldexp(nearbyint(ldexp(x, -unit)), unit);
}

static void twin_row(enum recipe recipe, const double *w, size_t n, int digits, int *q, double *scale)
{
    double absmax = 0;
    for (size_t i = 0; i < n; i++)
        absmax = fmax(absmax, fabs(w[i]));
    int    s_digits = recipe == RECIPE_LEGACY ? F32_DIGITS : digits;
    double s        = fmax(round_digits(absmax / 127.5, s_digits), 0x1p-23);
    double r        = round_digits(1 / s, recipe == RECIPE_TORCHAO ? digits : F32_DIGITS);
    for (size_t i = 0; i < n; i++) {
        double p = recipe == RECIPE_LEGACY    ? round_digits(w[i] / s, F32_DIGITS)
                   : recipe == RECIPE_TORCHAO ? round_digits(w[i] * r, digits)
                                              : round_digits(w[i] * r, F32_DIGITS);
        q[i] = (int)fmin(fmax(nearbyint(p), -128), 127);
    }
    *scale = recipe == RECIPE_TORCHAO_V2 ? s : round_digits(s, digits);
}

/* Quantize rows made of `bits` by the scalar kernel and compare with the twin. */
static void expect_twin(enum recipe recipe, enum dtype dtype, const void *w, size_t n)
{
    double *wide   = malloc(n * sizeof *wide), want_scale;
    int    *want   = malloc(n * sizeof *want);
    int8_t *got    = malloc(n);
    float   scale  = 0;
    bf16_t  narrow = 0;
    assert_true(wide && want && got);
    for (size_t i = 0; i < n; i++)
        wide[i] = dtype == DT_BF16 ? bf16_to_f32(((const bf16_t *)w)[i]) : ((const float *)w)[i];
    twin_row(recipe, wide, n, dtype == DT_BF16 ? BF16_DIGITS : F32_DIGITS, want, &want_scale);
    bool stored_bf16 = recipe_scale_dtype(recipe, dtype) == DT_BF16;
    assert_int_equal(quantize_rows_by(INT8_SCALAR, recipe, w, dtype, 1, (int64_t)n, got, stored_bf16 ? (void *)&narrow : &scale), 1);
    if (stored_bf16)
        scale = bf16_to_f32(narrow);
    if ((double)scale != want_scale)
        fail_msg("%s %s: scale %a, want %a", recipe_scheme(recipe, dtype), dtype_name(dtype), (double)scale, want_scale);
    for (size_t i = 0; i < n; i++)
        if (got[i] != want[i])
            fail_msg("%s %s: weight %a, scale %a: code %d, want %d", recipe_scheme(recipe, dtype), dtype_name(dtype), wide[i],
                     want_scale, got[i], want[i]);
    free(wide);
    free(want);
    free(got);
}

static void bf16_rows_equal_the_twin_for_every_significand_of_the_largest(void **state)
{
    /* Every significand of max|w|, at exponents that reach the scale's floor, the middle and both ends. */
    static const int exponents[] = {0, 1, 104, 105, 111, 112, 120, 127, 200, 254};
    enum { SPAN = 12 * 128 }; /* weights down to 2^-12 of the largest, where every code is 0 */
    bf16_t *row = malloc((2 * SPAN + 4) * sizeof *row);
    assert_non_null(row);
    for (size_t e = 0; e < sizeof exponents / sizeof *exponents; e++)
        for (int significand = 0; significand < 128; significand++) {
            int    most = exponents[e] << 7 | significand;
            size_t n    = 0;
            for (int bits = most; bits >= 0 && bits > most - SPAN; bits--) {
                row[n++] = (bf16_t)bits;
                row[n++] = (bf16_t)(bits | 0x8000);
            }
            for (int k = 0; k < N_RECIPES; k++)
                expect_twin(recipes[k], DT_BF16, row, n);
        }
    free(row);
}

static void f32_rows_equal_the_twin_on_random_and_extreme_weights(void **state)
{
    uint64_t seed = 20240613, random = seed;
    print_message("# seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 400; round++) {
        float row[200];
        int   exponent = (int)(next_random(&random) % 250) - 125;
        for (int i = 0; i < 200; i++)
            row[i] = (float)ldexp(uniform(&random) * 2 - 1, exponent - (int)(next_random(&random) % 9));
        if (round % 5 == 0)
            row[round % 200] = round % 2 ? 0x1.fffffep127f : -0x1.fffffep127f;
        if (round % 7 == 0)
            memset(row, 0, sizeof row / 2);
        if (round % 11 == 0)
            row[0] = 0x1p-149f;
        for (int k = 0; k < N_RECIPES; k++)
            expect_twin(recipes[k], DT_F32, row, 200);
    }
}

/* ---- instruction sets ---- */

/* All isas that run here give the scalar bits, from every alignment. */
static void expect_same_bits(enum recipe recipe, enum dtype dtype, const void *w, size_t rows, size_t cols)
{
    size_t   item = dtype_size(dtype), n = rows * cols;
    char    *moved = malloc(n * item + 64);
    int8_t  *want = malloc(n + 1), *got = malloc(n + 1);
    uint32_t want_scales[64], got_scales[64];
    assert_true(moved && want && got && rows <= 64);
    memset(want_scales, 0, sizeof want_scales);
    memset(got_scales, 0, sizeof got_scales);
    int64_t want_rows = quantize_rows_by(INT8_SCALAR, recipe, w, dtype, (int64_t)rows, (int64_t)cols, want, want_scales);
    for (int isa = INT8_SCALAR + 1; isa < INT8_ISA_COUNT; isa++) {
        if (!int8_isa_runs((enum int8_isa)isa))
            continue;
        size_t shift = (n + (size_t)isa) % 63;
        memcpy(moved + shift, w, n * item);
        int64_t got_rows = quantize_rows_by((enum int8_isa)isa, recipe, moved + shift, dtype, (int64_t)rows, (int64_t)cols,
                                            got, got_scales);
        assert_int_equal(got_rows, want_rows);
        for (size_t i = 0; i < (size_t)want_rows * cols; i++)
            if (got[i] != want[i])
                fail_msg("%s, %s, %s [%zu, %zu], element %zu: %d, scalar %d", int8_isa_name((enum int8_isa)isa),
                         recipe_scheme(recipe, dtype), dtype_name(dtype), rows, cols, i, got[i], want[i]);
        assert_memory_equal(got_scales, want_scales,
                            (size_t)want_rows * dtype_size(recipe_scale_dtype(recipe, dtype)));
    }
    free(moved);
    free(want);
    free(got);
}

static void every_instruction_set_agrees_on_every_bf16_pair_that_matters(void **state)
{
    /* Every finite max|w|, against all weights down to 2^-9 of it; smaller ones have code 0 by any rounding. */
    enum { SPAN = 9 * 128 };
    bf16_t *row = malloc(2 * SPAN * sizeof *row);
    assert_non_null(row);
    for (int most = 0; most < BF16_INFINITY; most++) {
        size_t n = 0;
        for (int bits = most; bits >= 0 && bits > most - SPAN; bits--) {
            row[n++] = (bf16_t)bits;
            row[n++] = (bf16_t)(bits | 0x8000);
        }
        expect_same_bits(recipes[most % N_RECIPES], DT_BF16, row, 1, n);
        if (most % 128 < 2 || most < 256)
            for (int k = 0; k < N_RECIPES; k++)
                expect_same_bits(recipes[k], DT_BF16, row, 1, n);
    }
    free(row);
}

static void every_instruction_set_agrees_on_every_length_and_random_bits(void **state)
{
    uint64_t seed = 99, random = seed;
    print_message("# seed %llu\n", (unsigned long long)seed);
    for (size_t cols = 0; cols < 150; cols++) {
        uint16_t *bf16 = malloc(5 * cols * sizeof *bf16 + 2);
        uint32_t *f32  = malloc(5 * cols * sizeof *f32 + 4);
        assert_true(bf16 && f32);
        for (int kind = 0; kind < 3; kind++) {
            /* Raw bits (so some rows hold infinities and NaN), weights of one size, one large among small. */
            for (size_t i = 0; i < 5 * cols; i++) {
                uint32_t raw   = (uint32_t)next_random(&random);
                double   u     = uniform(&random) * 2 - 1;
                float    value = (float)(kind == 1 ? u : i % cols == cols / 2 ? 100 * u : u * 1e-3);
                f32[i]         = raw;
                if (kind)
                    memcpy(&f32[i], &value, sizeof value);
                bf16[i] = kind ? bf16_from_f32(value) : (uint16_t)raw;
            }
            for (int k = 0; k < N_RECIPES; k++) {
                expect_same_bits(recipes[k], DT_BF16, bf16, 5, cols);
                expect_same_bits(recipes[k], DT_F32, f32, 5, cols);
            }
        }
        free(bf16);
        free(f32);
    }
}

/* ---- what the recipes promise ---- */

static void the_extremes_are_127_and_minus_128_and_a_zero_row_keeps_the_smallest_scale(void **state)
{
    for (int k = 0; k < N_RECIPES; k++)
        for (int wide = 0; wide < 2; wide++) {
            enum dtype dtype   = wide ? DT_F32 : DT_BF16;
            float      f32[]   = {127.5f, -127.5f, 0, 0}; /* scale 1: both lie half-way to the next code */
            bf16_t     bf16[]  = {0x42ff, 0xc2ff, 0, 0x8000};
            int8_t     q[4];
            uint32_t   scales[2] = {0};
            assert_int_equal(quantize_rows(recipes[k], "t", 0, wide ? (void *)f32 : bf16, dtype, 2, 2, q, scales), ST_OK);
            assert_int_equal(q[0], 127);
            assert_int_equal(q[1], -128);
            assert_int_equal(q[2], 0);
            assert_int_equal(q[3], 0);
            if (recipe_scale_dtype(recipes[k], dtype) == DT_BF16)
                assert_int_equal(scales[0] >> 16, 0x3400); /* 2^-23 */
            else
                assert_int_equal(scales[1], 0x34000000);
        }
}

static void legacy_moves_no_weight_by_more_than_half_a_step(void **state)
{
    /* Half a step, and what rounding the scale (127.5 · 2^-24) and the quotient (2^-18) to FP32 adds. */
    const double bound = 0.5 + 0x1p-16;
    uint64_t     seed = 5, random = seed;
    print_message("# seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 200; round++) {
        float  row[512], scale;
        int8_t q[512];
        for (int i = 0; i < 512; i++)
            row[i] = (float)((uniform(&random) + uniform(&random) + uniform(&random) - 1.5) * ldexp(1, round % 40 - 20));
        assert_int_equal(quantize_rows(RECIPE_LEGACY, "t", 0, row, DT_F32, 1, 512, q, &scale), ST_OK);
        for (int i = 0; i < 512; i++)
            if (fabs((double)row[i] - (double)q[i] * (double)scale) > bound * (double)scale)
                fail_msg("seed %llu: %a becomes %d x %a", (unsigned long long)seed, (double)row[i], q[i], (double)scale);
    }
}

static void legacy_and_torchao_differ_by_one_in_about_a_tenth_of_the_codes(void **state)
{
    enum { ROWS = 64, COLS = 1024 };
    bf16_t  *w = malloc(ROWS * COLS * sizeof *w);
    int8_t  *a = malloc(ROWS * COLS), *b = malloc(ROWS * COLS);
    bf16_t   scales[ROWS];
    uint64_t seed = 11, random = seed;
    int      differ = 0;
    assert_true(w && a && b);
    for (int i = 0; i < ROWS * COLS; i++) {
        double sum = 0; /* close enough to a Gaussian */
        for (int k = 0; k < 12; k++)
            sum += uniform(&random);
        w[i] = bf16_from_f32((float)((sum - 6) * 0.03));
    }
    assert_int_equal(quantize_rows(RECIPE_LEGACY, "t", 0, w, DT_BF16, ROWS, COLS, a, scales), ST_OK);
    assert_int_equal(quantize_rows(RECIPE_TORCHAO, "t", 0, w, DT_BF16, ROWS, COLS, b, scales), ST_OK);
    for (int i = 0; i < ROWS * COLS; i++) {
        assert_in_range(a[i] - b[i] + 1, 0, 2);
        differ += a[i] != b[i];
    }
    assert_in_range(differ, ROWS * COLS / 20, ROWS * COLS * 3 / 20);
    free(w);
    free(a);
    free(b);
}

static void a_weight_that_is_not_finite_is_named_with_its_row(void **state)
{
    static const uint16_t bad[] = {0x7f80, 0xff80, 0x7f81, 0xffff, 0x7fc0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int at = 0; at < 70; at++) {
            bf16_t w[3 * 70] = {0};
            float  f[3 * 70] = {0};
            int8_t q[3 * 70];
            float  scales[3];
            w[70 + at] = bad[i];
            f[70 + at] = bf16_to_f32(bad[i]);
            assert_int_equal(quantize_rows(RECIPE_TORCHAO, "layers.7.x", 40, w, DT_BF16, 3, 70, q, scales), ST_EINPUT);
            assert_non_null(strstr(status_last(), "layers.7.x, row 41 "));
            assert_int_equal(quantize_rows(RECIPE_LEGACY, "layers.7.x", 40, f, DT_F32, 3, 70, q, scales), ST_EINPUT);
            assert_non_null(strstr(status_last(), "layers.7.x, row 41 "));
        }
    assert_int_equal(quantize_rows(RECIPE_LEGACY, "t", 0, "", DT_F16, 0, 0, NULL, NULL), ST_EUNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_rows_equal_the_twin_for_every_significand_of_the_largest),
        cmocka_unit_test(f32_rows_equal_the_twin_on_random_and_extreme_weights),
        cmocka_unit_test(every_instruction_set_agrees_on_every_bf16_pair_that_matters),
        cmocka_unit_test(every_instruction_set_agrees_on_every_length_and_random_bits),
        cmocka_unit_test(the_extremes_are_127_and_minus_128_and_a_zero_row_keeps_the_smallest_scale),
        cmocka_unit_test(legacy_moves_no_weight_by_more_than_half_a_step),
        cmocka_unit_test(legacy_and_torchao_differ_by_one_in_about_a_tenth_of_the_codes),
        cmocka_unit_test(a_weight_that_is_not_finite_is_named_with_its_row),
    };
    for (int isa = 0; isa < INT8_ISA_COUNT; isa++)
        printf("# %s: %s\n", int8_isa_name((enum int8_isa)isa), int8_isa_runs((enum int8_isa)isa) ? "compared" : "not on this CPU");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
