/* progress.h — what people see of a running sweep, and <output>/progress.jsonl for `qsweep watch`.
 *
 * On a terminal: one bar with an ETA, rewritten in place. Otherwise: a line when a cell finishes, but at most one line
 * every ten seconds, failures excepted: they are always told. The file gets one JSON object a line for every event. */
#ifndef QSWEEP_LAUNCH_PROGRESS_H
#define QSWEEP_LAUNCH_PROGRESS_H

#include "sweep/plan.h"

#include <stdbool.h>
#include <stdint.h>

enum progress_kind { PROGRESS_START, PROGRESS_END, PROGRESS_CELL };

/* One event of a worker or a cell; travels between ranks as it is. */
struct progress_event {
    int32_t  kind, rank;
    uint64_t cell;         /* index into the plan                              */
    int32_t  process, pid; /* START and END: which of the cell's processes; CELL: how many of them were not started */
    int32_t  status;       /* END and CELL: enum cell_status                   */
    double   seconds;      /* END: life of the worker; CELL: sum of its workers */
    char     host[64];
    char     reason[256];
};

struct progress;

/* kept: cells that were done before; n_runs: workers still to run. quiet: only the file, and errors. */
status_t progress_open(const char *output, const struct plan *plan, size_t kept, size_t n_runs, bool quiet,
                       struct progress **out);
void     progress_event(struct progress *p, const struct progress_event *e);
/* Something worth a line in the file ("stop", "merge") with one text. */
void     progress_note(struct progress *p, const char *event, const char *text);
/* Redraw what is due; call it often. */
void     progress_tick(struct progress *p);
/* The last line: what was done in which time. NULL is accepted. */
void     progress_close(struct progress *p);

/* Cells finished in this run, and how many of them not ok. */
size_t progress_done(const struct progress *p);
size_t progress_failed(const struct progress *p);

/* "2 h 05 min", "3 min 20 s", "12 s", "0.4 s". */
void progress_duration(double seconds, char *out, size_t size);

#endif
