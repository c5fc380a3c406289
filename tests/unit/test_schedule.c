#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "sweep/schedule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static void random_seed(void)
{
    random_state = (uint64_t)time(NULL);
    print_message("# seed %llu\n", (unsigned long long)random_state);
}

static struct plan *plan_of(const char *yaml)
{
    static const char prints[1][33] = {"00112233445566778899aabbccddeeff"};
    struct plan_input in            = {prints, 1, false, NULL, NULL, 0};
    struct job       *j;
    struct plan      *p;
    assert_int_equal(job_parse(yaml, strlen(yaml), "job.yaml", NULL, 0, NULL, &j), ST_OK);
    assert_int_equal(plan_build(j, &in, &p), ST_OK);
    job_close(j);
    return p;
}

/* n groups of bf16 and int8. */
static struct plan *plan_of_groups(int n)
{
    char yaml[128];
    snprintf(yaml, sizeof yaml, "model: m\nsweep: {precision: [bf16, int8], context: 1..%d}\ndevice: cpu\n", n);
    return plan_of(yaml);
}

static struct schedule_input ranks(const struct plan *p, int n, bool split)
{
    return (struct schedule_input){.plan = p, .n_ranks = n, .n_kinds = 1, .split = split};
}

static size_t cells_of(const struct plan *p, const int32_t *rank_of, int rank)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++)
        n += rank_of[i] == rank;
    return n;
}

static size_t broken_groups(const struct plan *p, const int32_t *rank_of)
{
    size_t n = 0;
    for (size_t i = 1; i < p->n; i++)
        n += p->group[i] == p->group[i - 1] && rank_of[i] != rank_of[i - 1];
    return n;
}

static void static_ranks_differ_by_a_group_at_most_and_keep_groups_whole(void **state)
{
    static const int ranks_of[] = {1, 2, 3, 4, 7, 8, 16, 100};
    struct plan     *p          = plan_of_groups(37);
    int32_t          rank_of[74], again[74];
    for (int k = 0; k < 8; k++) {
        struct schedule_input in    = ranks(p, ranks_of[k], false);
        size_t                least = SIZE_MAX, most = 0;
        assert_int_equal(schedule_static(&in, rank_of), ST_OK);
        for (int r = 0; r < ranks_of[k]; r++) {
            size_t n = cells_of(p, rank_of, r);
            least    = n < least ? n : least;
            most     = n > most ? n : most;
        }
        assert_true(most - least <= 2);
        assert_int_equal(broken_groups(p, rank_of), 0);
        assert_int_equal(schedule_static(&in, again), ST_OK);
        assert_memory_equal(rank_of, again, sizeof rank_of);
    }
    plan_close(p);
}

static void a_group_is_split_only_when_a_rank_would_stand_idle(void **state)
{
    static const struct {
        int    groups, ranks;
        size_t most, broken;
    } cases[] = {{1, 8, 1, 1}, {4, 8, 1, 4}, {8, 8, 2, 0}, {8, 4, 4, 0}, {9, 8, 3, 1}, {12, 8, 3, 4}, {3, 2, 3, 1}};
    for (int k = 0; k < 7; k++) {
        struct plan          *p  = plan_of_groups(cases[k].groups);
        struct schedule_input in = ranks(p, cases[k].ranks, true);
        int32_t               rank_of[64];
        size_t                most = 0;
        assert_int_equal(schedule_static(&in, rank_of), ST_OK);
        for (int r = 0; r < cases[k].ranks; r++)
            most = cells_of(p, rank_of, r) > most ? cells_of(p, rank_of, r) : most;
        if (most > cases[k].most || broken_groups(p, rank_of) > cases[k].broken)
            fail_msg("%d groups on %d ranks: at most %zu cells a rank, %zu groups broken", cases[k].groups, cases[k].ranks,
                     most, broken_groups(p, rank_of));
        plan_close(p);
    }
}

static void dear_cells_do_not_end_up_on_one_rank(void **state)
{
    struct plan          *p = plan_of_groups(20);
    double                cost[40], load[4] = {0}, sum = 0, most = 0, dearest = 0;
    struct schedule_input in = ranks(p, 4, true);
    int32_t               rank_of[40];
    random_seed();
    for (size_t i = 0; i < 40; i++)
        cost[i] = p->group[i] % 5 == 0 ? 100 + random_below(50) : 1 + random_below(10);
    in.cost = cost;
    assert_int_equal(schedule_static(&in, rank_of), ST_OK);
    for (size_t i = 0; i < 40; i++) {
        load[rank_of[i]] += cost[i];
        sum += cost[i];
        dearest = cost[i] > dearest ? cost[i] : dearest;
    }
    for (int r = 0; r < 4; r++)
        most = load[r] > most ? load[r] : most;
    assert_true(most <= sum / 4 + 2 * dearest); /* longest first: within one task, here a pair, of the mean */
    plan_close(p);
}

