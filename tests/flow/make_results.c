/* make_results.c — fills a folder with cell files of invented numbers, for tests of merge, show, export and the report.
 *
 * usage: make_results DIR CELLS SEED [SAMPLES PER TEXT]    Nothing in the program itself invents a measurement: only tests
 * build and run this. Cells come in pairs bf16, int8 of the same work with growing batch and two contexts; with nine cells
 * or more, of every nine one is out of memory and one has crashed. Prints one id a line. */
#include "../unit/random_result.h"

#include "store/cell_file.h"

enum { FRAMES = 48 };

static status_t plan(uint64_t *seed, int i, int samples, struct cell *c)
{
    static const char *const texts[] = {"Hello, this is a test.", "A longer sentence, for a longer answer.",
                                        "One that is <em>not</em> escaped & \"quoted\".", "今天天气真好，阳光明媚。"};
    cell_defaults(c);
    TRY(cell_set_model(c, "build/checkpoints/s1-nano"));
    TRY(workload_set_texts(&c->workload, texts, 4));
    memset(c->fingerprint, 'a', 32);
    c->precision = i % 2 ? PRECISION_INT8 : PRECISION_BF16;
    c->recipe = i % 2 ? RECIPE_TORCHAO : RECIPE_NONE;
    c->batch = 1 + i / 4 % 8;
    c->sampling.seed = 42 + (uint64_t)i / 32;
    c->context = i / 2 % 2 * 64;
    c->workload.samples = samples;
    c->workload.length = LENGTH_FIXED;
    c->workload.max_new_tokens = FRAMES;
    snprintf(c->device, sizeof c->device, "cpu");
    return cell_identify(c);
}

static status_t measure(uint64_t *seed, struct result *r)
{
    const struct cell *c = &r->cell;
    double             speed = c->precision == PRECISION_INT8 ? 1.7 : 1.0, t_ms = 900;
    double             steps[FRAMES];
    int                order = 0;
    for (int repeat = 0; repeat < c->workload.samples; repeat++)
        for (int text = 0; text < c->workload.n_texts; text++) {
            struct sample s = {.text = text, .repeat = repeat, .seed = c->sampling.seed, .order = order++,
                               .prompt_tokens = 20 + 9 * text + c->context, .frames = FRAMES * c->batch, .steps = FRAMES,
                               .energy_j = NAN, .sm_clock_mhz = NAN, .codes_hash = random_u64(seed)};
            s.prefill_ms = (30 + 0.4 * s.prompt_tokens) / speed * random_real(seed, 0.98, 1.04);
            for (int k = 0; k < FRAMES; k++) {
                steps[k] = (18 + 0.01 * k + 1.5 * c->batch) / speed * random_real(seed, 0.97, 1.05);
                s.decode_ms += steps[k];
            }
            s.latency_ms = s.prefill_ms + s.decode_ms + random_real(seed, 0.1, 0.4);
            s.first_audio_ms = s.prefill_ms + steps[0];
            s.audio_s = s.frames * 2048.0 / 44100;
            s.t0_ns = (int64_t)(t_ms * 1e6);
            t_ms += s.latency_ms;
            TRY(result_add_sample(r, &s, steps));
        }
    r->step_bytes = (double)r->memory_ready[MEM_WEIGHTS] * 0.9;
    r->nucleus = 37.5;
    r->load_s = 0.6, r->warmup_s = 0.2, r->first_frame_s = 0.85, r->total_s = t_ms * 1e-3;
    return ST_OK;
}

static status_t trace(uint64_t *seed, struct result *r)
{
    for (double t_ms = 0; t_ms < r->total_s * 1e3; t_ms += 10) {
        double             loaded = t_ms < 100 ? 0 : t_ms > 700 ? 1 : (t_ms - 100) / 600;
        struct trace_point p = {.t_ns = (int64_t)(t_ms * 1e6), .device_used = UINT64_MAX, .sm_clock_mhz = NAN,
                                .mem_clock_mhz = NAN, .power_mw = NAN, .temperature_c = NAN};
        p.arena = (uint64_t)(loaded * (double)r->baseline_bytes) + (t_ms > 900 ? 3000000 : 0);
        p.process_used = p.arena + 21000000 + random_u64(seed) % 100000;
        p.pss = p.process_used - 4000000;
        p.phase = t_ms < 100 ? PHASE_CONTEXT : t_ms < 700 ? PHASE_LOAD : t_ms < 720 ? PHASE_READY : t_ms < 900 ? PHASE_WARMUP : PHASE_MEASURE;
        TRY(result_add_trace(r, &p, 1));
    }
    return ST_OK;
}

static status_t invent(uint64_t *seed, int i, int samples, struct result *r)
{
    result_init(r);
    TRY(plan(seed, i, samples, &r->cell));
    bool int8 = r->cell.precision == PRECISION_INT8;
    r->memory_ready[MEM_WEIGHTS] = int8 ? 28000000 : 52000000;
    r->memory_ready[MEM_SCALES] = int8 ? 300000 : 0;
    r->memory_ready[MEM_KV] = (size_t)r->cell.batch * 1500000;
    for (int k = 0; k < MEM_CLASS_COUNT; k++)
        r->memory_peak[k] = r->memory_ready[k];
    r->memory_peak[MEM_WORKSPACE] = 3000000;
    r->baseline_bytes = r->memory_ready[MEM_WEIGHTS] + r->memory_ready[MEM_SCALES] + r->memory_ready[MEM_KV];
    r->peak_bytes = r->baseline_bytes + 3000000;
    r->process_ready = r->baseline_bytes + 21000000;
    r->process_peak = r->peak_bytes + 21000000;
    r->attempt = 1, r->started_ns = 1700000000000000000 + i * 10000000000LL;
    snprintf(r->host, sizeof r->host, "node%02d", i % 2);
    snprintf(r->engine, sizeof r->engine, "ops");
    TRY(result_add_fact(r, "cpu_model", "Invented CPU"));
    TRY(result_add_fact(r, "git", "0000000"));
    TRY(result_add_fact(r, "command", "qsweep run jobs/invented.yaml"));
    if (i % 9 == 7) {
        r->status = CELL_OOM;
        r->baseline_bytes = r->peak_bytes = UINT64_MAX;
        return result_set_reason(r, "needs 12.4 GB, the limit is 8.0 GB");
    }
    r->status = CELL_OK;
    TRY(measure(seed, r));
    TRY(trace(seed, r));
    if (i % 9 == 8) {
        r->status = CELL_CRASHED;
        r->n_samples = r->n_steps = 0;
        r->signal = 11;
        TRY(result_set_reason(r, "worker ended with signal 11"));
        return result_set_log(r, "measuring\nsegmentation fault\n");
    }
    return ST_OK;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: make_results DIR CELLS SEED [SAMPLES PER TEXT]\n");
        return 2;
    }
    uint64_t seed = strtoull(argv[3], NULL, 0);
    for (int i = 0; i < atoi(argv[2]); i++) {
        struct result r;
        char          path[4400];
        if (invent(&seed, i, argc > 4 ? atoi(argv[4]) : 3, &r) != ST_OK)
            return 1;
        cell_file_path(argv[1], r.cell.id, path, sizeof path);
        if (cell_file_write(path, &r) != ST_OK)
            return 1;
        puts(r.cell.id);
        result_free(&r);
    }
    return 0;
}
