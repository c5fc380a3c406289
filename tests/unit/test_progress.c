/* test_progress.c — progress.jsonl has every event, and people are told failures but not flooded. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "launch/progress.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CELLS = 40 };

/* Run body with stderr going to a file; returns how many lines came and that text (NUL-terminated, cut to size). */
static int lines_told(void (*body)(void *), void *ctx, char *text, size_t size)
{
    char path[] = "/tmp/qsweep-test-progress-XXXXXX";
    int  fd = mkstemp(path), saved = dup(STDERR_FILENO), n = 0;
    assert_true(fd >= 0 && saved >= 0);
    dup2(fd, STDERR_FILENO);
    body(ctx);
    dup2(saved, STDERR_FILENO);
    close(saved);
    ssize_t got = pread(fd, text, size - 1, 0);
    text[got > 0 ? got : 0] = '\0';
    for (const char *c = text; *c; c++)
        n += *c == '\n';
    close(fd);
    unlink(path);
    return n;
}

struct scene {
    char            *dir;
    struct plan      plan;
    enum cell_status status; /* of every cell */
};

static void play(void *ctx)
{
    struct scene    *s = ctx;
    struct progress *p;
    assert_int_equal(progress_open(s->dir, &s->plan, 0, CELLS, false, &p), ST_OK);
    for (uint64_t i = 0; i < CELLS; i++) {
        struct progress_event e = {.kind = PROGRESS_START, .rank = 1, .cell = i, .pid = 77, .host = "node07"};
        progress_event(p, &e);
        e.kind = PROGRESS_END;
        e.status = s->status;
        e.seconds = 1.5;
        snprintf(e.reason, sizeof e.reason, "%s", s->status == CELL_OK ? "" : "it \"broke\"");
        progress_event(p, &e);
        e.kind = PROGRESS_CELL;
        e.process = 0;
        progress_event(p, &e);
    }
    assert_int_equal(progress_done(p), CELLS);
    assert_int_equal(progress_failed(p), s->status == CELL_OK ? 0 : CELLS);
    progress_close(p);
}

static void prepare(struct scene *s)
{
    static char dir[64];
    strcpy(dir, "/tmp/qsweep-test-progress-XXXXXX");
    assert_non_null(mkdtemp(dir));
    *s = (struct scene){.dir = dir, .plan = {.n = CELLS, .cells = calloc(CELLS, sizeof(struct cell))}};
    for (int i = 0; i < CELLS; i++) {
        cell_defaults(&s->plan.cells[i]);
        s->plan.cells[i].batch = i + 1;
        snprintf(s->plan.cells[i].id, sizeof s->plan.cells[i].id, "%032d", i);
    }
}

static void clear(struct scene *s)
{
    char path[128];
    snprintf(path, sizeof path, "%s/progress.jsonl", s->dir);
    unlink(path);
    rmdir(s->dir);
    free(s->plan.cells);
}

/* Objects of one event in the file; every line has to be one whole object. */
static int count_events(const struct scene *s, const char *event)
{
    char path[128], line[2048];
    int  n = 0;
    snprintf(path, sizeof path, "%s/progress.jsonl", s->dir);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        json_t *j = json_loads(line, 0, NULL);
        assert_non_null(j);
        n += strcmp(json_string_value(json_object_get(j, "event")), event) == 0;
        json_decref(j);
    }
    fclose(f);
    return n;
}

static void finished_cells_are_told_at_most_every_ten_seconds_but_recorded_all(void **state)
{
    (void)state;
    static char  text[65536];
    struct scene s;
    prepare(&s);
    s.status = CELL_OK;
    int lines = lines_told(play, &s, text, sizeof text);
    assert_int_equal(lines, 2); /* the first cell, and the closing line: the scene takes far less than ten seconds */
    assert_non_null(strstr(text, "40 of 40 cells done"));
    assert_int_equal(count_events(&s, "start"), CELLS);
    assert_int_equal(count_events(&s, "end"), CELLS + 1); /* every worker's, and the sweep's */
    assert_int_equal(count_events(&s, "cell"), CELLS);
    clear(&s);
}

static void every_failure_is_told_with_its_reason(void **state)
{
    (void)state;
    static char  text[65536];
    struct scene s;
    prepare(&s);
    s.status = CELL_OOM;
    lines_told(play, &s, text, sizeof text);
    int told = 0;
    for (const char *at = text; (at = strstr(at, "oom (it \"broke\", rank 1 on node07)")); at++)
        told++;
    assert_int_equal(told, CELLS);
    clear(&s);
}

static void durations_read_like_a_clock(void **state)
{
    (void)state;
    static const struct {
        double      seconds;
        const char *text;
    } cases[] = {{-1, "0.0 s"},      {0.44, "0.4 s"},      {12.4, "12 s"},
                 {61, "1 min 01 s"}, {3600, "1 h 00 min"}, {86399, "23 h 59 min"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        progress_duration(cases[i].seconds, text, sizeof text);
        assert_string_equal(text, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finished_cells_are_told_at_most_every_ten_seconds_but_recorded_all),
        cmocka_unit_test(every_failure_is_told_with_its_reason),
        cmocka_unit_test(durations_read_like_a_clock),
    };
    return cmocka_run_group_tests_name("progress", tests, NULL, NULL);
}
