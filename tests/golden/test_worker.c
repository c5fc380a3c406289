/* test_worker.c — a whole measurement in one process, on the small original checkpoint. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "bench/worker.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL "tests/golden/dualar-a"

static void make(struct work *w)
{
    static const char *const texts[] = {"Hello, this is a test.", "Second text."};
    memset(w, 0, sizeof *w);
    cell_defaults(&w->cell);
    assert_int_equal(cell_set_model(&w->cell, MODEL), ST_OK);
    assert_int_equal(workload_set_texts(&w->cell.workload, texts, 2), ST_OK);
    strcpy(w->cell.fingerprint, "0123456789abcdef0123456789abcdef");
    w->cell.workload.samples = 2;
    w->cell.workload.warmup = 1;
    w->cell.workload.max_new_tokens = 6;
    w->cell.workload.length = LENGTH_FIXED;
    assert_int_equal(cell_identify(&w->cell), ST_OK);
    w->n_parts = 1;
}

static struct result measure(const struct work *w)
{
    static const volatile sig_atomic_t never = 0;
    struct result                      r;
    worker_run(w, clock_ns(), &never, &r);
    return r;
}

static void a_cell_yields_every_sample_every_step_and_the_memory_of_its_phases(void **state)
{
    (void)state;
    struct work w;
    make(&w);
    w.cell.batch = 2;
    struct result r = measure(&w);
    assert_int_equal(r.status, CELL_OK);
    assert_string_equal(r.reason, "");
    assert_int_equal(r.n_samples, 4);
    assert_int_equal(r.n_steps, 24);
    for (size_t i = 0; i < r.n_samples; i++) {
        const struct sample *s = &r.samples[i];
        double               steps_ms = 0;
        assert_int_equal(s->text, i % 2);
        assert_int_equal(s->repeat, i / 2);
        assert_int_equal(s->order, i);
        assert_int_equal(s->steps, 6);
        assert_int_equal(s->step_offset, 6 * i);
        assert_int_equal(s->frames, 12);
        assert_int_equal(s->stop, STOP_LENGTH);
        assert_true(fabs(s->audio_s - 12 * 2048 / 44100.0) < 1e-9);
        for (int k = 0; k < s->steps; k++) {
            assert_true(r.step_ms[s->step_offset + (size_t)k] > 0);
            steps_ms += r.step_ms[s->step_offset + (size_t)k];
        }
        /* Steps lie inside the decoding, prefill and decoding inside the request. */
        assert_true(s->prefill_ms > 0 && steps_ms <= s->decode_ms);
        assert_true(s->prefill_ms + s->decode_ms <= s->latency_ms);
    }
    assert_true(r.baseline_bytes > 1000000 && r.peak_bytes >= r.baseline_bytes);
    assert_true(r.memory_ready[MEM_WEIGHTS] > 0 && r.memory_ready[MEM_KV] > 0);
    assert_true(r.process_ready > 0 && r.process_peak != UINT64_MAX);
    assert_true(r.device_ready == UINT64_MAX && r.device_peak == UINT64_MAX);
    assert_true(r.load_s > 0 && r.warmup_s > 0 && r.first_frame_s > r.load_s && r.total_s > r.first_frame_s);
    assert_true(r.step_bytes > 0);
    assert_true(r.n_trace > 0 && r.trace[r.n_trace - 1].phase == PHASE_DONE);
    assert_non_null(result_fact(&r, "cpu_count"));
    result_free(&r);
    work_free(&w);
}

/* The same sample has the same codes whichever process takes it and whatever ran before it. */
static void parts_of_a_cell_decode_the_samples_of_the_whole(void **state)
{
    (void)state;
    struct work w;
    make(&w);
    w.cell.workload.samples = 3;
    struct result whole = measure(&w);
    assert_int_equal(whole.n_samples, 6);
    size_t seen = 0;
    w.n_parts = 4;
    for (w.part = 0; w.part < w.n_parts; w.part++) {
        struct result part = measure(&w);
        assert_int_equal(part.status, CELL_OK);
        for (size_t i = 0; i < part.n_samples; i++, seen++) {
            assert_int_equal(part.samples[i].text, whole.samples[seen].text);
            assert_int_equal(part.samples[i].repeat, whole.samples[seen].repeat);
            assert_int_equal(part.samples[i].process, w.part);
            assert_int_equal(part.samples[i].codes_hash, whole.samples[seen].codes_hash);
        }
        result_free(&part);
    }
    assert_int_equal(seen, whole.n_samples);
    assert_true(whole.samples[0].codes_hash != whole.samples[2].codes_hash); /* repeats differ in their noise */
    result_free(&whole);
    work_free(&w);
}

