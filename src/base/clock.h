/* clock.h — monotonic time for measuring, wall time for labels. */
#ifndef QSWEEP_BASE_CLOCK_H
#define QSWEEP_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

/* Nanoseconds of CLOCK_MONOTONIC: never jumps with the wall clock, comparable between processes of one host. */
int64_t clock_ns(void);

static inline double clock_ms_since(int64_t t0_ns)
{
    return (double)(clock_ns() - t0_ns) * 1e-6;
}

/* Wall time as ISO 8601 UTC, "2026-01-31T12:00:00Z" (21 bytes with the terminator). */
void clock_iso(char *out, size_t size);

/* Wall time as YYYYMMDD_HHMMSS in local time, for names of folders. */
void clock_stamp(char *out, size_t size);

#endif
