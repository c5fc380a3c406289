#include "launch/mail.h"

enum { TAG_EVENT = 11, TAG_REPORT, TAG_ORDER };

_Static_assert(sizeof(struct progress_event) <= FABRIC_MESSAGE_MAX, "an event is one message");
_Static_assert(sizeof(struct order) <= FABRIC_MESSAGE_MAX, "an order is one message");

status_t mail_event(const struct progress_event *e)
{
    return fabric_send(e, sizeof *e, 0, TAG_EVENT);
}

status_t mail_report(const struct report *r)
{
    return fabric_send(r, sizeof *r, 0, TAG_REPORT);
}

status_t mail_order(const struct order *o, int to)
{
    return fabric_send(o, sizeof *o, to, TAG_ORDER);
}

static status_t poll_whole(void *out, size_t size, int tag, int timeout_ms, int *from)
{
    size_t bytes;
    TRY(fabric_poll(out, size, tag, timeout_ms, from, &bytes));
    return *from < 0 || bytes == size ? ST_OK
                                      : FAIL(ST_EINTERNAL, "a message of %zu bytes where %zu were due", bytes, size);
}

status_t mail_poll_event(struct progress_event *e, int timeout_ms, int *from)
{
    return poll_whole(e, sizeof *e, TAG_EVENT, timeout_ms, from);
}

status_t mail_poll_report(struct report *r, int timeout_ms, int *from)
{
    return poll_whole(r, sizeof *r, TAG_REPORT, timeout_ms, from);
}

status_t mail_poll_order(struct order *o, int timeout_ms, int *from)
{
    return poll_whole(o, sizeof *o, TAG_ORDER, timeout_ms, from);
}
