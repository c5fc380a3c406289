/* test_outcome.c — what a worker's end means, and how the parts of a cell become one. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/log.h"
#include "launch/outcome.h"
#include "store/cell_file.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char part_path[64];

static void make_work(struct work *w)
{
    const char *texts[] = {"one", "two"};
    memset(w, 0, sizeof *w);
    cell_defaults(&w->cell);
    assert_int_equal(cell_set_model(&w->cell, "model"), ST_OK);
    assert_int_equal(workload_set_texts(&w->cell.workload, texts, 2), ST_OK);
    strcpy(w->cell.fingerprint, "0123456789abcdef0123456789abcdef");
    assert_int_equal(cell_identify(&w->cell), ST_OK);
    w->cell.deadline_s = 30;
    w->n_parts = 2;
    w->rank = 5;
}

/* A part with n samples of two steps each, whose numbers tell part and place. */
static struct result make_part(const struct work *w, int part, int n, enum cell_status status)
{
    struct result r;
    char          zero[32];
    result_init(&r);
    assert_int_equal(cell_copy(&w->cell, &r.cell), ST_OK);
    r.status = status;
    assert_int_equal(result_set_reason(&r, status == CELL_OK ? "" : "it broke"), ST_OK);
    for (int i = 0; i < n; i++) {
        struct sample s = {.text = i % 2,
                           .repeat = i / 2,
                           .process = part,
                           .order = i,
                           .steps = 2,
                           .frames = 2,
                           .t0_ns = 1000 * part + i};
        double        steps[2] = {100 * part + i, 100 * part + i + 0.5};
        assert_int_equal(result_add_sample(&r, &s, steps), ST_OK);
    }
    struct trace_point point = {.t_ns = 7};
    assert_int_equal(result_add_trace(&r, &point, 1), ST_OK);
    snprintf(zero, sizeof zero, "%d", 1000000 * (part + 1));
    assert_int_equal(result_add_fact(&r, "trace_t0_ns", zero), ST_OK);
    assert_int_equal(result_set_log(&r, part ? "second says\n" : "first says\n"), ST_OK);
    r.memory_peak[MEM_KV] = (size_t)(100 + part);
    r.baseline_bytes = 50;
    r.peak_bytes = (uint64_t)(200 - part);
    r.load_s = 1 + part;
    r.first_frame_s = 2 + part;
    r.total_s = 10;
    r.step_bytes = 1000 + 100 * part;
    return r;
}

static struct spawn_result make_end(enum spawn_end end, int exit_code, int sig)
{
    return (struct spawn_result){.job = 1,
                                 .end = end,
                                 .exit_code = exit_code,
                                 .signal = sig,
                                 .exec_ns = 1000000000,
                                 .end_ns = 3000000000,
                                 .max_rss_kib = 2048,
                                 .log = strdup("error: last words\n"),
                                 .log_size = 18};
}

static void a_worker_without_a_file_is_explained_by_its_end(void **state)
{
    (void)state;
    static const struct {
        enum spawn_end   end;
        int              exit_code, sig, oom_kill;
        const char      *why;
        enum cell_status status;
        const char      *reason;
    } cases[] = {
        {SPAWN_EXITED, 1, 0, 0, "", CELL_CRASHED, "status 1 without a result: last words"},
        {SPAWN_EXITED, 0, 0, 0, "", CELL_CRASHED, "status 0 without a result"},
        {SPAWN_EXITED, -1, SIGSEGV, 0, "", CELL_CRASHED, "signal 11"},
        {SPAWN_EXITED, -1, SIGKILL, 0, "", CELL_CRASHED, "signal 9"},
        {SPAWN_EXITED, -1, SIGKILL, 1, "", CELL_OOM, "host's out-of-memory killer"},
        {SPAWN_EXITED, -1, SIGKILL, 2, "", CELL_OOM, "memory cgroup of this job"},
        {SPAWN_EXITED, -1, SIGSEGV, 2, "", CELL_CRASHED, "signal 11"},
        {SPAWN_DEADLINE, -1, SIGKILL, 0, "", CELL_TIMEOUT, "deadline of 30 s"},
        {SPAWN_DROPPED, -1, SIGKILL, 0, "SIGUSR1", CELL_INTERRUPTED, "SIGUSR1"},
        {SPAWN_UNKILLABLE, -1, 0, 0, "", CELL_CRASHED, "did not die of SIGKILL"},
    };
    struct work w;
    make_work(&w);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct spawn_result end = make_end(cases[i].end, cases[i].exit_code, cases[i].sig);
        struct result       r;
        end.oom_kill = cases[i].oom_kill;
        assert_int_equal(outcome_of(&w, &end, "/nowhere/part.h5", cases[i].why, &r), ST_OK);
        if (r.status != cases[i].status || !strstr(r.reason, cases[i].reason))
            fail_msg("case %zu: %s, \"%s\"; want %s with \"%s\"", i, cell_status_name(r.status), r.reason,
                     cell_status_name(cases[i].status), cases[i].reason);
        assert_string_equal(r.cell.id, w.cell.id);
        assert_string_equal(r.log, "error: last words\n");
        assert_int_equal(r.rank, 5);
        assert_int_equal(r.signal, cases[i].sig);
        result_free(&r);
        spawn_result_free(&end);
    }
    work_free(&w);
}

