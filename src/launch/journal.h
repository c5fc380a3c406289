/* journal.h — the reading side of <output>/progress.jsonl: how far a sweep is, from another terminal, while it grows. */
#ifndef QSWEEP_LAUNCH_JOURNAL_H
#define QSWEEP_LAUNCH_JOURNAL_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JOURNAL_RANKS_MAX = 1 << 20, JOURNAL_LINE_MAX = 1 << 16 };

struct journal_rank {
    int    rank; /* -1: this place is free */
    char   host[64], label[128];
    bool   busy;
    double since_s, last_s; /* wall clock: its worker's start; its last event */
    size_t done, failed;    /* cells of this run                              */
};

enum journal_state { JOURNAL_EMPTY, JOURNAL_RUNNING, JOURNAL_ENDED };

struct journal {
    char                path[4200];
    int64_t             offset;   /* read so far                                                */
    char               *partial;  /* the line that is still being written */
    size_t              n_partial;
    enum journal_state  state;
    size_t              cells, done, failed, done_before; /* of the sweep; done when this run began */
    size_t              bad_lines;
    double              started_s, last_s; /* wall clock, seconds since the epoch                   */
    double              slowest_s;
    char                slowest[128], slowest_host[64], note[256];
    struct journal_rank *ranks; /* [n_ranks] by rank number, within the current run */
    size_t              n_ranks;
};

/* Nothing is read yet. */
void journal_init(struct journal *j, const char *folder);
void journal_free(struct journal *j);
/* Take in what was added since the last call. A file that is not there yet is fine. ST_EIO when it cannot be read. Lines
 * that are no event are counted and left out. */
status_t journal_read(struct journal *j);
/* One whole line, without its newline. */
status_t journal_line(struct journal *j, const char *line, size_t size);

/* Seconds left at the pace of this run, NaN while nothing is known. */
double journal_eta(const struct journal *j, double now_s);

#endif
