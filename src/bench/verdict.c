#include "bench/verdict.h"

#include "bench/stats.h"
#include "bench/student.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const double VERDICT_PRIOR_SHARE = 0.5;
static const double INTERVAL_TAILS = 0.05;

/* A log-ratio (paired) or a logarithm centred by text (two groups), and the row whose address tells when it was taken. */
struct evidence {
    double                value;
    const struct measure *when;
    size_t                cluster;
};

/* What one cluster of evidence says. */
struct location {
    double mean;
    double variance; /* of the mean, from within the cluster; NaN for a single value */
    double spread;   /* squared, of one value                                        */
};

/* The usable rows of one cell, sorted by text and repeat, and its distinct processes, ascending. */
struct side {
    const struct measure **rows;
    size_t                 n;
    int                   *processes;
    size_t                 n_processes;
};

const char *verdict_name(enum verdict_kind k)
{
    static const char *const names[VERDICT_KIND_COUNT] = {"too few", "unclear", "same", "faster", "slower"};
    return (int)k >= 0 && k < VERDICT_KIND_COUNT ? names[k] : "?";
}

void verdict_options_init(struct verdict_options *o)
{
    *o = (struct verdict_options){.margin = 0.01, .alpha = 0.02, .process_noise = 0.003};
}

double verdict_slowdown(double effect, bool more_is_better)
{
    return more_is_better ? 1 / (1 + effect) - 1 : effect;
}

/* ---- one cluster ------------------------------------------------------------------------------------------------- */

/* Variance of a mean of n values grows by this when each follows its predecessor with correlation ρ (AR(1), n → ∞).
 * Values are clipped at three spreads first: one outlier would hide the correlation of all the others. */
static double correlation_factor(const double *x, size_t n, double mean, double spread)
{
    double products = 0, squares = 0, before = 0, limit = 3 * spread;
    for (size_t i = 0; i < n; i++) {
        double r = fmax(-limit, fmin(limit, x[i] - mean));
        products += i ? r * before : 0;
        squares += r * r;
        before = r;
    }
    double rho = squares > 0 ? products / squares : 0;
    rho = fmax(0, fmin(0.9, rho));
    return (1 + rho) / (1 - rho);
}

/* Mean without the lowest and highest quarter; its variance after Yuen. scratch [n]. */
static struct location locate(const double *x, size_t n, double *scratch)
{
    size_t cut = n / 4, kept = n - 2 * cut;
    double squares = 0;
    memcpy(scratch, x, n * sizeof *x);
    stats_sort(scratch, n);
    struct location l = {.mean = stats_mean(scratch + cut, kept), .variance = NAN, .spread = NAN};
    if (n < 2)
        return l;
    for (size_t i = 0; i < n; i++) /* winsorised: the quarters that were cut count as their nearest neighbour kept */
        scratch[i] = i < cut ? scratch[cut] : i >= n - cut ? scratch[n - cut - 1] : scratch[i];
    double mean = stats_mean(scratch, n);
    for (size_t i = 0; i < n; i++)
        squares += (scratch[i] - mean) * (scratch[i] - mean);
    l.variance = squares / ((double)kept * (double)(kept - 1));
    l.spread = l.variance * (double)n;
    l.variance *= correlation_factor(x, n, l.mean, sqrt(l.spread));
    return l;
}

static int by_cluster(const void *a, const void *b)
{
    const struct evidence *x = a, *y = b;
    if (x->cluster != y->cluster)
        return x->cluster < y->cluster ? -1 : 1;
    return x->when < y->when ? -1 : x->when > y->when;
}

/* Sort the evidence [n] and locate every cluster; out has room for all. scratch [2n]. Returns how many there are. */
static size_t locate_clusters(struct evidence *e, size_t n, double *scratch, struct location *out)
{
    size_t count = 0;
    qsort(e, n, sizeof *e, by_cluster);
    for (size_t first = 0, end; first < n; first = end) {
        for (end = first; end < n && e[end].cluster == e[first].cluster; end++)
            scratch[end - first] = e[end].value;
        out[count++] = locate(scratch, end - first, scratch + n);
    }
    return count;
}