static void done_and_invalid_cells_go_to_no_rank(void **state)
{
    struct plan *p = plan_of("model: m\nsweep: {precision: [fp32, bf16], device: [cpu, cuda], batch: 1..10}\n");
    bool         done[40];
    int32_t      rank_of[40];
    for (size_t i = 0; i < 40; i++)
        done[i] = i % 3 == 0;
    struct schedule_input in = ranks(p, 3, true);
    in.skip                  = done;
    assert_int_equal(schedule_static(&in, rank_of), ST_OK);
    for (size_t i = 0; i < 40; i++)
        assert_int_equal(rank_of[i] == RANK_SKIP, done[i] || p->invalid[i]);
    plan_close(p);
}

/* Kind 0 is a CPU node, kind 1 a small card that takes int8 only, kind 2 a large card. */
static bool fits(void *ctx, int kind, const struct cell *c)
{
    (void)ctx;
    if (kind == 0)
        return c->device_class == DEVICE_CPU;
    return c->device_class == DEVICE_CUDA && (kind == 2 || c->precision == PRECISION_INT8);
}

static void cells_run_only_where_they_fit(void **state)
{
    static const int      kinds[]      = {0, 1, 1, 2, 0};
    static const int      small_only[] = {0, 1, 1, 1, 0};
    struct plan          *p  = plan_of("model: m\nsweep: {precision: [bf16, int8], device: [cpu, cuda], batch: 1..10}\n");
    struct schedule_input in = {.plan = p, .n_ranks = 5, .kind = kinds, .n_kinds = 3, .fits = fits, .split = true};
    int32_t               rank_of[40];
    assert_int_equal(schedule_static(&in, rank_of), ST_OK);
    for (size_t i = 0; i < 40; i++)
        assert_true(rank_of[i] >= 0 && fits(NULL, kinds[rank_of[i]], &p->cells[i]));
    assert_int_equal(broken_groups(p, rank_of), 0); /* a pair that only the large card can run whole goes there */
    in.kind = small_only;
    assert_int_equal(schedule_static(&in, rank_of), ST_OK);
    for (size_t i = 0; i < 40; i++) {
        bool homeless = p->cells[i].device_class == DEVICE_CUDA && p->cells[i].precision == PRECISION_BF16;
        assert_int_equal(rank_of[i] == RANK_NONE, homeless);
        if (!homeless)
            assert_true(fits(NULL, small_only[rank_of[i]], &p->cells[i]));
    }
    plan_close(p);
}

