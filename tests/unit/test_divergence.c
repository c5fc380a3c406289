/* KL, agreement, likelihood and signal to noise against naive sums in long double and against closed forms. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/log.h"
#include "bench/divergence.h"
#include "model/sampler.h"

#include <math.h>
#include <string.h>

static const double RELATIVE = 1e-12; /* FP64 sums of at most 4096 terms */

static float noise(uint64_t seed, uint32_t i)
{
    return noise_exp(seed, (struct noise_key){.sequence = i}, 0);
}

static void assert_near(const char *what, double got, double want)
{
    if (!(fabs(got - want) <= RELATIVE * fmax(1, fabs(want))))
        fail_msg("%s: got %.17g, want %.17g", what, got, want);
}

/* softmax straight from its definition. */
static void probabilities(const float *x, int n, long double *p)
{
    long double sum = 0;
    for (int i = 0; i < n; i++)
        sum += p[i] = expl((long double)x[i]);
    for (int i = 0; i < n; i++)
        p[i] /= sum;
}

static void figures_equal_those_of_a_naive_twin(void **state)
{
    enum { N = 1024, POSITIONS = 20 };
    static float       reference[N], mode[N];
    static long double p[N], q[N];
    struct divergence *d;
    struct quality_row rows[2];
    long double        kl = 0, kl_max = 0, dp2 = 0, nll = 0, nll_ref = 0;
    int                agree = 0;
    assert_int_equal(divergence_open(1, &d), ST_OK);
    for (uint32_t k = 0; k < POSITIONS; k++) {
        for (uint32_t i = 0; i < N; i++) {
            reference[i] = 3 * noise(1, k * N + i);
            mode[i] = reference[i] + 0.2f * (noise(2, k * N + i) - 1);
        }
        int         target = (int)(k * 37 % N), top = 0, top_mode = 0;
        long double one = 0;
        probabilities(reference, N, p);
        probabilities(mode, N, q);
        for (int i = 0; i < N; i++) {
            one += p[i] * logl(p[i] / q[i]);
            top = reference[i] > reference[top] ? i : top;
            top_mode = mode[i] > mode[top_mode] ? i : top_mode;
        }
        kl += one / POSITIONS;
        kl_max = one > kl_max ? one : kl_max;
        agree += top == top_mode;
        dp2 += (q[target] - p[target]) * (q[target] - p[target]) / POSITIONS;
        nll -= logl(q[target]) / POSITIONS;
        nll_ref -= logl(p[target]) / POSITIONS;
        assert_int_equal(divergence_add(d, 0, reference, mode, N, target), ST_OK);
    }
    assert_int_equal(divergence_rows(d, 1, rows), ST_OK);
    assert_true(agree > 0 && agree < POSITIONS); /* or the next line would show nothing */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(rows[i].n, POSITIONS);
        assert_near("kl_mean", rows[i].kl_mean, (double)kl);
        assert_near("kl_max", rows[i].kl_max, (double)kl_max);
        assert_near("top1", rows[i].top1, agree / (double)POSITIONS);
        assert_near("rms_dp", rows[i].rms_dp, (double)sqrtl(dp2));
        assert_near("nll", rows[i].nll, (double)nll);
        assert_near("nll_ref", rows[i].nll_ref, (double)nll_ref);
        assert_true(isnan(rows[i].kl_p99)); /* 20 positions carry no 99th percentile */
        assert_true(isnan(rows[i].kl_low)); /* and too few blocks */
    }
    assert_int_equal(rows[0].codebook, QUALITY_ALL);
    assert_int_equal(rows[1].codebook, 0);
    divergence_close(d);
}

/* Two tokens with p = 1/2 against q = 1/4: KL = ln(2/√3); far logits do not overflow. */
static void known_distributions_have_their_known_divergence(void **state)
{
    const float even[] = {700, 700}, odd[] = {-5000, (float)(-5000 + 1.0986122886681098)};
    struct divergence *d;
    struct quality_row rows[2];
    assert_int_equal(divergence_open(1, &d), ST_OK);
    assert_int_equal(divergence_add(d, 0, even, odd, 2, 0), ST_OK);
    assert_int_equal(divergence_rows(d, 1, rows), ST_OK);
    /* the logit −4998.9014 is a float, 1.2e-4 from ln 3: bound by half its step times the derivative, at most 1 */
    assert_true(fabs(rows[0].kl_mean - log(2 / sqrt(3))) < 2.5e-4);
    assert_true(fabs(rows[0].rms_dp - 0.25) < 2.5e-4);
    assert_near("nll_ref", rows[0].nll_ref, log(2));
    assert_true(fabs(rows[0].nll - log(4)) < 2.5e-4);
    assert_near("top1", rows[0].top1, 0); /* the reference's first of equals is not the likeliest here */
    divergence_close(d);
}