/* The mean of clusters and how well it is known. */
struct estimate {
    double mean, variance, df, spread, between;
};

/* cells: how many cells' noise is in a value, 2 for a log-ratio. */
static struct estimate moderate(const struct location *l, size_t n, double cells, const struct verdict_options *o)
{
    double sum = 0, squares = 0, variance = 0, spread = 0, known = 0;
    for (size_t i = 0; i < n; i++) {
        sum += l[i].mean;
        if (!isnan(l[i].variance)) {
            variance += l[i].variance;
            spread += l[i].spread;
            known++;
        }
    }
    struct estimate e = {.mean = sum / (double)n, .spread = NAN, .between = NAN};
    for (size_t i = 0; i < n; i++)
        squares += (l[i].mean - e.mean) * (l[i].mean - e.mean);
    double prior = 0, prior_df = known > 0 ? VERDICT_PRIOR_DF : 0;
    if (known > 0) {
        spread /= known;
        prior = fmax(cells * o->process_noise * o->process_noise, VERDICT_PRIOR_SHARE * VERDICT_PRIOR_SHARE * spread) +
                variance / known;
        e.spread = sqrt(spread / cells);
    }
    if (n > 1)
        e.between = sqrt(squares / (double)(n - 1));
    e.df = prior_df + (double)n - 1;
    e.variance = e.df > 0 ? (prior_df * prior + squares) / e.df / (double)n : NAN;
    return e;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static int request_order(const struct measure *x, const struct measure *y)
{
    if (x->text != y->text)
        return x->text < y->text ? -1 : 1;
    return x->repeat < y->repeat ? -1 : x->repeat > y->repeat;
}

static int by_request(const void *a, const void *b)
{
    const struct measure *x = *(const struct measure *const *)a, *y = *(const struct measure *const *)b;
    int                   order = request_order(x, y);
    return order ? order : x < y ? -1 : x > y;
}

static int by_number(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static void side_close(struct side *s)
{
    free(s->rows);
    free(s->processes);
}

static status_t side_open(const struct measure *rows, size_t n, struct side *out)
{
    *out = (struct side){.rows = malloc((n + 1) * sizeof *out->rows), .processes = malloc((n + 1) * sizeof(int))};
    if (!out->rows || !out->processes)
        return FAIL(ST_ENOMEM, "no memory to compare %zu samples", n);
    for (size_t i = 0; i < n; i++)
        if (rows[i].value > 0 && isfinite(rows[i].value)) {
            out->processes[out->n] = rows[i].process;
            out->rows[out->n++] = &rows[i];
        }
    qsort(out->rows, out->n, sizeof *out->rows, by_request);
    qsort(out->processes, out->n, sizeof *out->processes, by_number);
    for (size_t i = 0; i < out->n; i++)
        if (i == 0 || out->processes[i] != out->processes[i - 1])
            out->processes[out->n_processes++] = out->processes[i];
    return ST_OK;
}

static size_t process_index(const struct side *s, int process)
{
    const int *found = bsearch(&process, s->processes, s->n_processes, sizeof process, by_number);
    return (size_t)(found - s->processes);
}

/* ---- pairs ------------------------------------------------------------------------------------------------------- */

static size_t root_of(size_t *parent, size_t i)
{
    while (parent[i] != i)
        i = parent[i] = parent[parent[i]];
    return i;
}

/* Log-ratios of rows with the same text and repeat into e; those that share a process of either cell share a cluster.
 * parent [processes of both]. Adds up the values used. */
static size_t pair_up(const struct side *a, const struct side *b, size_t *parent, struct evidence *e, double sums[2])
{
    size_t n = 0;
    for (size_t i = 0; i < a->n_processes + b->n_processes; i++)
        parent[i] = i;
    for (size_t i = 0, k = 0; i < a->n && k < b->n;) {
        int order = request_order(a->rows[i], b->rows[k]);
        if (order == 0) {
            const struct measure *x = a->rows[i++], *y = b->rows[k++];
            size_t                from = root_of(parent, a->n_processes + process_index(b, y->process));
            size_t                to = root_of(parent, process_index(a, x->process));
            parent[from] = to;
            e[n++] = (struct evidence){.value = log(y->value) - log(x->value), .when = x};
            sums[0] += x->value;
            sums[1] += y->value;
        } else if (order < 0)
            i++;
        else
            k++;
    }
    for (size_t i = 0; i < n; i++)
        e[i].cluster = root_of(parent, process_index(a, e[i].when->process));
    return n;
}

/* ---- two groups -------------------------------------------------------------------------------------------------- */

/* One cell's logarithms about texts that both cells have, less their text's location. *level: the mean of the locations.
 * scratch [2 · s->n]. */
static size_t centre(const struct side *s, const struct side *other, double *scratch, struct evidence *e, double *level,
                     double *sum)
{
    size_t n = 0, texts = 0;
    *level = 0;
    for (size_t first = 0, end, k = 0; first < s->n; first = end) {
        int text = s->rows[first]->text;
        for (end = first; end < s->n && s->rows[end]->text == text; end++)
            scratch[end - first] = log(s->rows[end]->value);
        while (k < other->n && other->rows[k]->text < text)
            k++;
        if (k == other->n || other->rows[k]->text != text)
            continue;
        double location = locate(scratch, end - first, scratch + s->n).mean;
        *level += location;
        texts++;
        for (size_t i = first; i < end; i++) {
            e[n++] = (struct evidence){.value = log(s->rows[i]->value) - location, .when = s->rows[i],
                                       .cluster = process_index(s, s->rows[i]->process)};
            *sum += s->rows[i]->value;
        }
    }
    *level /= texts ? (double)texts : NAN;
    return n;
}

/* ---- the estimate ------------------------------------------------------------------------------------------------ */

/* Room for everything, for cells of na and nb rows. */
struct room {
    struct evidence *evidence; /* [na + nb]     */
    struct location *location; /* [na + nb]     */
    double          *scratch;  /* [2 (na + nb)] */
    size_t          *parent;   /* [na + nb]     */
};

static void room_close(struct room *r)
{
    free(r->evidence);
    free(r->location);
    free(r->scratch);
    free(r->parent);
}

static status_t room_open(size_t n, struct room *r)
{
    r->evidence = malloc((n + 1) * sizeof *r->evidence);
    r->location = malloc((n + 1) * sizeof *r->location);
    r->scratch = malloc((n + 1) * 2 * sizeof *r->scratch);
    r->parent = malloc((n + 1) * sizeof *r->parent);
    return r->evidence && r->location && r->scratch && r->parent
               ? ST_OK
               : FAIL(ST_ENOMEM, "no memory to compare %zu samples", n);
}

static void conclude(double delta, double variance, double df, const struct verdict_options *o, struct verdict *out)
{
    if (!(df > 0))
        return;
    double error = sqrt(variance), reach = student_quantile(INTERVAL_TAILS, df) * error;
    out->effect = expm1(delta);
    out->low = expm1(delta - reach);
    out->high = expm1(delta + reach);
    out->df = df;
    /* No spread at all (a counted quantity): any difference is certain. */
    out->p = error > 0 ? student_tails(delta / error, df) : delta == 0 ? 1 : 0;
    out->kind = VERDICT_UNCLEAR;
}

static void compare_pairs(const struct side *a, const struct side *b, struct room *r, const struct verdict_options *o,
                          struct verdict *out)
{
    double sums[2] = {0, 0};
    out->n = pair_up(a, b, r->parent, r->evidence, sums);
    if (out->n == 0)
        return;
    out->paired = true;
    out->ratio_of_means = sums[1] / sums[0] - 1;
    out->n_clusters = locate_clusters(r->evidence, out->n, r->scratch, r->location);
    struct estimate e = moderate(r->location, out->n_clusters, 2, o);
    out->within = e.spread;
    out->between = e.between;
    if (out->n >= VERDICT_PAIRS_MIN)
        conclude(e.mean, e.variance, e.df, o, out);
}

static void compare_groups(const struct side *a, const struct side *b, struct room *r, const struct verdict_options *o,
                           struct verdict *out)
{
    double level[2], sum[2] = {0, 0};
    size_t n[2] = {centre(a, b, r->scratch, r->evidence, &level[0], &sum[0]),
                   centre(b, a, r->scratch, r->evidence + a->n, &level[1], &sum[1])};
    if (n[0] == 0)
        return;
    size_t          clusters[2];
    struct estimate e[2];
    for (int k = 0; k < 2; k++) {
        clusters[k] = locate_clusters(r->evidence + (k ? a->n : 0), n[k], r->scratch, r->location);
        e[k] = moderate(r->location, clusters[k], 1, o);
    }
    out->n = n[0] < n[1] ? n[0] : n[1];
    out->n_clusters = clusters[0] < clusters[1] ? clusters[0] : clusters[1];
    out->ratio_of_means = (sum[1] / (double)n[1]) / (sum[0] / (double)n[0]) - 1;
    out->within = sqrt(0.5 * (e[0].spread * e[0].spread + e[1].spread * e[1].spread));
    out->between = sqrt(0.5 * (e[0].between * e[0].between + e[1].between * e[1].between));
    if (out->n < VERDICT_PAIRS_MIN || !(e[0].df > 0 && e[1].df > 0))
        return;
    /* Welch and Satterthwaite: the degrees of freedom of a sum of two variances. */
    double variance = e[0].variance + e[1].variance, df = e[0].df + e[1].df;
    if (variance > 0)
        df = variance * variance / (e[0].variance * e[0].variance / e[0].df + e[1].variance * e[1].variance / e[1].df);
    conclude(level[1] + e[1].mean - level[0] - e[0].mean, variance, df, o, out);
}

status_t verdict_estimate(const struct measure *baseline, size_t n_baseline, const struct measure *candidate,
                          size_t n_candidate, const struct verdict_options *options, struct verdict *out)
{
    struct side a = {0}, b = {0};
    struct room r = {0};
    status_t    st = ST_OK;
    *out = (struct verdict){.kind = VERDICT_TOO_FEW, .effect = NAN, .low = NAN, .high = NAN, .ratio_of_means = NAN, .p = NAN,
                            .p_holm = NAN, .df = NAN, .within = NAN, .between = NAN};
    TRY_OUT(side_open(baseline, n_baseline, &a));
    TRY_OUT(side_open(candidate, n_candidate, &b));
    TRY_OUT(room_open(a.n + b.n, &r));
    compare_pairs(&a, &b, &r, options, out);
    if (!out->paired)
        compare_groups(&a, &b, &r, options, out);
out:
    room_close(&r);
    side_close(&a);
    side_close(&b);
    return st;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static int by_p(const void *a, const void *b)
{
    double x = (*(struct verdict *const *)a)->p, y = (*(struct verdict *const *)b)->p;
    return (x > y) - (x < y);
}

static enum verdict_kind word(const struct verdict *v, const struct verdict_options *o, bool more_is_better)
{
    double margin = log1p(o->margin), delta = log1p(v->effect);
    bool   inside = log1p(v->low) >= -margin && log1p(v->high) <= margin;
    if (v->p_holm < o->alpha && fabs(delta) > margin)
        return (delta > 0) == more_is_better ? VERDICT_FASTER : VERDICT_SLOWER;
    return inside ? VERDICT_SAME : VERDICT_UNCLEAR;
}

status_t verdict_judge(struct verdict *table, size_t n, const struct verdict_options *options, const bool *more_is_better)
{
    struct verdict **sorted = malloc((n + 1) * sizeof *sorted);
    size_t           tests = 0;
    double           highest = 0;
    if (!sorted)
        return FAIL(ST_ENOMEM, "no memory for %zu verdicts", n);
    for (size_t i = 0; i < n; i++)
        if (table[i].kind != VERDICT_TOO_FEW)
            sorted[tests++] = &table[i];
    qsort(sorted, tests, sizeof *sorted, by_p);
    for (size_t i = 0; i < tests; i++) { /* Holm: the i-th smallest p times the tests that are left, never falling */
        highest = fmax(highest, sorted[i]->p * (double)(tests - i));
        sorted[i]->p_holm = fmin(1, highest);
    }
    for (size_t i = 0; i < n; i++)
        if (table[i].kind != VERDICT_TOO_FEW)
            table[i].kind = word(&table[i], options, more_is_better ? more_is_better[i] : options->more_is_better);
    free(sorted);
    return ST_OK;
}
