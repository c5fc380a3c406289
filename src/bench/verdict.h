/* verdict.h — is one cell faster or slower than another, the same, or can we not tell: effect, interval, p-value, word.
 *
 * The unit of evidence is the process, not the sample: samples of one process share its memory layout, page placement and
 * clocks, and repeat each other's error (Kalibera and Jones 2013, "Rigorous benchmarking in reasonable time"). The method:
 *
 *  1. Everything is done on logarithms, so effects are ratios. Where both cells measured the same (text, repeat), which
 *     share prompt and noise, their log-ratio is one pair; otherwise values are centred by text and the cells compared as
 *     two groups. Samples without a partner are left out of a paired comparison.
 *  2. Pairs whose samples share a process form a cluster. Its location is the mean without the lowest and highest quarter,
 *     which no single outlier moves far; outliers stay in the data. Its own variance is Yuen's (1974, from winsorised
 *     squares), times (1 + ρ)/(1 − ρ) for the lag-1 correlation ρ > 0 of successive samples.
 *  3. The effect is the mean over clusters. Its variance is that between clusters, which includes everything within. One
 *     to five processes say little about it, and a bootstrap of so few clusters is far too narrow (Cameron, Gelbach and
 *     Miller 2008), so it is moderated (Smyth 2004): averaged with a prior of PRIOR_DF degrees of freedom,
 *         s0² = max(process_noise², (PRIOR_SHARE · s_within)²) per cell + the mean variance of a location.
 *     One process a cell then gives a wide but honest interval, and data take over as processes are added.
 *  4. 95 % interval and p-value are Student's with PRIOR_DF + clusters − 1 degrees of freedom (two groups: Welch and
 *     Satterthwaite's). p-values of one table are corrected after Holm (1979).
 *  5. faster or slower: corrected p < alpha = 0.02 and an effect beyond the margin; stricter than the interval, because of
 *     100 comparisons of equal cells at most 5 may be called different, not 5 on average. same: the interval lies inside ± margin
 *     (Schuirmann 1987's two one-sided tests, at 2.5 % each). Else unclear: more processes would tell.
 *
 * No random numbers: the same samples give the same verdict. */
#ifndef QSWEEP_BENCH_VERDICT_H
#define QSWEEP_BENCH_VERDICT_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

enum { VERDICT_PAIRS_MIN = 5, VERDICT_PRIOR_DF = 4 };
extern const double VERDICT_PRIOR_SHARE; /* of the spread within a process that its offset is believed to have: 0.5 */

enum verdict_kind { VERDICT_TOO_FEW, VERDICT_UNCLEAR, VERDICT_SAME, VERDICT_FASTER, VERDICT_SLOWER, VERDICT_KIND_COUNT };
const char *verdict_name(enum verdict_kind k); /* "too few", "unclear", "same", "faster", "slower" */

/* One sample of a metric. value > 0; rows stand in the order in which they were taken. */
struct measure {
    int    text, repeat, process;
    double value;
};

struct verdict_options {
    double margin;        /* relative change that does not matter: 0.01                       */
    double alpha;         /* of the words faster and slower, after correction: 0.02           */
    double process_noise; /* relative offset of a process believed before measuring: 0.003    */
    bool   more_is_better; /* frame rates; otherwise less is faster                         */
};
void verdict_options_init(struct verdict_options *o);

struct verdict {
    enum verdict_kind kind;
    bool              paired;
    double            effect, low, high; /* candidate ÷ baseline − 1, typical ratio and its interval; NaN when too few   */
    double            ratio_of_means;    /* Σ candidate ÷ Σ baseline over the samples used, − 1; NaN when there are none */
    double            p, p_holm, df;
    double            within;            /* relative spread from sample to sample within a process (both cells' joined) */
    double            between;           /* the same between clusters; NaN with one cluster                             */
    size_t            n;                 /* pairs, or samples of the smaller cell                                       */
    size_t            n_clusters;        /* of the cell that has fewer                                                  */
};

/* Everything but kind and p_holm (too few is set). Rows whose value is not a positive number are left out. ST_ENOMEM only. */
status_t verdict_estimate(const struct measure *baseline, size_t n_baseline, const struct measure *candidate,
                          size_t n_candidate, const struct verdict_options *options, struct verdict *out);

/* p_holm and kind of the whole table [n]; more_is_better [n] overrides the option row by row, NULL: the option's. */
status_t verdict_judge(struct verdict *table, size_t n, const struct verdict_options *options, const bool *more_is_better);

/* How much slower (positive) a relative change is: latency +3 % → 0.03, frame rate −3 % → 0.0309. */
double verdict_slowdown(double effect, bool more_is_better);

#endif
