/* row_spool.h — summary rows on their way into the file: they come in any order and leave in summary order.
 *
 * Rows wait in an unlinked file beside the output, only their sort keys in memory (150 bytes a row): a merge of 100,000
 * cells stays small. Private to store/. */
#ifndef QSWEEP_STORE_ROW_SPOOL_H
#define QSWEEP_STORE_ROW_SPOOL_H

#include "bench/summary.h"

struct row_spool {
    int                 fd;
    struct summary_key *keys;
    size_t              n, room, next; /* next: of the sorted keys */
};

/* The file lies in the folder of `beside` and has no name. */
status_t row_spool_open(const char *beside, struct row_spool *out);
status_t row_spool_add(struct row_spool *s, const struct summary_row *row);
/* After the last row: put them in order. */
void     row_spool_sort(struct row_spool *s);
/* Up to n rows more, in order; *got = 0 at the end. */
status_t row_spool_next(struct row_spool *s, struct summary_row *rows, size_t n, size_t *got);
void     row_spool_close(struct row_spool *s); /* after a failure too */

#endif
