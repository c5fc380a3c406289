/* oom_kill.h — how often the kernel's out-of-memory killer struck, to tell "killed for memory" from "killed by
 * someone". */
#ifndef QSWEEP_LAUNCH_OOM_KILL_H
#define QSWEEP_LAUNCH_OOM_KILL_H

#include <stdbool.h>

struct oom_kill {
    long long cgroup; /* kills inside our own memory cgroup, -1 = not readable */
    long long host;   /* kills on the whole host (/proc/vmstat), -1 likewise   */
};

void oom_kill_read(struct oom_kill *out);
/* A kill between the two readings: 2 = in our cgroup, 1 = somewhere on this host, 0 = none seen. */
int  oom_kill_between(const struct oom_kill *before, const struct oom_kill *after);

#endif