/* Random ranks ask, finish, report twice, die; in the end every cell that some living rank can run is done once. */
static void play_dispatch(const struct plan *p, int n_ranks, const int *kinds, int n_kinds, bool split, const bool *skip)
{
    enum { CAPACITY = 3, RANKS = 12, QUEUE = CAPACITY };
    struct schedule_input in = {.plan = p, .n_ranks = n_ranks, .kind = kinds, .n_kinds = n_kinds, .split = split,
                                .fits = kinds ? fits : NULL, .skip = skip};
    struct dispatcher *d;
    size_t             queue[RANKS][QUEUE], queued[RANKS] = {0}, finished[4096] = {0};
    bool               dead[RANKS] = {false}, ended[RANKS] = {false};
    int                alive = n_ranks;
    assert_true(n_ranks <= RANKS && p->n <= 4096);
    assert_int_equal(dispatcher_open(&in, &d), ST_OK);
    for (int open = n_ranks; open > 0;) {
        int      r    = (int)random_below((uint32_t)n_ranks);
        uint32_t what = random_below(100);
        if (dead[r] || ended[r])
            continue;
        if (what < 2 && alive > 1) {
            dispatcher_lost(d, r);
            dead[r] = true;
            alive--;
            open--;
            for (size_t i = 0; i < queued[r]; i++)
                assert_false(dispatcher_done(d, r, queue[r][i])); /* a late report of a lost rank */
        } else if (queued[r] == 0) {
            size_t        n;
            enum dispatch got = dispatcher_next(d, r, queue[r], CAPACITY, &n);
            assert_int_equal(got == DISPATCH_TASK, n > 0);
            assert_true(n <= CAPACITY);
            queued[r] = n;
            if (got == DISPATCH_END) {
                ended[r] = true;
                open--;
            }
            for (size_t i = 0; i < n; i++) {
                assert_null(p->invalid[queue[r][i]]);
                assert_false(skip && skip[queue[r][i]]);
                if (kinds)
                    assert_true(fits(NULL, kinds[r], &p->cells[queue[r][i]]));
                if (i)
                    assert_true(queue[r][i] > queue[r][i - 1] &&
                                p->group[queue[r][i]] == p->group[queue[r][i - 1]]);
            }
        } else {
            size_t cell = queue[r][--queued[r]];
            assert_true(dispatcher_done(d, r, cell));
            assert_false(dispatcher_done(d, r, cell));
            assert_false(dispatcher_done(d, (r + 1) % n_ranks, cell));
            finished[cell]++;
        }
        struct dispatch_count count = dispatcher_count(d);
        size_t                held  = 0;
        for (int k = 0; k < n_ranks; k++)
            held += dead[k] ? 0 : queued[k];
        assert_int_equal(count.running, held);
    }
    for (size_t i = 0; i < p->n; i++) {
        bool can = false;
        for (int r = 0; r < n_ranks; r++)
            can |= !dead[r] && (!kinds || fits(NULL, kinds[r], &p->cells[i]));
        assert_true(finished[i] <= 1);
        if (can && !p->invalid[i] && !(skip && skip[i]))
            assert_int_equal(finished[i], 1);
    }
    struct dispatch_count count = dispatcher_count(d);
    assert_int_equal(count.waiting, 0);
    assert_int_equal(count.running, 0);
    dispatcher_close(d);
}

static void every_cell_is_handed_out_once_whatever_happens(void **state)
{
    enum { GAMES = 300 };
    static const int mixed[] = {0, 1, 2, 0, 1, 2, 2, 1, 0, 1, 2, 0};
    struct plan     *plain   = plan_of_groups(40);
    struct plan     *fleet   = plan_of("model: m\nsweep: {precision: [fp32, bf16, int8], device: [cpu, cuda], batch: 1..20}\n");
    bool             skip[4096];
    random_seed();
    for (int g = 0; g < GAMES; g++) {
        int n_ranks = 1 + (int)random_below(12);
        for (size_t i = 0; i < 4096; i++)
            skip[i] = random_below(4) == 0;
        play_dispatch(plain, n_ranks, NULL, 1, g & 1, g & 2 ? skip : NULL);
        play_dispatch(fleet, n_ranks, mixed, 3, g & 1, g & 2 ? skip : NULL);
    }
    plan_close(plain);
    plan_close(fleet);
}

static void dispatch_and_static_run_the_same_set_of_cells(void **state)
{
    static const int      kinds[] = {0, 1, 1};
    struct plan          *p  = plan_of("model: m\nsweep: {precision: [bf16, int8], device: [cpu, cuda], batch: 1..10}\n");
    struct schedule_input in = {.plan = p, .n_ranks = 3, .kind = kinds, .n_kinds = 3, .fits = fits};
    struct dispatcher    *d;
    int32_t               rank_of[40];
    bool                  ran[40] = {false};
    assert_int_equal(schedule_static(&in, rank_of), ST_OK);
    assert_int_equal(dispatcher_open(&in, &d), ST_OK);
    for (int r = 0; r < 3; r++) {
        size_t cells[8], n;
        while (dispatcher_next(d, r, cells, 8, &n) == DISPATCH_TASK)
            for (size_t i = 0; i < n; i++) {
                ran[cells[i]] = true;
                assert_true(dispatcher_done(d, r, cells[i]));
            }
    }
    for (size_t i = 0; i < 40; i++)
        assert_int_equal(ran[i], rank_of[i] >= 0);
    assert_int_equal(dispatcher_count(d).unrunnable, 10);
    dispatcher_close(d);
    plan_close(p);
}

