/* Outliers, drift and throttling: found where they are, not where they are not. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "bench/steadiness.h"
#include "model/sampler.h"

#include <math.h>
#include <string.h>

enum { N = 40 };

/* Uniform in ±1, the same everywhere. */
static double jitter(uint64_t seed, uint32_t i)
{
    uint32_t words[4];
    noise_block(seed, (struct noise_key){.sequence = i}, 0, words);
    return ldexp((double)words[0], -31) - 1;
}

/* Ten repeats of four texts of different lengths, over two processes; ± spread, and `drift` over a process. */
static void fill(struct sample *s, uint64_t seed, double spread, double drift)
{
    memset(s, 0, N * sizeof *s);
    for (int i = 0; i < N; i++) {
        double share = (double)(i % (N / 2)) / (N / 2 - 1);
        s[i] = (struct sample){.text = i % 4, .repeat = i / 4, .process = i * 2 / N, .order = i, .t0_ns = i,
                               .steps = 50 * (1 + i % 4), .sm_clock_mhz = 1980};
        s[i].latency_ms = s[i].steps * (1 + 0.1 * (i % 4)) * (1 + spread * jitter(seed, (uint32_t)i)) * (1 + drift * share);
    }
}

static struct steadiness look(struct sample *s, size_t n, bool *outlier)
{
    struct result     r;
    struct steadiness out;
    result_init(&r);
    r.samples = s;
    r.n_samples = n;
    assert_int_equal(steadiness_of(&r, outlier, &out), ST_OK);
    return out;
}

static void steady_samples_are_steady(void **state)
{
    enum { SEEDS = 200, FALSE_DRIFTS_MAX = 8 }; /* p < 0.01: 2 expected */
    struct sample s[N];
    int           drifts = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        fill(s, seed, 0.02, 0);
        struct steadiness t = look(s, N, NULL);
        drifts += t.drifts;
        if (t.outliers || t.throttled || t.off_clock || t.n != N || !isnan(t.worst))
            fail_msg("seed %llu: %zu outliers, %zu throttled", (unsigned long long)seed, t.outliers, t.throttled);
    }
    assert_true(drifts <= FALSE_DRIFTS_MAX);
}

static void an_outlier_is_marked_and_its_neighbours_are_not(void **state)
{
    struct sample s[N];
    bool          marks[N];
    fill(s, 1, 0.01, 0);
    s[13].latency_ms *= 1.5;
    s[22].latency_ms *= 0.8;
    struct steadiness t = look(s, N, marks);
    assert_int_equal(t.outliers, 2);
    for (int i = 0; i < N; i++)
        assert_int_equal(marks[i], i == 13 || i == 22);
    assert_true(t.worst > 0.4 && t.worst < 0.6);
}

static void equal_samples_have_no_outliers(void **state)
{
    struct sample s[N];
    fill(s, 1, 0, 0);
    s[3].latency_ms *= 1.001; /* below the floor of the deviation, where a MAD of 0 would make everything an outlier */
    assert_int_equal(look(s, N, NULL).outliers, 0);
}

static void drift_over_a_process_is_found_with_its_size_and_sign(void **state)
{
    struct sample s[N];
    fill(s, 2, 0.01, 0.08);
    struct steadiness up = look(s, N, NULL);
    assert_true(up.drifts && up.drift > 0.05 && up.drift < 0.11 && up.drift_p < 1e-4);
    fill(s, 2, 0.01, -0.08);
    struct steadiness down = look(s, N, NULL);
    assert_true(down.drifts && down.drift < -0.05);
    /* Certain, but too small to matter. */
    fill(s, 2, 0.0005, 0.005);
    struct steadiness little = look(s, N, NULL);
    assert_true(!little.drifts && little.drift_p < 1e-4);
}

static void limits_and_clocks_are_counted_and_idling_is_not(void **state)
{
    struct sample s[N];
    fill(s, 3, 0.01, 0);
    s[0].throttle = 0x1 | 0x2; /* idle, application clocks */
    s[1].throttle = 0x4;
    s[2].throttle = 0x40 | 0x1;
    s[3].sm_clock_mhz = 1900;
    s[4].sm_clock_mhz = NAN;
    s[5].sm_clock_mhz = 1960; /* 1 % */
    struct steadiness t = look(s, N, NULL);
    assert_int_equal(t.throttled, 2);
    assert_int_equal(t.off_clock, 1);
}

static void few_or_broken_samples_are_no_reason_to_stumble(void **state)
{
    struct sample s[N];
    fill(s, 4, 0.01, 0);
    assert_int_equal(look(s, 0, NULL).n, 0);
    struct steadiness one = look(s, 1, NULL);
    assert_true(one.n == 1 && isnan(one.drift) && !one.drifts);
    s[0].steps = 0;
    s[1].latency_ms = NAN;
    s[2].latency_ms = -1;
    assert_int_equal(look(s, 5, NULL).n, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steady_samples_are_steady),
        cmocka_unit_test(an_outlier_is_marked_and_its_neighbours_are_not),
        cmocka_unit_test(equal_samples_have_no_outliers),
        cmocka_unit_test(drift_over_a_process_is_found_with_its_size_and_sign),
        cmocka_unit_test(limits_and_clocks_are_counted_and_idling_is_not),
        cmocka_unit_test(few_or_broken_samples_are_no_reason_to_stumble),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
