#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "sweep/field.h"
#include "sweep/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char prints[3][33] = {"00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100",
                                   "0123456789abcdef0123456789abcdef"};

static status_t try_plan(const char *yaml, const char *const *set, int n_set, bool have_cuda, struct plan **out)
{
    struct job *j;
    int         n;
    assert_int_equal(job_parse(yaml, strlen(yaml), "job.yaml", set, n_set, NULL, &j), ST_OK);
    job_models(j, &n);
    struct plan_input in = {prints, n, have_cuda, NULL, NULL, 0};
    status_t          st = plan_build(j, &in, out);
    job_close(j);
    return st;
}

static struct plan *plan_of(const char *yaml)
{
    struct plan *p;
    assert_int_equal(try_plan(yaml, NULL, 0, false, &p), ST_OK);
    return p;
}

static struct plan *plan_with(const char *yaml, const char *set)
{
    struct plan *p;
    assert_int_equal(try_plan(yaml, &set, 1, false, &p), ST_OK);
    return p;
}

static int compare_ids(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* The ids of a plan, sorted: what does not depend on the order. */
static char (*sorted_ids(const struct plan *p))[33]
{
    char(*ids)[33] = malloc(p->n * sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < p->n; i++)
        memcpy(ids[i], p->cells[i].id, 33);
    qsort(ids, p->n, sizeof *ids, compare_ids);
    return ids;
}

static const char sweep_24[] = "model: m\n"
                               "sweep:\n"
                               "  precision: [bf16, int8]\n"
                               "  batch: [1, 2, 4]\n"
                               "  context: [0, 64, 128, 256]\n"
                               "device: cpu\n";

static void a_product_has_every_combination_once(void **state)
{
    struct plan *p    = plan_of(sweep_24);
    bool         seen[2][3][4] = {{{false}}};
    assert_int_equal(p->n, 24);
    for (size_t i = 0; i < p->n; i++) {
        const struct cell *c = &p->cells[i];
        int                b = c->batch == 4 ? 2 : c->batch - 1;
        int                k = c->context == 256 ? 3 : c->context / 64;
        assert_false(seen[c->precision == PRECISION_INT8][b][k]);
        seen[c->precision == PRECISION_INT8][b][k] = true;
        assert_string_equal(c->model, "m");
        assert_string_equal(c->fingerprint, prints[0]);
        assert_int_equal(c->recipe, c->precision == PRECISION_INT8 ? RECIPE_TORCHAO : RECIPE_NONE);
        assert_int_equal(c->kv, KV_BF16);
        assert_int_equal(plan_find(p, c->id), (long)i);
    }
    assert_int_equal(plan_find(p, "nothing"), -1);
    plan_close(p);
}

/* Files of users are named by these, so they may never change. Computed apart, from canonical texts written by hand. */
static void ids_of_a_known_job_never_change(void **state)
{
    static const char *const known[] = {"4931c8b54c69bb39d2df3021d837ae7c", "9822b2db2060f8a0d981c2dea72b1bfc"};
    struct plan             *p       = plan_of("model: m\nsweep: {precision: [bf16, int8]}\ndevice: cpu\n");
    char(*ids)[33]                   = sorted_ids(p);
    assert_int_equal(p->n, 2);
    for (int i = 0; i < 2; i++)
        assert_string_equal(ids[i], known[i]);
    free(ids);
    plan_close(p);
}

static void ids_do_not_depend_on_order_paths_or_launch_options(void **state)
{
    static const char *const sets[] = {"order=random", "order=given", "model=elsewhere/else", "output=there",
                                       "sweep.batch=[4, 2, 1]", "sweep.precision=[int8, bf16]", "schedule=dynamic",
                                       "audio=keep", "deadline=5", "parallel=yes"};
    struct plan             *p      = plan_of(sweep_24);
    char(*ids)[33]                  = sorted_ids(p);
    for (int i = 0; i < 10; i++) {
        struct plan *q      = plan_with(sweep_24, sets[i]);
        char(*other)[33]    = sorted_ids(q);
        assert_int_equal(q->n, 24);
        assert_memory_equal(ids, other, 24 * 33);
        free(other);
        plan_close(q);
    }
    free(ids);
    plan_close(p);
}

static void what_is_asked_for_twice_is_planned_once(void **state)
{
    struct plan *p = plan_of("model: m\n"
                             "sweep:\n"
                             "  - {precision: [bf16, int8], batch: [1, 2, 2]}\n"
                             "  - {precision: [int8, int8], batch: [2, 4], kv: [bf16]}\n"
                             "  - {precision: [bf16], recipe: [torchao, legacy], batch: 1}\n" /* no recipe matters in bf16 */
                             "device: cpu\n");
    assert_int_equal(p->n, 5);
    plan_close(p);
}

static void autos_follow_the_rest_of_the_cell(void **state)
{
    struct plan *p;
    struct job  *j;
    assert_int_equal(try_plan("model: m\nsweep: {precision: [fp32, bf16], sampling: [s1, s2]}\n", NULL, 0, false, &p), ST_OK);
    for (size_t i = 0; i < p->n; i++) {
        const struct cell *c = &p->cells[i];
        assert_int_equal(c->device_class, DEVICE_CPU);
        assert_int_equal(c->kv, c->precision == PRECISION_FP32 ? KV_FP32 : KV_BF16);
        assert_int_equal(c->sampling.top_k, c->sampling.rules == SAMPLING_S2 ? 30 : 0);
        assert_int_equal(c->workload.length, LENGTH_NATURAL);
    }
    plan_close(p);
    assert_int_equal(try_plan("model: m\n", NULL, 0, true, &p), ST_OK);
    assert_int_equal(p->cells[0].device_class, DEVICE_CUDA);
    plan_close(p);
    const char yaml[]    = "sweep: {model: [a, b]}\n";
    const bool synthetic[] = {false, true};
    assert_int_equal(job_parse(yaml, strlen(yaml), "job.yaml", NULL, 0, NULL, &j), ST_OK);
    struct plan_input in = {prints, 2, false, synthetic, NULL, 0};
    assert_int_equal(plan_build(j, &in, &p), ST_OK);
    for (size_t i = 0; i < 2; i++) {
        bool b = strcmp(p->cells[i].model, "b") == 0;
        assert_int_equal(p->cells[i].workload.length, b ? LENGTH_FIXED : LENGTH_NATURAL);
        assert_string_equal(p->cells[i].fingerprint, prints[b]);
    }
    job_close(j);
    plan_close(p);
}

static void cells_that_can_run_nowhere_say_why(void **state)
{
    struct plan *p = plan_of("model: m\n"
                             "sweep: {precision: [fp32, bf16], device: [cpu, cuda], engine: [ops, graph], processes: [1, 3]}\n"
                             "samples: 2\n");
    assert_int_equal(p->n, 16);
    for (size_t i = 0; i < p->n; i++) {
        const struct cell *c    = &p->cells[i];
        bool               bad  = (c->precision == PRECISION_FP32 && c->device_class == DEVICE_CUDA) ||
                   (c->engine == ENGINE_GRAPH && c->device_class == DEVICE_CPU) || c->workload.processes > 2;
        assert_int_equal(p->invalid[i] != NULL, bad);
    }
    plan_close(p);
}

static void filters_keep_exactly_what_they_say(void **state)
{
    struct plan *p = plan_with(sweep_24, "sweep.where=batch <= 2 and context > 0 or precision == int8 and batch == 4");
    assert_int_equal(p->n, 2 * 2 * 3 + 4);
    for (size_t i = 0; i < p->n; i++) {
        const struct cell *c = &p->cells[i];
        assert_true((c->batch <= 2 && c->context > 0) || (c->precision == PRECISION_INT8 && c->batch == 4));
    }
    plan_close(p);
    const char *set = "sweep.where=batch > 99";
    assert_int_equal(try_plan(sweep_24, &set, 1, false, &p), ST_EINPUT);
    assert_string_equal(status_last(), "job.yaml: the sweep has no cells: where: leaves none of 24 combinations");
}

static void precisions_of_a_group_stand_together_forwards_and_backwards_in_turn(void **state)
{
    struct plan *p = plan_of(sweep_24);
    for (size_t g = 0; g < 12; g++) {
        const struct cell *a = &p->cells[2 * g], *b = &p->cells[2 * g + 1];
        assert_int_equal(p->group[2 * g], g);
        assert_int_equal(p->group[2 * g + 1], g);
        assert_int_equal(a->batch, b->batch);
        assert_int_equal(a->context, b->context);
        assert_int_not_equal(a->precision, b->precision);
        if (g)
            assert_int_equal(a->precision, p->cells[2 * g - 1].precision); /* A B, B A, A B, … */
    }
    plan_close(p);
}

static void the_seed_alone_decides_the_order(void **state)
{
    struct plan *a = plan_of(sweep_24), *b = plan_of(sweep_24), *c = plan_with(sweep_24, "seed=43");
    int          moved = 0;
    for (size_t i = 0; i < 24; i++) {
        assert_string_equal(a->cells[i].id, b->cells[i].id);
        moved += a->cells[i].batch != c->cells[i].batch || a->cells[i].context != c->cells[i].context;
    }
    assert_true(moved > 0);
    plan_close(a);
    plan_close(b);
    plan_close(c);
}

static void the_given_order_is_that_of_the_file(void **state)
{
    struct plan *p = plan_with(sweep_24, "order=given");
    for (size_t i = 0; i < 24; i++) {
        assert_int_equal(p->cells[i].precision, i < 12 ? PRECISION_BF16 : PRECISION_INT8);
        assert_int_equal(p->cells[i].batch, 1 << i / 4 % 3);
        assert_int_equal(p->group[i], i);
    }
    plan_close(p);
}

static void what_is_zipped_with_precision_belongs_to_the_same_group(void **state)
{
    struct plan *p = plan_of("model: m\n"
                             "sweep: {precision: [bf16, int8, int8], kv: [bf16, bf16, int8], batch: [1, 2], zip: [precision, kv]}\n"
                             "device: cpu\n");
    assert_int_equal(p->n, 6);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(p->group[i], i / 3);
    plan_close(p);
}

static void processes_of_a_group_run_a_b_b_a(void **state)
{
    struct plan *p = plan_with(sweep_24, "workload.processes=2");
    size_t       cells[] = {0, 1, 2, 5}; /* a whole group, and one cell each of two others */
    struct run   runs[8];
    static const struct run expected[] = {{0, 0}, {1, 0}, {1, 1}, {0, 1}, {2, 0}, {2, 1}, {5, 0}, {5, 1}};
    assert_int_equal(plan_run_count(p, cells, 4), 8);
    plan_runs(p, cells, 4, runs);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(runs[i].cell, expected[i].cell);
        assert_int_equal(runs[i].process, expected[i].process);
    }
    plan_close(p);
}

