#include "bench/worker.h"

#include "base/clock.h"
#include "base/log.h"
#include "bench/facts.h"
#include "bench/gpu_watch.h"
#include "bench/quality.h"
#include "bench/request.h"
#include "bench/stop_rule.h"
#include "bench/trace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct measurement {
    const struct work           *work;
    const volatile sig_atomic_t *stop;
    int64_t                      exec_ns, load_ns, first_frame_ns;
    double                       step_bytes_sum;
    struct session               session;
    struct trace                *trace;
    struct gpu_watch            *gpu; /* NULL on a CPU */
    struct result               *result;
};

enum cell_status worker_status(status_t code)
{
    switch (code) {
    case ST_OK:
        return CELL_OK;
    case ST_EOOM:
    case ST_ENOMEM:
        return CELL_OOM;
    case ST_EINPUT:
    case ST_EUSAGE:
    case ST_EUNSUPPORTED:
        return CELL_INVALID;
    case ST_EINTERRUPTED:
        return CELL_INTERRUPTED;
    default:
        return CELL_CRASHED;
    }
}

int64_t worker_exec_ns(void)
{
    const char *given = getenv("QSWEEP_EXEC_NS");
    char       *end;
    if (given && *given) {
        long long ns = strtoll(given, &end, 10);
        if (!*end && ns > 0 && ns <= clock_ns())
            return ns;
    }
    /* proc(5): field 22 of /proc/PID/stat is the start in clock ticks after boot (CLOCK_BOOTTIME). */
    char  text[1024];
    FILE *f = fopen("/proc/self/stat", "re");
    if (!f)
        return clock_ns();
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    char              *name_end = strrchr(text, ')');
    unsigned long long ticks;
    struct timespec    boot, mono;
    if (!name_end ||
        sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
               &ticks) != 1 ||
        clock_gettime(CLOCK_BOOTTIME, &boot) != 0 || clock_gettime(CLOCK_MONOTONIC, &mono) != 0)
        return clock_ns();
    int64_t asleep = ((int64_t)boot.tv_sec - mono.tv_sec) * 1000000000 + boot.tv_nsec - mono.tv_nsec;
    return (int64_t)((double)ticks * 1e9 / (double)sysconf(_SC_CLK_TCK)) - asleep;
}

static status_t collect_facts(struct measurement *m)
{
    struct result *r = m->result;
    TRY(facts_host(r));
    for (size_t i = 0; i < m->work->n_facts; i++)
        TRY(result_add_fact(r, m->work->facts[i].key, m->work->facts[i].value));
    char text[64];
    snprintf(text, sizeof text, "%llu", (unsigned long long)m->work->cell.sampling.seed);
    TRY(result_add_fact(r, "seed", text));
    snprintf(text, sizeof text, "%lld", (long long)m->exec_ns);
    TRY(result_add_fact(r, "trace_t0_ns", text));
    TRY(result_add_fact(r, "model_fingerprint", m->work->cell.fingerprint));
    return result_add_fact(r, "model_dir", m->work->cell.model);
}

static void tell_fact(void *ctx, const char *key, const char *value)
{
    result_add_fact(ctx, key, value); /* a fact lost to a lack of memory shows in what follows */
}

/* The backend told which card it runs on: from now on the trace reads its memory, clocks and power. */
static status_t watch_gpu(struct measurement *m)
{
    const char *uuid = result_fact(m->result, "gpu_uuid");
    if (m->work->cell.device_class != DEVICE_CUDA || !uuid || !(m->gpu = gpu_watch_open(uuid)))
        return ST_OK;
    trace_set_source(m->trace, gpu_watch_source(m->gpu));
    return gpu_watch_facts(m->gpu, m->result); /* and again at the end: a cell that does not fit has them too */
}

static status_t load(struct measurement *m)
{
    trace_phase(m->trace, PHASE_CONTEXT);
    TRY(session_open_device(&m->session, m->work));
    const struct backend_ops *ops = backend_ops_of(m->session.backend);
    if (ops->describe)
        ops->describe(m->session.backend, tell_fact, m->result);
    TRY(watch_gpu(m));
    trace_watch(m->trace, backend_memory(m->session.backend));
    trace_phase(m->trace, PHASE_LOAD);
    m->load_ns = clock_ns();
    TRY(session_open_model(&m->session, m->work));
    m->result->load_s = (double)(clock_ns() - m->load_ns) * 1e-9;
    snprintf(m->result->engine, sizeof m->result->engine, "%s", decoder_engine(m->session.decoder));
    return result_add_fact(m->result, "backend", ops->name);
}

