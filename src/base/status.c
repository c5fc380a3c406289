#include "base/status.h"

#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char last_message[1024];

status_t status_raise(status_t code, const char *file, int line, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(last_message, sizeof last_message, fmt, args);
    va_end(args);
    log_line(LOG_ERROR, "%s", last_message);
    log_debug("raised as \"%s\" at %s:%d", status_name(code), file, line);
    return code;
}

const char *status_name(status_t code)
{
    static const char *const names[ST_COUNT] = {
        [ST_OK] = "ok",
        [ST_EUSAGE] = "usage",
        [ST_EINPUT] = "bad input",
        [ST_EIO] = "input/output",
        [ST_ENOMEM] = "out of host memory",
        [ST_EOOM] = "out of device memory",
        [ST_EDEVICE] = "device",
        [ST_EUNSUPPORTED] = "unsupported",
        [ST_EINTERRUPTED] = "interrupted",
        [ST_EINTERNAL] = "internal",
    };
    return code >= 0 && code < ST_COUNT ? names[code] : "unknown";
}

int status_exit(status_t code)
{
    return code == ST_OK ? 0 : code == ST_EUSAGE ? 2 : 1;
}

const char *status_last(void)
{
    return last_message;
}

void status_adopt(const char *message)
{
    snprintf(last_message, sizeof last_message, "%s", message);
}
