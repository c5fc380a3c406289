/* stats.h — figures of a sample: mean, population deviation, quantiles that the sample's size can carry. */
#ifndef QSWEEP_BENCH_STATS_H
#define QSWEEP_BENCH_STATS_H

#include <stddef.h>

/* NaN when n is 0. */
double stats_mean(const double *x, size_t n);

/* Population standard deviation (divided by n, not n − 1), as the reference reports it; NaN when n is 0. */
double stats_std(const double *x, size_t n);

/* Ascending, in place: what quantiles are read from. */
void stats_sort(double *x, size_t n);

/* Quantile q in [0, 1] with linear interpolation between the two nearest ranks (position q·(n − 1); numpy's default,
 * Hyndman and Fan 1996 definition 7). NaN when n is 0. Of ascending x, or of any x through scratch [n]. */
double stats_quantile_sorted(const double *sorted, size_t n, double q);
double stats_quantile(const double *x, size_t n, double q, double *scratch);

/* Fewest samples that can carry quantile q: below it, the quantile lies beyond the last sample's rank and would be the
 * maximum (or minimum) under another name. 1/min(q, 1 − q): median 2, p95 20, p99 100. */
size_t stats_quantile_needs(double q);

/* The same where n suffices, else NaN. */
double stats_quantile_sorted_supported(const double *sorted, size_t n, double q);
double stats_quantile_supported(const double *x, size_t n, double q, double *scratch);

/* mean(a)/mean(b): the reference's ratio of means, which weighs long requests more than a mean of ratios would.
 * NaN when b's mean is not positive. */
double stats_ratio_of_means(const double *a, const double *b, size_t n);

#endif
