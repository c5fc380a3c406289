/* Summary rows: definitions worked out by hand, what is missing is unknown and said so. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "bench/summary_print.h"
#include "random_result.h"

static void assert_near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-9 * fmax(1, fabs(want))))
        fail_msg("got %.17g, want %.17g", got, want);
}

static void begin(struct result *r, int batch)
{
    static const char *const texts[] = {"a", "b"};
    result_init(r);
    cell_defaults(&r->cell);
    assert_int_equal(cell_set_model(&r->cell, "m"), ST_OK);
    assert_int_equal(workload_set_texts(&r->cell.workload, texts, 2), ST_OK);
    r->cell.batch = batch;
    r->cell.workload.samples = 2;
    r->status = CELL_OK;
}

static void add(struct result *r, int frames, double latency_ms, double audio_s, double energy_j)
{
    double        steps[] = {10, 30};
    struct sample s = {.frames = frames, .latency_ms = latency_ms, .decode_ms = 40, .prefill_ms = 5, .audio_s = audio_s,
                       .energy_j = energy_j, .codec_ms = NAN, .first_audio_ms = NAN, .steps = 2};
    assert_int_equal(result_add_sample(r, &s, steps), ST_OK);
}

static void figures_follow_their_definitions(void **state)
{
    struct result      r;
    struct summary_row row;
    begin(&r, 2);
    add(&r, 43, 1000, 2.0, 8);
    add(&r, 43, 3000, 1.99, NAN);
    r.baseline_bytes = 912250000;
    r.peak_bytes = 1000000000;
    r.step_bytes = 4e9;
    assert_int_equal(summary_from_result(&r, &row), ST_OK);
    assert_near(row.vram_baseline_mb, 912.25);
    assert_near(row.latency_mean_s, 2);
    assert_near(row.latency_std_s, 1); /* n − 1 would give 1.414 */
    assert_near(row.latency_p50_s, 2);
    assert_near(row.rtf, 2 / 1.995);
    assert_near(row.throughput_x_realtime, 1.995 / 2);
    assert_near(row.tokens_per_s_reference, (43 + 42) / 2.0 / 2); /* floor(21.5 · 1.99) = 42 */
    assert_near(row.frames_per_s, 86 / 4.0);
    assert_near(row.decode_frames_per_s, 86 / 0.08);
    assert_near(row.energy_j_per_frame, 8 / 43.0); /* of the sample that has a counter */
    assert_near(row.step_ms_mean, 20);
    assert_near(row.step_ms_p50, 20);
    assert_near(row.bandwidth_gb_s, 4 / 0.020);
    assert_true(isnan(row.codec_ms_mean));
    assert_int_equal(row.n_samples, 2);
    assert_int_equal(row.errors, 0);
    assert_true(isnan(row.latency_p95_s));
    assert_non_null(strstr(row.notes, "p95 needs 20 samples, n = 2"));
    result_free(&r);
}

static void a_request_without_audio_is_an_error_and_in_no_figure(void **state)
{
    struct result      r;
    struct summary_row row;
    begin(&r, 1);
    add(&r, 22, 1000, 1.0, NAN);
    add(&r, 1, 50, 0, NAN);
    add(&r, 1, 50, NAN, NAN);
    assert_int_equal(summary_from_result(&r, &row), ST_OK);
    assert_int_equal(row.n_samples, 1);
    assert_int_equal(row.errors, 2);
    assert_near(row.latency_mean_s, 1);
    assert_near(row.frames_per_s, 22);
    assert_true(isnan(row.latency_p50_s)); /* one sample has no median */
    result_free(&r);
}

