#include "bench/summary.h"

#include "bench/stats.h"
#include "bench/steadiness.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* The reference's estimate of tokens in an audio: ⌊21.5 · seconds⌋, though the true rate is 44100/2048 = 21.533. */
static const double REFERENCE_TOKENS_PER_S = 21.5;

#define MEMBER(name) offsetof(struct summary_row, name), sizeof(((struct summary_row *)0)->name)
#define TEXT(name, definition)                                                                                         \
    {                                                                                                                  \
#name, "text", definition, SUMMARY_TEXT, MEMBER(name), NULL                                                    \
    }
#define INT(name, units, definition)                                                                                   \
    {                                                                                                                  \
#name, units, definition, SUMMARY_INT, MEMBER(name), NULL                                                      \
    }
#define REAL(name, units, definition)                                                                                  \
    {                                                                                                                  \
#name, units, definition, SUMMARY_REAL, MEMBER(name), NULL                                                     \
    }

static const struct summary_column identity_columns[] = {
    TEXT(id, "hash of model fingerprint, axes and workload; the same cell has the same id everywhere"),
    TEXT(status, "ok, oom, crashed, timeout, invalid, interrupted, contaminated or pending"),
    TEXT(label, "the axes in short"),
};
static const struct summary_column figure_columns[] = {
    INT(n_texts, "1", "texts of the workload"),
    TEXT(fingerprint, "hash of the model's configuration and tensors"),
    TEXT(place, "where it ran: cpu or cuda:UUID"),
    TEXT(device_name, "name of the GPU or CPU"),
    TEXT(gpu, "model of GPU that the cell is bound to, empty: any"),
    TEXT(host, "host of the worker"),
    TEXT(engine_used, "engine that really ran"),
    INT(prequantized, "1",
        "1 when the weights were read already quantized, 0 when they were quantized at load or not at all"),
    INT(attempt, "1", "which attempt this is, from 1; 0 = never tried"),
    INT(started_ns, "ns", "start of the worker, wall clock since 1970-01-01 UTC"),
    INT(n_samples, "1", "samples measured, those without audio left out"),
    INT(errors, "1", "samples without audio, and planned samples that a failed cell did not deliver"),
    REAL(vram_baseline_mb, "MB", "bytes held at phase ready / 10⁶; on the CPU our own bytes, mapped weights in full"),
    REAL(vram_peak_mb, "MB", "most bytes held after phase ready / 10⁶"),
    REAL(process_ready_mb, "MB", "memory of the process at phase ready: NVML per process, RSS on the CPU"),
    REAL(process_peak_mb, "MB", "the most of it after phase ready"),
    REAL(device_ready_mb, "MB", "memory used on the whole device at phase ready (NVML)"),
    REAL(device_peak_mb, "MB", "the most of it after phase ready"),
    REAL(pss_peak_mb, "MB", "most proportional set size in the trace from phase ready on (CPU)"),
    REAL(weights_mb, "MB", "weights and scales at phase ready"),
    REAL(kv_mb, "MB", "KV cache at phase ready"),
    REAL(latency_mean_s, "s", "mean latency of a request"),
    REAL(latency_std_s, "s", "population standard deviation of the latency (divided by n)"),
    REAL(latency_min_s, "s", "smallest latency"),
    REAL(latency_max_s, "s", "largest latency"),
    REAL(latency_p50_s, "s", "median latency, linear interpolation; needs 2 samples"),
    REAL(latency_p95_s, "s", "95th percentile of the latency; needs 20 samples"),
    REAL(latency_p99_s, "s", "99th percentile of the latency; needs 100 samples"),
    REAL(rtf, "1", "mean latency / mean audio duration"),
    REAL(throughput_x_realtime, "1", "mean audio duration / mean latency"),
    REAL(tokens_per_s_reference, "s-1", "mean of floor(21.5 · audio seconds) / mean latency: the reference's estimate"),
    REAL(frames_per_s, "s-1", "frames generated / request latency, both summed: counted, im_end frames included"),
    REAL(decode_frames_per_s, "s-1", "frames generated / time of decode steps, both summed"),
    REAL(step_ms_mean, "ms", "mean time of a decode step (batch utterances advance one frame)"),
    REAL(step_ms_p50, "ms", "median time of a decode step"),
    REAL(step_ms_p95, "ms", "95th percentile of the time of a decode step"),
    REAL(step_ms_p99, "ms", "99th percentile of the time of a decode step"),
    REAL(prefill_ms_mean, "ms", "mean time of the prefill"),
    REAL(codec_ms_mean, "ms", "mean time of the codec"),
    REAL(first_audio_ms_mean, "ms", "mean time to the first audio"),
    REAL(audio_s_mean, "s", "mean audio of a request; frames without im_end · 2048 / 44100 when the codec is off"),
    REAL(warmup_s, "s", "wall time of all warm-up requests"),
    REAL(load_s, "s", "time to load and quantize the weights"),
    REAL(first_frame_s, "s", "start of the worker to its first frame"),
    REAL(total_s, "s", "life of the worker"),
    REAL(energy_j_per_frame, "J", "energy / frames over the samples with an energy counter"),
    REAL(step_bytes, "byte", "mean of the fewest bytes that a step must move"),
    REAL(bandwidth_gb_s, "GB s-1", "step_bytes / step_ms_mean, GB = 10⁹ bytes"),
    REAL(nucleus, "1", "mean entries in the nucleus of the slow token"),
    TEXT(reason, "why the status is not ok"),
    TEXT(notes, "which figures are missing and why"),
};
enum {
    IDENTITY_COUNT = sizeof identity_columns / sizeof *identity_columns,
    FIGURE_COUNT = sizeof figure_columns / sizeof *figure_columns,
};

