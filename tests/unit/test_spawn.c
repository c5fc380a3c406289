/* test_spawn.c — the spawner's promises, with /bin/sh as the worker. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/log.h"
#include "launch/spawn.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct spawner *spawner;

static int set_up(void **state)
{
    (void)state;
    return spawner_open(&spawner) == ST_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    spawner_close(spawner);
    return 0;
}

static int start(const char *script, const struct spawn_request *base, int *pid)
{
    char *const          argv[] = {"/bin/sh", "-c", (char *)(uintptr_t)script, NULL};
    struct spawn_request request = base ? *base : (struct spawn_request){0};
    int                  job = 0;
    request.argv = argv;
    assert_int_equal(spawner_start(spawner, &request, &job, pid), ST_OK);
    assert_true(job > 0);
    return job;
}

static struct spawn_result wait_for_one(void)
{
    struct spawn_result r;
    do
        assert_int_equal(spawner_wait(spawner, 1000, &r), ST_OK);
    while (r.job == 0);
    return r;
}

static struct spawn_result run(const char *script, const struct spawn_request *base)
{
    int                 job = start(script, base, NULL);
    struct spawn_result r = wait_for_one();
    assert_int_equal(r.job, job);
    return r;
}

/* True once no process has this id; a zombie does not count as one. */
static int is_gone(int pid)
{
    for (int i = 0; i < 500; i++) {
        char path[64], state = 'X';
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        FILE *f = fopen(path, "r");
        if (!f)
            return 1;
        if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
            state = 'X';
        fclose(f);
        if (state == 'Z' || state == 'X')
            return 1;
        usleep(10000);
    }
    return 0;
}

static void the_exit_code_and_the_log_of_a_worker_come_back(void **state)
{
    (void)state;
    struct spawn_result r = run("echo to-stderr >&2; exit 7", NULL);
    assert_int_equal(r.exit_code, 7);
    assert_int_equal(r.signal, 0);
    assert_int_equal(r.end, SPAWN_EXITED);
    assert_string_equal(r.log, "to-stderr\n");
    assert_true(r.end_ns > r.exec_ns);
    spawn_result_free(&r);
}

static void the_signal_that_killed_a_worker_comes_back(void **state)
{
    (void)state;
    struct spawn_result r = run("kill -SEGV $$", NULL);
    assert_int_equal(r.exit_code, -1);
    assert_int_equal(r.signal, SIGSEGV);
    assert_int_equal(r.end, SPAWN_EXITED);
    spawn_result_free(&r);
}

static void a_program_that_cannot_be_executed_ends_with_127_and_says_why(void **state)
{
    (void)state;
    char *const          argv[] = {"/nowhere/worker", NULL};
    struct spawn_request request = {.argv = argv};
    int                  job;
    assert_int_equal(spawner_start(spawner, &request, &job, NULL), ST_OK);
    struct spawn_result r = wait_for_one();
    assert_int_equal(r.exit_code, 127);
    assert_non_null(strstr(r.log, "cannot execute /nowhere/worker"));
    spawn_result_free(&r);
}

static void variables_of_mpi_do_not_reach_a_worker_but_others_do(void **state)
{
    (void)state;
    char *const              extra[] = {"QSWEEP_TEST_EXTRA=given", NULL};
    struct spawn_result      r = run("env >&2", &(struct spawn_request){.environment = extra});
    static const char *const foreign[] = {"OMPI_", "PMIX_", "PRTE_", "PMI_", "ORTE_"};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (strstr(r.log, foreign[i]))
            fail_msg("%s reached the worker:\n%s", foreign[i], r.log);
    assert_non_null(strstr(r.log, "QSWEEP_TEST_KEPT=here"));
    assert_non_null(strstr(r.log, "QSWEEP_TEST_EXTRA=given"));
    assert_non_null(strstr(r.log, "QSWEEP_EXEC_NS="));
    spawn_result_free(&r);
}

