#include "bench/comparison.h"

#include "bench/stats.h"
#include "bench/steadiness.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- metrics ----------------------------------------------------------------------------------------------------- */

static double latency_ms(const struct result *r, const struct sample *s)
{
    (void)r;
    return s->latency_ms;
}

static double frames_per_s(const struct result *r, const struct sample *s)
{
    (void)r;
    return s->frames > 0 ? s->frames / (s->latency_ms * 1e-3) : NAN;
}

/* Median over the sample's steps: the pace, without the hiccups that latency holds. */
static double step_ms(const struct result *r, const struct sample *s)
{
    if (s->steps < 1 || !r->step_ms)
        return NAN;
    double *scratch = malloc((size_t)s->steps * sizeof *scratch);
    double  median = scratch ? stats_quantile(r->step_ms + s->step_offset, (size_t)s->steps, 0.5, scratch) : NAN;
    free(scratch);
    return median;
}

static double prefill_ms(const struct result *r, const struct sample *s)
{
    (void)r;
    return s->prefill_ms;
}

static double codec_ms(const struct result *r, const struct sample *s)
{
    (void)r;
    return s->codec_ms > 0 ? s->codec_ms : NAN;
}

static double first_audio_ms(const struct result *r, const struct sample *s)
{
    (void)r;
    return s->first_audio_ms;
}

static double rtf(const struct result *r, const struct sample *s)
{
    (void)r;
    return s->audio_s > 0 ? s->latency_ms * 1e-3 / s->audio_s : NAN;
}

static double energy_j(const struct result *r, const struct sample *s)
{
    (void)r;
    return s->frames > 0 ? s->energy_j / s->frames : NAN;
}

static double megabytes(uint64_t bytes)
{
    return bytes == UINT64_MAX ? NAN : (double)bytes * 1e-6;
}

static double vram(const struct result *r)
{
    return megabytes(r->peak_bytes);
}

static double vram_baseline(const struct result *r)
{
    return megabytes(r->baseline_bytes);
}

static double process_peak(const struct result *r)
{
    return megabytes(r->process_peak);
}

static double device_peak(const struct result *r)
{
    return megabytes(r->device_peak);
}

static const struct metric metrics[] = {
    {"latency", "ms", "request latency", false, latency_ms, NULL},
    {"frames", "1/s", "frames per second of latency", true, frames_per_s, NULL},
    {"step", "ms", "median decode step", false, step_ms, NULL},
    {"prefill", "ms", "prefill", false, prefill_ms, NULL},
    {"codec", "ms", "codec", false, codec_ms, NULL},
    {"first-audio", "ms", "time to first audio", false, first_audio_ms, NULL},
    {"rtf", "1", "real-time factor", false, rtf, NULL},
    {"energy", "J", "energy per frame", false, energy_j, NULL},
    {"vram", "MB", "peak of our own bytes", false, NULL, vram},
    {"vram-baseline", "MB", "our own bytes at ready", false, NULL, vram_baseline},
    {"process", "MB", "peak of the process", false, NULL, process_peak},
    {"device", "MB", "peak of the device", false, NULL, device_peak},
};

size_t metric_count(void)
{
    return sizeof metrics / sizeof *metrics;
}

const struct metric *metric_at(size_t i)
{
    return &metrics[i];
}

const struct metric *metric_find(const char *name)
{
    for (size_t i = 0; i < metric_count(); i++)
        if (strcmp(metrics[i].name, name) == 0)
            return &metrics[i];
    return NULL;
}

