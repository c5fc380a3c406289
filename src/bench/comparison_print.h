/* comparison_print.h — a comparison for people (Markdown) and for programs (CSV, JSON, JSON lines). */
#ifndef QSWEEP_BENCH_COMPARISON_PRINT_H
#define QSWEEP_BENCH_COMPARISON_PRINT_H

#include "bench/comparison.h"
#include "bench/summary_print.h"

struct comparison_caption {
    const char *baseline, *candidate; /* files                                                              */
    const char *axis;                 /* "precision: bf16 -> int8", or "" when pairs are those of equal ids */
    double      margin;
    const struct fail_rule *rules;
    size_t                  n_rules;
};

/* Markdown: verdicts, quality with its gates, what could not be compared, notes. JSON: one object with the same; JSON lines:
 * one object a row, each with its "kind"; CSV: the rows of verdicts alone. ST_EIO when `to` cannot be written. */
status_t comparison_print(const struct comparison *c, const struct comparison_caption *caption, enum summary_format format,
                          FILE *to);

#endif
