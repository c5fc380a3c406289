/* test_trace.c — the trace sees what is allocated, in which phase, and every device value of its source. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/clock.h"
#include "bench/trace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void nap_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

static void the_ledger_and_the_resident_set_are_seen_in_their_phases(void **state)
{
    (void)state;
    const size_t         bytes = (size_t)64 << 20;
    struct memory_ledger ledger;
    struct result        r;
    struct trace        *t;
    memory_ledger_init(&ledger, 0);
    result_init(&r);
    assert_int_equal(trace_start(&(struct trace_options){.t0_ns = clock_ns(), .period_ms = 2}, &t), ST_OK);
    trace_phase(t, PHASE_CONTEXT);
    trace_watch(t, &ledger);
    trace_phase(t, PHASE_LOAD);
    assert_int_equal(memory_take(&ledger, MEM_WEIGHTS, bytes), ST_OK);
    volatile char *weights = malloc(bytes);
    for (size_t i = 0; i < bytes; i += 1024) /* volatile: an optimizer may not drop what nobody reads */
        weights[i] = 1;
    nap_ms(30);
    trace_phase(t, PHASE_READY);
    struct trace_point ready = trace_sample(t);
    assert_int_equal(memory_take(&ledger, MEM_KV, 1000), ST_OK);
    nap_ms(30);
    trace_phase(t, PHASE_MEASURE);
    memory_give(&ledger, MEM_KV, 1000);
    uint64_t process_peak, device_peak;
    trace_peaks(t, PHASE_READY, &process_peak, &device_peak);
    free((void *)(uintptr_t)weights);
    assert_int_equal(trace_stop(t, &r), ST_OK);

    assert_int_equal(ready.arena, bytes);
    /* The kernel's resident count lags by up to 64 pages a core. */
    const size_t slack = (size_t)4 << 20;
    assert_true(ready.process_used >= bytes - slack);
    assert_true(ready.pss != UINT64_MAX && ready.pss >= bytes);
    assert_true(process_peak >= ready.process_used);
    assert_true(device_peak == UINT64_MAX);
    size_t   seen[PHASE_COUNT] = {0};
    uint64_t most = 0;
    for (size_t i = 0; i < r.n_trace; i++) {
        assert_true(i == 0 || r.trace[i].t_ns >= r.trace[i - 1].t_ns);
        assert_true(i == 0 || r.trace[i].phase >= r.trace[i - 1].phase);
        seen[r.trace[i].phase]++;
        most = r.trace[i].arena > most ? r.trace[i].arena : most;
    }
    assert_true(seen[PHASE_CONTEXT] && seen[PHASE_LOAD] > 2 && seen[PHASE_READY] > 2 && seen[PHASE_MEASURE]);
    assert_int_equal(most, bytes + 1000);
    result_free(&r);
}

static void fake_device(void *ctx, bool slow, struct trace_point *p)
{
    int *calls = ctx;
    p->device_used = 1000 + (uint64_t)*calls;
    if (slow)
        p->power_mw = 250000;
    ++*calls;
}

static void a_source_fills_device_values_and_the_slow_ones_are_nan_between(void **state)
{
    (void)state;
    int           calls = 0;
    struct result r;
    struct trace *t;
    result_init(&r);
    assert_int_equal(trace_start(&(struct trace_options){.t0_ns = clock_ns(),
                                                         .period_ms = 2,
                                                         .source = {.ctx = &calls, .read = fake_device}},
                                 &t),
                     ST_OK);
    nap_ms(60);
    uint64_t process_peak, device_peak;
    trace_peaks(t, PHASE_CONTEXT, &process_peak, &device_peak);
    assert_int_equal(trace_stop(t, &r), ST_OK);
    assert_int_equal(r.n_trace, calls);
    assert_true(device_peak >= 1000 && device_peak <= 1000 + (uint64_t)calls);
    size_t with = 0, without = 0;
    for (size_t i = 0; i < r.n_trace; i++) {
        assert_int_equal(r.trace[i].device_used, 1000 + i);
        with += r.trace[i].power_mw == 250000;
        without += isnan(r.trace[i].power_mw) != 0;
    }
    assert_true(with >= 1 && without >= 1);
    assert_int_equal(with + without, r.n_trace);
    result_free(&r);
}

static double process_cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* What tracing takes from the steps: processor time of a process that does nothing but trace, with 256 MiB mapped
 * (65,536 pages for PSS to walk). Measured: 1.6 % of a core, most of it the 1 % that PSS may take; processor time, so a
 * busy machine changes it little. */
static void tracing_takes_less_than_five_percent_of_a_core(void **state)
{
    (void)state;
    const double   most = 0.05;
    const size_t   bytes = (size_t)256 << 20;
    volatile char *held = malloc(bytes);
    for (size_t i = 0; i < bytes; i += 4096)
        held[i] = 1;
    struct result r;
    struct trace *t;
    result_init(&r);
    double  cpu = process_cpu_s();
    int64_t t0 = clock_ns();
    assert_int_equal(trace_start(&(struct trace_options){.t0_ns = t0}, &t), ST_OK);
    nap_ms(1000);
    cpu = process_cpu_s() - cpu;
    double wall = (double)(clock_ns() - t0) * 1e-9;
    assert_int_equal(trace_stop(t, &r), ST_OK);
    printf("# tracing every 10 ms took %.2f %% of a core, %zu points\n", 100 * cpu / wall, r.n_trace);
    if (cpu / wall > most)
        fail_msg("tracing took %.2f %% of a core, want at most %.0f %%", 100 * cpu / wall, 100 * most);
    free((void *)(uintptr_t)held);
    result_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_ledger_and_the_resident_set_are_seen_in_their_phases),
        cmocka_unit_test(tracing_takes_less_than_five_percent_of_a_core),
        cmocka_unit_test(a_source_fills_device_values_and_the_slow_ones_are_nan_between),
    };
    return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}