size_t summary_column_count(void)
{
    return IDENTITY_COUNT + FIELD_COUNT + FIGURE_COUNT;
}

struct summary_column summary_column(size_t i)
{
    assert(i < summary_column_count());
    if (i < IDENTITY_COUNT)
        return identity_columns[i];
    i -= IDENTITY_COUNT;
    if (i >= FIELD_COUNT)
        return figure_columns[i - FIELD_COUNT];
    const struct field *f = &cell_fields[i];
    const char         *units = f->kind == FIELD_CHOICE ? "text" : f->kind == FIELD_BYTES ? "byte" : "1";
    return (struct summary_column){.name = f->name,
                                   .units = units,
                                   .definition = f->help,
                                   .kind = SUMMARY_AXIS,
                                   .offset = offsetof(struct summary_row, axes) + i * sizeof(union field_value),
                                   .size = sizeof(union field_value),
                                   .field = f};
}

long summary_column_find(const char *name)
{
    for (size_t i = 0; i < summary_column_count(); i++)
        if (strcmp(summary_column(i).name, name) == 0)
            return (long)i;
    return -1;
}

union field_value summary_axis(const struct summary_row *row, const char *name)
{
    int i = field_find(name);
    assert(i >= 0);
    return row->axes[i];
}

void summary_value_text(const struct summary_row *row, const struct summary_column *c, char *out, size_t size)
{
    const char *at = (const char *)row + c->offset;
    int64_t     whole;
    double      real;
    switch (c->kind) {
    case SUMMARY_TEXT:
        snprintf(out, size, "%s", at);
        break;
    case SUMMARY_INT:
        memcpy(&whole, at, sizeof whole);
        snprintf(out, size, "%" PRId64, whole);
        break;
    case SUMMARY_REAL:
        memcpy(&real, at, sizeof real);
        if (isfinite(real))
            snprintf(out, size, "%.15g", real);
        else
            out[0] = '\0';
        break;
    case SUMMARY_AXIS: {
        char              text[FIELD_TEXT_MAX];
        union field_value value;
        memcpy(&value, at, sizeof value);
        field_format(c->field, value, text);
        snprintf(out, size, "%s", text);
    }
    }
}

void summary_key(const struct summary_row *row, uint32_t index, struct summary_key *out)
{
    static const char *const order[SUMMARY_KEY_AXES] = {"device", "precision", "recipe",      "kv",
                                                        "batch",  "context",   "max_seq_len", "head",
                                                        "engine", "codec",     "sampling",    "length"};
    for (int i = 0; i < SUMMARY_KEY_AXES; i++)
        out->axis[i] = summary_axis(row, order[i]).i;
    memcpy(out->id, row->id, sizeof out->id);
    out->index = index;
}

int summary_key_order(const void *a, const void *b)
{
    const struct summary_key *x = a, *y = b;
    for (int i = 0; i < SUMMARY_KEY_AXES; i++)
        if (x->axis[i] != y->axis[i])
            return x->axis[i] < y->axis[i] ? -1 : 1;
    return strcmp(x->id, y->id);
}

int summary_order(const void *a, const void *b)
{
    struct summary_key x, y;
    summary_key(a, 0, &x);
    summary_key(b, 0, &y);
    return summary_key_order(&x, &y);
}

/* ---- derivation -------------------------------------------------------------------------------------------------- */

static double megabytes(uint64_t bytes)
{
    return bytes == UINT64_MAX ? NAN : (double)bytes * 1e-6;
}

static double pss_peak(const struct result *r)
{
    uint64_t peak = 0;
    bool     known = false;
    for (size_t i = 0; i < r->n_trace; i++)
        if (r->trace[i].phase >= PHASE_READY && r->trace[i].pss != UINT64_MAX) {
            known = true;
            peak = r->trace[i].pss > peak ? r->trace[i].pss : peak;
        }
    return known ? megabytes(peak) : NAN;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : NAN;
}

