/* fabric.h — a group of launcher processes: who am I, and the few collectives the launcher needs.
 * fabric_mpi.c is the only file with <mpi.h>; fabric_solo.c is a group of one. Never called from an error path.
 *
 * Every wait sleeps between its looks (≤ 2 ms): a spinning rank would take a core from the cell that is being measured.
 */
#ifndef QSWEEP_LAUNCH_FABRIC_H
#define QSWEEP_LAUNCH_FABRIC_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

enum { FABRIC_MESSAGE_MAX = 1024 }; /* bytes of one small message */

struct fabric_info {
    int  rank, size;             /* in the whole group                        */
    int  local_rank, local_size; /* among the ranks of this host              */
    int  host_index, n_hosts;    /* hosts are numbered by their lowest ranks  */
    char host[64];
};

status_t       fabric_open(int *argc, char ***argv, struct fabric_info *out);
void           fabric_close(void);
const char    *fabric_name(void); /* "mpi", "solo" */
/* The library behind it, one line ("Open MPI v4.1.4, …"); "" for solo. Valid after fabric_open. */
const char    *fabric_version(void);
status_t       fabric_barrier(void);
status_t       fabric_broadcast(void *data, size_t bytes, int root);
/* recv [size·bytes] on root only (NULL elsewhere). */
status_t       fabric_gather(const void *send, size_t bytes, void *recv, int root);
status_t       fabric_all_gather(const void *send, size_t bytes, void *recv);
/* The same among the ranks with local_rank 0, one a host, addressed by host_index; no other rank may call them. */
status_t fabric_hosts_broadcast(void *data, size_t bytes, int root_host);
status_t fabric_hosts_all_gather(const void *send, size_t bytes, void *recv);
/* Small messages (≤ FABRIC_MESSAGE_MAX), for progress and dynamic hand-out. A send never blocks: it is copied and goes
 * when it can; fabric_close waits at most two seconds for those still under way. A rank may send to itself. */
status_t       fabric_send(const void *data, size_t bytes, int to, int tag);
/* *from = -1 and ST_OK when nothing has come; waits up to timeout_ms. */
status_t       fabric_poll(void *data, size_t capacity, int tag, int timeout_ms, int *from, size_t *bytes);
/* Leave without asking the others, when a signal leaves no time: MPI is not finalized. */
_Noreturn void fabric_leave(int exit_status);

#endif
