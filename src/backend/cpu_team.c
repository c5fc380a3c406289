#include "backend/cpu_team.h"

#include "backend/cpu_topology.h"
#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CACHE_LINE = 64, CHECK_CLOCK_EVERY = 32 };

/* A worker's part of a run belongs to whoever moves `claim` from the run before to this one: the worker when it arrives,
 * or the caller when it has done its own part and the worker still sleeps or has lost its core. So a busy machine costs
 * a team its speed-up, not its progress. */
struct worker {
    alignas(CACHE_LINE) _Atomic uint32_t claim; /* the last generation whose part was taken    */
    _Atomic uint32_t done;                      /* the last generation this worker has finished */
    struct cpu_team *team;
    pthread_t        thread;
    int              index;
};

/* A line for each direction of news: what the caller writes at every run, what a worker writes when it falls asleep, what
 * the caller writes when it does. A hand-over there and back is then two transfers of a line and takes 0.10 µs; with the
 * sleepers' count beside the generation it took 0.50 µs (two Zen 5 cores; a bare ping-pong takes 0.09–0.12 µs). */
struct cpu_team {
    alignas(CACHE_LINE) _Atomic uint32_t generation; /* counts runs; a change starts one      */
    cpu_task task;                                   /* written before generation, read after */
    void    *ctx;
    bool     stop;
    alignas(CACHE_LINE) atomic_int sleepers; /* workers in, or on their way into, the kernel */
    alignas(CACHE_LINE) atomic_bool caller_sleeps;
    int            n_threads, n_started;
    int64_t        spin_ns;
    bool           pin, caller_pinned;
    pthread_t      caller;
    cpu_set_t      caller_mask;
    struct worker *workers; /* [n_threads − 1] */
};

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Spin until *word differs from (equal: is) value; false when the time is over. */
static bool spin(_Atomic uint32_t *word, uint32_t value, bool equal, int64_t spin_ns)
{
    int64_t end = 0;
    for (unsigned i = 0;; i++) {
        if ((atomic_load_explicit(word, memory_order_acquire) == value) == equal)
            return true;
        if (spin_ns == 0)
            return false;
        cpu_relax();
        if (i % CHECK_CLOCK_EVERY == CHECK_CLOCK_EVERY - 1) {
            int64_t now = clock_ns();
            if (end == 0)
                end = now + spin_ns;
            else if (now > end)
                return false;
        }
    }
}

/* The sleeper announces itself before it looks again, the waker changes the word before it looks for sleepers; both
 * sequentially consistent, so one of them sees the other. */
static void wait_for_run(struct cpu_team *team, uint32_t seen)
{
    if (spin(&team->generation, seen, false, team->spin_ns))
        return;
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->generation) == seen)
        futex_wait(&team->generation, seen);
    atomic_fetch_sub(&team->sleepers, 1);
}

static void wait_for_worker(struct cpu_team *team, struct worker *w, uint32_t generation)
{
    if (spin(&w->done, generation, true, team->spin_ns))
        return;
    atomic_store(&team->caller_sleeps, true);
    for (uint32_t seen; (seen = atomic_load(&w->done)) != generation;)
        futex_wait(&w->done, seen);
    atomic_store(&team->caller_sleeps, false);
}

/* True for exactly one of the worker and the caller. While a claimed part is not done the run cannot end, so its task
 * stays what it is. */
static bool claim(struct worker *w, uint32_t generation)
{
    uint32_t before = generation - 1;
    /* Looking first leaves the line shared when the answer is no, as it mostly is for the caller. */
    return atomic_load_explicit(&w->claim, memory_order_relaxed) == before &&
           atomic_compare_exchange_strong(&w->claim, &before, generation);
}

static void pin_to(pthread_t thread, int index)
{
    const struct cpu_topology *t = cpu_topology_get();
    cpu_set_t                  set;
    int                        cpu = t->cpus[index % t->n_allowed];
    if (cpu >= CPU_SETSIZE)
        return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    int rc = pthread_setaffinity_np(thread, sizeof set, &set);
    if (rc != 0)
        log_debug("thread %d could not be pinned to CPU %d: %s", index, cpu, strerror(rc));
}

