/* The thread team and what the processor lets it use. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/cpu_team.h"
#include "backend/cpu_topology.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { MAX_THREADS = 16 };

struct tally {
    int runs[MAX_THREADS]; /* by thread, not atomic: the team must order them */
    int n_threads;
};

static void count(void *ctx, int thread, int n_threads)
{
    struct tally *t = ctx;
    t->runs[thread]++;
    if (thread == 0)
        t->n_threads = n_threads;
}

static void every_thread_runs_each_task_once_and_its_writes_are_seen(void **state)
{
    static const int sizes[] = {1, 2, 3, 8};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        struct cpu_team *team;
        struct tally     t = {{0}, 0};
        assert_int_equal(cpu_team_open(sizes[s], false, &team), ST_OK);
        assert_int_equal(cpu_team_size(team), sizes[s]);
        for (int run = 1; run <= 2000; run++) {
            cpu_team_run(team, count, &t);
            for (int i = 0; i < sizes[s]; i++)
                assert_int_equal(t.runs[i], run);
        }
        assert_int_equal(t.n_threads, sizes[s]);
        cpu_team_close(team);
    }
}

/* Pauses on both sides of the spin's length, so that threads are caught spinning, falling asleep and asleep. */
static void a_team_wakes_from_any_depth_of_sleep(void **state)
{
    struct cpu_team *team;
    struct tally     t = {{0}, 0};
    assert_int_equal(cpu_team_open(2, true, &team), ST_OK);
    for (int run = 1; run <= 300; run++) {
        usleep((useconds_t)(CPU_TEAM_SPIN_NS / 1000 * (run % 5) / 2));
        cpu_team_run(team, count, &t);
        assert_int_equal(t.runs[1], run);
    }
    cpu_team_close(team);
}

struct meeting {
    atomic_int arrived, done;
};

/* The caller's part ends only when the worker has begun its own, which takes longer than the caller spins. */
static void slow_second(void *ctx, int thread, int n_threads)
{
    struct meeting *m = ctx;
    if (thread == 0) {
        for (int before = atomic_load(&m->done); atomic_load(&m->arrived) == before;)
            sched_yield();
        return;
    }
    atomic_fetch_add(&m->arrived, 1);
    usleep(3 * CPU_TEAM_SPIN_NS / 1000);
    atomic_fetch_add(&m->done, 1);
}

static void the_caller_sleeps_until_the_last_thread_is_done(void **state)
{
    struct cpu_team *team;
    struct meeting   m = {0, 0};
    assert_int_equal(cpu_team_open(2, false, &team), ST_OK);
    for (int run = 1; run <= 50; run++) {
        cpu_team_run(team, slow_second, &m);
        assert_int_equal(atomic_load(&m.done), run);
    }
    cpu_team_close(team);
}

struct crowd {
    pthread_t caller;
    int       taken; /* parts of others that the caller has run */
};

/* A worker that gets here makes itself the last in the queue for its core from then on. */
static void step_back(void *ctx, int thread, int n_threads)
{
    struct crowd *c = ctx;
    if (!pthread_equal(c->caller, pthread_self()))
        setpriority(PRIO_PROCESS, (id_t)gettid(), 19);
    else if (thread > 0)
        c->taken++;
}

/* All threads share one core, where the caller goes before the workers: they can hardly ever arrive in time. */
static void parts_of_threads_that_come_late_are_done_by_the_caller(void **state)
{
    struct cpu_team *team;
    struct crowd     c = {pthread_self(), 0};
    cpu_set_t        before, one;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    CPU_SET(cpu_topology_get()->cpus[0], &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(cpu_team_open(MAX_THREADS, false, &team), ST_OK);
    for (int run = 0; run < 500; run++)
        cpu_team_run(team, step_back, &c);
    cpu_team_close(team);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    assert_true(c.taken > 0);
}

static void note_cpu(void *ctx, int thread, int n_threads)
{
    cpu_set_t set;
    ((int *)ctx)[thread] = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : -1;
}

static void pinned_threads_stay_on_one_core_and_the_caller_gets_its_mask_back(void **state)
{
    struct cpu_team *team;
    cpu_set_t        before, after;
    int              cores[2] = {0, 0};
    if (cpu_topology_get()->n_allowed < 2)
        skip();
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    assert_int_equal(cpu_team_open(2, true, &team), ST_OK);
    cpu_team_run(team, note_cpu, cores);
    assert_int_equal(cores[0], 1);
    assert_int_equal(cores[1], 1);
    cpu_team_close(team);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
}

static void parts_cover_all_items_once_in_whole_units(void **state)
{
    for (int n = 0; n < 200; n += 7)
        for (int unit = 1; unit <= 16; unit *= 4)
            for (int threads = 1; threads <= 9; threads++) {
                int end = 0;
                for (int i = 0; i < threads; i++) {
                    int from, to;
                    cpu_team_part(n, unit, i, threads, &from, &to);
                    assert_int_equal(from, end);
                    assert_true(to >= from && (from % unit == 0 || from == n));
                    end = to;
                }
                assert_int_equal(end, n);
            }
}

static void impossible_team_sizes_are_refused(void **state)
{
    struct cpu_team *team = NULL;
    assert_int_equal(cpu_team_open(-1, false, &team), ST_EUSAGE);
    assert_int_equal(cpu_team_open(1 << 20, false, &team), ST_EUSAGE);
    assert_null(team);
    cpu_team_close(NULL);
}

static void the_topology_agrees_with_the_kernel(void **state)
{
    const struct cpu_topology *t = cpu_topology_get();
    cpu_set_t                  set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(t->n_allowed, CPU_COUNT(&set));
    assert_true(t->n_cores >= 1 && t->n_cores <= t->n_allowed);
    for (int i = 0; i < t->n_allowed; i++) {
        assert_true(CPU_ISSET(t->cpus[i], &set));
        for (int j = 0; j < i; j++)
            assert_int_not_equal(t->cpus[i], t->cpus[j]);
    }
    assert_true(t->memory_bytes > 1 << 20);
    assert_true(strlen(t->model) > 0);
}

static void quotas_are_read_as_cpus(void **state)
{
    assert_true(cpu_topology_quota("max 100000") == 0);
    assert_true(cpu_topology_quota("150000 100000") == 1.5);
    assert_true(cpu_topology_quota("-1 100000") == 0);
    assert_true(cpu_topology_quota("") == 0);
    assert_true(cpu_topology_quota("100000 0") == 0);
    assert_true(cpu_topology_quota("nan nan") == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_thread_runs_each_task_once_and_its_writes_are_seen),
        cmocka_unit_test(a_team_wakes_from_any_depth_of_sleep),
        cmocka_unit_test(the_caller_sleeps_until_the_last_thread_is_done),
        cmocka_unit_test(parts_of_threads_that_come_late_are_done_by_the_caller),
        cmocka_unit_test(pinned_threads_stay_on_one_core_and_the_caller_gets_its_mask_back),
        cmocka_unit_test(parts_cover_all_items_once_in_whole_units),
        cmocka_unit_test(impossible_team_sizes_are_refused),
        cmocka_unit_test(the_topology_agrees_with_the_kernel),
        cmocka_unit_test(quotas_are_read_as_cpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
