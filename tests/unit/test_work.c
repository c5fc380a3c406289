/* test_work.c — a worker's task survives its JSON, and parts share the samples. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/log.h"
#include "bench/work.h"

#include <stdlib.h>
#include <string.h>

static void make(struct work *w)
{
    memset(w, 0, sizeof *w);
    cell_defaults(&w->cell);
    const char *texts[] = {"one", "zwei \"drei\"\n", "四"};
    assert_int_equal(cell_set_model(&w->cell, "some/model"), ST_OK);
    assert_int_equal(workload_set_texts(&w->cell.workload, texts, 3), ST_OK);
    strcpy(w->cell.fingerprint, "0123456789abcdef0123456789abcdef");
    strcpy(w->cell.device, "cpu");
    assert_int_equal(cell_identify(&w->cell), ST_OK);
    w->part = 1;
    w->n_parts = 3;
    w->rank = 7;
    w->attempt = 2;
    w->n_threads = 4;
    w->pin = true;
    w->trace_period_ms = 5;
    strcpy(w->audio, "results/ä/audio/0123");
    strcpy(w->reference, "models/before \"quantizing\"");
    w->facts = calloc(1, sizeof *w->facts);
    w->n_facts = 1;
    w->facts[0] = (struct fact){strdup("slurm_job_id"), strdup("4711 \"x\"")};
}

static void a_task_survives_the_way_through_json(void **state)
{
    (void)state;
    struct work w, back;
    char       *json;
    make(&w);
    assert_int_equal(work_to_json(&w, &json), ST_OK);
    assert_int_equal(work_from_json(json, strlen(json), "test", &back), ST_OK);
    assert_string_equal(back.cell.model, w.cell.model);
    assert_string_equal(back.cell.device, w.cell.device);
    assert_string_equal(back.cell.workload.texts[1], w.cell.workload.texts[1]);
    assert_int_equal(cell_identify(&back.cell), ST_OK);
    assert_string_equal(back.cell.id, w.cell.id);
    assert_int_equal(back.part, w.part);
    assert_int_equal(back.n_parts, w.n_parts);
    assert_int_equal(back.rank, w.rank);
    assert_int_equal(back.attempt, w.attempt);
    assert_int_equal(back.n_threads, w.n_threads);
    assert_true(back.pin);
    assert_true(back.trace_period_ms == w.trace_period_ms);
    assert_string_equal(back.reference, w.reference);
    assert_string_equal(back.audio, w.audio);
    assert_int_equal(back.n_facts, 1);
    assert_string_equal(back.facts[0].key, w.facts[0].key);
    assert_string_equal(back.facts[0].value, w.facts[0].value);
    free(json);
    work_free(&back);
    work_free(&w);
}

/* Cut anywhere, a task is refused, not half-read. */
static void a_truncated_task_is_refused(void **state)
{
    (void)state;
    struct work w, back;
    char       *json;
    make(&w);
    assert_int_equal(work_to_json(&w, &json), ST_OK);
    for (size_t n = 0; n + 1 < strlen(json); n += 7)
        assert_int_equal(work_from_json(json, n, "test", &back), ST_EINPUT);
    free(json);
    work_free(&w);
}

static void impossible_values_are_refused(void **state)
{
    (void)state;
    static const char *const changes[][2] = {
        {"\"part\": 1", "\"part\": 3"},
        {"\"parts\": 3", "\"parts\": 0"},
        {"\"threads\": 4", "\"threads\": -1"},
        {"\"rank\": 7", "\"rank\": 1e3"},
        {"\"facts\": {", "\"facts\": [], \"x\": {"},
        {"\"trace_period_ms\": 5", "\"trace_period_ms\": 0.5"},
        {"\"audio\": \"results", "\"audio\": [7], \"x\": \"results"},
        {"\"reference\": \"models", "\"reference\": [7], \"x\": \"models"},
    };
    struct work w, back;
    char       *json;
    make(&w);
    assert_int_equal(work_to_json(&w, &json), ST_OK);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char *at = strstr(json, changes[i][0]);
        assert_non_null(at);
        char  *changed = malloc(strlen(json) + 64);
        size_t before = (size_t)(at - json);
        memcpy(changed, json, before);
        strcpy(changed + before, changes[i][1]);
        strcat(changed, at + strlen(changes[i][0]));
        if (work_from_json(changed, strlen(changed), "test", &back) != ST_EINPUT)
            fail_msg("accepted with %s", changes[i][1]);
        free(changed);
    }
    free(json);
    work_free(&w);
}

static void parts_share_the_samples_completely_and_without_overlap(void **state)
{
    (void)state;
    for (int texts = 1; texts <= 5; texts++)
        for (int samples = 1; samples <= 7; samples++)
            for (int processes = 1; processes <= 9; processes++) {
                struct workload w = {.n_texts = texts, .samples = samples, .processes = processes};
                int             parts = work_parts(&w), next = 0, first, end;
                for (int p = 0; p < parts; p++) {
                    work_share(&w, p, parts, &first, &end);
                    assert_int_equal(first, next);
                    assert_true(end > first);
                    next = end;
                }
                assert_int_equal(next, work_samples(&w));
            }
}

int main(void)
{
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_task_survives_the_way_through_json),
        cmocka_unit_test(a_truncated_task_is_refused),
        cmocka_unit_test(impossible_values_are_refused),
        cmocka_unit_test(parts_share_the_samples_completely_and_without_overlap),
    };
    return cmocka_run_group_tests_name("work", tests, NULL, NULL);
}