static void *worker_main(void *arg)
{
    struct worker   *w = arg;
    struct cpu_team *team = w->team;
    for (uint32_t seen = 0;;) {
        wait_for_run(team, seen);
        seen = atomic_load(&team->generation);
        if (!claim(w, seen))
            continue;
        if (team->stop)
            return NULL;
        team->task(team->ctx, w->index, team->n_threads);
        atomic_store(&w->done, seen);
        if (atomic_load(&team->caller_sleeps))
            futex_wake(&w->done);
    }
}

static void start_run(struct cpu_team *team)
{
    atomic_store(&team->generation, atomic_load_explicit(&team->generation, memory_order_relaxed) + 1);
    if (atomic_load(&team->sleepers) > 0)
        futex_wake(&team->generation);
}

status_t cpu_team_open(int n_threads, bool pin, struct cpu_team **out)
{
    const struct cpu_topology *t = cpu_topology_get();
    if (n_threads < 0 || n_threads > CPU_MAX_CORES)
        return FAIL(ST_EUSAGE, "threads = %d, want 0 (all allowed cores) to %d", n_threads, CPU_MAX_CORES);
    if (n_threads == 0)
        n_threads = t->n_cores;

    size_t           size = (sizeof(struct cpu_team) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    struct cpu_team *team = aligned_alloc(CACHE_LINE, size);
    struct worker   *workers = aligned_alloc(CACHE_LINE, (size_t)n_threads * sizeof *workers);
    if (!team || !workers) {
        free(team);
        free(workers);
        return FAIL(ST_ENOMEM, "no memory for a team of %d threads", n_threads);
    }
    memset(team, 0, sizeof *team);
    memset(workers, 0, (size_t)n_threads * sizeof *workers);
    team->n_threads = n_threads;
    team->workers = workers;
    /* More threads than cores: whoever spins keeps another from working. */
    team->spin_ns = n_threads <= t->n_allowed ? CPU_TEAM_SPIN_NS : 0;
    team->pin = pin && n_threads <= t->n_allowed;
    for (int i = 1; i < n_threads; i++) {
        struct worker *w = &workers[i - 1];
        w->team = team;
        w->index = i;
        int rc = pthread_create(&w->thread, NULL, worker_main, w);
        if (rc != 0) {
            cpu_team_close(team);
            return FAIL(ST_EDEVICE, "thread %d of %d: %s", i + 1, n_threads, strerror(rc));
        }
        team->n_started++;
        if (team->pin)
            pin_to(w->thread, i);
    }
    *out = team;
    return ST_OK;
}

void cpu_team_close(struct cpu_team *team)
{
    if (!team)
        return;
    team->stop = true;
    start_run(team);
    for (int i = 0; i < team->n_started; i++)
        pthread_join(team->workers[i].thread, NULL);
    if (team->caller_pinned)
        pthread_setaffinity_np(team->caller, sizeof team->caller_mask, &team->caller_mask);
    free(team->workers);
    free(team);
}

int cpu_team_size(const struct cpu_team *team)
{
    return team->n_threads;
}

static void pin_caller(struct cpu_team *team)
{
    team->caller = pthread_self();
    team->caller_pinned =
        pthread_getaffinity_np(team->caller, sizeof team->caller_mask, &team->caller_mask) == 0;
    if (team->caller_pinned)
        pin_to(team->caller, 0);
    team->pin = false;
}

void cpu_team_run(struct cpu_team *team, cpu_task task, void *ctx)
{
    if (team->n_threads == 1) {
        task(ctx, 0, 1);
        return;
    }
    if (team->pin)
        pin_caller(team);
    team->task = task;
    team->ctx = ctx;
    start_run(team);
    task(ctx, 0, team->n_threads);
    uint32_t generation = atomic_load_explicit(&team->generation, memory_order_relaxed);
    for (int i = 0; i < team->n_started; i++) {
        struct worker *w = &team->workers[i];
        if (atomic_load_explicit(&w->done, memory_order_acquire) == generation)
            continue;
        if (claim(w, generation))
            task(ctx, w->index, team->n_threads);
        else
            wait_for_worker(team, w, generation);
    }
}

void cpu_team_part(int n, int unit, int thread, int n_threads, int *from, int *to)
{
    int64_t units = ((int64_t)n + unit - 1) / unit;
    int64_t a = units * thread / n_threads * unit, b = units * (thread + 1) / n_threads * unit;
    *from = (int)(a < n ? a : n);
    *to = (int)(b < n ? b : n);
}
