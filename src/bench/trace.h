/* trace.h — a thread that writes down memory (and, with a device's source, clocks and power) every few milliseconds.
 *
 * Every tick: our ledger's bytes, RSS, phase. PSS walks the page tables (10 ms for 2 GB of 4 KiB pages), so it is read
 * every 100 ms or, if one reading costs more than 1 ms, seldom enough to take at most 1 % of one core; between, it is
 * unknown. */
#ifndef QSWEEP_BENCH_TRACE_H
#define QSWEEP_BENCH_TRACE_H

#include "bench/result.h"

#include <stdbool.h>

struct trace;

/* A device's own readings. `slow` ticks come every 100 ms: power, clocks, temperature, energy belong there. */
struct trace_source {
    void *ctx;
    void (*read)(void *ctx, bool slow, struct trace_point *point); /* NULL: none */
};

struct trace_options {
    int64_t             t0_ns;     /* CLOCK_MONOTONIC time that t_ns counts from */
    double              period_ms; /* 0 = 10 ms                                  */
    struct trace_source source;
};

status_t           trace_start(const struct trace_options *options, struct trace **out);
/* From now on the ledger's total is recorded; NULL stops that. The ledger must stay until trace_watch(NULL) or the end.
 */
void               trace_watch(struct trace *t, struct memory_ledger *ledger);
void               trace_set_source(struct trace *t, struct trace_source source);
/* Mark a phase. A point of the old phase and one of the new are taken at once, PSS included. */
void               trace_phase(struct trace *t, enum phase phase);
/* Take a point with everything now (also kept in the trace). */
struct trace_point trace_sample(struct trace *t);
/* Largest process_used and device_used since the phase began (UINT64_MAX = unknown). */
void               trace_peaks(struct trace *t, enum phase since, uint64_t *process_peak, uint64_t *device_peak);
/* Join the thread, append all points to r, free. t may be NULL. */
status_t           trace_stop(struct trace *t, struct result *r);

/* Bytes of this process: resident set, and proportional set (UINT64_MAX where the kernel does not tell). */
uint64_t process_rss(void);
uint64_t process_pss(void);

#endif
