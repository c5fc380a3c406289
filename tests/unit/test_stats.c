/* Quantiles, deviations and ratios against values worked out by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "bench/stats.h"

#include <math.h>

static const double EPS = 1e-12;

static void assert_near(double got, double want)
{
    if (!(fabs(got - want) <= EPS))
        fail_msg("got %.17g, want %.17g", got, want);
}

static void the_deviation_is_the_population_one(void **state)
{
    const double x[] = {2, 4, 4, 4, 5, 5, 7, 9};
    assert_near(stats_mean(x, 8), 5);
    assert_near(stats_std(x, 8), 2); /* n − 1 would give 2.138 */
    assert_near(stats_std(x, 1), 0);
    assert_true(isnan(stats_mean(x, 0)) && isnan(stats_std(x, 0)));
}

static void quantiles_interpolate_between_ranks(void **state)
{
    const double x[] = {40, 10, 30, 20}; /* not sorted */
    double       scratch[4];
    assert_near(stats_quantile(x, 4, 0, scratch), 10);
    assert_near(stats_quantile(x, 4, 1, scratch), 40);
    assert_near(stats_quantile(x, 4, 0.5, scratch), 25);
    assert_near(stats_quantile(x, 4, 0.95, scratch), 38.5); /* numpy.percentile(x, 95) */
    assert_near(stats_quantile(x, 1, 0.99, scratch), 40);
    assert_true(isnan(stats_quantile(x, 0, 0.5, scratch)));
    double sorted[] = {40, 10, NAN, 30, 20};
    stats_sort(sorted, 5); /* what is no number goes last */
    assert_near(stats_quantile_sorted(sorted, 4, 0.95), 38.5);
}

static void a_percentile_that_n_cannot_carry_is_refused(void **state)
{
    double x[100], scratch[100];
    for (int i = 0; i < 100; i++)
        x[i] = i;
    assert_int_equal(stats_quantile_needs(0.5), 2);
    assert_int_equal(stats_quantile_needs(0.95), 20);
    assert_int_equal(stats_quantile_needs(0.05), 20);
    assert_int_equal(stats_quantile_needs(0.99), 100);
    assert_true(isnan(stats_quantile_supported(x, 19, 0.95, scratch)));
    assert_true(isnan(stats_quantile_supported(x, 40, 0.99, scratch))); /* the reference's p99 of 40 is its maximum */
    assert_near(stats_quantile_supported(x, 20, 0.95, scratch), 18.05);
    assert_near(stats_quantile_supported(x, 100, 0.99, scratch), 98.01);
}

static void the_ratio_is_of_means_not_a_mean_of_ratios(void **state)
{
    const double latency[] = {1, 9}, audio[] = {2, 3};
    assert_near(stats_ratio_of_means(latency, audio, 2), 2); /* the mean of ratios would be 1.75 */
    const double silence[] = {0, 0};
    assert_true(isnan(stats_ratio_of_means(latency, silence, 2)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_deviation_is_the_population_one),
        cmocka_unit_test(quantiles_interpolate_between_ranks),
        cmocka_unit_test(a_percentile_that_n_cannot_carry_is_refused),
        cmocka_unit_test(the_ratio_is_of_means_not_a_mean_of_ratios),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