static void every_process_of_every_cell_runs_once(void **state)
{
    struct plan *p = plan_of("model: m\nsweep: {precision: [fp32, bf16, int8], batch: [1, 2], processes: [1, 2, 3]}\ndevice: cpu\n");
    size_t       cells[18];
    for (size_t i = 0; i < 18; i++)
        cells[i] = i;
    size_t      n = plan_run_count(p, cells, 18);
    struct run *runs = malloc(n * sizeof *runs);
    bool        seen[18][3] = {{false}};
    assert_int_equal(n, 36);
    plan_runs(p, cells, 18, runs);
    for (size_t i = 0; i < n; i++) {
        assert_true(runs[i].process < p->cells[runs[i].cell].workload.processes);
        assert_false(seen[runs[i].cell][runs[i].process]);
        seen[runs[i].cell][runs[i].process] = true;
    }
    free(runs);
    plan_close(p);
}

static void a_prequantized_copy_changes_the_path_and_nothing_else(void **state)
{
    struct plan *a = plan_of(sweep_24), *b = plan_with(sweep_24, "prequantized.int8=m-int8");
    for (size_t i = 0; i < 24; i++) {
        assert_string_equal(a->cells[i].id, b->cells[i].id);
        assert_string_equal(b->cells[i].model, b->cells[i].precision == PRECISION_INT8 ? "m-int8" : "m");
    }
    plan_close(a);
    plan_close(b);
}