/* Phase ready: everything is loaded, nothing has run. What is held now is the VRAM baseline. */
static void note_ready(struct measurement *m)
{
    struct memory_ledger *ledger = backend_memory(m->session.backend);
    trace_phase(m->trace, PHASE_READY);
    struct trace_point now = trace_sample(m->trace);
    for (int c = 0; c < MEM_CLASS_COUNT; c++)
        m->result->memory_ready[c] = atomic_load(&ledger->now[c]);
    m->result->baseline_bytes = atomic_load(&ledger->total);
    m->result->process_ready = now.process_used;
    m->result->device_ready = now.device_used;
    memory_reset_peak(ledger);
}

/* The highest marks since ready; the VRAM peak. */
static void note_peaks(struct measurement *m)
{
    struct memory_ledger *ledger = backend_memory(m->session.backend);
    for (int c = 0; c < MEM_CLASS_COUNT; c++)
        m->result->memory_peak[c] = atomic_load(&ledger->peak[c]);
    m->result->peak_bytes = atomic_load(&ledger->total_peak);
    trace_peaks(m->trace, PHASE_READY, &m->result->process_peak, &m->result->device_peak);
}

static status_t one_request(struct measurement *m, const struct request *request, struct sample *sample)
{
    int64_t first_frame_ns;
    double  bytes = 0;
    TRY(request_run(&m->session, request, m->stop, sample, &first_frame_ns, &bytes));
    m->step_bytes_sum += bytes;
    if (!m->first_frame_ns) {
        m->first_frame_ns = first_frame_ns;
        m->result->first_frame_s = (double)(first_frame_ns - m->exec_ns) * 1e-9;
    }
    return ST_OK;
}

static status_t warm_up(struct measurement *m)
{
    /* The reference's warm-up: one short text, at most 256 frames. */
    const struct workload *w = &m->work->cell.workload;
    int                    frames = w->max_new_tokens < 256 ? w->max_new_tokens : 256;
    int64_t                t0 = clock_ns();
    trace_phase(m->trace, PHASE_WARMUP);
    for (int i = 0; i < w->warmup; i++) {
        struct request request = {.text = WARMUP_TEXT,
                                  .max_new_tokens = frames,
                                  .first_sequence = WARMUP_SEQUENCE + (uint32_t)(i * m->work->cell.batch)};
        struct sample  ignored = {0};
        TRY(one_request(m, &request, &ignored));
    }
    m->result->warmup_s = (double)(clock_ns() - t0) * 1e-9;
    return ST_OK;
}

/* Latencies by text, for the stop rule. */
struct latencies {
    double *ms;      /* [n_texts][room] */
    size_t *n;       /* [n_texts]       */
    double *scratch; /* [room]          */
    size_t  room;
};

static void latencies_free(struct latencies *l)
{
    free(l->ms);
    free(l->n);
    free(l->scratch);
}

static status_t latencies_make(int n_texts, int samples, struct latencies *l)
{
    *l = (struct latencies){.room = (size_t)samples / (size_t)n_texts + 2};
    l->ms = calloc((size_t)n_texts * l->room, sizeof *l->ms);
    l->n = calloc((size_t)n_texts, sizeof *l->n);
    l->scratch = calloc(l->room, sizeof *l->scratch);
    if (l->ms && l->n && l->scratch)
        return ST_OK;
    latencies_free(l);
    return FAIL(ST_ENOMEM, "no memory for the latencies of %d samples", samples);
}

/* A part of n ends when each of its texts meets its share of the rule; whole rounds only, so that texts stay balanced.
 */
static bool is_enough(const struct measurement *m, const struct latencies *l, double elapsed_s)
{
    const struct workload *w = &m->work->cell.workload;
    struct stop_rule       share = w->stop;
    if (share.max <= 0)
        return false;
    share.min = (share.min + m->work->n_parts - 1) / m->work->n_parts;
    bool late = share.seconds > 0 && elapsed_s * m->work->n_parts >= (double)share.seconds;
    for (int t = 0; t < w->n_texts; t++)
        if (l->n[t] < (size_t)share.min ||
            (!late && !stop_rule_met(&share, l->ms + (size_t)t * l->room, l->n[t], l->scratch)))
            return false;
    return true;
}

