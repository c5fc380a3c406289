#include "bench/stop_rule.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double median_interval(const double *x, size_t n, double *scratch)
{
    if (n < 6)
        return NAN;
    memcpy(scratch, x, n * sizeof *x);
    qsort(scratch, n, sizeof *scratch, ascending);
    long low = lround((double)n / 2 - 0.98 * sqrt((double)n)), high;
    low = low < 1 ? 1 : low;
    high = (long)n + 1 - low;
    double median = 0.5 * (scratch[(n - 1) / 2] + scratch[n / 2]);
    return (scratch[high - 1] - scratch[low - 1]) / median;
}

bool stop_rule_met(const struct stop_rule *rule, const double *latency_ms, size_t n, double *scratch)
{
    if (rule->max <= 0 || n < (size_t)rule->min)
        return false;
    return n >= (size_t)rule->max || median_interval(latency_ms, n, scratch) <= rule->rel_ci;
}
