/* stop_rule.h — when enough samples have been taken: the adaptive end of a measurement. */
#ifndef QSWEEP_BENCH_STOP_RULE_H
#define QSWEEP_BENCH_STOP_RULE_H

#include "sweep/cell.h"

/* Width of the 95 % confidence interval of the median of x [n], as a share of the median. The interval is the
 * distribution-free one between order statistics r and n + 1 − r, r = round(n/2 − 0.98·√n) (Conover 1999, §3.2). x is
 * not changed; scratch [n]. NaN when n < 6, below which no such interval reaches 95 %. */
double median_interval(const double *x, size_t n, double *scratch);

/* May the measurement of one text end after these latencies [n]? Never before rule->min samples, always at max. With
 * rule->max = 0 there is no rule: false. */
bool stop_rule_met(const struct stop_rule *rule, const double *latency_ms, size_t n, double *scratch);

#endif
