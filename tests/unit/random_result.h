/* random_result.h — results full of random values in legal ranges, and their comparison. For tests only. */
#ifndef QSWEEP_TESTS_RANDOM_RESULT_H
#define QSWEEP_TESTS_RANDOM_RESULT_H

#include "bench/result.h"
#include "sweep/cell.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* SplitMix64 (Steele, Lea and Flood 2014): one state word, good enough for test data. */
static inline uint64_t random_u64(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z          = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z          = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline int random_below(uint64_t *state, int n)
{
    return (int)(random_u64(state) % (uint64_t)n);
}

static inline double random_real(uint64_t *state, double from, double to)
{
    return from + (to - from) * (double)(random_u64(state) >> 11) * 0x1p-53;
}

/* A real that is sometimes unknown. */
static inline double random_maybe(uint64_t *state)
{
    return random_below(state, 4) ? random_real(state, 0, 1e4) : NAN;
}

static inline uint64_t random_bytes(uint64_t *state)
{
    return random_below(state, 4) ? random_u64(state) >> 14 : UINT64_MAX;
}

static inline status_t random_cell(uint64_t *state, struct cell *out)
{
    static const char *const texts[] = {"Hello, this is a test.", "今天天气真好", "tab\tand \"quotes\" and <tags> & \\", "é"};
    cell_defaults(out);
    TRY(cell_set_model(out, "checkpoints/s1-nano"));
    TRY(workload_set_texts(&out->workload, texts, 1 + random_below(state, 4)));
    for (int i = 0; i < 32; i++)
        out->fingerprint[i] = "0123456789abcdef"[random_below(state, 16)];
    out->precision           = (enum precision)random_below(state, PRECISION_COUNT);
    out->kv                  = out->precision == PRECISION_FP32 ? KV_FP32 : KV_BF16;
    out->batch               = 1 + random_below(state, 8);
    out->context             = random_below(state, 3) * 64;
    out->workload.samples    = 1 + random_below(state, 5);
    out->sampling.seed       = random_u64(state) >> 2;
    out->keep_audio          = random_below(state, 2);
    snprintf(out->device, sizeof out->device, "cpu");
    return cell_identify(out);
}

/* n_samples < 0: a few. The caller frees it. */
static inline status_t random_result(uint64_t *state, int n_samples, struct result *r)
{
    result_init(r);
    TRY(random_cell(state, &r->cell));
    r->status = CELL_OK;
    TRY(result_set_reason(r, ""));
    snprintf(r->engine, sizeof r->engine, "ops");
    snprintf(r->host, sizeof r->host, "node%02d", random_below(state, 100));
    r->rank = random_below(state, 64), r->attempt = random_below(state, 3), r->exit_code = random_below(state, 2);
    r->signal = random_below(state, 2) * 9, r->started_ns = (int64_t)(random_u64(state) >> 3);
    int n     = n_samples < 0 ? random_below(state, 12) : n_samples;
    for (int i = 0; i < n; i++) {
        struct sample s = {
            .text = i % r->cell.workload.n_texts, .repeat = i / r->cell.workload.n_texts, .process = random_below(state, 2),
            .seed = random_u64(state), .order = i, .prompt_tokens = 1 + random_below(state, 100),
            .stop = random_below(state, STOP_COUNT), .prefill_ms = random_real(state, 1, 50),
            .decode_ms = random_real(state, 50, 500), .codec_ms = random_maybe(state), .latency_ms = random_real(state, 51, 600),
            .first_audio_ms = random_maybe(state), .audio_s = random_real(state, 0.1, 9), .energy_j = random_maybe(state),
            .sm_clock_mhz = random_maybe(state), .throttle = random_u64(state), .codes_hash = random_u64(state),
            .t0_ns = (int64_t)(random_u64(state) >> 2), .steps = random_below(state, 40)};
        double steps[40];
        for (int k = 0; k < s.steps; k++)
            steps[k] = random_real(state, 0.5, 20);
        s.frames = s.steps * r->cell.batch;
        TRY(result_add_sample(r, &s, steps));
    }
    int points = random_below(state, 300);
    for (int i = 0; i < points; i++) {
        struct trace_point p = {
            .t_ns = i * 10000000LL, .device_used = random_bytes(state), .process_used = random_bytes(state),
            .pss = random_bytes(state), .arena = random_u64(state) >> 14, .phase = random_below(state, PHASE_COUNT),
            .sm_clock_mhz = random_maybe(state), .mem_clock_mhz = random_maybe(state), .power_mw = random_maybe(state),
            .temperature_c = random_maybe(state), .throttle = random_u64(state)};
        TRY(result_add_trace(r, &p, 1));
    }
    char key[32], value[64];
    for (int i = 0, facts = random_below(state, 20); i < facts; i++) {
        snprintf(key, sizeof key, "fact_%02d", i); /* in name order: files keep facts sorted by name */
        snprintf(value, sizeof value, "%llx é \n line", (unsigned long long)random_u64(state));
        TRY(result_add_fact(r, key, value));
    }
    for (int i = 0; i < MEM_CLASS_COUNT; i++) {
        r->memory_ready[i] = (size_t)(random_u64(state) >> 20);
        r->memory_peak[i]  = (size_t)(random_u64(state) >> 20);
    }
    uint64_t *bytes[] = {&r->baseline_bytes, &r->peak_bytes, &r->process_ready, &r->process_peak, &r->device_ready, &r->device_peak};
    for (int i = 0; i < 6; i++)
        *bytes[i] = random_bytes(state);
    r->load_s = random_real(state, 0, 9), r->warmup_s = random_real(state, 0, 9), r->total_s = random_real(state, 9, 99);
    r->first_frame_s = random_maybe(state), r->step_bytes = random_real(state, 1e6, 1e9), r->nucleus = random_maybe(state);
    size_t quality = (size_t)random_below(state, 10);
    if (quality) {
        r->quality         = calloc(result_room(quality), sizeof *r->quality);
        r->quality_texts   = calloc(result_room(quality), sizeof *r->quality_texts);
        r->quality_linears = calloc(result_room(quality), sizeof *r->quality_linears);
        if (!r->quality || !r->quality_texts || !r->quality_linears)
            return ST_ENOMEM;
    }
    for (size_t i = 0; i < quality; i++) {
        r->quality[i] = (struct quality_row){
            .codebook = (int)i - 1, .n = (int)random_below(state, 9999), .kl_mean = random_real(state, 0, 1),
            .kl_p99 = random_maybe(state), .kl_max = random_maybe(state), .top1 = random_real(state, 0, 1),
            .rms_dp = random_maybe(state), .nll = random_maybe(state), .nll_ref = random_maybe(state),
            .kl_low = random_maybe(state), .kl_high = random_maybe(state), .nll_low = random_maybe(state),
            .nll_high = random_maybe(state)};
        r->quality_texts[i] = (struct quality_text){(int)i, (int)random_below(state, 99), (int)random_below(state, 99) - 1};
        r->quality_linears[i] = (struct quality_linear){.products = (int)random_below(state, 99),
                                                        .weight_sqnr_db = random_real(state, 0, 60),
                                                        .output_sqnr_db = random_maybe(state)};
        snprintf(r->quality_linears[i].name, sizeof r->quality_linears[i].name, "layers.%zu.attention.wqkv", i);
    }
    r->n_quality = r->n_quality_texts = r->n_quality_linears = quality;
    return result_set_log(r, random_below(state, 2) ? "warning: something\nsecond line é\n" : "");
}

static inline int same_real(double a, double b)
{
    return a == b || (isnan(a) && isnan(b));
}

#define DIFFERS(field) (snprintf(why, size, "%s", #field), 0)
#define SAME(field) \
    if (a->field != b->field) return DIFFERS(field)
#define SAME_REAL(field) \
    if (!same_real(a->field, b->field)) return DIFFERS(field)
#define SAME_TEXT(field) \
    if (strcmp(a->field ? a->field : "", b->field ? b->field : "")) return DIFFERS(field)

static inline int same_sample(const struct sample *a, const struct sample *b, char *why, size_t size)
{
    SAME(text); SAME(repeat); SAME(process); SAME(seed); SAME(order); SAME(prompt_tokens); SAME(frames); SAME(stop);
    SAME_REAL(prefill_ms); SAME_REAL(decode_ms); SAME_REAL(codec_ms); SAME_REAL(latency_ms); SAME_REAL(first_audio_ms);
    SAME_REAL(audio_s); SAME_REAL(energy_j); SAME_REAL(sm_clock_mhz); SAME(throttle); SAME(codes_hash); SAME(t0_ns);
    SAME(step_offset); SAME(steps);
    return 1;
}

static inline int same_trace(const struct trace_point *a, const struct trace_point *b, char *why, size_t size)
{
    SAME(t_ns); SAME(device_used); SAME(process_used); SAME(pss); SAME(arena); SAME(phase); SAME_REAL(sm_clock_mhz);
    SAME_REAL(mem_clock_mhz); SAME_REAL(power_mw); SAME_REAL(temperature_c); SAME(throttle);
    return 1;
}

static inline int same_quality(const struct quality_row *a, const struct quality_row *b, char *why, size_t size)
{
    SAME(codebook); SAME_REAL(kl_mean); SAME_REAL(kl_p99); SAME_REAL(kl_max); SAME_REAL(top1); SAME_REAL(rms_dp);
    SAME_REAL(nll); SAME_REAL(nll_ref); SAME(n); SAME_REAL(kl_low); SAME_REAL(kl_high); SAME_REAL(nll_low);
    SAME_REAL(nll_high);
    return 1;
}

/* 1 when everything is equal, NaN equal to NaN; else 0 with the first field that differs in why. */
static inline int same_result(const struct result *a, const struct result *b, char *why, size_t size)
{
    char *json_a = NULL, *json_b = NULL;
    int   cells_differ = cell_to_json(&a->cell, &json_a) != ST_OK || cell_to_json(&b->cell, &json_b) != ST_OK || strcmp(json_a, json_b);
    free(json_a);
    free(json_b);
    if (cells_differ)
        return DIFFERS(cell);
    SAME(status); SAME_TEXT(reason); SAME(exit_code); SAME(signal); SAME(n_samples); SAME(n_steps); SAME(n_trace);
    SAME(n_facts); SAME(n_quality); SAME(n_quality_texts); SAME(n_quality_linears); SAME_TEXT(log); SAME_TEXT(host); SAME_TEXT(engine); SAME(rank); SAME(attempt);
    SAME(started_ns); SAME(baseline_bytes); SAME(peak_bytes); SAME(process_ready); SAME(process_peak); SAME(device_ready);
    SAME(device_peak); SAME_REAL(load_s); SAME_REAL(warmup_s); SAME_REAL(total_s); SAME_REAL(first_frame_s);
    SAME_REAL(step_bytes); SAME_REAL(nucleus);
    for (int i = 0; i < MEM_CLASS_COUNT; i++) {
        SAME(memory_ready[i]); SAME(memory_peak[i]);
    }
    for (size_t i = 0; i < a->n_samples; i++)
        if (!same_sample(&a->samples[i], &b->samples[i], why, size))
            return 0;
    for (size_t i = 0; i < a->n_steps; i++)
        SAME_REAL(step_ms[i]);
    for (size_t i = 0; i < a->n_trace; i++)
        if (!same_trace(&a->trace[i], &b->trace[i], why, size))
            return 0;
    for (size_t i = 0; i < a->n_facts; i++) {
        SAME_TEXT(facts[i].key); SAME_TEXT(facts[i].value);
    }
    for (size_t i = 0; i < a->n_quality; i++)
        if (!same_quality(&a->quality[i], &b->quality[i], why, size))
            return 0;
    for (size_t i = 0; i < a->n_quality_texts; i++) {
        SAME(quality_texts[i].text); SAME(quality_texts[i].frames); SAME(quality_texts[i].diverged);
    }
    for (size_t i = 0; i < a->n_quality_linears; i++) {
        SAME_TEXT(quality_linears[i].name); SAME(quality_linears[i].products);
        SAME_REAL(quality_linears[i].weight_sqnr_db); SAME_REAL(quality_linears[i].output_sqnr_db);
    }
    return 1;
}
#undef SAME
#undef SAME_REAL
#undef SAME_TEXT
#undef DIFFERS

#endif