static void a_failed_cell_counts_what_it_did_not_deliver(void **state)
{
    struct result      r;
    struct summary_row row;
    begin(&r, 1);
    r.status = CELL_TIMEOUT;
    add(&r, 22, 1000, 1.0, NAN);
    assert_int_equal(summary_from_result(&r, &row), ST_OK);
    assert_int_equal(row.errors, 3); /* 2 texts · 2 samples, 1 came */
    assert_true(isnan(row.vram_baseline_mb) && isnan(row.weights_mb) && isnan(row.process_peak_mb));
    r.status = CELL_PENDING;
    assert_int_equal(summary_from_result(&r, &row), ST_OK);
    assert_int_equal(row.errors, 0);
    result_free(&r);
}

static void no_samples_give_no_numbers(void **state)
{
    struct result      r;
    struct summary_row row;
    begin(&r, 1);
    r.status = CELL_OOM;
    assert_int_equal(summary_from_result(&r, &row), ST_OK);
    for (size_t i = 0; i < summary_column_count(); i++) {
        struct summary_column c = summary_column(i);
        double                value;
        if (c.kind != SUMMARY_REAL)
            continue;
        memcpy(&value, (char *)&row + c.offset, sizeof value);
        if (!isnan(value))
            fail_msg("%s is %g", c.name, value);
    }
    result_free(&r);
}

static void long_texts_are_cut_at_a_character(void **state)
{
    struct result      r;
    struct summary_row row;
    char               reason[1000] = "";
    begin(&r, 1);
    for (int i = 0; i < 300; i++)
        strcat(reason, "é");
    assert_int_equal(result_set_reason(&r, reason), ST_OK);
    assert_int_equal(summary_from_result(&r, &row), ST_OK);
    assert_int_equal(strlen(row.reason), 254); /* 127 characters of 2 bytes */
    result_free(&r);
}

static void columns_have_distinct_names_units_and_definitions(void **state)
{
    for (size_t i = 0; i < summary_column_count(); i++) {
        struct summary_column c = summary_column(i);
        assert_true(c.units[0] && c.definition[0]);
        assert_int_equal(summary_column_find(c.name), (long)i); /* the first of that name */
    }
    assert_int_equal(summary_column_find("nothing"), -1);
}

/* What summary_print writes for rows [n]. */
static char *printed(const struct summary_row *rows, size_t n, enum summary_format format)
{
    char  *text = NULL;
    size_t size = 0;
    FILE  *f = open_memstream(&text, &size);
    assert_int_equal(summary_print(rows, n, format, f), ST_OK);
    fclose(f);
    return text;
}

static void hostile_texts_break_neither_table_nor_csv(void **state)
{
    struct result      r;
    struct summary_row row;
    begin(&r, 1);
    r.status = CELL_CRASHED;
    assert_int_equal(result_set_reason(&r, "a,b \"c\" | d"), ST_OK);
    assert_int_equal(summary_from_result(&r, &row), ST_OK);
    char *csv = printed(&row, 1, SUMMARY_CSV), *md = printed(&row, 1, SUMMARY_MD), *json = printed(&row, 1, SUMMARY_JSONL);
    assert_non_null(strstr(csv, "\"a,b \"\"c\"\" | d\""));
    assert_non_null(strstr(json, "\"reason\":\"a,b \\\"c\\\" | d\""));
    assert_non_null(strstr(json, "\"rtf\":null"));
    assert_non_null(strstr(md, "Not ok: 1 of 1 cells"));
    free(csv);
    free(md);
    free(json);
    char *none = printed(NULL, 0, SUMMARY_MD);
    assert_string_equal(none, "no cells\n");
    free(none);
    result_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_follow_their_definitions),
        cmocka_unit_test(a_request_without_audio_is_an_error_and_in_no_figure),
        cmocka_unit_test(a_failed_cell_counts_what_it_did_not_deliver),
        cmocka_unit_test(no_samples_give_no_numbers),
        cmocka_unit_test(long_texts_are_cut_at_a_character),
        cmocka_unit_test(columns_have_distinct_names_units_and_definitions),
        cmocka_unit_test(hostile_texts_break_neither_table_nor_csv),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
