/* Pairing of cells, what is said about them, and what breaks a rule; sweeps are made in memory. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/log.h"
#include "bench/comparison.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELLS_MAX = 32, SAMPLES = 24, PROCESSES = 6 };

/* A sweep whose cells are made when they are read: latency in ms is `pace[i]`, with a little seeded-by-place noise. */
struct memory_sweep {
    struct cell        cells[CELLS_MAX];
    double             pace[CELLS_MAX];
    uint64_t           bytes[CELLS_MAX];
    struct summary_row rows[CELLS_MAX];
    size_t             n;
    int                reads;
};

static status_t read_cell(void *ctx, const char *id, struct result *out)
{
    struct memory_sweep *s = ctx;
    s->reads++;
    for (size_t i = 0; i < s->n; i++) {
        if (strcmp(s->cells[i].id, id) != 0)
            continue;
        result_init(out);
        TRY(cell_copy(&s->cells[i], &out->cell));
        out->status = CELL_OK;
        out->peak_bytes = s->bytes[i];
        for (int k = 0; k < SAMPLES; k++) {
            double        ms = s->pace[i] * (1 + 0.001 * ((k * 7 + (int)i * 3) % 5 - 2));
            double        steps[2] = {ms / 2, ms / 2};
            struct sample sample = {.text = k % 2, .repeat = k / 2, .process = k * PROCESSES / SAMPLES, .frames = 2, .steps = 2,
                                    .latency_ms = ms, .prefill_ms = NAN, .first_audio_ms = NAN, .energy_j = NAN,
                                    .audio_s = 0.1, .order = k, .t0_ns = k, .sm_clock_mhz = NAN};
            TRY(result_add_sample(out, &sample, steps));
        }
        return ST_OK;
    }
    return ST_EINPUT;
}

static void add(struct memory_sweep *s, enum precision precision, int batch, double pace, uint64_t bytes, enum cell_status status)
{
    static const char *const texts[] = {"one", "two"};
    struct cell             *c = &s->cells[s->n];
    struct summary_row      *row = &s->rows[s->n];
    cell_defaults(c);
    assert_int_equal(cell_set_model(c, "model"), ST_OK);
    assert_int_equal(workload_set_texts(&c->workload, texts, 2), ST_OK);
    strcpy(c->fingerprint, "0123456789abcdef0123456789abcdef");
    c->precision = precision;
    c->recipe = precision == PRECISION_INT8 ? RECIPE_TORCHAO : RECIPE_NONE;
    c->kv = precision == PRECISION_FP32 ? KV_FP32 : KV_BF16;
    c->batch = batch;
    assert_int_equal(cell_identify(c), ST_OK);
    s->pace[s->n] = pace;
    s->bytes[s->n] = bytes;
    memset(row, 0, sizeof *row);
    strcpy(row->id, c->id);
    strcpy(row->status, cell_status_name(status));
    strcpy(row->fingerprint, c->fingerprint);
    cell_label(c, row->label, sizeof row->label);
    for (int f = 0; f < FIELD_COUNT; f++)
        row->axes[f] = field_get(&cell_fields[f], c);
    row->n_texts = 2;
    s->n++;
}

static void clear(struct memory_sweep *s)
{
    for (size_t i = 0; i < s->n; i++)
        cell_free(&s->cells[i]);
    memset(s, 0, sizeof *s);
}

static struct sweep_view view(struct memory_sweep *s)
{
    return (struct sweep_view){s->rows, s->n, read_cell, s};
}

static const struct metric *wanted[2];

static struct comparison_options by_id(void)
{
    struct comparison_options o = {.axis = -1, .metrics = wanted, .n_metrics = 2};
    wanted[0] = metric_find("latency");
    wanted[1] = metric_find("vram");
    verdict_options_init(&o.verdict);
    return o;
}

static struct comparison_options along(const char *axis, int64_t from)
{
    struct comparison_options o = by_id();
    o.axis = field_find(axis);
    o.has_from = true;
    o.from.i = from;
    return o;
}

static struct memory_sweep a, b;

static void two_sweeps_pair_by_id_and_list_what_is_left(void **state)
{
    struct comparison         c;
    struct comparison_options o = by_id();
    add(&a, PRECISION_BF16, 1, 100, 5000, CELL_OK);
    add(&a, PRECISION_BF16, 2, 150, 5100, CELL_OK);
    add(&a, PRECISION_BF16, 4, 200, 5200, CELL_OK);
    add(&a, PRECISION_INT8, 1, 80, 3000, CELL_OK);
    add(&b, PRECISION_INT8, 1, 84, 3060, CELL_OK); /* +5 %, +2 % */
    add(&b, PRECISION_BF16, 2, 150, 5100, CELL_OOM);
    add(&b, PRECISION_BF16, 1, 100, 5000, CELL_OK);
    add(&b, PRECISION_INT8, 8, 80, 3000, CELL_OK);
    struct sweep_view va = view(&a), vb = view(&b);
    assert_int_equal(comparison_build(&va, &vb, &o, &c), ST_OK);
    assert_int_equal(c.n_pairs, 3);
    assert_int_equal(c.n_rows, 4); /* two pairs that are ok, two metrics */
    assert_int_equal(c.n_unmatched, 2);
    assert_true(c.unmatched[0].is_baseline && strcmp(c.unmatched[0].cell.id, a.cells[2].id) == 0);
    assert_true(!c.unmatched[1].is_baseline && strcmp(c.unmatched[1].cell.id, b.cells[3].id) == 0);
    for (size_t i = 0; i < c.n_rows; i++) {
        bool int8 = strncmp(c.pairs[c.rows[i].pair].candidate.label, "int8", 4) == 0;
        assert_string_equal(comparison_word(&c.rows[i]), !int8 ? "same" : c.rows[i].metric == wanted[0] ? "slower" : "more");
        if (int8)
            assert_true(fabs(c.rows[i].verdict.effect - (c.rows[i].metric == wanted[0] ? 0.05 : 0.02)) < 0.002);
    }
    comparison_free(&c);
    clear(&a);
    clear(&b);
}