static void stdin_is_empty_and_signals_are_default_and_the_group_is_its_own(void **state)
{
    (void)state;
    /* SigIgn (bit 0 = signal 1) of a fresh worker must be empty although the spawner ignores several. */
    struct spawn_result r = run("cat; grep SigIgn /proc/$$/status >&2; ps -o pgid= -p $$ >/dev/null 2>&1;"
                                "cut -d' ' -f5 /proc/$$/stat >&2; echo $$ >&2",
                                NULL);
    assert_int_equal(r.exit_code, 0);
    unsigned long long ignored = 1;
    int                group = 0, pid = 1;
    assert_int_equal(sscanf(r.log, "SigIgn: %llx %d %d", &ignored, &group, &pid), 3);
    ignored &= ~0x180000000ull; /* 32 and 33 are the C library's own: no program can reset what it inherited there */
    assert_int_equal(ignored, 0);
    assert_int_equal(group, pid);
    spawn_result_free(&r);
}

static void a_deadline_ends_a_worker_that_obeys_with_sigterm(void **state)
{
    (void)state;
    struct spawn_result r = run("trap 'echo asked >&2; exit 9' TERM; while :; do sleep 0.05; done",
                                &(struct spawn_request){.deadline_s = 0.3, .grace_s = 60});
    assert_int_equal(r.end, SPAWN_DEADLINE);
    assert_int_equal(r.exit_code, 9);
    assert_non_null(strstr(r.log, "asked\n"));
    spawn_result_free(&r);
}

static void a_deadline_ends_a_worker_that_does_not_obey_with_sigkill(void **state)
{
    (void)state;
    struct spawn_result r =
        run("trap '' TERM; while :; do sleep 0.05; done", &(struct spawn_request){.deadline_s = 0.2, .grace_s = 0.2});
    assert_int_equal(r.end, SPAWN_DEADLINE);
    assert_int_equal(r.signal, SIGKILL);
    spawn_result_free(&r);
}

static void a_stopped_worker_is_killed_at_its_deadline(void **state)
{
    (void)state;
    struct spawn_result r = run("kill -STOP $$", &(struct spawn_request){.deadline_s = 0.2, .grace_s = 0.2});
    assert_int_equal(r.end, SPAWN_DEADLINE);
    assert_int_equal(r.signal, SIGKILL);
    spawn_result_free(&r);
}

static void a_dropped_worker_and_what_it_started_are_gone(void **state)
{
    (void)state;
    int pid, job = start("sleep 600 & echo $! >&2; wait", NULL, &pid);
    usleep(200000);
    assert_int_equal(spawner_drop(spawner, job, 0), ST_OK);
    struct spawn_result r = wait_for_one();
    assert_int_equal(r.end, SPAWN_DROPPED);
    assert_int_equal(r.signal, SIGKILL);
    assert_true(is_gone(pid));
    int grandchild = atoi(r.log);
    assert_true(grandchild > 0);
    assert_true(is_gone(grandchild));
    spawn_result_free(&r);
}

static void the_last_64_kib_of_a_long_log_are_kept(void **state)
{
    (void)state;
    struct spawn_result r =
        run("i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done >&2; echo the-end >&2", NULL);
    assert_true(r.log_cut);
    assert_int_equal(r.log_size, SPAWN_LOG_MAX);
    assert_string_equal(r.log + r.log_size - strlen("line-19999\nthe-end\n"), "line-19999\nthe-end\n");
    spawn_result_free(&r);
}

static void many_workers_at_once_each_report_once(void **state)
{
    (void)state;
    enum { WORKERS = 24 };
    int job[WORKERS], seen[WORKERS] = {0};
    for (int i = 0; i < WORKERS; i++) {
        char script[64];
        snprintf(script, sizeof script, "exit %d", i);
        job[i] = start(script, NULL, NULL);
    }
    for (int n = 0; n < WORKERS; n++) {
        struct spawn_result r = wait_for_one();
        assert_in_range(r.exit_code, 0, WORKERS - 1);
        assert_int_equal(r.job, job[r.exit_code]);
        seen[r.exit_code]++;
        spawn_result_free(&r);
    }
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(seen[i], 1);
}

