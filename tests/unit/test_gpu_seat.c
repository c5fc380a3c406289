/* test_gpu_seat.c — who else is on a GPU, whether memory came back, and what that makes of a result. The driver is the
 * test double of tests/fake/nvml.c. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "launch/gpu_seat.h"
#include "tests/fake/driver.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define CARD "GPU-11111111-2222-3333-4444-555555555555"
#define RUN "0123456789abcdef"

static pid_t stranger, worker;

/* `sleep` with or without the mark of this run in its environment. */
static pid_t start(const char *mark)
{
    char *argv[] = {(char *)"sleep", (char *)"100", NULL}, *environment[] = {(char *)mark, NULL};
    pid_t pid = fork();
    if (pid == 0) {
        execve("/bin/sleep", argv, environment);
        _exit(127);
    }
    char path[64], name[16] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    for (int i = 0; i < 1000 && strncmp(name, "sleep", 5) != 0; i++) { /* until it is that program */
        FILE *f = fopen(path, "r");
        if (f && !fgets(name, sizeof name, f))
            name[0] = '\0';
        if (f)
            fclose(f);
        usleep(1000);
    }
    return pid;
}

static int start_both(void **state)
{
    (void)state;
    stranger = start("QSWEEP_RUN=fedcba9876543210");
    worker = start("QSWEEP_RUN=" RUN);
    return stranger > 0 && worker > 0 ? 0 : -1;
}

static int end_both(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        pid_t pid = i ? worker : stranger;
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    return 0;
}

/* What the guard says about a card with this use and these processes; "" = nobody. */
static const char *others(const char *before, int used_mb, const char *fmt, ...)
{
    static char       who[400];
    char              text[1024], processes[512];
    struct gpu_guard *g;
    va_list           args;
    va_start(args, fmt);
    vsnprintf(processes, sizeof processes, fmt, args);
    va_end(args);
    snprintf(text, sizeof text, "%sgpu " CARD " H200 150000 %d 0:0\n%s", before, used_mb, processes);
    driver_says(text);
    assert_int_equal(gpu_guard_open(CARD, RUN, &g), ST_OK);
    bool clear = gpu_guard_is_clear(g, false, who, sizeof who);
    assert_int_equal(clear, who[0] == '\0');
    gpu_guard_close(g);
    return who;
}

static void strangers_are_named_and_our_own_workers_are_not(void **state)
{
    (void)state;
    char want[128];
    assert_string_equal(others("", 3, ""), "");
    assert_string_equal(others("", 9000, "process %d 8000\n", (int)worker), "");
    snprintf(want, sizeof want, "process %d (sleep, 8000 MB)", (int)stranger);
    assert_string_equal(others("", 9000, "process %d 8000\n", (int)stranger), want);
    assert_string_equal(others("", 9000, "process %d 500\nprocess %d 8000\n", (int)worker, (int)stranger), want);
    snprintf(want, sizeof want, "process %d (sleep, bytes unknown)", (int)stranger);
    assert_string_equal(others("", 9000, "process %d na\n", (int)stranger), want);
}

static void a_process_of_another_container_is_named_as_the_driver_does(void **state)
{
    (void)state;
    /* Beyond any pid that this kernel gives out. */
    assert_string_equal(others("", 9000, "process 99999999 70 trainer\n"), "process 99999999 (trainer, 70 MB)");
    assert_non_null(strstr(others("", 9000, "process 99999999 70\n"), "another container or user"));
}

static void many_strangers_are_counted(void **state)
{
    (void)state;
    const char *who = others("", 9000, "process 99999991 1 a\nprocess 99999992 1 b\nprocess 99999993 1 c\n"
                                       "process 99999994 1 d\nprocess 99999995 1 e\nprocess 99999996 1 f\n");
    assert_non_null(strstr(who, "99999994"));
    assert_null(strstr(who, "99999995"));
    assert_non_null(strstr(who, "and 2 more"));
}

static void memory_without_processes_tells_in_containers_and_with_old_drivers(void **state)
{
    (void)state;
    assert_string_equal(others("", 500, ""), ""); /* a display */
    assert_non_null(strstr(others("", 600, ""), "600 MB in use by processes that NVML does not show"));
    assert_string_equal(others("v1\n", 1000, ""), ""); /* v1 counts 600 MB of the driver's own as used */
    assert_non_null(strstr(others("v1\n", 3000, ""), "3600 MB in use"));
}

