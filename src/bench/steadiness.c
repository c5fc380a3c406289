#include "bench/steadiness.h"

#include "bench/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const double OUTLIER_Z = 10, DRIFT_P = 0.01, DRIFT_CHANGE = 0.01, CLOCK_OFF = 0.02;

enum { TREND_MIN = 8, TREND_MAX = 1000 }; /* samples of a process; the slopes of more are taken from every k-th */

struct point {
    int     text, process;
    int64_t t0_ns;
    size_t  sample;
    double  value; /* log time a step, then less its text's median */
};

static int by_text(const void *a, const void *b)
{
    const struct point *x = a, *y = b;
    return x->text != y->text ? (x->text < y->text ? -1 : 1) : x->sample < y->sample ? -1 : x->sample > y->sample;
}

static int by_time(const void *a, const void *b)
{
    const struct point *x = a, *y = b;
    if (x->process != y->process)
        return x->process < y->process ? -1 : 1;
    return x->t0_ns != y->t0_ns ? (x->t0_ns < y->t0_ns ? -1 : 1) : x->sample < y->sample ? -1 : x->sample > y->sample;
}

/* Subtract from every point the median of its text. scratch [2n]. */
static void centre_texts(struct point *p, size_t n, double *scratch)
{
    qsort(p, n, sizeof *p, by_text);
    for (size_t first = 0, end; first < n; first = end) {
        for (end = first; end < n && p[end].text == p[first].text; end++)
            scratch[end - first] = p[end].value;
        double median = stats_quantile(scratch, end - first, 0.5, scratch + n);
        for (size_t i = first; i < end; i++)
            p[i].value -= median;
    }
}

static void find_outliers(const struct point *p, size_t n, double *scratch, bool *outlier, struct steadiness *out)
{
    for (size_t i = 0; i < n; i++)
        scratch[i] = fabs(p[i].value);
    double mad = fmax(stats_quantile(scratch, n, 0.5, scratch + n), 1e-3), worst = 0;
    for (size_t i = 0; i < n; i++) {
        if (0.6745 * fabs(p[i].value) <= OUTLIER_Z * mad)
            continue;
        out->outliers++;
        if (outlier)
            outlier[p[i].sample] = true;
        if (fabs(p[i].value) > fabs(worst))
            out->worst = expm1(worst = p[i].value);
    }
}

/* Kendall's S of points in order of time, its variance, and Sen's slope as the change over all of them. slopes [TREND_MAX²/2]. */
static void trend(const struct point *p, size_t n, double *slopes, double *s, double *variance, double *change)
{
    size_t stride = (n + TREND_MAX - 1) / TREND_MAX, m = 0, used = 0;
    for (size_t i = 0; i < n; i += stride, used++)
        for (size_t k = 0; k < i; k += stride) {
            double d = p[i].value - p[k].value;
            *s += (d > 0) - (d < 0);
            slopes[m++] = d / (double)(i - k);
        }
    stats_sort(slopes, m);
    *variance += (double)used * ((double)used - 1) * (2 * (double)used + 5) / 18;
    *change = expm1((m % 2 ? slopes[m / 2] : 0.5 * (slopes[m / 2 - 1] + slopes[m / 2])) * (double)(n - 1));
}

/* Mann–Kendall, statistics of processes added up; drift is the mean of their changes. */
static status_t find_drift(struct point *p, size_t n, struct steadiness *out)
{
    double s = 0, variance = 0, changes = 0;
    size_t processes = 0;
    double *slopes = malloc(TREND_MAX * TREND_MAX / 2 * sizeof *slopes);
    if (!slopes)
        return FAIL(ST_ENOMEM, "no memory to look for drift in %zu samples", n);
    qsort(p, n, sizeof *p, by_time);
    for (size_t first = 0, end; first < n; first = end) {
        for (end = first; end < n && p[end].process == p[first].process; end++)
            ;
        if (end - first < TREND_MIN)
            continue;
        double change;
        trend(p + first, end - first, slopes, &s, &variance, &change);
        changes += change;
        processes++;
    }
    free(slopes);
    if (!processes)
        return ST_OK;
    out->drift = changes / (double)processes;
    out->drift_p = erfc(fmax(0, fabs(s) - 1) / sqrt(2 * variance));
    out->drifts = out->drift_p < DRIFT_P && fabs(out->drift) > DRIFT_CHANGE;
    return ST_OK;
}

static void look_at_clocks(const struct result *r, double *scratch, struct steadiness *out)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_samples; i++) {
        out->throttled += (r->samples[i].throttle & THROTTLE_REASONS) != 0;
        if (r->samples[i].sm_clock_mhz > 0)
            scratch[n++] = r->samples[i].sm_clock_mhz;
    }
    double median = stats_quantile(scratch, n, 0.5, scratch + r->n_samples);
    for (size_t i = 0; i < n; i++)
        out->off_clock += fabs(scratch[i] / median - 1) > CLOCK_OFF;
}

status_t steadiness_of(const struct result *r, bool *outlier, struct steadiness *out)
{
    struct point *points = malloc((r->n_samples + 1) * sizeof *points);
    double       *scratch = malloc((2 * r->n_samples + 1) * sizeof *scratch);
    status_t      st = points && scratch ? ST_OK : FAIL(ST_ENOMEM, "no memory for %zu samples", r->n_samples);
    *out = (struct steadiness){.worst = NAN, .drift = NAN, .drift_p = NAN};
    if (outlier)
        memset(outlier, 0, r->n_samples * sizeof *outlier);
    for (size_t i = 0; i < r->n_samples && st == ST_OK; i++) {
        const struct sample *s = &r->samples[i];
        double               ms = s->latency_ms / s->steps;
        if (s->steps > 0 && ms > 0 && isfinite(ms))
            points[out->n++] = (struct point){s->text, s->process, s->t0_ns, i, log(ms)};
    }
    if (st == ST_OK && out->n) {
        centre_texts(points, out->n, scratch);
        find_outliers(points, out->n, scratch, outlier, out);
        st = find_drift(points, out->n, out);
    }
    if (st == ST_OK)
        look_at_clocks(r, scratch, out);
    free(points);
    free(scratch);
    return st;
}