static void an_axis_pairs_cells_that_differ_in_it_alone(void **state)
{
    struct comparison         c;
    struct comparison_options o = along("precision", PRECISION_BF16);
    add(&a, PRECISION_BF16, 1, 100, 5000, CELL_OK);
    add(&a, PRECISION_INT8, 1, 80, 3000, CELL_OK);
    add(&a, PRECISION_FP32, 1, 190, 9000, CELL_OK); /* its KV cache follows the precision */
    add(&a, PRECISION_BF16, 2, 100, 5000, CELL_OK);
    add(&a, PRECISION_INT8, 4, 80, 3000, CELL_OK);
    a.cells[4].kv = KV_INT8;
    a.rows[4].axes[field_find("kv")].i = KV_INT8;
    struct sweep_view v = view(&a);
    assert_int_equal(comparison_build(&v, &v, &o, &c), ST_OK);
    assert_int_equal(c.n_pairs, 2); /* fp32 and int8 of batch 1 */
    for (size_t i = 0; i < 2; i++)
        assert_string_equal(c.pairs[i].baseline.id, a.cells[0].id);
    assert_int_equal(a.reads, 3); /* the baseline once */
    assert_int_equal(c.n_unmatched, 2);
    comparison_free(&c);
    o.has_to = true;
    o.to.i = PRECISION_INT8;
    assert_int_equal(comparison_build(&v, &v, &o, &c), ST_OK);
    assert_int_equal(c.n_pairs, 1);
    assert_string_equal(c.pairs[0].candidate.id, a.cells[1].id);
    assert_string_equal(comparison_word(&c.rows[0]), "faster");
    assert_string_equal(comparison_word(&c.rows[1]), "less");
    comparison_free(&c);
    clear(&a);
}

static void other_texts_are_another_workload(void **state)
{
    static const char *const texts[] = {"one", "another"};
    struct comparison         c;
    struct comparison_options o = along("batch", 1);
    add(&a, PRECISION_BF16, 1, 100, 5000, CELL_OK);
    add(&a, PRECISION_BF16, 2, 100, 5000, CELL_OK);
    assert_int_equal(workload_set_texts(&a.cells[1].workload, texts, 2), ST_OK);
    struct sweep_view v = view(&a);
    assert_int_equal(comparison_build(&v, &v, &o, &c), ST_OK);
    assert_int_equal(c.n_pairs, 0);
    assert_int_equal(c.n_unmatched, 2);
    comparison_free(&c);
    clear(&a);
}

static void empty_sweeps_compare_to_nothing(void **state)
{
    struct comparison         c;
    struct comparison_options o = by_id();
    struct sweep_view         v = view(&a);
    assert_int_equal(comparison_build(&v, &v, &o, &c), ST_OK);
    assert_int_equal(c.n_pairs + c.n_rows + c.n_unmatched + c.n_notes, 0);
    comparison_free(&c);
}

static void rules_take_certain_regressions_from_their_limit_on(void **state)
{
    struct fail_rule      rule;
    struct comparison_row row = {.metric = metric_find("latency"), .verdict = {.kind = VERDICT_SLOWER, .effect = 0.02}};
    log_set_level(LOG_NONE);
    assert_int_equal(fail_rule_parse("slower:2%", &rule), ST_OK);
    assert_true(fail_rule_hits(&rule, &row));
    row.verdict.effect = 0.0199;
    assert_false(fail_rule_hits(&rule, &row));
    row.verdict = (struct verdict){.kind = VERDICT_UNCLEAR, .effect = 0.5};
    assert_false(fail_rule_hits(&rule, &row));
    /* Frame rates: a loss of 1/51 is 2 % more time. */
    row = (struct comparison_row){.metric = metric_find("frames"), .verdict = {.kind = VERDICT_SLOWER, .effect = -0.0197}};
    assert_true(fail_rule_hits(&rule, &row));
    assert_int_equal(fail_rule_parse("latency:1%", &rule), ST_OK);
    assert_false(fail_rule_hits(&rule, &row));
    /* Counted figures are exact: the margin does not excuse half a percent. */
    row = (struct comparison_row){.metric = metric_find("vram"), .verdict = {.kind = VERDICT_SAME, .effect = 0.006}};
    assert_false(fail_rule_hits(&rule, &row));
    assert_int_equal(fail_rule_parse("slower:0%", &rule), ST_OK);
    assert_false(fail_rule_hits(&rule, &row));
    assert_int_equal(fail_rule_parse("vram:0.5%", &rule), ST_OK);
    assert_true(fail_rule_hits(&rule, &row));
    row.verdict.effect = NAN;
    assert_false(fail_rule_hits(&rule, &row));
    static const char *const wrong[] = {"", "slower", "slower:", ":2%", "slower:2", "slower:x%", "slower:-1%", "slower:nan%",
                                        "quick:1%", "slower:1%%", "latency:2000%"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (fail_rule_parse(wrong[i], &rule) != ST_EUSAGE)
            fail_msg("\"%s\" was taken", wrong[i]);
    log_set_level(LOG_INFO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_sweeps_pair_by_id_and_list_what_is_left),
        cmocka_unit_test(an_axis_pairs_cells_that_differ_in_it_alone),
        cmocka_unit_test(other_texts_are_another_workload),
        cmocka_unit_test(empty_sweeps_compare_to_nothing),
        cmocka_unit_test(rules_take_certain_regressions_from_their_limit_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
