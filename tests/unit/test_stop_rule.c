/* test_stop_rule.c — the interval of the median covers what it claims, and the rule ends when it should. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "bench/stop_rule.h"

#include <math.h>
#include <stdio.h>

/* P(X ≤ k) of a binomial (n, 1/2). */
static double binomial_half(int k, int n)
{
    double sum = 0;
    for (int i = 0; i <= k; i++)
        sum += exp(lgamma(n + 1.0) - lgamma(i + 1.0) - lgamma(n - i + 1.0) - n * log(2.0));
    return sum;
}

/* The interval [x(r), x(n+1−r)] covers the median with probability 1 − 2·P(X ≤ r − 1). The ranks are read off by giving
 * the numbers 1 … n: the width times the median is n + 1 − 2r. The rounded ranks may fall a little short of 95 %. */
static void the_interval_of_the_median_covers_it_with_95_percent(void **state)
{
    (void)state;
    const double least = 0.93;
    for (int n = 6; n <= 400; n++) {
        double x[400], scratch[400];
        for (int i = 0; i < n; i++)
            x[i] = n - i; /* descending: the function has to sort */
        int    width = (int)lround(median_interval(x, (size_t)n, scratch) * 0.5 * (n + 1));
        int    r = (n + 1 - width) / 2;
        double coverage = 1 - 2 * binomial_half(r - 1, n);
        if (coverage < least)
            fail_msg("n = %d: rank %d covers %.4f, want %.2f", n, r, coverage, least);
    }
}

static void five_samples_have_no_interval(void **state)
{
    (void)state;
    double x[5] = {1, 1, 1, 1, 1}, scratch[5];
    assert_true(isnan(median_interval(x, 5, scratch)));
}

static void the_rule_ends_at_min_when_samples_agree_and_at_max_when_they_do_not(void **state)
{
    (void)state;
    struct stop_rule rule = {.rel_ci = 0.02f, .min = 8, .max = 20};
    double           same[20], spread[20], scratch[20];
    for (int i = 0; i < 20; i++) {
        same[i] = 100 + 0.01 * i;
        spread[i] = 100 + 10 * i;
    }
    assert_false(stop_rule_met(&rule, same, 7, scratch));
    assert_true(stop_rule_met(&rule, same, 8, scratch));
    assert_false(stop_rule_met(&rule, spread, 19, scratch));
    assert_true(stop_rule_met(&rule, spread, 20, scratch));
}

static void without_a_rule_nothing_ends_early(void **state)
{
    (void)state;
    struct stop_rule rule = {0};
    double           x[8] = {1, 1, 1, 1, 1, 1, 1, 1}, scratch[8];
    assert_false(stop_rule_met(&rule, x, 8, scratch));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_interval_of_the_median_covers_it_with_95_percent),
        cmocka_unit_test(five_samples_have_no_interval),
        cmocka_unit_test(the_rule_ends_at_min_when_samples_agree_and_at_max_when_they_do_not),
        cmocka_unit_test(without_a_rule_nothing_ends_early),
    };
    return cmocka_run_group_tests_name("stop_rule", tests, NULL, NULL);
}