static void a_rank_waits_while_cells_are_in_flight_and_ends_when_none_is(void **state)
{
    struct plan          *p  = plan_of_groups(1);
    struct schedule_input in = ranks(p, 2, false);
    struct dispatcher    *d;
    size_t                cells[4], n;
    assert_int_equal(dispatcher_open(&in, &d), ST_OK);
    assert_int_equal(dispatcher_next(d, 0, cells, 4, &n), DISPATCH_TASK);
    assert_int_equal(n, 2); /* the pair stays together: split is off */
    assert_int_equal(dispatcher_next(d, 1, cells + 2, 2, &n), DISPATCH_WAIT);
    assert_true(dispatcher_done(d, 0, cells[0]));
    dispatcher_lost(d, 0);
    assert_int_equal(dispatcher_next(d, 0, cells + 2, 2, &n), DISPATCH_END);
    assert_int_equal(dispatcher_next(d, 1, cells + 2, 2, &n), DISPATCH_TASK);
    assert_int_equal(n, 1);
    assert_int_equal(cells[2], cells[1]);
    assert_false(dispatcher_done(d, 0, cells[1]));
    assert_true(dispatcher_done(d, 1, cells[2]));
    assert_int_equal(dispatcher_next(d, 1, cells, 4, &n), DISPATCH_END);
    assert_int_equal(dispatcher_count(d).done, 2);
    dispatcher_close(d);
    plan_close(p);
}

static void the_last_group_is_shared_out_when_ranks_would_idle(void **state)
{
    struct plan          *p  = plan_of_groups(1);
    struct schedule_input in = ranks(p, 8, true);
    struct dispatcher    *d;
    size_t                cells[4], n;
    assert_int_equal(dispatcher_open(&in, &d), ST_OK);
    assert_int_equal(dispatcher_next(d, 5, cells, 4, &n), DISPATCH_TASK);
    assert_int_equal(n, 1);
    assert_int_equal(dispatcher_next(d, 2, cells, 4, &n), DISPATCH_TASK);
    assert_int_equal(n, 1);
    assert_int_equal(dispatcher_next(d, 7, cells, 4, &n), DISPATCH_WAIT);
    dispatcher_close(d);
    plan_close(p);
}

static void after_drain_nothing_is_handed_out(void **state)
{
    struct plan          *p  = plan_of_groups(4);
    struct schedule_input in = ranks(p, 2, false);
    struct dispatcher    *d;
    size_t                cells[4], n;
    assert_int_equal(dispatcher_open(&in, &d), ST_OK);
    assert_int_equal(dispatcher_next(d, 0, cells, 4, &n), DISPATCH_TASK);
    dispatcher_drain(d);
    assert_int_equal(dispatcher_next(d, 1, cells + 2, 2, &n), DISPATCH_END);
    assert_true(dispatcher_done(d, 0, cells[0]));
    assert_int_equal(dispatcher_count(d).waiting, 6);
    dispatcher_close(d);
    dispatcher_close(NULL);
    plan_close(p);
}

static void strangers_change_nothing(void **state)
{
    struct plan          *p  = plan_of_groups(2);
    struct schedule_input in = ranks(p, 2, false);
    struct dispatcher    *d;
    size_t                cells[4], n;
    assert_int_equal(dispatcher_open(&in, &d), ST_OK);
    assert_int_equal(dispatcher_next(d, -1, cells, 4, &n), DISPATCH_END);
    assert_int_equal(dispatcher_next(d, 2, cells, 4, &n), DISPATCH_END);
    assert_false(dispatcher_done(d, 0, 0));
    assert_false(dispatcher_done(d, 0, SIZE_MAX));
    assert_false(dispatcher_done(d, -1, 0));
    assert_false(dispatcher_done(d, 99, 0));
    dispatcher_lost(d, -1);
    dispatcher_lost(d, 99);
    assert_int_equal(dispatcher_count(d).waiting, 4);
    dispatcher_close(d);
    in.n_ranks = 0;
    assert_int_equal(dispatcher_open(&in, &d), ST_EINTERNAL);
    plan_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(static_ranks_differ_by_a_group_at_most_and_keep_groups_whole),
        cmocka_unit_test(a_group_is_split_only_when_a_rank_would_stand_idle),
        cmocka_unit_test(dear_cells_do_not_end_up_on_one_rank),
        cmocka_unit_test(done_and_invalid_cells_go_to_no_rank),
        cmocka_unit_test(cells_run_only_where_they_fit),
        cmocka_unit_test(every_cell_is_handed_out_once_whatever_happens),
        cmocka_unit_test(dispatch_and_static_run_the_same_set_of_cells),
        cmocka_unit_test(a_rank_waits_while_cells_are_in_flight_and_ends_when_none_is),
        cmocka_unit_test(the_last_group_is_shared_out_when_ranks_would_idle),
        cmocka_unit_test(after_drain_nothing_is_handed_out),
        cmocka_unit_test(strangers_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
