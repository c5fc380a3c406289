/* staging.h — weights brought to every node once, before the first cell: one read-only file a node and model, in a memory
 * file system, which that node's cells map (`weights.share` of a job).
 *
 *   shard    every rank reads 1/N of the rows and quantizes them; the nodes exchange what they made
 *   shared   the first rank's node reads and quantizes all; the others receive it
 *   none     nothing is staged: every cell reads the model's own files
 *   auto     shard where the ranks are on several nodes that have the room, else none
 *
 * Reading and quantizing happens in `qsweep stage` processes that write into the node's file (ranks may hang on a dead file
 * server no more than they may crash); the ranks carry bytes between nodes over the fabric. Whatever the way, the file is
 * that of `qsweep quantize`, and each part's checksum travels beside it and is compared on every node.
 *
 * With QSWEEP_STAGE_NCCL=1 and an NVIDIA GPU on every node, `qsweep stage` processes carry the bytes between nodes through
 * NCCL instead (peer.h); this way is not measured yet.
 *
 * The folder is /dev/shm/qsweep-UID-RUN (QSWEEP_STAGE_DIR names another place than /dev/shm), for its user alone; its size
 * is checked against statvfs first and reserved. It goes when the launcher ends, also when it is killed (the spawner
 * removes it); what a power cut leaves goes at the next start. */
#ifndef QSWEEP_LAUNCH_STAGING_H
#define QSWEEP_LAUNCH_STAGING_H

#include "launch/prepare.h"
#include "launch/seat.h"
#include "launch/spawn.h"

#include <signal.h>

/* One model in one form. */
struct staged {
    const char *model; /* the plan's */
    enum recipe recipe; /* RECIPE_NONE: as it is */
    char        folder[4096], checksum[33];
};

struct staging;

/* Collective. *out is NULL when nothing is staged. ST_EIO on every rank when the job asks for shard or shared and a node has
 * no room. stop: a signal to leave. */
status_t staging_open(const struct prepared *prepared, const struct seat *seat, struct spawner *spawner,
                      const volatile sig_atomic_t *stop, struct staging **out);
/* Remove this node's files; NULL is accepted. */
void staging_close(struct staging *s);

/* Where a cell finds its model, or NULL: where the plan says. s may be NULL. */
const struct staged *staging_find(const struct staging *s, const struct cell *c);
const char          *staging_mode_name(const struct staging *s); /* "shard", "shared" */

/* ---- between staging.c and its parts ---- */

struct stage_file;

/* staging_folder.c: a fresh folder of this run below the memory file system, and the end of those whose launcher died. */
struct stage_folder {
    char path[2048];
    int  lock_fd; /* held while the folder is in use */
};
const char *stage_folder_base(void);
void        stage_folder_sweep(void);
status_t    stage_folder_make(uint64_t run_id, struct stage_folder *out);
void        stage_folder_name(uint64_t run_id, char *out, size_t size);
void        stage_folder_remove(struct stage_folder *f);
/* Free bytes there, UINT64_MAX when that cannot be known. */
uint64_t stage_folder_free(void);

/* staging_exchange.c: one process a host. `file` is this host's map; host_of [n_parts]: which host has a part. After it
 * every host has every part. */
struct exchange_times {
    double copy_s, transfer_s;
    size_t bytes; /* received from other hosts */
};
struct exchange_carrier { /* adds to the seconds it is given */
    status_t (*broadcast)(void *ctx, void *data, size_t bytes, int root_host, struct exchange_times *times);
    status_t (*all_gather)(void *ctx, const void *send, size_t bytes, void *recv, struct exchange_times *times);
    void  *ctx;
    size_t chunk; /* of a broadcast */
};
extern const struct exchange_carrier fabric_carrier;
status_t staging_exchange(const struct exchange_carrier *by, int host_index, int n_hosts, const struct stage_file *f, int n_parts,
                          const int *host_of, unsigned char *file, struct exchange_times *times);

#endif