static void memory_is_back_within_a_context_s_slack(void **state)
{
    (void)state;
    assert_true(gpu_guard_is_back(1000000000, 1064000000));
    assert_false(gpu_guard_is_back(1000000000, 1064000001));
    assert_true(gpu_guard_is_back(1000000000, 0));
    assert_true(gpu_guard_is_back(UINT64_MAX, 5));
    assert_true(gpu_guard_is_back(5, UINT64_MAX));
}

static struct gpu_seat seat_of(enum foreign_mode mode, double wait_s)
{
    struct gpu_seat s = {.here = true, .sharers = 1, .foreign = mode, .wait_s = wait_s, .turn = {.socket = -1}};
    snprintf(s.gpu.uuid, sizeof s.gpu.uuid, CARD);
    assert_int_equal(gpu_guard_open(CARD, RUN, &s.guard), ST_OK);
    return s;
}

static void an_occupied_gpu_is_marked_waited_for_or_ignored(void **state)
{
    (void)state;
    const struct {
        enum foreign_mode mode;
        enum gpu_ready    ready;
        bool              named;
    } cases[] = {{FOREIGN_MARK, GPU_READY, true}, {FOREIGN_WAIT, GPU_REFUSED, true}, {FOREIGN_IGNORE, GPU_READY, true}};
    for (size_t i = 0; i < 3; i++) {
        struct gpu_visit visit = {.used = 0};
        driver_says("gpu " CARD " H200 150000 9000 0:0\n");
        struct gpu_seat s = seat_of(cases[i].mode, 0);
        assert_int_equal(gpu_seat_ready(&s, &visit), cases[i].ready);
        assert_int_equal(visit.foreign[0] != '\0', cases[i].named);
        gpu_seat_close(&s);
        s = seat_of(cases[i].mode, 3600);
        assert_int_equal(gpu_seat_ready(&s, &visit), cases[i].mode == FOREIGN_IGNORE ? GPU_READY : GPU_LATER);
        assert_int_equal(gpu_seat_is_free(&s), false);
        gpu_seat_close(&s);
    }
}

static void an_ok_result_that_was_not_alone_is_contaminated(void **state)
{
    (void)state;
    struct result    r;
    struct gpu_visit visit = {.used = 0};
    driver_says("gpu " CARD " H200 150000 3 0:0\n");
    struct gpu_seat s = seat_of(FOREIGN_MARK, 0);
    assert_int_equal(gpu_seat_ready(&s, &visit), GPU_READY);
    assert_int_equal(visit.used, 3000000);
    gpu_seat_leave(&s, &visit);
    result_init(&r);
    r.status = CELL_OK;
    assert_int_equal(gpu_seat_note(&s, &visit, &r), ST_OK);
    assert_int_equal(r.status, CELL_OK);
    assert_string_equal(result_fact(&r, "gpu_memory_returned"), "yes");

    /* Somebody comes while the worker runs. */
    char text[256];
    snprintf(text, sizeof text, "gpu " CARD " H200 150000 8003 0:0\nprocess %d 8000\n", (int)stranger);
    driver_says(text);
    gpu_seat_leave(&s, &visit);
    assert_int_equal(gpu_seat_note(&s, &visit, &r), ST_OK);
    assert_int_equal(r.status, CELL_CONTAMINATED);
    assert_non_null(strstr(r.reason, "sleep, 8000 MB"));
    assert_string_equal(result_fact(&r, "gpu_memory_returned"), "no");

    r.status = CELL_OOM; /* the worker's own failure stands */
    assert_int_equal(gpu_seat_note(&s, &visit, &r), ST_OK);
    assert_int_equal(r.status, CELL_OOM);
    gpu_seat_close(&s);
    result_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_are_named_and_our_own_workers_are_not),
        cmocka_unit_test(a_process_of_another_container_is_named_as_the_driver_does),
        cmocka_unit_test(many_strangers_are_counted),
        cmocka_unit_test(memory_without_processes_tells_in_containers_and_with_old_drivers),
        cmocka_unit_test(memory_is_back_within_a_context_s_slack),
        cmocka_unit_test(an_occupied_gpu_is_marked_waited_for_or_ignored),
        cmocka_unit_test(an_ok_result_that_was_not_alone_is_contaminated),
    };
    driver_load();
    int failed = cmocka_run_group_tests(tests, start_both, end_both);
    driver_is_gone();
    return failed;
}
