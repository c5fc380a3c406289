/* cpu_team.h — a team of pinned threads that split one piece of work at a time.
 *
 * The caller is thread 0. A decode step makes about 700 short runs (5–100 µs each), so a run is handed over by a store
 * that the others spin on; a spin is bounded (CPU_TEAM_SPIN_NS), after it a thread sleeps in the kernel until the next
 * run. One thread may use a team at a time. */
#ifndef QSWEEP_BACKEND_CPU_TEAM_H
#define QSWEEP_BACKEND_CPU_TEAM_H

#include "base/status.h"

#include <stdbool.h>

/* Longer than the host's work between two runs of a decode step (sampling a codebook takes 10–100 µs), so that a step
 * costs no wake-up; short enough that an idle team costs nothing. */
enum { CPU_TEAM_SPIN_NS = 200 * 1000 };

struct cpu_team;

/* One part of the work, 0 ≤ thread < n_threads; must not run the team again. */
typedef void (*cpu_task)(void *ctx, int thread, int n_threads);

/* n_threads 0 = one for each allowed physical core, within the control group's quota. pin: thread i stays on the i-th
 * allowed core; the caller itself is pinned from its first run until the team is closed (threads it starts meanwhile
 * inherit that, so they should set their own mask). ST_EUSAGE for an impossible count. */
status_t cpu_team_open(int n_threads, bool pin, struct cpu_team **out);
void     cpu_team_close(struct cpu_team *team); /* NULL is accepted */

int cpu_team_size(const struct cpu_team *team);

/* Run every part of task, 0 ≤ thread < size, each once and by one thread: the caller takes its own and those whose thread
 * did not arrive in time. Returns when all are finished; what they wrote is visible then. */
void cpu_team_run(struct cpu_team *team, cpu_task task, void *ctx);

/* The part of n items that a thread works on: [*from, *to), contiguous, multiples of `unit` except at the end. */
void cpu_team_part(int n, int unit, int thread, int n_threads, int *from, int *to);

#endif
