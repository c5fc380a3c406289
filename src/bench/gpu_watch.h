/* gpu_watch.h — a GPU's memory, clocks and power, read through NVML for the worker's own device: as a source of the
 * trace, for each sample, and as facts. */
#ifndef QSWEEP_BENCH_GPU_WATCH_H
#define QSWEEP_BENCH_GPU_WATCH_H

#include "bench/trace.h"

struct gpu_watch;

/* NULL when NVML cannot see the device: then the trace has no device columns, which is no failure. */
struct gpu_watch   *gpu_watch_open(const char *uuid);
void                gpu_watch_close(struct gpu_watch *w); /* after the trace stopped reading; NULL is accepted */
struct trace_source gpu_watch_source(struct gpu_watch *w); /* {NULL} for NULL */

/* Around a request: energy_j is the difference of the card's counter (NaN without one, or when it did not tick in so
 * short a time: it moves every few tens of milliseconds), sm_clock_mhz the mean and throttle the OR of all readings from
 * begin to end, those of the trace included. NULL: the sample keeps what it has. */
void gpu_watch_begin(struct gpu_watch *w);
void gpu_watch_end(struct gpu_watch *w, struct sample *sample);

/* Facts of the device at the end: which memory call, its raw fields, clocks, temperature, ECC errors. NULL is accepted. */
status_t gpu_watch_facts(struct gpu_watch *w, struct result *r);

#endif
