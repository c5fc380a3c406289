/* test_gpu_watch.c — what NVML tells reaches the list of devices, the trace, the samples and the facts. The driver is
 * the test double of tests/fake/nvml.c; everything above it is the program's own code. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/nvml.h"
#include "base/clock.h"
#include "bench/gpu_watch.h"
#include "bench/steadiness.h"
#include "bench/summary.h"
#include "tests/fake/driver.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CARD "GPU-11111111-2222-3333-4444-555555555555"

static void nap_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

static void a_divided_card_is_listed_as_its_instances(void **state)
{
    (void)state;
    struct nvml_gpu all[8];
    char            why[256];
    driver_says("gpu " CARD " NVIDIA_H200 150000 3 00000000:18:00.0\n"
                "gpu GPU-b NVIDIA_A100 80000 3 00000000:2A:00.0\n"
                "mig MIG-1 A100_1g 10000 1\n"
                "mig MIG-2 A100_1g 10000 1\n");
    assert_int_equal(nvml_list(all, 8, why, sizeof why), 3);
    assert_string_equal(all[0].uuid, CARD);
    assert_string_equal(all[0].bus_id, "00000000:18:00.0");
    assert_true(all[0].memory_bytes == 150000000000u && all[0].card == 0);
    assert_string_equal(all[2].uuid, "MIG-2");
    assert_int_equal(all[2].card, 1);
    assert_int_equal(nvml_list(all, 2, why, sizeof why), 2);
}

static void without_a_driver_the_list_is_empty_and_says_why(void **state)
{
    (void)state;
    struct nvml_gpu all[1];
    char            why[256];
    driver_is_gone();
    assert_int_equal(nvml_list(all, 1, why, sizeof why), 0);
    assert_non_null(strstr(why, "Driver Not Loaded"));
    assert_null(gpu_watch_open(CARD));
}

static void a_sample_gets_energy_mean_clock_and_every_throttle_reason(void **state)
{
    (void)state;
    struct sample s = {.energy_j = NAN, .sm_clock_mhz = NAN};
    driver_says("gpu " CARD " H 1000 3 0:0\nstate 1900 3200 300000 40 4 10000\n");
    struct gpu_watch *w = gpu_watch_open(CARD);
    assert_non_null(w);
    gpu_watch_begin(w);
    driver_says("gpu " CARD " H 1000 3 0:0\nstate 1700 3200 300000 60 32 12500\n");
    gpu_watch_end(w, &s);
    assert_true(s.energy_j == 2.5);
    assert_true(s.sm_clock_mhz == 1800);
    assert_int_equal(s.throttle, 4 | 32);
    gpu_watch_begin(w); /* a new sample forgets the last one's reasons, and a counter that stood still is no zero */
    gpu_watch_end(w, &s);
    assert_true(isnan(s.energy_j));
    assert_int_equal(s.throttle, 32);
    gpu_watch_close(w);
}

static void the_trace_has_memory_at_every_tick_and_state_at_slow_ones(void **state)
{
    (void)state;
    char          text[256];
    struct trace *t;
    struct result r;
    result_init(&r);
    snprintf(text, sizeof text, "gpu " CARD " H 1000 700 0:0\nprocess %d 650\nstate 1900 3200 300000 40 0 1\n", getpid());
    driver_says(text);
    struct gpu_watch *w = gpu_watch_open(CARD);
    assert_int_equal(trace_start(&(struct trace_options){.t0_ns = clock_ns(), .period_ms = 2, .source = gpu_watch_source(w)}, &t),
                     ST_OK);
    trace_phase(t, PHASE_READY);
    struct trace_point ready = trace_sample(t);
    driver_says("gpu " CARD " H 1000 800 0:0\nprocess 1 na\nstate 1900 3200 300000 40 8 1\n");
    nap_ms(150); /* more than one slow period */
    uint64_t process_peak, device_peak;
    trace_peaks(t, PHASE_READY, &process_peak, &device_peak);
    assert_int_equal(trace_stop(t, &r), ST_OK);
    assert_true(ready.device_used == 700000000 && ready.process_used == 650000000);
    assert_true(ready.sm_clock_mhz == 1900 && ready.power_mw == 300000 && ready.temperature_c == 40);
    assert_true(device_peak == 800000000 && process_peak == 650000000);
    /* Once NVML no longer tells our share it is unknown, not the host's resident set. */
    assert_true(r.trace[r.n_trace - 1].process_used == UINT64_MAX);
    size_t with_clock = 0;
    for (size_t i = 0; i < r.n_trace; i++)
        with_clock += !isnan(r.trace[i].sm_clock_mhz);
    assert_true(with_clock >= 3 && with_clock < r.n_trace);
    gpu_watch_close(w);
    result_free(&r);
}

