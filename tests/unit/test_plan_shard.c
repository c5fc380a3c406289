#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "sweep/plan.h"

#include <stdlib.h>
#include <stdio.h>
#include <string.h>

enum { CONTEXTS = 37, CELLS = 2 * CONTEXTS };

static struct plan *plan_with(const char *extra)
{
    static const char prints[1][33] = {"00112233445566778899aabbccddeeff"};
    struct plan_input in = {prints, 1, false, NULL, NULL, 0};
    char              yaml[256];
    struct job       *j;
    struct plan      *p;
    snprintf(yaml, sizeof yaml, "model: m\nsweep: {precision: [bf16, int8], context: 1..%d}\ndevice: cpu\n%s", (int)CONTEXTS, extra);
    assert_int_equal(job_parse(yaml, strlen(yaml), "job.yaml", NULL, 0, NULL, &j), ST_OK);
    assert_int_equal(plan_build(j, &in, &p), ST_OK);
    job_close(j);
    return p;
}

static void shards_are_disjoint_together_the_plan_and_equal_to_one_group(void **state)
{
    static const int counts[] = {1, 2, 3, 5, 36, 37, 38, 100};
    struct plan     *whole = plan_with("");
    for (int k = 0; k < 8; k++) {
        int    seen[CELLS] = {0};
        size_t least = CELLS, most = 0;
        for (int s = 0; s < counts[k]; s++) {
            struct plan *part = plan_with("");
            assert_int_equal(plan_shard(part, s, counts[k]), ST_OK);
            for (size_t i = 0; i < part->n; i++) {
                long at = plan_find(whole, part->cells[i].id);
                assert_true(at >= 0);
                seen[at]++;
                assert_int_equal(plan_find(part, part->cells[i].id), (long)i);
            }
            least = part->n < least ? part->n : least;
            most = part->n > most ? part->n : most;
            plan_close(part);
        }
        for (int i = 0; i < CELLS; i++)
            assert_int_equal(seen[i], 1);
        assert_true(most - least <= 2); /* a group is two cells */
    }
    plan_close(whole);
}

static void a_shard_is_the_same_whatever_the_order_of_the_plan(void **state)
{
    for (int s = 0; s < 5; s++) {
        struct plan *given = plan_with("order: given\n"), *shuffled = plan_with("order: random\n");
        assert_string_not_equal(given->cells[0].id, shuffled->cells[0].id); /* 1 in 74 by chance, but the seed is fixed */
        assert_int_equal(plan_shard(given, s, 5), ST_OK);
        assert_int_equal(plan_shard(shuffled, s, 5), ST_OK);
        assert_int_equal(shuffled->n, given->n);
        for (size_t i = 0; i < given->n; i++)
            assert_true(plan_find(shuffled, given->cells[i].id) >= 0);
        plan_close(given);
        plan_close(shuffled);
    }
}

static void groups_stay_whole_and_are_numbered_without_gaps(void **state)
{
    struct plan *p = plan_with("");
    assert_int_equal(plan_shard(p, 1, 4), ST_OK);
    for (size_t i = 0; i < p->n; i++)
        assert_int_equal(p->group[i], i / 2);
    for (size_t i = 0; i < p->n; i += 2) {
        assert_int_equal(p->cells[i].context, p->cells[i + 1].context);
        assert_int_not_equal(p->cells[i].precision, p->cells[i + 1].precision);
    }
    plan_close(p);
}

static void a_shard_survives_its_journey_as_json(void **state)
{
    struct plan *p = plan_with(""), *back;
    char        *json;
    assert_int_equal(plan_shard(p, 2, 3), ST_OK);
    assert_int_equal(plan_to_json(p, &json), ST_OK);
    assert_int_equal(plan_from_json(json, strlen(json), "plan", &back), ST_OK);
    assert_int_equal(back->n, p->n);
    for (size_t i = 0; i < p->n; i++)
        assert_string_equal(back->cells[i].id, p->cells[i].id);
    free(json);
    plan_close(back);
    plan_close(p);
}

static void shard_numbers_out_of_range_are_a_usage_error(void **state)
{
    static const int wrong[][2] = {{-1, 4}, {4, 4}, {0, 0}, {0, -1}};
    struct plan     *p = plan_with("");
    for (int k = 0; k < 4; k++)
        assert_int_equal(plan_shard(p, wrong[k][0], wrong[k][1]), ST_EUSAGE);
    assert_int_equal(p->n, CELLS);
    plan_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_are_disjoint_together_the_plan_and_equal_to_one_group),
        cmocka_unit_test(a_shard_is_the_same_whatever_the_order_of_the_plan),
        cmocka_unit_test(groups_stay_whole_and_are_numbered_without_gaps),
        cmocka_unit_test(a_shard_survives_its_journey_as_json),
        cmocka_unit_test(shard_numbers_out_of_range_are_a_usage_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