static void plans_survive_json(void **state)
{
    static const char *const jobs[] = {
        sweep_24,
        "model: m\n",
        "sweep: {model: [a, b], texts: [reference, hello, [x, y], {reference: short}], temperature: 0.1..0.9+0.2, seed: [1, "
        "9223372036854775807], memory_limit: [0, 8GB], greedy: [yes, no]}\nstop: {rel_ci: 0.03, min: 7, max: 70}\naudio: "
        "keep\ndeadline: 12.5\noutput: ü/\"x\"\norder: random\n",
        "model: m\nsweep: {precision: [fp32, bf16], device: [cpu, cuda], kv: [int8, auto]}\norder: given\nprequantized: {int8: q}\n",
    };
    for (int k = 0; k < 4; k++) {
        struct plan *p = plan_of(jobs[k]), *q;
        char        *json, *again;
        assert_int_equal(plan_to_json(p, &json), ST_OK);
        assert_int_equal(plan_from_json(json, strlen(json), "plan.json", &q), ST_OK);
        assert_int_equal(plan_to_json(q, &again), ST_OK);
        assert_string_equal(json, again);
        assert_int_equal(p->n, q->n);
        assert_string_equal(q->job_text, jobs[k]);
        assert_memory_equal(&p->options, &q->options, sizeof p->options);
        for (size_t i = 0; i < p->n; i++) {
            char *a, *b;
            assert_int_equal(cell_to_json(&p->cells[i], &a), ST_OK);
            assert_int_equal(cell_to_json(&q->cells[i], &b), ST_OK);
            assert_string_equal(a, b);
            assert_int_equal(p->group[i], q->group[i]);
            assert_int_equal(p->invalid[i] == NULL, q->invalid[i] == NULL);
            free(a);
            free(b);
        }
        free(json);
        free(again);
        plan_close(p);
        plan_close(q);
    }
}