/* A request without audio is an error, as in the reference: it is counted as one and left out of every figure. */
static bool counts(const struct sample *s)
{
    return s->audio_s > 0;
}

static void request_figures(const struct result *r, double *latency_s, double *audio_s, double *tokens,
                            struct summary_row *out)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_samples; i++)
        if (counts(&r->samples[i])) {
            latency_s[n] = r->samples[i].latency_ms * 1e-3;
            audio_s[n] = r->samples[i].audio_s;
            tokens[n++] = floor(r->samples[i].audio_s * REFERENCE_TOKENS_PER_S);
        }
    out->n_samples = (int64_t)n;
    out->latency_mean_s = stats_mean(latency_s, n);
    out->latency_std_s = stats_std(latency_s, n);
    out->audio_s_mean = stats_mean(audio_s, n);
    out->rtf = stats_ratio_of_means(latency_s, audio_s, n);
    out->throughput_x_realtime = stats_ratio_of_means(audio_s, latency_s, n);
    out->tokens_per_s_reference = stats_ratio_of_means(tokens, latency_s, n);
    stats_sort(latency_s, n);
    out->latency_min_s = stats_quantile_sorted(latency_s, n, 0);
    out->latency_max_s = stats_quantile_sorted(latency_s, n, 1);
    out->latency_p50_s = stats_quantile_sorted_supported(latency_s, n, 0.50);
    out->latency_p95_s = stats_quantile_sorted_supported(latency_s, n, 0.95);
    out->latency_p99_s = stats_quantile_sorted_supported(latency_s, n, 0.99);
}

static void frame_figures(const struct result *r, struct summary_row *out)
{
    double frames = 0, latency_s = 0, decode_s = 0, energy = 0, energy_frames = 0;
    for (size_t i = 0; i < r->n_samples; i++) {
        const struct sample *s = &r->samples[i];
        if (!counts(s))
            continue;
        frames += s->frames;
        latency_s += s->latency_ms * 1e-3;
        decode_s += s->decode_ms * 1e-3;
        if (isfinite(s->energy_j)) {
            energy += s->energy_j;
            energy_frames += s->frames;
        }
    }
    out->frames_per_s = ratio(frames, latency_s);
    out->decode_frames_per_s = ratio(frames, decode_s);
    out->energy_j_per_frame = ratio(energy, energy_frames);
}

static void step_figures(const struct result *r, double *step_ms, struct summary_row *out)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_samples && r->step_ms; i++)
        for (int k = 0; counts(&r->samples[i]) && k < r->samples[i].steps; k++)
            step_ms[n++] = r->step_ms[r->samples[i].step_offset + (size_t)k];
    out->step_ms_mean = stats_mean(step_ms, n);
    stats_sort(step_ms, n);
    out->step_ms_p50 = stats_quantile_sorted_supported(step_ms, n, 0.50);
    out->step_ms_p95 = stats_quantile_sorted_supported(step_ms, n, 0.95);
    out->step_ms_p99 = stats_quantile_sorted_supported(step_ms, n, 0.99);
    out->step_bytes = r->step_bytes;
    out->bandwidth_gb_s = ratio(r->step_bytes, out->step_ms_mean * 1e6); /* bytes a ms = 10⁻⁶ GB a second */
}

/* Mean over the samples that know the value. */
static double sample_mean(const struct result *r, size_t offset)
{
    double sum = 0, value;
    size_t n = 0;
    for (size_t i = 0; i < r->n_samples; i++) {
        memcpy(&value, (const char *)&r->samples[i] + offset, sizeof value);
        if (counts(&r->samples[i]) && isfinite(value)) {
            sum += value;
            n++;
        }
    }
    return n ? sum / (double)n : NAN;
}

static void memory_figures(const struct result *r, struct summary_row *out)
{
    bool ready = r->baseline_bytes != UINT64_MAX;
    out->vram_baseline_mb = megabytes(r->baseline_bytes);
    out->vram_peak_mb = megabytes(r->peak_bytes);
    out->process_ready_mb = megabytes(r->process_ready);
    out->process_peak_mb = megabytes(r->process_peak);
    out->device_ready_mb = megabytes(r->device_ready);
    out->device_peak_mb = megabytes(r->device_peak);
    out->pss_peak_mb = pss_peak(r);
    out->weights_mb = ready ? megabytes(r->memory_ready[MEM_WEIGHTS] + r->memory_ready[MEM_SCALES]) : NAN;
    out->kv_mb = ready ? megabytes(r->memory_ready[MEM_KV]) : NAN;
}

