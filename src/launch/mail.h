/* mail.h — what ranks tell each other while a sweep runs: events to rank 0, orders from it. */
#ifndef QSWEEP_LAUNCH_MAIL_H
#define QSWEEP_LAUNCH_MAIL_H

#include "launch/fabric.h"
#include "launch/progress.h"

enum { MAIL_CELLS_MAX = 100 };

/* To rank 0. */
enum report_kind { REPORT_WANT_WORK, REPORT_STOP_ASKED, REPORT_FINISHED };
struct report {
    int32_t kind;
    int32_t broken; /* FINISHED: this rank could not do its work */
};

/* From rank 0. */
enum order_kind { TELL_STOP, TELL_RELEASE, TELL_WORK, TELL_WAIT, TELL_NO_MORE };
struct order {
    int32_t  kind;
    int32_t  n; /* WORK: cells, ascending plan indices */
    uint64_t cells[MAIL_CELLS_MAX];
};

/* After how long a rank that was told to wait for the refused + 1st time in a row asks again: from 50 ms, doubling up
 * to 1.6 s. At a fixed 50 ms the idle ranks of a fleet of 4,096 put 80,000 questions a second to rank 0 while the last
 * cells run. */
static inline int64_t mail_ask_again_ns(int refused)
{
    return (int64_t)50000000 << (refused < 5 ? refused : 5);
}

status_t mail_event(const struct progress_event *e);
status_t mail_report(const struct report *r);
status_t mail_order(const struct order *o, int to);

/* *from = -1 when there is none within timeout_ms. */
status_t mail_poll_event(struct progress_event *e, int timeout_ms, int *from);
status_t mail_poll_report(struct report *r, int timeout_ms, int *from);
status_t mail_poll_order(struct order *o, int timeout_ms, int *from);

#endif