/* json with the first `from` replaced by `to`. */
static char *edited(const char *json, const char *from, const char *to)
{
    const char *at  = strstr(json, from);
    char       *out = malloc(strlen(json) + strlen(to) + 1);
    assert_non_null(at);
    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at - json), json, to, at + strlen(from));
    return out;
}

static void edited_plans_are_refused(void **state)
{
    static const struct {
        const char *from, *to, *complaint;
    } edits[] = {
        {"qsweep-plan", "other", "not a plan"},
        {"\"version\":1", "\"version\":2", "plan version 2, this program reads 1"},
        {"\"n\":24", "\"n\":25", "ids: want a list of 25 items"},
        {"\"n\":24", "\"n\":999999", "ids: want a list"},
        {"\"n\":24", "\"n\":99999999", "want a number of cells from 1"},
        {"\"n\":24", "\"n\":0", "want a number of cells from 1"},
        {"\"samples\":10", "\"samples\":11", "but its values say"},
        {"\"samples\":10", "\"samples\":0", "samples = \"0\""},
        {"\"bf16\"", "\"int9\"", "want one of fp32, bf16, int8"},
        {"\"precision\":[", "\"precision\":[\"bf16\",", "precision: want a list of 24 items"},
        {"00112233", "00112234", "but its values say"},
        {"00112233", "zz112233", "fingerprints"},
        {"\"model\":[0", "\"model\":[1", "model: want an index below 1"},
        {"\"texts\":[0", "\"texts\":[-1", "texts: want an index below 1"},
        {"\"models\":[\"m\"]", "\"models\":[]", "models: want a list"},
        {"\"models\":[\"m\"]", "\"models\":[7]", "models: want paths"},
        {"\"groups\":[2", "\"groups\":[3", "groups: want sizes"},
        {"\"groups\":[2", "\"groups\":[99999", "groups: want sizes"},
        {"\"groups\":[2", "\"groups\":[-2", "groups: want sizes"},
        {"\"share\":\"auto\"", "\"share\":\"never\"", "options: want"},
        {"\"output\":\"results/job\"", "\"output\":\"\"", "options.output"},
        {"\"deadline_s\":0.0", "\"deadline_s\":-1.0", "deadline = -1"},
        {"\"keep_audio\":false", "\"keep_audio\":0", "keep_audio"},
        {"\"max\":0", "\"max\":3", "but its values say"},
        {"\"job_text\":", "\"job_test\":", "job_text"},
        {"Hello", "Hallo", "but its values say"},
        {"{", "", "plan.json:1"},
        {"\"n\":24", "\"n\":24,\"n\":24", "duplicate"},
    };
    struct plan *p = plan_of(sweep_24), *q = NULL;
    char        *json;
    assert_int_equal(plan_to_json(p, &json), ST_OK);
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        char *bad = edited(json, edits[i].from, edits[i].to);
        if (plan_from_json(bad, strlen(bad), "plan.json", &q) != ST_EINPUT)
            fail_msg("\"%s\" for \"%s\" is accepted", edits[i].to, edits[i].from);
        assert_null(q);
        if (!strstr(status_last(), edits[i].complaint) || strncmp(status_last(), "plan.json", 9) != 0)
            fail_msg("\"%s\" does not say \"%s\"", status_last(), edits[i].complaint);
        free(bad);
    }
    for (size_t cut = 0; cut < strlen(json); cut += 37)
        assert_int_equal(plan_from_json(json, cut, "plan.json", &q), ST_EINPUT);
    free(json);
    plan_close(p);
}

