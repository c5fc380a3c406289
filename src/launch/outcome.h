/* outcome.h — what became of a worker: its own file if it left one, else a result that says why there is none; and the
 * parts of a cell joined into one. A failure is a result: it is written like any other. */
#ifndef QSWEEP_LAUNCH_OUTCOME_H
#define QSWEEP_LAUNCH_OUTCOME_H

#include "bench/work.h"
#include "launch/spawn.h"

/* What a worker that has ended came to. part_path: the file it was told to write (it may be absent or broken). `why` is
 * the launcher's reason to have dropped it ("" if it did not). *out is freed with result_free(). */
status_t outcome_of(const struct work *work, const struct spawn_result *end, const char *part_path, const char *why,
                    struct result *out);

/* The last line of a log that says something, without the "error: " in front; "" if there is none. */
void outcome_last_words(const char *log, char *out, size_t size);

/* A result for a cell that was never run, with this status and reason. */
status_t outcome_without_run(const struct work *work, enum cell_status status, const char *reason, struct result *out);

/* Join the parts [n] of one cell, in the order in which they ran: samples and steps one after another, traces on
 * the first part's clock, highest peaks, mean load and first-frame times. The status is ok if all are, else that of the
 * first that is not. parts are emptied. */
status_t outcome_join(struct result *parts, int n, struct result *out);

#endif