static status_t measure_samples(struct measurement *m, struct latencies *l, int first, int end)
{
    const struct cell     *cell = &m->work->cell;
    const struct workload *w = &cell->workload;
    int64_t                t0 = clock_ns();
    double                 steps = 0;
    m->step_bytes_sum = 0;
    for (int i = first; i < end; i++) {
        int            t = i % w->n_texts;
        struct request request = {.text = w->texts[t],
                                  .max_new_tokens = w->max_new_tokens,
                                  .first_sequence = (uint32_t)i * (uint32_t)cell->batch};
        struct sample  sample = {
             .text = t,
             .repeat = i / w->n_texts,
             .process = m->work->part,
             .seed = cell->sampling.seed,
             .order = i - first,
        };
        gpu_watch_begin(m->gpu);
        char audio_path[MODEL_PATH_MAX + 32];
        if (m->work->audio[0] && cell->codec != CODEC_OFF && sample.repeat == 0) {
            snprintf(audio_path, sizeof audio_path, "%s-text%d.wav", m->work->audio, t);
            request.audio_path = audio_path;
        }
        TRY(one_request(m, &request, &sample));
        gpu_watch_end(m->gpu, &sample);
        steps += sample.steps;
        m->result->step_bytes = steps > 0 ? m->step_bytes_sum / steps : NAN;
        TRY(result_add_sample(m->result, &sample, m->session.step_ms));
        l->ms[(size_t)t * l->room + l->n[t]++] = sample.latency_ms;
        if (t == w->n_texts - 1 && is_enough(m, l, clock_ms_since(t0) * 1e-3))
            break;
    }
    return ST_OK;
}

static status_t measure(struct measurement *m)
{
    const struct workload *w = &m->work->cell.workload;
    struct cpu_time        before, after;
    struct latencies       latencies;
    int                    first, end;

    work_share(w, m->work->part, m->work->n_parts, &first, &end);
    TRY(latencies_make(w->n_texts, end - first, &latencies));
    trace_phase(m->trace, PHASE_MEASURE);
    cpu_time_read(&before);
    status_t st = measure_samples(m, &latencies, first, end);
    latencies_free(&latencies);
    TRY(st);
    cpu_time_read(&after);
    double others = cpu_time_others(&before, &after);
    if (!isnan(others)) {
        char text[32];
        snprintf(text, sizeof text, "%.2f", others);
        TRY(result_add_fact(m->result, "other_processes_cpu_s", text));
    }
    return ST_OK;
}

static status_t measure_all(struct measurement *m)
{
    TRY(collect_facts(m));
    TRY(load(m));
    note_ready(m);
    status_t st = warm_up(m);
    if (st == ST_OK)
        st = measure(m);
    note_peaks(m);
    if (m->session.audio_error[0])
        TRY(result_add_fact(m->result, "audio_error", m->session.audio_error));
    status_t told = gpu_watch_facts(m->gpu, m->result);
    return st == ST_OK ? told : st;
}

/* Quality, after the trace has ended. What was measured stands even where two models do not fit side by side: the cell
 * then says why it has no quality. Only a signal ends it, so that a resume does both again. */
static status_t compare_precisions(struct measurement *m)
{
    status_t st = quality_measure(&m->session, m->work, m->stop, m->result);
    if (st == ST_OK || st == ST_EINTERRUPTED)
        return st;
    log_warn("quality was not measured: %s", status_last());
    return result_add_fact(m->result, "quality_error", status_last());
}

void worker_run(const struct work *work, int64_t exec_ns, const volatile sig_atomic_t *stop, struct result *out)
{
    struct timespec    wall;
    struct measurement m = {.work = work, .stop = stop, .exec_ns = exec_ns, .result = out};
    result_init(out);
    clock_gettime(CLOCK_REALTIME, &wall);
    out->started_ns = (int64_t)wall.tv_sec * 1000000000 + wall.tv_nsec;
    out->rank = work->rank;
    out->attempt = work->attempt;
    gethostname(out->host, sizeof out->host - 1);

    struct trace_options options = {.t0_ns = exec_ns, .period_ms = work->trace_period_ms};
    status_t             st = cell_copy(&work->cell, &out->cell);
    if (st == ST_OK)
        st = trace_start(&options, &m.trace);
    if (st == ST_OK)
        st = measure_all(&m);
    char reason[1200];
    snprintf(reason, sizeof reason, "%s", st == ST_OK ? "" : status_last());
    if (m.trace) {
        trace_phase(m.trace, PHASE_DONE);
        trace_watch(m.trace, NULL);
    }
    bool compares = st == ST_OK && work->part == 0 && work->cell.workload.quality;
    if (!compares)
        session_close(&m.session);
    status_t traced = trace_stop(m.trace, out);
    gpu_watch_close(m.gpu);
    if (st == ST_OK && traced != ST_OK) {
        st = traced;
        snprintf(reason, sizeof reason, "%s", status_last());
    }
    out->total_s = (double)(clock_ns() - exec_ns) * 1e-9;
    if (compares) {
        st = st == ST_OK ? compare_precisions(&m) : st;
        if (st != ST_OK)
            snprintf(reason, sizeof reason, "%s", status_last());
        session_close(&m.session);
    }
    out->status = worker_status(st);
    if (st == ST_EINTERRUPTED && strstr(reason, "stopped") == NULL)
        snprintf(reason, sizeof reason, "stopped by signal %d", (int)*stop);
    result_set_reason(out, reason);
}
