/* gpu_guard.h — is a rank's GPU free of others' work before a cell, and is its memory back after it? Reads NVML only. */
#ifndef QSWEEP_LAUNCH_GPU_GUARD_H
#define QSWEEP_LAUNCH_GPU_GUARD_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How long a cell waits for an occupied GPU, by the job's foreign: key, unless foreign_wait: says otherwise. */
extern const double GUARD_MARK_WAIT_S, GUARD_WAIT_S;
/* How long a dead worker's memory may take to come back. The driver frees it before the process is gone, as a rule. */
extern const double GUARD_RETURN_S;

struct gpu_guard;

/* run: hexadecimal id of this run; processes that have it as QSWEEP_RUN in their environment are ours. */
status_t gpu_guard_open(const char *uuid, const char *run, struct gpu_guard **out);
void     gpu_guard_close(struct gpu_guard *g); /* NULL is accepted */

/* True when nobody else is on the GPU. Else who says so, one line: pid, name and bytes of each process (bytes that NVML does not tell
 * here are said to be unknown); or, where NVML lists no processes (containers), how much memory is in use. ours_run:
 * other workers of this run may be on it now, so that memory alone proves nothing. */
bool gpu_guard_is_clear(struct gpu_guard *g, bool ours_run, char *who, size_t size);

/* Bytes in use on the device, UINT64_MAX when unknown. */
uint64_t gpu_guard_used(struct gpu_guard *g);

/* Is what is in use now (back) at what it was before, within what contexts of the driver's own may add? */
bool gpu_guard_is_back(uint64_t before, uint64_t now);

#endif
