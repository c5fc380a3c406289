/* steadiness.h — what disturbed the samples of a cell: outliers, drift, throttling, clocks. Noted, never removed.
 *
 * Looked at is the time a decode step took in each sample (latency ÷ steps), as a logarithm less the median of its text. */
#ifndef QSWEEP_BENCH_STEADINESS_H
#define QSWEEP_BENCH_STEADINESS_H

#include "bench/result.h"

/* |modified z| = 0.6745·|x − median| ÷ MAD beyond this marks an outlier: ten deviations of a normal distribution
 * (hyperfine's threshold; modified z after Iglewicz and Hoaglin 1993). A MAD below 0.1 % counts as 0.1 %. */
extern const double OUTLIER_Z;
/* A trend is drift when it is this certain and moves time by more than this over a process. */
extern const double DRIFT_P, DRIFT_CHANGE;
/* Clocks this far from the cell's median are noted. */
extern const double CLOCK_OFF;

/* NVML's clock event reasons that mean a limit was hit: SW power cap, HW slowdown, SW thermal, HW thermal, HW power brake.
 * Idle, application clocks, sync boost and display settings are no disturbance. */
enum { THROTTLE_REASONS = 0x4 | 0x8 | 0x20 | 0x40 | 0x80 };

struct steadiness {
    size_t n;          /* samples looked at                                                                     */
    size_t outliers;
    double worst;      /* the farthest outlier: time ÷ its text's median − 1; NaN without one                   */
    double drift;      /* median change of time over a process (Theil–Sen slope × its samples); NaN below 8      */
    double drift_p;    /* Mann–Kendall over all processes, normal approximation (n ≥ 8); NaN below               */
    bool   drifts;
    size_t throttled;  /* samples during which a power or thermal limit lowered clocks (NVML's reasons)          */
    size_t off_clock;
};

/* outlier [r->n_samples] marks them, NULL: not wanted. ST_ENOMEM. */
status_t steadiness_of(const struct result *r, bool *outlier, struct steadiness *out);

#endif