static void a_hundred_thousand_cells_have_as_many_ids(void **state)
{
    static const char yaml[] = "model: m\n"
                               "sweep: {precision: [bf16, int8], batch: 1..50, context: 0..990+10, max_seq_len: 1..10}\n"
                               "device: cpu\n";
    struct plan      *p      = plan_of(yaml), *q;
    char             *json;
    char(*ids)[33]           = sorted_ids(p);
    assert_int_equal(p->n, 100000);
    for (size_t i = 1; i < p->n; i++)
        assert_true(strcmp(ids[i - 1], ids[i]) < 0);
    assert_int_equal(plan_to_json(p, &json), ST_OK);
    assert_true(strlen(json) < 10000000);
    assert_int_equal(plan_from_json(json, strlen(json), "plan.json", &q), ST_OK);
    assert_int_equal(q->n, 100000);
    free(json);
    free(ids);
    plan_close(p);
    plan_close(q);
}

static void fill_estimate(void *ctx, const struct cell *c, double *memory_mb, double *seconds)
{
    *memory_mb = c->batch * 100.0;
    if (c->context)
        *seconds = 1.5;
}

static void the_printed_plan_has_a_line_a_cell_and_a_column_for_what_varies(void **state)
{
    struct plan *p    = plan_with(sweep_24, "sweep.device=[cpu, cuda]");
    char        *text = NULL;
    size_t       size, rows = 0;
    FILE        *to = open_memstream(&text, &size);
    plan_print(p, fill_estimate, NULL, to);
    fclose(to);
    for (size_t i = 0; i < p->n; i++) {
        char start[16];
        snprintf(start, sizeof start, "\n| %.8s |", p->cells[i].id);
        assert_non_null(strstr(text, start));
    }
    for (const char *at = text; (at = strstr(at, "\n| ")); at++)
        rows++;
    assert_int_equal(rows, p->n + 1);
    assert_non_null(strstr(text, "| id       | batch | context | device | precision | recipe  | requests |"));
    assert_non_null(strstr(text, "samples 10"));
    assert_non_null(strstr(text, " 400.0 |"));
    assert_non_null(strstr(text, " 1.5 |"));
    assert_non_null(strstr(text, "       ? |"));
    free(text);
    plan_close(p);
}

static void the_jobs_we_ship_plan_as_they_say(void **state)
{
    static const struct {
        const char *path;
        size_t      cells;
    } jobs[] = {{"jobs/precision.yaml", 36}, {"jobs/compare.yaml", 2}, {"jobs/smoke.yaml", 4}};
    for (int i = 0; i < 3; i++) {
        struct job        *j;
        struct plan       *p;
        struct plan_input  in = {prints, 1, false, NULL, NULL, 0};
        assert_int_equal(job_load(jobs[i].path, NULL, 0, &j), ST_OK);
        assert_int_equal(plan_build(j, &in, &p), ST_OK);
        assert_int_equal(p->n, jobs[i].cells);
        for (size_t k = 0; k < p->n; k++)
            assert_null(p->invalid[k]);
        plan_close(p);
        job_close(j);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_product_has_every_combination_once),
        cmocka_unit_test(ids_of_a_known_job_never_change),
        cmocka_unit_test(ids_do_not_depend_on_order_paths_or_launch_options),
        cmocka_unit_test(what_is_asked_for_twice_is_planned_once),
        cmocka_unit_test(autos_follow_the_rest_of_the_cell),
        cmocka_unit_test(cells_that_can_run_nowhere_say_why),
        cmocka_unit_test(filters_keep_exactly_what_they_say),
        cmocka_unit_test(precisions_of_a_group_stand_together_forwards_and_backwards_in_turn),
        cmocka_unit_test(the_seed_alone_decides_the_order),
        cmocka_unit_test(the_given_order_is_that_of_the_file),
        cmocka_unit_test(what_is_zipped_with_precision_belongs_to_the_same_group),
        cmocka_unit_test(processes_of_a_group_run_a_b_b_a),
        cmocka_unit_test(every_process_of_every_cell_runs_once),
        cmocka_unit_test(a_prequantized_copy_changes_the_path_and_nothing_else),
        cmocka_unit_test(plans_survive_json),
        cmocka_unit_test(edited_plans_are_refused),
        cmocka_unit_test(a_hundred_thousand_cells_have_as_many_ids),
        cmocka_unit_test(the_printed_plan_has_a_line_a_cell_and_a_column_for_what_varies),
        cmocka_unit_test(the_jobs_we_ship_plan_as_they_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