static void equal_logits_have_no_divergence_and_agree(void **state)
{
    const float        x[] = {1, 1, 0.5f, -3}, swapped[] = {1, 1, 0.5f, -2.9f};
    struct divergence *d;
    struct quality_row rows[3];
    assert_int_equal(divergence_open(2, &d), ST_OK);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(divergence_add(d, 0, x, x, 4, i % 4), ST_OK);
        assert_int_equal(divergence_add(d, 1, x, swapped, 4, i % 4), ST_OK);
    }
    assert_int_equal(divergence_rows(d, 1, rows), ST_OK);
    assert_true(rows[1].kl_mean == 0 && rows[1].kl_max == 0 && rows[1].kl_p99 == 0 && rows[1].top1 == 1);
    assert_true(rows[1].rms_dp == 0 && rows[1].nll == rows[1].nll_ref && rows[1].kl_low == 0 && rows[1].kl_high == 0);
    assert_true(rows[2].top1 == 1 && rows[2].kl_mean > 0); /* ties agree */
    assert_near("all codebooks alike", rows[0].kl_mean, 0.5 * rows[2].kl_mean);
    assert_int_equal(rows[0].n, 200);
    divergence_close(d);
}

/* Intervals of the mean hold the mean of what was drawn, and shrink with the square root of the positions. */
static void intervals_narrow_as_positions_are_added(void **state)
{
    double width[2];
    for (int k = 0; k < 2; k++) {
        struct divergence *d;
        struct quality_row rows[2];
        assert_int_equal(divergence_open(1, &d), ST_OK);
        for (uint32_t i = 0; i < (k ? 6400u : 400u); i++) {
            const float a[] = {0, 0}, b[] = {0, noise(3, i)};
            assert_int_equal(divergence_add(d, 0, a, b, 2, 1), ST_OK);
        }
        assert_int_equal(divergence_rows(d, 5, rows), ST_OK);
        assert_true(rows[0].kl_low < rows[0].kl_mean && rows[0].kl_mean < rows[0].kl_high);
        assert_true(rows[0].nll_low < rows[0].nll - rows[0].nll_ref && rows[0].nll - rows[0].nll_ref < rows[0].nll_high);
        assert_true(rows[0].kl_p99 > rows[0].kl_mean && rows[0].kl_p99 <= rows[0].kl_max);
        width[k] = rows[0].kl_high - rows[0].kl_low;
        divergence_close(d);
    }
    if (!(width[0] > 3 * width[1] && width[0] < 5.3 * width[1])) /* 4, ± a third for the spread of both */
        fail_msg("widths %g and %g", width[0], width[1]);
}

static void what_is_no_logit_is_refused(void **state)
{
    float              x[] = {0, 1, 2}, bad[] = {0, NAN, 2};
    struct divergence *d;
    log_set_level(LOG_NONE);
    assert_int_equal(divergence_open(1, &d), ST_OK);
    assert_int_equal(divergence_add(d, 0, x, bad, 3, 0), ST_EINTERNAL);
    bad[1] = INFINITY;
    assert_int_equal(divergence_add(d, 0, bad, x, 3, 0), ST_EINTERNAL);
    assert_int_equal(divergence_add(d, 0, x, x, 3, 3), ST_EINTERNAL);
    assert_int_equal(divergence_add(d, 0, x, x, 3, -1), ST_EINTERNAL);
    struct quality_row rows[2];
    assert_int_equal(divergence_rows(d, 1, rows), ST_OK);
    assert_true(rows[0].n == 0 && isnan(rows[0].kl_mean) && isnan(rows[0].top1) && isnan(rows[0].kl_max));
    divergence_close(d);
}

static void noise_of_a_hundredth_is_40_decibel(void **state)
{
    const float reference[] = {1, -1, 1, 1}, value[] = {1.01f, -1.01f, 0.99f, 1.01f};
    struct sqnr s = {0};
    assert_true(isnan(sqnr_db(&s)));
    sqnr_add(&s, reference, reference, 4);
    assert_true(isnan(sqnr_db(&s))); /* no noise: not a number of decibels */
    memset(&s, 0, sizeof s);
    sqnr_add(&s, reference, value, 2);
    sqnr_add(&s, reference + 2, value + 2, 2);
    assert_true(fabs(sqnr_db(&s) - 40) < 1e-4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_equal_those_of_a_naive_twin),
        cmocka_unit_test(known_distributions_have_their_known_divergence),
        cmocka_unit_test(equal_logits_have_no_divergence_and_agree),
        cmocka_unit_test(intervals_narrow_as_positions_are_added),
        cmocka_unit_test(what_is_no_logit_is_refused),
        cmocka_unit_test(noise_of_a_hundredth_is_40_decibel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