static void a_memory_limit_ends_a_cell_as_oom_and_names_the_missing_bytes(void **state)
{
    (void)state;
    struct work w;
    make(&w);
    w.cell.memory_limit = 1000000;
    struct result r = measure(&w);
    assert_int_equal(r.status, CELL_OOM);
    assert_non_null(strstr(r.reason, "bytes missing"));
    assert_int_equal(r.n_samples, 0);
    assert_true(r.baseline_bytes == UINT64_MAX);
    result_free(&r);
    work_free(&w);
}

static void a_context_that_does_not_fit_makes_the_cell_invalid(void **state)
{
    (void)state;
    struct work w;
    make(&w);
    w.cell.context = 100000;
    struct result r = measure(&w);
    assert_int_equal(r.status, CELL_INVALID);
    assert_true(r.reason[0] != '\0');
    result_free(&r);
    work_free(&w);
}

static void a_missing_model_makes_the_cell_invalid(void **state)
{
    (void)state;
    struct work w;
    make(&w);
    assert_int_equal(cell_set_model(&w.cell, "/nowhere/model"), ST_OK);
    struct result r = measure(&w);
    assert_true(r.status == CELL_INVALID || r.status == CELL_CRASHED);
    assert_non_null(strstr(r.reason, "/nowhere/model"));
    result_free(&r);
    work_free(&w);
}

static void a_context_lengthens_the_prompt_by_its_frames(void **state)
{
    (void)state;
    struct work w;
    make(&w);
    w.cell.context = 8;
    struct result r8 = measure(&w);
    w.cell.context = 24;
    struct result r24 = measure(&w);
    assert_int_equal(r8.status, CELL_OK);
    assert_int_equal(r24.samples[0].prompt_tokens - r8.samples[0].prompt_tokens, 16);
    result_free(&r8);
    result_free(&r24);
    work_free(&w);
}

static void a_worker_that_is_told_to_stop_says_so(void **state)
{
    (void)state;
    struct work           w;
    volatile sig_atomic_t told = SIGTERM;
    struct result         r;
    make(&w);
    worker_run(&w, clock_ns(), &told, &r);
    assert_int_equal(r.status, CELL_INTERRUPTED);
    assert_non_null(strstr(r.reason, "stopped by signal 15"));
    result_free(&r);
    work_free(&w);
}

static void a_stop_rule_ends_after_whole_rounds_of_texts(void **state)
{
    (void)state;
    struct work w;
    make(&w);
    w.cell.workload.warmup = 0;
    w.cell.workload.max_new_tokens = 1;
    w.cell.workload.stop = (struct stop_rule){.rel_ci = 1e9f, .min = 7, .max = 30};
    struct result r = measure(&w);
    assert_int_equal(r.status, CELL_OK);
    assert_int_equal(r.n_samples, 14); /* any spread is narrow enough: min rounds of two texts */
    result_free(&r);
    work_free(&w);
}

int main(void)
{
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cell_yields_every_sample_every_step_and_the_memory_of_its_phases),
        cmocka_unit_test(parts_of_a_cell_decode_the_samples_of_the_whole),
        cmocka_unit_test(a_memory_limit_ends_a_cell_as_oom_and_names_the_missing_bytes),
        cmocka_unit_test(a_context_that_does_not_fit_makes_the_cell_invalid),
        cmocka_unit_test(a_missing_model_makes_the_cell_invalid),
        cmocka_unit_test(a_context_lengthens_the_prompt_by_its_frames),
        cmocka_unit_test(a_worker_that_is_told_to_stop_says_so),
        cmocka_unit_test(a_stop_rule_ends_after_whole_rounds_of_texts),
    };
    return cmocka_run_group_tests_name("worker", tests, NULL, NULL);
}
