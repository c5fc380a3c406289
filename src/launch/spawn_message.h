/* spawn_message.h — what the launcher and its spawner say to each other: one SOCK_SEQPACKET packet a message. */
#ifndef QSWEEP_LAUNCH_SPAWN_MESSAGE_H
#define QSWEEP_LAUNCH_SPAWN_MESSAGE_H

#include <stdint.h>

/* A start carries argv, environment and cores; a done carries the log. 128 KiB is the most either needs and is below
 * the kernel's default send buffer (208 KiB). */
enum { SPAWN_PACKET_MAX = 131072 };

enum spawn_kind { SPAWN_MSG_START = 1, SPAWN_MSG_DROP, SPAWN_MSG_STARTED, SPAWN_MSG_DONE, SPAWN_MSG_REMOVE };

struct spawn_start {
    int32_t  kind, job;
    int64_t  deadline_ns, grace_ns; /* durations; deadline 0 = none */
    uint64_t address_space;
    int32_t  forward, n_argv, n_environment, n_cores;
    /* then int32_t cores [n_cores], then n_argv + n_environment strings, each with its NUL */
};

struct spawn_drop {
    int32_t kind, job;
    int64_t grace_ns;
};

struct spawn_remove {
    int32_t kind;
    char    folder[4096];
};

struct spawn_started {
    int32_t kind, job;
    int32_t pid, error; /* error: errno of the failed fork, 0 = started */
};

struct spawn_done {
    int32_t kind, job;
    int32_t end, exit_code, signal, oom_kill, log_cut, log_size;
    int64_t exec_ns, end_ns, user_us, system_us, max_rss_kib, major_faults, involuntary_switches;
    /* then the log's bytes */
};

#endif
