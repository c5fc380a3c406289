/* trace.c — the memory trace and its thread. */
#include "bench/trace.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const int64_t DEFAULT_PERIOD_NS = 10000000;
static const int64_t SLOW_PERIOD_NS = 100000000;
static const int64_t PSS_COST_FACTOR = 100; /* PSS may take 1/100 of the time */

struct trace {
    pthread_t             thread;
    pthread_mutex_t       lock; /* guards everything below */
    pthread_cond_t        wake;
    bool                  stopping, out_of_memory;
    int64_t               t0_ns, period_ns, next_slow_ns, next_pss_ns;
    enum phase            phase;
    struct memory_ledger *ledger;
    struct trace_source   source;
    struct trace_point   *points;
    size_t                n, capacity;
};

uint64_t process_rss(void)
{
    char text[128];
    int  fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return UINT64_MAX;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    unsigned long long resident;
    text[n > 0 ? n : 0] = '\0';
    if (sscanf(text, "%*u %llu", &resident) != 1)
        return UINT64_MAX;
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

uint64_t process_pss(void)
{
    char text[1024];
    int  fd = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return UINT64_MAX;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    const char        *line = strstr(text, "\nPss:");
    unsigned long long kib;
    if (!line || sscanf(line, "\nPss: %llu kB", &kib) != 1)
        return UINT64_MAX;
    return kib * 1024;
}

/* Called with the lock held. `all`: read the slow values whatever the time. */
static struct trace_point take(struct trace *t, bool all)
{
    int64_t            now = clock_ns();
    struct trace_point p = {
        .t_ns = now - t->t0_ns,
        .device_used = UINT64_MAX,
        .process_used = process_rss(),
        .pss = UINT64_MAX,
        .arena = t->ledger ? atomic_load(&t->ledger->total) : 0,
        .phase = t->phase,
        .sm_clock_mhz = NAN,
        .mem_clock_mhz = NAN,
        .power_mw = NAN,
        .temperature_c = NAN,
    };
    if (all || now >= t->next_pss_ns) {
        p.pss = process_pss();
        int64_t cost = clock_ns() - now, pause = cost * PSS_COST_FACTOR;
        t->next_pss_ns = now + (pause > SLOW_PERIOD_NS ? pause : SLOW_PERIOD_NS);
    }
    bool slow = all || now >= t->next_slow_ns;
    if (slow)
        t->next_slow_ns = now + SLOW_PERIOD_NS;
    if (t->source.read)
        t->source.read(t->source.ctx, slow, &p);

    if (t->n == t->capacity) {
        size_t              capacity = t->capacity ? 2 * t->capacity : 4096;
        struct trace_point *points = realloc(t->points, capacity * sizeof *points);
        if (!points) {
            t->out_of_memory = true;
            return p;
        }
        t->points = points;
        t->capacity = capacity;
    }
    t->points[t->n++] = p;
    return p;
}

static void add_ns(struct timespec *ts, int64_t ns)
{
    ns += ts->tv_nsec;
    ts->tv_sec += ns / 1000000000;
    ts->tv_nsec = ns % 1000000000;
}

static void *tick(void *argument)
{
    struct trace   *t = argument;
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    pthread_mutex_lock(&t->lock);
    while (!t->stopping) {
        take(t, false);
        add_ns(&next, t->period_ns);
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > next.tv_sec || (now.tv_sec == next.tv_sec && now.tv_nsec > next.tv_nsec))
            next = now; /* late: skip the ticks that were missed instead of bunching them */
        while (!t->stopping && pthread_cond_timedwait(&t->wake, &t->lock, &next) == 0)
            ;
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

status_t trace_start(const struct trace_options *options, struct trace **out)
{
    struct trace *t = calloc(1, sizeof *t);
    if (!t)
        return FAIL(ST_ENOMEM, "no memory for the trace");
    t->t0_ns = options->t0_ns;
    t->period_ns = options->period_ms > 0 ? (int64_t)(options->period_ms * 1e6) : DEFAULT_PERIOD_NS;
    t->source = options->source;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int error = pthread_create(&t->thread, NULL, tick, t);
    if (error) {
        pthread_cond_destroy(&t->wake);
        pthread_mutex_destroy(&t->lock);
        free(t);
        return FAIL(ST_EIO, "cannot start the trace thread: %s", strerror(error));
    }
    *out = t;
    return ST_OK;
}

void trace_watch(struct trace *t, struct memory_ledger *ledger)
{
    pthread_mutex_lock(&t->lock);
    t->ledger = ledger;
    pthread_mutex_unlock(&t->lock);
}

void trace_set_source(struct trace *t, struct trace_source source)
{
    pthread_mutex_lock(&t->lock);
    t->source = source;
    pthread_mutex_unlock(&t->lock);
}

void trace_phase(struct trace *t, enum phase phase)
{
    pthread_mutex_lock(&t->lock);
    take(t, true);
    t->phase = phase;
    take(t, true);
    pthread_mutex_unlock(&t->lock);
}

struct trace_point trace_sample(struct trace *t)
{
    pthread_mutex_lock(&t->lock);
    struct trace_point p = take(t, true);
    pthread_mutex_unlock(&t->lock);
    return p;
}

static void raise_to(uint64_t *peak, uint64_t value)
{
    if (value != UINT64_MAX && (*peak == UINT64_MAX || value > *peak))
        *peak = value;
}

void trace_peaks(struct trace *t, enum phase since, uint64_t *process_peak, uint64_t *device_peak)
{
    *process_peak = *device_peak = UINT64_MAX;
    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->n; i++)
        if (t->points[i].phase >= (int)since) {
            raise_to(process_peak, t->points[i].process_used);
            raise_to(device_peak, t->points[i].device_used);
        }
    pthread_mutex_unlock(&t->lock);
}

status_t trace_stop(struct trace *t, struct result *r)
{
    if (!t)
        return ST_OK;
    pthread_mutex_lock(&t->lock);
    t->stopping = true;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
    status_t st = t->out_of_memory ? FAIL(ST_ENOMEM, "no memory for the trace after %zu points", t->n)
                                   : result_add_trace(r, t->points, t->n);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    free(t->points);
    free(t);
    return st;
}
