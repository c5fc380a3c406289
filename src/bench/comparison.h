/* comparison.h — the cells of two sweeps, or two values of one axis, side by side: pairs, verdicts, memory, notes.
 *
 * Cells of two sweeps are paired by id. Along an axis, a cell of the baseline value is paired with each cell that differs
 * in that axis alone; what follows from the axis (recipe and natural KV format from the precision) and what does not touch
 * a measurement (quality) may differ too. Pure: cells come from the caller's reader, nothing is printed. */
#ifndef QSWEEP_BENCH_COMPARISON_H
#define QSWEEP_BENCH_COMPARISON_H

#include "bench/quality.h"
#include "bench/summary.h"
#include "bench/verdict.h"

/* One figure that can be compared: of every sample (a verdict with an interval), or of the whole cell (counted: exact). */
struct metric {
    const char *name, *units, *title;
    bool        more_is_better;
    double (*of_sample)(const struct result *r, const struct sample *s); /* NULL: of_cell; NaN where there is none */
    double (*of_cell)(const struct result *r);
};
size_t               metric_count(void);
const struct metric *metric_at(size_t i);
const struct metric *metric_find(const char *name); /* or NULL */

struct sweep_view {
    const struct summary_row *rows;
    size_t                    n;
    status_t (*read)(void *ctx, const char *id, struct result *out);
    void *ctx;
};

enum { COMPARISON_MODEL = -2 }; /* as an axis: another model with the same config of everything else */
struct comparison_options {
    int                         axis;     /* index into cell_fields, COMPARISON_MODEL, or −1: pair by id     */
    bool                        has_from, has_to;
    union field_value           from, to; /* values of the axis; without `to`: every other value            */
    const struct metric *const *metrics;
    size_t                      n_metrics;
    struct verdict_options      verdict;
};

struct comparison_cell {
    char             id[33], label[128];
    enum cell_status status;
};

/* What quality.h measured of a pair's candidate. */
struct comparison_quality {
    bool                known, synthetic;
    char                reference[16], error[256]; /* error: why there is none although it was asked for */
    struct quality_row  all, semantic;
    struct quality_gate gates[QUALITY_GATES];
    double              weight_db, output_db;
    int                 texts, diverged, first; /* texts that leave the reference, and the earliest frame (−1) */
};

struct comparison_pair {
    struct comparison_cell    baseline, candidate;
    struct comparison_quality quality;
};

/* One metric of one pair whose cells are both ok. */
struct comparison_row {
    size_t               pair;
    const struct metric *metric;
    double               baseline, candidate; /* means over the samples, or the cells' figures; NaN = unknown */
    struct verdict       verdict;             /* counted figures: effect = low = high, p and n unknown        */
};

struct comparison_note {
    struct comparison_cell cell;
    char                   text[256];
};

struct comparison_unmatched {
    struct comparison_cell cell;
    bool                   is_baseline;
    const char            *why;
};

struct comparison {
    struct comparison_pair      *pairs;     size_t n_pairs;
    struct comparison_row       *rows;      size_t n_rows;
    struct comparison_note      *notes;     size_t n_notes;
    struct comparison_unmatched *unmatched; size_t n_unmatched;
};

/* Both views may be the same one. Cells are read one pair at a time. On failure *out is empty. */
status_t comparison_build(const struct sweep_view *baseline, const struct sweep_view *candidate,
                          const struct comparison_options *options, struct comparison *out);
void     comparison_free(struct comparison *c);

/* "faster", …; for counted figures "more", "less", "same", "unknown". */
const char *comparison_word(const struct comparison_row *row);

/* ---- what counts as a regression --------------------------------------------------------------------------------- */

struct fail_rule {
    const struct metric *metric; /* NULL ("slower"): every metric of samples that is compared */
    double               limit;  /* relative: 0.02                                            */
};
/* "slower:2%", "vram:1%", "step:0.5%" → *out; ST_EUSAGE. */
status_t fail_rule_parse(const char *text, struct fail_rule *out);
/* Does row break the rule: verdict slower (or more memory) by at least the limit? */
bool fail_rule_hits(const struct fail_rule *rule, const struct comparison_row *row);

#endif