/* Requests that were planned and did not come back with audio. An adaptive cell has no planned number. */
static int64_t count_errors(const struct result *r, int64_t with_audio)
{
    const struct workload *w = &r->cell.workload;
    int64_t                tried = (int64_t)r->n_samples, planned = (int64_t)w->samples * w->n_texts;
    if (r->status != CELL_OK && r->status != CELL_PENDING && w->stop.max == 0 && planned > tried)
        tried = planned;
    return tried - with_audio;
}

static void explain(const struct result *r, struct summary_row *out)
{
    static const struct {
        const char *name;
        double      q;
    } percentiles[] = {{"p50", 0.50}, {"p95", 0.95}, {"p99", 0.99}};
    size_t at = 0, throttled = 0;
    if (out->n_samples == 0)
        return;
    for (size_t i = 0; i < r->n_samples; i++)
        throttled += (r->samples[i].throttle & THROTTLE_REASONS) != 0;
    if (throttled)
        at = (size_t)snprintf(out->notes, sizeof out->notes, "%zu of %zu samples were throttled by a power or thermal limit",
                              throttled, r->n_samples);
    for (size_t i = 0; i < sizeof percentiles / sizeof *percentiles; i++) {
        size_t needs = stats_quantile_needs(percentiles[i].q);
        if ((size_t)out->n_samples < needs && at < sizeof out->notes)
            at += (size_t)snprintf(out->notes + at, sizeof out->notes - at, "%slatency %s needs %zu samples, n = %lld",
                                   at ? "; " : "", percentiles[i].name, needs, (long long)out->n_samples);
    }
}

/* Copy text and cut it at a whole UTF-8 character when it is too long. */
static void put_text(char *out, size_t size, const char *text)
{
    size_t n = strlen(text ? text : "");
    if (n >= size) {
        n = size - 1;
        while (n && ((unsigned char)text[n] & 0xC0) == 0x80)
            n--;
    }
    memcpy(out, text ? text : "", n);
    out[n] = '\0';
}

static void identity(const struct result *r, struct summary_row *out)
{
    const char *device = result_fact(r, "gpu_name"), *prequantized = result_fact(r, "prequantized");
    put_text(out->id, sizeof out->id, r->cell.id);
    put_text(out->status, sizeof out->status, cell_status_name(r->status));
    put_text(out->fingerprint, sizeof out->fingerprint, r->cell.fingerprint);
    put_text(out->place, sizeof out->place, r->cell.device);
    put_text(out->device_name, sizeof out->device_name, device ? device : result_fact(r, "cpu_model"));
    put_text(out->gpu, sizeof out->gpu, r->cell.gpu);
    put_text(out->host, sizeof out->host, r->host);
    put_text(out->engine_used, sizeof out->engine_used, r->engine);
    put_text(out->reason, sizeof out->reason, r->reason);
    if (r->cell.model)
        cell_label(&r->cell, out->label, sizeof out->label);
    else /* only a damaged file is left of it */
        put_text(out->label, sizeof out->label, "unknown");
    for (int i = 0; i < FIELD_COUNT; i++) {
        out->axes[i] = field_get(&cell_fields[i], &r->cell);
        if (!r->cell.model && cell_fields[i].kind == FIELD_CHOICE)
            out->axes[i].i = -1;
    }
    out->n_texts = r->cell.workload.n_texts;
    out->prequantized = prequantized && strcmp(prequantized, "true") == 0;
    out->attempt = r->attempt;
    out->started_ns = r->started_ns;
}

status_t summary_from_result(const struct result *r, struct summary_row *out)
{
    size_t  n = r->n_samples + 1;
    double *scratch = malloc((3 * n + r->n_steps) * sizeof *scratch);
    if (!scratch)
        return FAIL(ST_ENOMEM, "no memory for the summary of %zu samples", r->n_samples);
    memset(out, 0, sizeof *out);
    identity(r, out);
    memory_figures(r, out);
    request_figures(r, scratch, scratch + n, scratch + 2 * n, out);
    frame_figures(r, out);
    step_figures(r, scratch + 3 * n, out);
    free(scratch);
    out->prefill_ms_mean = sample_mean(r, offsetof(struct sample, prefill_ms));
    out->codec_ms_mean = sample_mean(r, offsetof(struct sample, codec_ms));
    out->first_audio_ms_mean = sample_mean(r, offsetof(struct sample, first_audio_ms));
    out->warmup_s = r->warmup_s;
    out->load_s = r->load_s;
    out->first_frame_s = r->first_frame_s;
    out->total_s = r->total_s;
    out->nucleus = r->nucleus;
    out->errors = count_errors(r, out->n_samples);
    explain(r, out);
    return ST_OK;
}
