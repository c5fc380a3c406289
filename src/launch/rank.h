/* rank.h — one rank's share of a sweep: its workers one after another, their results joined and written as cell files.
 */
#ifndef QSWEEP_LAUNCH_RANK_H
#define QSWEEP_LAUNCH_RANK_H

#include "bench/result.h"
#include "launch/prepare.h"
#include "launch/progress.h"
#include "launch/seat.h"
#include "launch/spawn.h"
#include "launch/staging.h"

struct rank;

/* Path of the qsweep beside this program, which every worker is. */
status_t rank_program(char *out, size_t size);

/* Told about every worker's start and end and every finished cell. */
typedef void (*rank_tell)(void *ctx, const struct progress_event *e);

/* Everything given must outlive the rank. */
status_t rank_open(const struct launch *launch, const struct prepared *prepared, const struct seat *seat,
                   const struct staging *staging, struct spawner *spawner, rank_tell tell, void *ctx, struct rank **out);
/* A worker that still runs is left to the spawner; NULL is accepted. */
void     rank_close(struct rank *r);

/* Queue cells: ascending plan indices. */
status_t rank_add(struct rank *r, const size_t *cells, size_t n);

enum rank_state { RANK_BUSY, RANK_IDLE };
/* One turn: start what can be started, or wait up to 20 ms for the running worker and deal with its end. IDLE: nothing
 * runs and nothing is queued (or the rank was stopped or is broken). */
enum rank_state rank_step(struct rank *r);

/* Take no new cell. The running worker is dropped after grace_s (at once when 0); its cell is recorded as interrupted
 * with this reason, which must stay valid. A later call may shorten the grace. */
void rank_stop(struct rank *r, double grace_s, const char *why);

/* The launcher itself failed here: its spawner died, or the output folder cannot be written. */
bool rank_is_broken(const struct rank *r);

/* Write a result that no worker made (a cell that cannot run anywhere), and tell. */
status_t rank_record(struct rank *r, size_t cell, enum cell_status status, const char *reason);

#endif
