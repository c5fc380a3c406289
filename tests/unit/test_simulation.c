#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "launch/cost_model.h"
#include "launch/simulation.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELLS = 400 };

struct paper {
    struct plan                   *plan;
    double                         seconds[CELLS], speed[CELLS];
    struct schedule_input          schedule;
    struct simulation_input        in;
    struct simulation_result       fixed, dynamic;
};

static void paper_make(struct paper *p, int n_ranks, double seconds)
{
    static const char prints[1][33] = {"00112233445566778899aabbccddeeff"};
    struct plan_input in = {prints, 1, false, NULL, NULL, 0};
    char              yaml[160];
    struct job       *j;
    memset(p, 0, sizeof *p);
    snprintf(yaml, sizeof yaml, "model: m\nsweep: {precision: [bf16, int8], context: 1..%d}\ndevice: cpu\n", CELLS / 2);
    assert_int_equal(job_parse(yaml, strlen(yaml), "job", NULL, 0, NULL, &j), ST_OK);
    assert_int_equal(plan_build(j, &in, &p->plan), ST_OK);
    job_close(j);
    for (int i = 0; i < CELLS; i++) {
        p->seconds[i] = seconds;
        p->speed[i] = 1;
    }
    p->schedule = (struct schedule_input){.plan = p->plan, .n_ranks = n_ranks, .n_kinds = 1, .split = true};
    p->in = (struct simulation_input){&p->schedule, p->seconds, p->speed, 0, 0, 1e-5};
}

static void paper_run(struct paper *p)
{
    assert_int_equal(simulate_static(&p->in, &p->fixed), ST_OK);
    assert_int_equal(simulate_dynamic(&p->in, &p->dynamic), ST_OK);
    assert_int_equal(p->fixed.cells, CELLS);
    assert_int_equal(p->dynamic.cells, CELLS);
}

static void equal_cells_keep_every_rank_busy_to_the_end(void **state)
{
    struct paper p;
    paper_make(&p, 8, 10);
    paper_run(&p);
    assert_float_equal(p.fixed.makespan_s, CELLS / 8 * 10, 1e-9);
    assert_float_equal(p.fixed.idle_share, 0, 1e-9);
    /* Each pair of cells waits for an answer, a look of rank 0's at most. */
    assert_true(p.dynamic.makespan_s >= CELLS / 8 * 10);
    assert_true(p.dynamic.makespan_s <= CELLS / 8 * (10 + 2 * SIMULATION_LOOK_S));
    plan_close(p.plan);
}

static void no_schedule_beats_the_work_divided_by_the_ranks_or_the_longest_cell(void **state)
{
    static const int ranks[] = {1, 3, 16, 399, 400};
    struct cost_model m = {.mean_s = {[PRECISION_BF16] = 40, [PRECISION_INT8] = 25}, .spread = 1, .straggler_factor = 1};
    for (int k = 0; k < 5; k++) {
        struct paper p;
        double       sum = 0, longest = 0;
        paper_make(&p, ranks[k], 1);
        for (int i = 0; i < CELLS; i++) {
            p.seconds[i] = cost_model_seconds(&m, p.plan->cells[i].precision, 7, (size_t)i);
            sum += p.seconds[i];
            longest = fmax(longest, p.seconds[i]);
        }
        paper_run(&p);
        for (int d = 0; d < 2; d++) {
            const struct simulation_result *r = d ? &p.dynamic : &p.fixed;
            assert_true(r->makespan_s >= sum / ranks[k] - 1e-6 && r->makespan_s >= longest);
            assert_float_equal(r->busy_s, sum, 1e-6 * sum);
            assert_float_equal(r->idle_share, 1 - sum / (ranks[k] * r->makespan_s), 1e-9);
        }
        plan_close(p.plan);
    }
}

static void unequal_ranks_are_served_better_by_dynamic_hand_out(void **state)
{
    struct paper p;
    paper_make(&p, 8, 10);
    for (int r = 0; r < 4; r++)
        p.speed[r] = 0.25;
    paper_run(&p);
    assert_float_equal(p.fixed.makespan_s, CELLS / 8 * 40, 1e-9);
    assert_true(p.dynamic.makespan_s < 0.6 * p.fixed.makespan_s);
    plan_close(p.plan);
}

static void every_cell_costs_rank_0_three_messages_and_every_request_one(void **state)
{
    struct paper p;
    paper_make(&p, 8, 10);
    paper_run(&p);
    assert_int_equal(p.fixed.messages, 3 * CELLS);
    assert_int_equal(p.dynamic.messages, 3 * CELLS + p.dynamic.requests);
    assert_true(p.dynamic.requests >= 8);
    plan_close(p.plan);
}

static void a_cost_model_has_the_mean_it_says(void **state)
{
    static const char json[] = "{\"seconds\": {\"bf16\": 40}, \"spread\": 0.5, \"kinds\": [{\"share\": 3, \"speed\": 2}, {}]}";
    struct cost_model m;
    double            sum = 0;
    assert_int_equal(cost_model_parse(json, sizeof json - 1, "costs", &m), ST_OK);
    enum { DRAWS = 100000 };
    for (size_t i = 0; i < DRAWS; i++)
        sum += cost_model_seconds(&m, PRECISION_BF16, 1, i);
    /* The factor's variance is e^0.25 − 1 = 0.284: five standard errors of the mean are 0.84 %. */
    assert_float_equal(sum / DRAWS, 40, 40 * 0.0085);
    assert_float_equal(cost_model_speed(&m, 0, 4), 2, 0);
    assert_float_equal(cost_model_speed(&m, 2, 4), 2, 0);
    assert_float_equal(cost_model_speed(&m, 3, 4), 1, 0);
    cost_model_free(&m);
}

static void a_wrong_cost_model_is_refused(void **state)
{
    static const char *const wrong[] = {
        "", "[]", "{}", "{\"seconds\": {}}", "{\"seconds\": {\"bf16\": 0}}", "{\"seconds\": {\"bf16\": -1}}",
        "{\"seconds\": {\"bf17\": 1}}", "{\"seconds\": {\"bf16\": \"1\"}}", "{\"seconds\": {\"bf16\": 1}, \"spraed\": 1}",
        "{\"seconds\": {\"bf16\": 1}, \"spread\": 99}", "{\"seconds\": {\"bf16\": 1}, \"kinds\": []}",
        "{\"seconds\": {\"bf16\": 1}, \"kinds\": [{\"share\": 0}]}", "{\"seconds\": {\"bf16\": 1}, \"straggler\": {\"factor\": 0}}",
        "{\"seconds\": {\"bf16\": 1e300}}", "{\"seconds\": 3}", "{\"seconds\": {\"bf16\": 1}, \"kinds\": [3]}",
    };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        struct cost_model m;
        assert_int_equal(cost_model_parse(wrong[k], strlen(wrong[k]), "costs", &m), ST_EINPUT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_cells_keep_every_rank_busy_to_the_end),
        cmocka_unit_test(no_schedule_beats_the_work_divided_by_the_ranks_or_the_longest_cell),
        cmocka_unit_test(unequal_ranks_are_served_better_by_dynamic_hand_out),
        cmocka_unit_test(every_cell_costs_rank_0_three_messages_and_every_request_one),
        cmocka_unit_test(a_cost_model_has_the_mean_it_says),
        cmocka_unit_test(a_wrong_cost_model_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
