/* tap.h — the few lines of TAP that the GPU tests need: they run on bare machines without a test library. */
#ifndef QSWEEP_TESTS_GPU_TAP_H
#define QSWEEP_TESTS_GPU_TAP_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int tap_count, tap_failures;

/* One result; on failure the reason that tap_because() collected follows as a diagnosis. */
static char tap_reason[1024];

__attribute__((format(printf, 1, 2), unused)) static void tap_because(const char *fmt, ...)
{
    if (tap_reason[0])
        return; /* the first reason counts */
    va_list args;
    va_start(args, fmt);
    vsnprintf(tap_reason, sizeof tap_reason, fmt, args);
    va_end(args);
}

__attribute__((format(printf, 2, 3), unused)) static void tap_ok(int good, const char *fmt, ...)
{
    va_list args;
    good = good && !tap_reason[0];
    printf("%s %d - ", good ? "ok" : "not ok", ++tap_count);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    putchar('\n');
    if (tap_reason[0])
        printf("# %s\n", tap_reason);
    tap_reason[0] = '\0';
    tap_failures += !good;
    fflush(stdout);
}

__attribute__((unused)) static int tap_done(void)
{
    printf("1..%d\n", tap_count);
    return tap_failures ? 1 : 0;
}

/* Whether ONLY= (a substring) asks for this test. */
__attribute__((unused)) static int tap_wanted(const char *name)
{
    const char *only = getenv("ONLY");
    return !only || !*only || strstr(name, only) != NULL;
}

#endif
