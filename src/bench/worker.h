/* worker.h — a measurement from beginning to end, in this process: context, load, ready, warm-up, measure. */
#ifndef QSWEEP_BENCH_WORKER_H
#define QSWEEP_BENCH_WORKER_H

#include "bench/work.h"

#include <signal.h>

/* Exit status of `qsweep cell` when it measured but could not write its file: the output folder's fault, not the
 * cell's. */
enum { WORKER_CANNOT_WRITE = 4 };

/* Measure work's part of its cell. *stop ≠ 0 (a signal number) ends it between two pieces of decoding. Whatever
 * happens, *out is a result that can be written: its status and reason say how far it came, and finished samples are
 * kept. The caller frees it with result_free(). exec_ns: CLOCK_MONOTONIC of this process's exec. */
void worker_run(const struct work *work, int64_t exec_ns, const volatile sig_atomic_t *stop, struct result *out);

/* When this process was executed: QSWEEP_EXEC_NS as the spawner gives it, else the kernel's record (10 ms steps). */
int64_t worker_exec_ns(void);

/* How a cell ends that failed with this code. */
enum cell_status worker_status(status_t code);

#endif
