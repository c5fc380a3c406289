/* gpu_watch.h — a GPU's memory, clocks and power as a source of the trace (NVML), for the worker's own device. */
#ifndef QSWEEP_BENCH_GPU_WATCH_H
#define QSWEEP_BENCH_GPU_WATCH_H

#include "bench/trace.h"

struct gpu_watch;

/* NULL when NVML cannot see the device: then the trace has no device columns, which is no failure. */
struct gpu_watch   *gpu_watch_open(const char *uuid);
void                gpu_watch_close(struct gpu_watch *w); /* after the trace stopped reading; NULL is accepted */
struct trace_source gpu_watch_source(struct gpu_watch *w); /* {NULL} for NULL */

#endif