static void a_worker_runs_on_the_cores_it_was_given(void **state)
{
    (void)state;
    struct cores all, one;
    assert_int_equal(cores_of_process(0, &all), ST_OK);
    one = all;
    one.n = 1;
    one.ids[0] = all.ids[all.n - 1];
    struct spawn_result r = run("grep Cpus_allowed_list /proc/self/status >&2", &(struct spawn_request){.cores = &one});
    int                 core = -1;
    assert_int_equal(sscanf(r.log, "Cpus_allowed_list: %d", &core), 1);
    assert_int_equal(core, one.ids[0]);
    spawn_result_free(&r);
}

static void an_address_space_limit_reaches_the_worker(void **state)
{
    (void)state;
    struct spawn_result r = run("ulimit -v >&2", &(struct spawn_request){.address_space = (size_t)512 << 20});
    assert_string_equal(r.log, "524288\n");
    spawn_result_free(&r);
}

static void workers_die_with_the_spawner_and_the_launcher_is_told(void **state)
{
    (void)state;
    int pid;
    start("sleep 600", NULL, &pid);
    assert_int_equal(kill(spawner_pid(spawner), SIGKILL), 0);
    struct spawn_result r;
    status_t            st;
    do
        st = spawner_wait(spawner, 1000, &r);
    while (st == ST_OK && r.job == 0);
    assert_int_equal(st, ST_EINTERNAL);
    assert_non_null(strstr(status_last(), "spawner"));
    assert_true(is_gone(pid));
}

/* The launcher is a child of this test that opens a spawner of its own, starts a worker and dies by SIGKILL. */
static void workers_die_with_the_launcher(void **state)
{
    (void)state;
    int   report[2];
    pid_t launcher;
    assert_int_equal(pipe(report), 0);
    launcher = fork();
    if (launcher == 0) {
        struct spawner      *own;
        char *const          argv[] = {"/bin/sh", "-c", "sleep 600", NULL};
        struct spawn_request request = {.argv = argv};
        int                  job, pids[2] = {0, 0};
        if (spawner_open(&own) == ST_OK && spawner_start(own, &request, &job, &pids[0]) == ST_OK)
            pids[1] = spawner_pid(own);
        ssize_t n = write(report[1], pids, sizeof pids);
        (void)n;
        raise(SIGKILL);
    }
    int pids[2];
    assert_int_equal(read(report[0], pids, sizeof pids), sizeof pids);
    close(report[0]);
    close(report[1]);
    waitpid(launcher, NULL, 0);
    assert_true(pids[0] > 0 && pids[1] > 0);
    assert_true(is_gone(pids[0]));
    assert_true(is_gone(pids[1]));
}

int main(void)
{
    setenv("OMPI_COMM_WORLD_RANK", "3", 1);
    setenv("OMPI_MCA_pml", "ob1", 1);
    setenv("PMIX_RANK", "3", 1);
    setenv("PRTE_LAUNCHED", "1", 1);
    setenv("PMI_RANK", "3", 1);
    setenv("QSWEEP_TEST_KEPT", "here", 1);
    log_set_level(LOG_ERROR);
#define WORKER_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WORKER_TEST(the_exit_code_and_the_log_of_a_worker_come_back),
        WORKER_TEST(the_signal_that_killed_a_worker_comes_back),
        WORKER_TEST(a_program_that_cannot_be_executed_ends_with_127_and_says_why),
        WORKER_TEST(variables_of_mpi_do_not_reach_a_worker_but_others_do),
        WORKER_TEST(stdin_is_empty_and_signals_are_default_and_the_group_is_its_own),
        WORKER_TEST(a_deadline_ends_a_worker_that_obeys_with_sigterm),
        WORKER_TEST(a_deadline_ends_a_worker_that_does_not_obey_with_sigkill),
        WORKER_TEST(a_stopped_worker_is_killed_at_its_deadline),
        WORKER_TEST(a_dropped_worker_and_what_it_started_are_gone),
        WORKER_TEST(the_last_64_kib_of_a_long_log_are_kept),
        WORKER_TEST(many_workers_at_once_each_report_once),
        WORKER_TEST(a_worker_runs_on_the_cores_it_was_given),
        WORKER_TEST(an_address_space_limit_reaches_the_worker),
        WORKER_TEST(workers_die_with_the_spawner_and_the_launcher_is_told),
        cmocka_unit_test(workers_die_with_the_launcher),
    };
    return cmocka_run_group_tests_name("spawn", tests, NULL, NULL);
}
