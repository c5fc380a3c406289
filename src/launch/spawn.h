/* spawn.h — starts worker processes through a small spawner process that is forked before MPI_Init (a fork after it is
 * unsafe on some fabrics) and never links the launcher's state.
 *
 * A worker gets: its own process group, /dev/null as stdin, a scrubbed environment (no OMPI_*, PMIX_*, PRTE_*, PMI_*,
 * ORTE_*), default signals, a core set of its own, and death when the spawner dies. Its stderr is captured: the last
 * SPAWN_LOG_MAX bytes come back with the result. At its deadline it gets SIGTERM, after a grace SIGKILL.
 * The spawner ends, and with it every worker, when the launcher closes it or dies. */
#ifndef QSWEEP_LAUNCH_SPAWN_H
#define QSWEEP_LAUNCH_SPAWN_H

#include "base/status.h"
#include "base/cores.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SPAWN_LOG_MAX = 65536 };

struct spawn_request {
    char *const        *argv;          /* NULL-terminated; argv[0] is the path that is executed                */
    char *const        *environment;   /* "KEY=value" set after the scrubbing, NULL-terminated; NULL = none    */
    const struct cores *cores;         /* NULL = inherit                                                       */
    double              deadline_s;    /* after the start; 0 = none                                            */
    double              grace_s;       /* between SIGTERM and SIGKILL                                          */
    size_t              address_space; /* RLIMIT_AS in bytes; 0 = inherit                                      */
    bool                forward;       /* copy its stderr to ours while it runs                                */
};

enum spawn_end { SPAWN_EXITED, SPAWN_DEADLINE, SPAWN_DROPPED, SPAWN_UNKILLABLE };

struct spawn_result {
    int            job;       /* as given by spawner_start                                              */
    enum spawn_end end;       /* who ended it: itself, its deadline, spawner_drop; or it would not die  */
    int            exit_code; /* -1 when a signal ended it                                              */
    int            signal;    /* 0 when it exited                                                       */
    int            oom_kill;  /* oom_kill_between() over its life: 2 our cgroup, 1 this host, 0 none    */
    int64_t        exec_ns;   /* CLOCK_MONOTONIC just before its exec                                   */
    int64_t        end_ns;
    double         user_s, system_s;
    long           max_rss_kib, major_faults, involuntary_switches;
    char          *log; /* stderr tail, NUL-terminated; freed by spawn_result_free                */
    size_t         log_size;
    bool           log_cut; /* there was more before it                                               */
};
void spawn_result_free(struct spawn_result *r);

struct spawner;

/* Forks. Call before any thread or MPI_Init. */
status_t spawner_open(struct spawner **out);
/* Kills what still runs; NULL is accepted. */
void     spawner_close(struct spawner *s);

/* *job > 0 names the worker in later calls, *pid is its process id (NULL if not wanted). An executable that cannot be
 * executed is not an error here: the worker ends with exit code 127 and says why in its log. */
status_t spawner_start(struct spawner *s, const struct spawn_request *request, int *job, int *pid);
/* Wait up to timeout_ms for a worker to end; out->job = 0 when none has. ST_EINTERNAL once the spawner itself is gone:
 * its workers are then dead as well. A signal ends the wait early, as if nothing had come. */
status_t spawner_wait(struct spawner *s, int timeout_ms, struct spawn_result *out);
/* End a worker: SIGTERM now, SIGKILL after grace_s (at once when 0). Its result comes with SPAWN_DROPPED. */
status_t spawner_drop(struct spawner *s, int job, double grace_s);
/* Remove this folder and all in it when the spawner ends, whether the launcher closes it or is killed. One folder. */
status_t spawner_remove_at_end(struct spawner *s, const char *folder);
/* Process id of the spawner, for messages and tests. */
int      spawner_pid(const struct spawner *s);

/* ---- between the two halves (spawn.c, spawner.c) ---- */

/* The spawner's life on its end of the socket pair; does not return. */
_Noreturn void spawner_serve(int socket);

#endif