const char *comparison_word(const struct comparison_row *row)
{
    if (row->metric->of_sample)
        return verdict_name(row->verdict.kind);
    switch (row->verdict.kind) {
    case VERDICT_FASTER:
        return "less";
    case VERDICT_SLOWER:
        return "more";
    case VERDICT_SAME:
        return "same";
    default:
        return "unknown";
    }
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

/* Room for one more element; NULL without memory. */
static void *extend(void **list, size_t *n, size_t size)
{
    if ((*n & (*n - 1)) == 0) {
        void *grown = realloc(*list, (*n ? 2 * *n : 1) * size);
        if (!grown) {
            FAIL(ST_ENOMEM, "no memory for a comparison of %zu cells", *n);
            return NULL;
        }
        *list = grown;
    }
    void *at = (char *)*list + (*n)++ * size;
    memset(at, 0, size);
    return at;
}

#define EXTEND(list, n) extend((void **)&(list), &(n), sizeof *(list))

void comparison_free(struct comparison *c)
{
    free(c->pairs);
    free(c->rows);
    free(c->notes);
    free(c->unmatched);
    memset(c, 0, sizeof *c);
}

static struct comparison_cell cell_of(const struct summary_row *row)
{
    struct comparison_cell c = {.status = (enum cell_status)cell_status_parse(row->status)};
    snprintf(c.id, sizeof c.id, "%s", row->id);
    snprintf(c.label, sizeof c.label, "%s", row->label);
    return c;
}

static status_t add_unmatched(struct comparison *c, const struct summary_row *row, bool is_baseline, const char *why)
{
    struct comparison_unmatched *u = EXTEND(c->unmatched, c->n_unmatched);
    if (!u)
        return ST_ENOMEM;
    *u = (struct comparison_unmatched){.cell = cell_of(row), .is_baseline = is_baseline, .why = why};
    return ST_OK;
}

/* ---- pairing ----------------------------------------------------------------------------------------------------- */

/* A row's key: 64 bytes of text that equal rows share, FNV-1a over what has to agree (collisions are looked at again). */
struct key {
    uint64_t hash;
    uint32_t index;
};

static void mix(uint64_t *hash, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        *hash = (*hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
}

/* Is this the format that auto gives the KV cache? */
static int64_t is_natural_kv(const struct summary_row *row)
{
    int64_t precision = summary_axis(row, "precision").i, kv = summary_axis(row, "kv").i;
    return kv == (precision == PRECISION_FP32 ? KV_FP32 : KV_BF16) ? -1 : kv;
}

/* The value of field f that both cells of a pair must share, or 0 where they need not. */
static union field_value shared_value(const struct summary_row *row, int f, int axis)
{
    static const union field_value free_value = {0};
    const char                    *name = cell_fields[f].name;
    bool                           by_precision = axis >= 0 && strcmp(cell_fields[axis].name, "precision") == 0;
    if (f == axis || strncmp(name, "quality", 7) == 0 || (by_precision && strcmp(name, "recipe") == 0))
        return free_value;
    if (by_precision && strcmp(name, "kv") == 0)
        return (union field_value){.i = is_natural_kv(row)};
    return row->axes[f];
}

static uint64_t key_hash(const struct summary_row *row, int axis)
{
    uint64_t hash = 0xcbf29ce484222325u;
    if (axis == -1) {
        mix(&hash, row->id, strlen(row->id));
        return hash;
    }
    for (int f = 0; f < FIELD_COUNT; f++) {
        union field_value v = shared_value(row, f, axis);
        mix(&hash, &v, sizeof v);
    }
    if (axis != COMPARISON_MODEL)
        mix(&hash, row->fingerprint, strlen(row->fingerprint));
    mix(&hash, row->gpu, strlen(row->gpu)); /* cells bound to a card are compared on it */
    mix(&hash, &row->n_texts, sizeof row->n_texts);
    return hash;
}

static bool belong_together(const struct summary_row *a, const struct summary_row *b, int axis)
{
    if (axis == -1)
        return strcmp(a->id, b->id) == 0;
    for (int f = 0; f < FIELD_COUNT; f++) {
        union field_value x = shared_value(a, f, axis), y = shared_value(b, f, axis);
        if (memcmp(&x, &y, sizeof x) != 0)
            return false;
    }
    if (strcmp(a->gpu, b->gpu) != 0)
        return false;
    return axis == COMPARISON_MODEL || strcmp(a->fingerprint, b->fingerprint) == 0;
}

static int by_hash(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static bool has_value(const struct summary_row *row, int axis, union field_value want)
{
    const struct field *f = &cell_fields[axis];
    return f->kind == FIELD_FLOAT ? (float)row->axes[axis].f == (float)want.f : row->axes[axis].i == want.i;
}

static bool is_baseline(const struct summary_row *row, const struct comparison_options *o)
{
    return o->axis < 0 || !o->has_from || has_value(row, o->axis, o->from);
}

static bool is_candidate(const struct summary_row *row, const struct comparison_options *o)
{
    if (o->axis < 0)
        return true;
    return o->has_to ? has_value(row, o->axis, o->to) : !o->has_from || !has_value(row, o->axis, o->from);
}

/* ---- what is said about one cell --------------------------------------------------------------------------------- */

static status_t add_note(struct comparison *c, const struct comparison_cell *cell, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static status_t add_note(struct comparison *c, const struct comparison_cell *cell, const char *fmt, ...)
{
    char    text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    for (size_t i = 0; i < c->n_notes; i++) /* a baseline of several pairs is noted once */
        if (strcmp(c->notes[i].cell.id, cell->id) == 0 && strcmp(c->notes[i].text, text) == 0)
            return ST_OK;
    struct comparison_note *note = EXTEND(c->notes, c->n_notes);
    if (!note)
        return ST_ENOMEM;
    note->cell = *cell;
    memcpy(note->text, text, sizeof text);
    return ST_OK;
}

/* which: "" in one sweep, where ids tell cells apart, else whose cell it is. */
static status_t note_steadiness(struct comparison *c, const struct comparison_cell *cell, const char *which,
                                const struct result *r)
{
    struct steadiness s;
    TRY(steadiness_of(r, NULL, &s));
    if (s.outliers)
        TRY(add_note(c, cell, "%s%zu of %zu samples are outliers, the farthest %+.0f %%; they are kept", which, s.outliers,
                     s.n, 100 * s.worst));
    if (s.drifts)
        TRY(add_note(c, cell, "%sdrifts: time a step changes by %+.1f %% over a process (Mann-Kendall p = %.2g)", which,
                     100 * s.drift, s.drift_p));
    if (s.throttled)
        TRY(add_note(c, cell, "%s%zu of %zu samples were throttled by a power or thermal limit", which, s.throttled,
                     r->n_samples));
    if (s.off_clock)
        TRY(add_note(c, cell, "%s%zu of %zu samples ran more than %.0f %% off the median clock", which, s.off_clock,
                     r->n_samples, 100 * CLOCK_OFF));
    return ST_OK;
}

/* The pair's machines, where they are not the same. */
static status_t note_machines(struct comparison *c, const struct comparison_cell *cell, const struct result *a,
                              const struct result *b)
{
    static const char *const keys[] = {"gpu_name", "cpu_model", "driver", "git", "isa"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *x = result_fact(a, keys[i]), *y = result_fact(b, keys[i]);
        if (x && y && strcmp(x, y) != 0)
            TRY(add_note(c, cell, "%s differs: %.80s, then %.80s", keys[i], x, y));
    }
    if (strcmp(a->host, b->host) != 0)
        TRY(add_note(c, cell, "measured on different hosts: %.60s, then %.60s", a->host, b->host));
    return ST_OK;
}

static status_t take_quality(const struct result *r, struct comparison_quality *q)
{
    const char *reference = result_fact(r, "quality_reference"), *error = result_fact(r, "quality_error");
    q->synthetic = result_fact(r, "synthetic_weights") != NULL;
    q->first = -1;
    snprintf(q->reference, sizeof q->reference, "%s", reference ? reference : "");
    snprintf(q->error, sizeof q->error, "%s", error ? error : "");
    q->known = r->n_quality >= 2 && r->quality[0].codebook == QUALITY_ALL;
    if (!q->known)
        return ST_OK;
    q->all = r->quality[0];
    q->semantic = r->quality[1];
    quality_gates(r, q->gates);
    for (size_t i = 0; i < r->n_quality_texts; i++) {
        int at = r->quality_texts[i].diverged;
        q->texts++;
        q->diverged += at >= 0;
        q->first = at >= 0 && (q->first < 0 || at < q->first) ? at : q->first;
    }
    return quality_sqnr(r, &q->weight_db, &q->output_db);
}

/* ---- one pair ---------------------------------------------------------------------------------------------------- */

static size_t take_measures(const struct result *r, const struct metric *m, struct measure *out, double *mean)
{
    size_t n = 0;
    double sum = 0;
    for (size_t i = 0; i < r->n_samples; i++) {
        const struct sample *s = &r->samples[i];
        double               v = m->of_sample(r, s);
        if (!(v > 0 && isfinite(v)))
            continue;
        out[n++] = (struct measure){s->text, s->repeat, s->process, v};
        sum += v;
    }
    *mean = n ? sum / (double)n : NAN;
    return n;
}

static status_t compare_samples(const struct result *a, const struct result *b, const struct verdict_options *options,
                                struct comparison_row *row)
{
    struct measure *x = malloc((a->n_samples + 1) * sizeof *x), *y = malloc((b->n_samples + 1) * sizeof *y);
    status_t        st = x && y ? ST_OK : FAIL(ST_ENOMEM, "no memory for %zu samples", a->n_samples + b->n_samples);
    if (st == ST_OK) {
        size_t na = take_measures(a, row->metric, x, &row->baseline), nb = take_measures(b, row->metric, y, &row->candidate);
        st = verdict_estimate(x, na, y, nb, options, &row->verdict);
    }
    free(x);
    free(y);
    return st;
}

/* Counted figures have no noise: what differs by more than the margin differs. */
static void compare_counted(const struct result *a, const struct result *b, const struct verdict_options *options,
                            struct comparison_row *row)
{
    struct verdict *v = &row->verdict;
    row->baseline = row->metric->of_cell(a);
    row->candidate = row->metric->of_cell(b);
    *v = (struct verdict){.p = NAN, .p_holm = NAN, .df = NAN, .within = NAN, .between = NAN};
    v->effect = row->baseline > 0 ? row->candidate / row->baseline - 1 : NAN;
    v->low = v->high = v->ratio_of_means = v->effect;
    v->kind = isnan(v->effect)                          ? VERDICT_TOO_FEW
              : fabs(log1p(v->effect)) <= log1p(options->margin) ? VERDICT_SAME
              : v->effect > 0                           ? VERDICT_SLOWER
                                                        : VERDICT_FASTER;
}

static status_t compare_results(struct comparison *c, size_t pair, const struct result *a, const struct result *b,
                                const struct comparison_options *o)
{
    struct comparison_pair *p = &c->pairs[pair];
    TRY(note_steadiness(c, &p->baseline, o->axis < 0 ? "baseline: " : "", a));
    TRY(note_steadiness(c, &p->candidate, o->axis < 0 ? "candidate: " : "", b));
    TRY(note_machines(c, &p->candidate, a, b));
    TRY(take_quality(b, &p->quality));
    for (size_t i = 0; i < o->n_metrics; i++) {
        struct comparison_row *row = EXTEND(c->rows, c->n_rows);
        if (!row)
            return ST_ENOMEM;
        row->pair = pair;
        row->metric = o->metrics[i];
        if (row->metric->of_sample)
            TRY(compare_samples(a, b, &o->verdict, row));
        else
            compare_counted(a, b, &o->verdict, row);
        if (isnan(row->baseline) && isnan(row->candidate))
            c->n_rows--; /* neither cell has it: no device, no codec, no energy counter */
    }
    return ST_OK;
}

static bool same_texts(const struct cell *a, const struct cell *b)
{
    if (a->workload.n_texts != b->workload.n_texts)
        return false;
    for (int i = 0; i < a->workload.n_texts; i++)
        if (strcmp(a->workload.texts[i], b->workload.texts[i]) != 0)
            return false;
    return true;
}

/* A baseline cell, read when its first partner is there. */
struct baseline {
    const struct summary_row *row;
    struct result             result;
    bool                      is_read;
};

/* *paired says whether they really belong together, which only their texts can tell. */
static status_t add_pair(struct comparison *c, const struct sweep_view *va, struct baseline *first,
                         const struct sweep_view *vb, const struct summary_row *rb, const struct comparison_options *o,
                         bool *paired)
{
    struct comparison_cell a = cell_of(first->row), b = cell_of(rb);
    struct result          y;
    bool                   both_ok = a.status == CELL_OK && b.status == CELL_OK;
    status_t               st = ST_OK;
    result_init(&y);
    *paired = false;
    if (both_ok) {
        if (!first->is_read)
            TRY_OUT(va->read(va->ctx, a.id, &first->result));
        first->is_read = true;
        TRY_OUT(vb->read(vb->ctx, b.id, &y));
        if (!same_texts(&first->result.cell, &y.cell))
            goto out;
    }
    struct comparison_pair *p = EXTEND(c->pairs, c->n_pairs);
    if (!p) {
        st = ST_ENOMEM;
        goto out;
    }
    *p = (struct comparison_pair){.baseline = a, .candidate = b, .quality = {.first = -1}};
    *paired = true;
    if (both_ok)
        st = compare_results(c, c->n_pairs - 1, &first->result, &y, o);
out:
    result_free(&y);
    return st;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static size_t first_key(const struct key *keys, size_t n, uint64_t hash)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (keys[middle].hash < hash)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static status_t pair_all(const struct sweep_view *a, const struct sweep_view *b, const struct comparison_options *o,
                         struct key *keys, bool *used, struct comparison *c)
{
    size_t n = 0;
    for (size_t i = 0; i < b->n; i++)
        if (is_candidate(&b->rows[i], o))
            keys[n++] = (struct key){key_hash(&b->rows[i], o->axis), (uint32_t)i};
    qsort(keys, n, sizeof *keys, by_hash);
    for (size_t i = 0; i < a->n; i++) {
        if (!is_baseline(&a->rows[i], o))
            continue;
        uint64_t        hash = key_hash(&a->rows[i], o->axis);
        struct baseline first = {.row = &a->rows[i]};
        bool            any = false;
        status_t        st = ST_OK;
        result_init(&first.result);
        for (size_t k = first_key(keys, n, hash); k < n && keys[k].hash == hash && st == ST_OK; k++) {
            const struct summary_row *other = &b->rows[keys[k].index];
            bool                      paired = false;
            /* Along an axis of two sweeps, equal values pair only when both were asked for (or when it is the model). */
            if (!belong_together(&a->rows[i], other, o->axis) ||
                (o->axis >= 0 && !o->has_to && has_value(other, o->axis, a->rows[i].axes[o->axis])))
                continue;
            st = add_pair(c, a, &first, b, other, o, &paired);
            used[keys[k].index] |= paired;
            any |= paired;
        }
        result_free(&first.result);
        TRY(st);
        if (!any)
            TRY(add_unmatched(c, &a->rows[i], true, "no partner in the candidate"));
    }
    for (size_t i = 0; i < b->n; i++)
        if (is_candidate(&b->rows[i], o) && !used[i] && !(a == b && is_baseline(&b->rows[i], o)))
            TRY(add_unmatched(c, &b->rows[i], false, "no partner in the baseline"));
    return ST_OK;
}

/* Holm's correction over every row with a p-value. */
static status_t judge(struct comparison *c, const struct comparison_options *o)
{
    struct verdict *table = malloc((c->n_rows + 1) * sizeof *table);
    bool           *better = malloc((c->n_rows + 1) * sizeof *better);
    size_t          n = 0;
    status_t        st = table && better ? ST_OK : FAIL(ST_ENOMEM, "no memory for %zu verdicts", c->n_rows);
    for (size_t i = 0; i < c->n_rows && st == ST_OK; i++)
        if (c->rows[i].metric->of_sample) {
            better[n] = c->rows[i].metric->more_is_better;
            table[n++] = c->rows[i].verdict;
        }
    if (st == ST_OK)
        st = verdict_judge(table, n, &o->verdict, better);
    for (size_t i = 0, k = 0; i < c->n_rows && st == ST_OK; i++)
        if (c->rows[i].metric->of_sample)
            c->rows[i].verdict = table[k++];
    free(table);
    free(better);
    return st;
}

status_t comparison_build(const struct sweep_view *baseline, const struct sweep_view *candidate,
                          const struct comparison_options *options, struct comparison *out)
{
    struct key *keys = malloc((candidate->n + 1) * sizeof *keys);
    bool       *used = calloc(candidate->n + 1, sizeof *used);
    status_t    st = keys && used ? ST_OK : FAIL(ST_ENOMEM, "no memory to pair %zu cells", candidate->n);
    memset(out, 0, sizeof *out);
    if (st == ST_OK)
        st = pair_all(baseline, candidate, options, keys, used, out);
    if (st == ST_OK)
        st = judge(out, options);
    free(keys);
    free(used);
    if (st != ST_OK)
        comparison_free(out);
    return st;
}

/* ---- rules ------------------------------------------------------------------------------------------------------- */

status_t fail_rule_parse(const char *text, struct fail_rule *out)
{
    char        name[32];
    const char *colon = strchr(text, ':');
    size_t      n = colon ? (size_t)(colon - text) : 0;
    if (!colon || n == 0 || n >= sizeof name)
        return FAIL(ST_EUSAGE, "--fail-on %s: want WHAT:PERCENT, such as slower:2%% or vram:1%%", text);
    snprintf(name, sizeof name, "%.*s", (int)n, text);
    struct fail_rule rule = {.metric = metric_find(name)};
    if (!rule.metric && strcmp(name, "slower") != 0)
        return FAIL(ST_EUSAGE, "--fail-on %s: \"%s\" is neither \"slower\" nor a metric; `qsweep help compare` lists them", text,
                    name);
    char *end;
    rule.limit = strtod(colon + 1, &end) / 100;
    if (end == colon + 1 || strcmp(end, "%") != 0 || !(rule.limit >= 0 && rule.limit <= 10))
        return FAIL(ST_EUSAGE, "--fail-on %s: want a percentage from 0%% to 1000%% after the colon", text);
    *out = rule;
    return ST_OK;
}

bool fail_rule_hits(const struct fail_rule *rule, const struct comparison_row *row)
{
    if (rule->metric ? rule->metric != row->metric : !row->metric->of_sample)
        return false;
    double slowdown = verdict_slowdown(row->verdict.effect, row->metric->more_is_better);
    if (!row->metric->of_sample) /* exact: the limit alone decides, the margin does not */
        return slowdown > 0 && slowdown >= rule->limit;
    return row->verdict.kind == VERDICT_SLOWER && slowdown >= rule->limit;
}
