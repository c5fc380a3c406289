/* test_cores.c — shares of a host's cores. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/cores.h"

static struct cores numbered(int n)
{
    struct cores c = {.n = n};
    for (int i = 0; i < n; i++)
        c.ids[i] = 3 * i + 1;
    return c;
}

static void shares_are_disjoint_complete_and_differ_by_at_most_one_core(void **state)
{
    (void)state;
    for (int n = 1; n <= 40; n++)
        for (int count = 1; count <= n; count++) {
            struct cores all = numbered(n), share;
            int          next = 0, least = n, most = 0;
            for (int i = 0; i < count; i++) {
                assert_int_equal(cores_share(&all, i, count, &share), 1);
                for (int k = 0; k < share.n; k++)
                    assert_int_equal(share.ids[k], all.ids[next++]);
                least = share.n < least ? share.n : least;
                most = share.n > most ? share.n : most;
            }
            assert_int_equal(next, n);
            assert_true(most - least <= 1);
        }
}

static void more_shares_than_cores_wrap_around_and_say_so(void **state)
{
    (void)state;
    struct cores all = numbered(2), share;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(cores_share(&all, i, 5, &share), 0);
        assert_int_equal(share.n, 1);
        assert_int_equal(share.ids[0], all.ids[i % 2]);
    }
}

static void a_list_of_cores_reads_like_the_one_of_taskset(void **state)
{
    (void)state;
    struct cores c = {.n = 6, .ids = {0, 1, 2, 5, 8, 9}};
    char         text[32], tiny[4];
    cores_text(&c, text, sizeof text);
    assert_string_equal(text, "0-2,5,8-9");
    cores_text(&c, tiny, sizeof tiny);
    assert_string_equal(tiny, "0-2");
}

static void the_cores_of_the_job_include_our_own(void **state)
{
    (void)state;
    struct cores job, own;
    assert_int_equal(cores_of_process(0, &own), ST_OK);
    assert_int_equal(cores_of_job(&job), ST_OK);
    for (int i = 0; i < own.n; i++) {
        int found = 0;
        for (int k = 0; k < job.n; k++)
            found |= job.ids[k] == own.ids[i];
        assert_true(found);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_are_disjoint_complete_and_differ_by_at_most_one_core),
        cmocka_unit_test(more_shares_than_cores_wrap_around_and_say_so),
        cmocka_unit_test(a_list_of_cores_reads_like_the_one_of_taskset),
        cmocka_unit_test(the_cores_of_the_job_include_our_own),
    };
    return cmocka_run_group_tests_name("cores", tests, NULL, NULL);
}
