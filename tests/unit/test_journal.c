#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "launch/journal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64], path[96];

static int make_folder(void **state)
{
    strcpy(folder, "/tmp/qsweep-journal-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/progress.jsonl", folder);
    return 0;
}

static int remove_folder(void **state)
{
    unlink(path);
    return rmdir(folder);
}

static void add(const char *text)
{
    FILE *f = fopen(path, "a");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

#define COMMON(t, done, failed) "\"time\":\"2026-01-31T12:00:" t "Z\",\"done\":" done ",\"failed\":" failed ",\"cells\":10}\n"
static const char RUN[]   = "{\"event\":\"run\",\"text\":\"started\"," COMMON("00", "0", "0");
static const char START[] = "{\"event\":\"start\",\"rank\":3,\"host\":\"node3\",\"label\":\"int8 b1\"," COMMON("01", "0", "0");
static const char STOP[]  = "{\"event\":\"end\",\"rank\":3,\"host\":\"node3\",\"label\":\"int8 b1\"," COMMON("05", "0", "0");
static const char CELL[]  = "{\"event\":\"cell\",\"rank\":3,\"host\":\"node3\",\"label\":\"int8 b1\",\"status\":\"oom\",\"seconds\":4.5," COMMON("05", "2", "1");
static const char END[]   = "{\"event\":\"end\",\"text\":\"5 s\"," COMMON("06", "2", "1");

static void events_become_counts_ranks_and_the_slowest_cell(void **state)
{
    struct journal j;
    journal_init(&j, folder);
    add(RUN);
    add(START);
    assert_int_equal(journal_read(&j), ST_OK);
    assert_int_equal(j.state, JOURNAL_RUNNING);
    assert_true(j.ranks[3].busy);
    assert_int_equal(j.ranks[0].rank, -1);
    assert_string_equal(j.ranks[3].host, "node3");
    assert_true(isnan(journal_eta(&j, j.started_s + 3)));
    add(STOP);
    add(CELL);
    assert_int_equal(journal_read(&j), ST_OK);
    assert_false(j.ranks[3].busy);
    assert_int_equal(j.done, 2);
    assert_int_equal(j.failed, 1);
    assert_int_equal(j.ranks[3].failed, 1);
    assert_float_equal(j.slowest_s, 4.5, 0);
    assert_string_equal(j.slowest, "int8 b1");
    assert_float_equal(journal_eta(&j, j.started_s + 5), 5.0 / 2 * 8, 1e-9);
    add(END);
    assert_int_equal(journal_read(&j), ST_OK);
    assert_int_equal(j.state, JOURNAL_ENDED);
    journal_free(&j);
}

static void a_line_that_is_still_being_written_waits_for_its_end(void **state)
{
    struct journal j;
    char           half[64];
    journal_init(&j, folder);
    snprintf(half, sizeof half, "%.40s", RUN);
    add(half);
    assert_int_equal(journal_read(&j), ST_OK);
    assert_int_equal(j.state, JOURNAL_EMPTY);
    add(RUN + 40);
    assert_int_equal(journal_read(&j), ST_OK);
    assert_int_equal(j.state, JOURNAL_RUNNING);
    assert_int_equal(j.bad_lines, 0);
    journal_free(&j);
}

static void what_is_no_event_is_counted_and_left_out(void **state)
{
    struct journal j;
    journal_init(&j, folder);
    add("\n\nnot json\n{}\n[1]\n{\"event\":7}\n{\"event\":\"start\",\"rank\":-5}\n{\"event\":\"start\",\"rank\":9999999999}\n");
    for (int i = 0; i < 4000; i++)
        add("a line that is far too long to be an event: ");
    add("\n");
    add(RUN);
    assert_int_equal(journal_read(&j), ST_OK);
    assert_int_equal(j.bad_lines, 5);
    assert_int_equal(j.n_ranks, 0);
    assert_int_equal(j.state, JOURNAL_RUNNING);
    journal_free(&j);
}

static void a_file_that_begins_anew_is_read_anew(void **state)
{
    struct journal j;
    journal_init(&j, folder);
    add(RUN);
    add(CELL);
    assert_int_equal(journal_read(&j), ST_OK);
    assert_int_equal(j.done, 2);
    unlink(path);
    add(RUN);
    assert_int_equal(journal_read(&j), ST_OK);
    assert_int_equal(j.done, 0);
    assert_int_equal(j.state, JOURNAL_RUNNING);
    journal_free(&j);
}

static void a_resumed_run_counts_its_pace_from_its_own_start(void **state)
{
    struct journal j;
    journal_init(&j, folder);
    add(RUN);
    add(CELL);
    add("{\"event\":\"run\",\"text\":\"resumed\",\"time\":\"2026-01-31T13:00:00Z\",\"done\":2,\"failed\":0,\"cells\":10}\n");
    add("{\"event\":\"cell\",\"rank\":0,\"host\":\"a\",\"status\":\"ok\",\"seconds\":1,\"time\":\"2026-01-31T13:00:10Z\",\"done\":3,\"failed\":0,\"cells\":10}\n");
    assert_int_equal(journal_read(&j), ST_OK);
    assert_float_equal(journal_eta(&j, j.started_s + 10), 70, 1e-9);
    journal_free(&j);
}

static void a_folder_without_a_journal_is_not_started(void **state)
{
    struct journal j;
    journal_init(&j, folder);
    assert_int_equal(journal_read(&j), ST_OK);
    assert_int_equal(j.state, JOURNAL_EMPTY);
    journal_free(&j);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(events_become_counts_ranks_and_the_slowest_cell),
        TEST(a_line_that_is_still_being_written_waits_for_its_end),
        TEST(what_is_no_event_is_counted_and_left_out),
        TEST(a_file_that_begins_anew_is_read_anew),
        TEST(a_resumed_run_counts_its_pace_from_its_own_start),
        TEST(a_folder_without_a_journal_is_not_started),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