static void an_old_driver_has_v1_memory_and_the_facts_say_which_call(void **state)
{
    (void)state;
    struct result r;
    result_init(&r);
    driver_says("v1\ngpu " CARD " H 1000 100 0:0\n");
    struct gpu_watch *w = gpu_watch_open(CARD);
    assert_int_equal(gpu_watch_facts(w, &r), ST_OK);
    assert_non_null(strstr(result_fact(&r, "gpu_memory_call"), "nvmlDeviceGetMemoryInfo, "));
    assert_string_equal(result_fact(&r, "gpu_memory_v1_used_bytes"), "700000000"); /* 600 MB are the driver's */
    assert_null(result_fact(&r, "gpu_memory_v2_used_bytes"));
    assert_null(result_fact(&r, "gpu_sm_clock_mhz"));
    gpu_watch_close(w);
    result_free(&r);
}

static void facts_count_ecc_errors_of_this_cell_alone(void **state)
{
    (void)state;
    struct result r;
    result_init(&r);
    driver_says("gpu " CARD " H 1000 100 0:0\nstate 1 2 3 50 64 5\necc 1 7\n");
    struct gpu_watch *w = gpu_watch_open(CARD);
    driver_says("gpu " CARD " H 1000 100 0:0\nstate 1 2 3 50 64 5\necc 1 9\n");
    struct trace_point p;
    gpu_watch_source(w).read(w, true, &p);
    assert_int_equal(gpu_watch_facts(w, &r), ST_OK);
    assert_string_equal(result_fact(&r, "gpu_ecc"), "on");
    assert_string_equal(result_fact(&r, "gpu_ecc_errors_during_cell"), "2");
    assert_string_equal(result_fact(&r, "gpu_throttle_reasons"), "0x40");
    assert_string_equal(result_fact(&r, "gpu_temperature_max_c"), "50");
    gpu_watch_close(w);
    result_free(&r);
}

static void the_summary_notes_how_many_samples_were_throttled(void **state)
{
    (void)state;
    struct result       r;
    struct summary_row  row;
    const struct sample s[3] = {{.frames = 1, .steps = 0, .audio_s = 1, .latency_ms = 1, .throttle = 4},
                                {.frames = 1, .steps = 0, .audio_s = 1, .latency_ms = 1, .throttle = 1},
                                {.frames = 1, .steps = 0, .audio_s = 1, .latency_ms = 1, .throttle = 0x40}};
    result_init(&r);
    for (int i = 0; i < 3; i++)
        assert_int_equal(result_add_sample(&r, &s[i], NULL), ST_OK);
    r.status = CELL_OK;
    assert_int_equal(summary_from_result(&r, &row), ST_OK);
    assert_non_null(strstr(row.notes, "2 of 3 samples were throttled")); /* reason 1 is idleness */
    result_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_divided_card_is_listed_as_its_instances),
        cmocka_unit_test(without_a_driver_the_list_is_empty_and_says_why),
        cmocka_unit_test(a_sample_gets_energy_mean_clock_and_every_throttle_reason),
        cmocka_unit_test(the_trace_has_memory_at_every_tick_and_state_at_slow_ones),
        cmocka_unit_test(an_old_driver_has_v1_memory_and_the_facts_say_which_call),
        cmocka_unit_test(facts_count_ecc_errors_of_this_cell_alone),
        cmocka_unit_test(the_summary_notes_how_many_samples_were_throttled),
    };
    driver_load();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    driver_is_gone();
    return failed;
}