static void a_workers_own_word_stands_unless_the_launcher_knows_better(void **state)
{
    (void)state;
    static const struct {
        enum cell_status own;
        enum spawn_end   end;
        int              exit_code, sig;
        enum cell_status status;
    } cases[] = {
        {CELL_OK, SPAWN_EXITED, 0, 0, CELL_OK},
        {CELL_OOM, SPAWN_EXITED, 3, 0, CELL_OOM},
        {CELL_OK, SPAWN_EXITED, -1, SIGSEGV, CELL_CRASHED},     /* died after it had written */
        {CELL_INTERRUPTED, SPAWN_DEADLINE, 3, 0, CELL_TIMEOUT}, /* it only saw a SIGTERM */
        {CELL_INTERRUPTED, SPAWN_DROPPED, 3, 0, CELL_INTERRUPTED},
        {CELL_OK, SPAWN_DEADLINE, 0, 0, CELL_OK}, /* done at the last moment */
    };
    struct work w;
    make_work(&w);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct result       part = make_part(&w, 0, 3, cases[i].own), r;
        struct spawn_result end = make_end(cases[i].end, cases[i].exit_code, cases[i].sig);
        assert_int_equal(cell_file_write(part_path, &part), ST_OK);
        result_free(&part);
        assert_int_equal(outcome_of(&w, &end, part_path, "", &r), ST_OK);
        if (r.status != cases[i].status)
            fail_msg("case %zu: %s, want %s", i, cell_status_name(r.status), cell_status_name(cases[i].status));
        assert_int_equal(r.n_samples, 3);
        assert_string_equal(r.log, "error: last words\n");
        result_free(&r);
        spawn_result_free(&end);
    }
    work_free(&w);
}

static void the_file_of_another_cell_is_not_taken(void **state)
{
    (void)state;
    struct work w;
    make_work(&w);
    struct result       part = make_part(&w, 0, 1, CELL_OK), r;
    struct spawn_result end = make_end(SPAWN_EXITED, 0, 0);
    assert_int_equal(cell_file_write(part_path, &part), ST_OK);
    w.cell.batch = 7;
    assert_int_equal(cell_identify(&w.cell), ST_OK);
    assert_int_equal(outcome_of(&w, &end, part_path, "", &r), ST_OK);
    assert_int_equal(r.status, CELL_CRASHED);
    result_free(&r);
    result_free(&part);
    spawn_result_free(&end);
    work_free(&w);
}

static void joined_parts_keep_every_sample_with_its_steps(void **state)
{
    (void)state;
    struct work w;
    make_work(&w);
    struct result parts[2] = {make_part(&w, 0, 3, CELL_OK), make_part(&w, 1, 2, CELL_OK)}, r;
    assert_int_equal(outcome_join(parts, 2, &r), ST_OK);
    assert_int_equal(r.status, CELL_OK);
    assert_int_equal(r.n_samples, 5);
    assert_int_equal(r.n_steps, 10);
    for (int i = 0; i < 5; i++) {
        const struct sample *s = &r.samples[i];
        assert_int_equal(s->order, i);
        assert_int_equal(s->process, i >= 3);
        assert_true(r.step_ms[s->step_offset] == 100 * s->process + (i >= 3 ? i - 3 : i));
    }
    assert_int_equal(r.n_trace, 2);
    assert_int_equal(r.trace[0].t_ns, 7);
    assert_int_equal(r.trace[1].t_ns, 1000007); /* on the first part's clock */
    assert_int_equal(r.memory_peak[MEM_KV], 101);
    assert_int_equal(r.baseline_bytes, 50);
    assert_int_equal(r.peak_bytes, 200);
    assert_true(r.load_s == 1.5 && r.first_frame_s == 2.5 && r.total_s == 20);
    assert_true(fabs(r.step_bytes - (1000.0 * 6 + 1100.0 * 4) / 10) < 1e-9);
    assert_non_null(strstr(r.log, "first says"));
    assert_non_null(strstr(r.log, "second says"));
    result_free(&r);
    work_free(&w);
}

static void one_failed_part_makes_the_cell_fail_and_keeps_the_others_samples(void **state)
{
    (void)state;
    struct work w;
    make_work(&w);
    struct result parts[2] = {make_part(&w, 0, 3, CELL_OK), make_part(&w, 1, 0, CELL_OOM)}, r;
    parts[1].load_s = parts[1].first_frame_s = parts[1].step_bytes = NAN;
    parts[1].peak_bytes = UINT64_MAX;
    assert_int_equal(outcome_join(parts, 2, &r), ST_OK);
    assert_int_equal(r.status, CELL_OOM);
    assert_string_equal(r.reason, "process 2 of 2: it broke");
    assert_int_equal(r.n_samples, 3);
    assert_true(r.load_s == 1 && r.step_bytes == 1000);
    assert_int_equal(r.peak_bytes, 200);
    result_free(&r);
    work_free(&w);
}

static void last_words_are_the_last_line_that_is_not_empty(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", ""}, {"one", "one"}, {"one\ntwo\n", "two"}, {"one\nerror: two\n \n\n", "two"}, {"\n\n", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char words[64];
        outcome_last_words(cases[i][0], words, sizeof words);
        assert_string_equal(words, cases[i][1]);
    }
}

int main(void)
{
    log_set_level(LOG_ERROR);
    snprintf(part_path, sizeof part_path, "/tmp/qsweep-test-outcome-%d.h5", (int)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_worker_without_a_file_is_explained_by_its_end),
        cmocka_unit_test(a_workers_own_word_stands_unless_the_launcher_knows_better),
        cmocka_unit_test(the_file_of_another_cell_is_not_taken),
        cmocka_unit_test(joined_parts_keep_every_sample_with_its_steps),
        cmocka_unit_test(one_failed_part_makes_the_cell_fail_and_keeps_the_others_samples),
        cmocka_unit_test(last_words_are_the_last_line_that_is_not_empty),
    };
    int failed = cmocka_run_group_tests_name("outcome", tests, NULL, NULL);
    unlink(part_path);
    return failed;
}
