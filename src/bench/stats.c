#include "bench/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double stats_mean(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return n ? sum / (double)n : NAN;
}

double stats_std(const double *x, size_t n)
{
    double mean = stats_mean(x, n), squares = 0;
    for (size_t i = 0; i < n; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    return n ? sqrt(squares / (double)n) : NAN;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return isnan(x) || isnan(y) ? !!isnan(x) - !!isnan(y) : (x > y) - (x < y); /* NaN last: the order stays total */
}

void stats_sort(double *x, size_t n)
{
    qsort(x, n, sizeof *x, by_value);
}

double stats_quantile_sorted(const double *sorted, size_t n, double q)
{
    if (n == 0)
        return NAN;
    double position = q * (double)(n - 1);
    size_t below = (size_t)position;
    if (below >= n - 1)
        return sorted[n - 1];
    double share = position - (double)below;
    return sorted[below] + share * (sorted[below + 1] - sorted[below]);
}

double stats_quantile(const double *x, size_t n, double q, double *scratch)
{
    memcpy(scratch, x, n * sizeof *x);
    stats_sort(scratch, n);
    return stats_quantile_sorted(scratch, n, q);
}

size_t stats_quantile_needs(double q)
{
    double tail = fmin(q, 1 - q);
    if (tail <= 0)
        return 1;
    /* 1/(1 − 0.95) is 20.000000000000018 in binary: without the slack, p95 would ask for 21. */
    return (size_t)ceil(1 / tail * (1 - 1e-12));
}

double stats_quantile_sorted_supported(const double *sorted, size_t n, double q)
{
    return n >= stats_quantile_needs(q) ? stats_quantile_sorted(sorted, n, q) : NAN;
}

double stats_quantile_supported(const double *x, size_t n, double q, double *scratch)
{
    return n >= stats_quantile_needs(q) ? stats_quantile(x, n, q, scratch) : NAN;
}

double stats_ratio_of_means(const double *a, const double *b, size_t n)
{
    double base = stats_mean(b, n);
    return base > 0 ? stats_mean(a, n) / base : NAN;
}
