#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LEVEL_UNSET = LOG_NONE - 1 };

static char who_label[128];
static int  level_now = LEVEL_UNSET;

void log_set_who(const char *who)
{
    snprintf(who_label, sizeof who_label, "%s", who ? who : "");
}

void log_set_level(enum log_level level)
{
    level_now = (int)level;
}

static int level_from_environment(void)
{
    static const char *const names[] = {"none", "error", "warn", "info", "debug"};
    const char              *text    = getenv("QSWEEP_LOG");
    for (int i = 0; text && i < 5; i++)
        if (strcmp(text, names[i]) == 0)
            return LOG_NONE + i;
    return LOG_INFO;
}

enum log_level log_get_level(void)
{
    if (level_now == LEVEL_UNSET)
        level_now = level_from_environment();
    return (enum log_level)level_now;
}

/* One write(2) a line, so that lines of several processes on one stderr do not mix. */
void log_line(enum log_level level, const char *fmt, ...)
{
    static const char *const prefix[] = {"error: ", "warning: ", "", "debug: "};
    if ((int)level > (int)log_get_level())
        return;

    char line[2048];
    int  n = snprintf(line, sizeof line, "%s%s%s", who_label, who_label[0] ? ": " : "", prefix[level]);
    va_list args;
    va_start(args, fmt);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, args);
    va_end(args);
    if (m < 0)
        return;
    n += m;
    if (n > (int)sizeof line - 2)
        n = (int)sizeof line - 2;
    line[n++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)n);
    (void)ignored;
}
