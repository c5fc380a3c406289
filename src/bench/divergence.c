#include "bench/divergence.h"

#include "bench/stats.h"
#include "model/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct position {
    double kl, dp, nll, nll_ref;
    bool   agrees;
};

struct series {
    struct position *at;
    size_t           n, room;
};

struct divergence {
    int            num_codebooks;
    struct series *codebooks; /* [num_codebooks] */
};

status_t divergence_open(int num_codebooks, struct divergence **out)
{
    struct divergence *d = calloc(1, sizeof *d);
    if (d)
        d->codebooks = calloc((size_t)num_codebooks, sizeof *d->codebooks);
    if (!d || !d->codebooks) {
        free(d);
        return FAIL(ST_ENOMEM, "no memory for the quality of %d codebooks", num_codebooks);
    }
    d->num_codebooks = num_codebooks;
    *out = d;
    return ST_OK;
}

void divergence_close(struct divergence *d)
{
    if (!d)
        return;
    for (int c = 0; c < d->num_codebooks; c++)
        free(d->codebooks[c].at);
    free(d->codebooks);
    free(d);
}

/* ---- one position ------------------------------------------------------------------------------------------------ */

/* log Σ exp(x), and where the largest x stands (the first of equals). */
static double log_sum(const float *x, int n, int *top)
{
    double sum = 0, max;
    *top = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[*top])
            *top = i;
    max = (double)x[*top];
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return max + log(sum);
}

static bool all_finite(const float *x, int n)
{
    bool finite = true;
    for (int i = 0; i < n; i++)
        finite &= isfinite(x[i]) != 0;
    return finite;
}

static struct position compare(const float *reference, const float *mode, int n, int target)
{
    int             top_ref, top_mode;
    double          sum_ref = log_sum(reference, n, &top_ref), sum_mode = log_sum(mode, n, &top_mode), kl = 0;
    struct position p = {.nll = sum_mode - (double)mode[target], .nll_ref = sum_ref - (double)reference[target],
                         .agrees = mode[top_ref] == mode[top_mode]};
    for (int i = 0; i < n; i++) {
        double log_ref = (double)reference[i] - sum_ref, log_mode = (double)mode[i] - sum_mode;
        kl += exp(log_ref) * (log_ref - log_mode);
    }
    p.kl = fmax(0, kl); /* Gibbs: below 0 only by rounding, about 1e-16 a term */
    p.dp = exp(-p.nll) - exp(-p.nll_ref);
    return p;
}

status_t divergence_add(struct divergence *d, int codebook, const float *reference, const float *mode, int n, int target)
{
    struct series *s = &d->codebooks[codebook];
    if (!all_finite(reference, n) || !all_finite(mode, n))
        return FAIL(ST_EINTERNAL, "a logit of codebook %d is not finite in the %s", codebook,
                    all_finite(reference, n) ? "mode" : "reference");
    if (target < 0 || target >= n)
        return FAIL(ST_EINTERNAL, "codebook %d: token %d of %d", codebook, target, n);
    if (s->n == s->room) {
        size_t           room = s->room ? 2 * s->room : 256;
        struct position *grown = realloc(s->at, room * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no memory for the quality of %zu positions", room);
        s->at = grown;
        s->room = room;
    }
    s->at[s->n++] = compare(reference, mode, n, target);
    return ST_OK;
}

/* ---- summing up -------------------------------------------------------------------------------------------------- */

/* Mean KL and mean NLL change of block b: DIVERGENCE_BLOCK positions of each of the codebooks [n]. */
struct block {
    double kl, nll;
    size_t n;
};

static struct block block_sum(const struct series *codebooks, int n, size_t b)
{
    struct block sum = {0};
    for (int c = 0; c < n; c++)
        for (size_t i = b * DIVERGENCE_BLOCK; i < (b + 1) * DIVERGENCE_BLOCK && i < codebooks[c].n; i++) {
            sum.kl += codebooks[c].at[i].kl;
            sum.nll += codebooks[c].at[i].nll - codebooks[c].at[i].nll_ref;
            sum.n++;
        }
    return sum;
}

/* Percentile bootstrap over blocks (Künsch 1989; Efron and Tibshirani 1993, chapters 8 and 13). */
static status_t intervals(const struct series *codebooks, int n, uint64_t seed, struct quality_row *row)
{
    size_t blocks = (codebooks[0].n + DIVERGENCE_BLOCK - 1) / DIVERGENCE_BLOCK;
    row->kl_low = row->kl_high = row->nll_low = row->nll_high = NAN;
    if (blocks < DIVERGENCE_BLOCKS_MIN)
        return ST_OK;
    struct block *sums = malloc(blocks * sizeof *sums);
    double       *kl = malloc(3 * DIVERGENCE_RESAMPLES * sizeof *kl);
    if (!sums || !kl) {
        free(sums);
        free(kl);
        return FAIL(ST_ENOMEM, "no memory for a bootstrap of %zu blocks", blocks);
    }
    double *nll = kl + DIVERGENCE_RESAMPLES, *scratch = nll + DIVERGENCE_RESAMPLES;
    for (size_t b = 0; b < blocks; b++)
        sums[b] = block_sum(codebooks, n, b);
    for (uint32_t r = 0; r < DIVERGENCE_RESAMPLES; r++) {
        struct block total = {0};
        for (size_t k = 0; k < blocks; k++) {
            uint32_t words[4];
            noise_block(seed, (struct noise_key){.sequence = r, .frame = 0xb0075000u}, (uint32_t)(k / 4), words);
            const struct block *b = &sums[(uint64_t)words[k % 4] * blocks >> 32];
            total.kl += b->kl;
            total.nll += b->nll;
            total.n += b->n;
        }
        kl[r] = total.kl / (double)total.n;
        nll[r] = total.nll / (double)total.n;
    }
    row->kl_low = stats_quantile(kl, DIVERGENCE_RESAMPLES, 0.025, scratch);
    row->kl_high = stats_quantile(kl, DIVERGENCE_RESAMPLES, 0.975, scratch);
    row->nll_low = stats_quantile(nll, DIVERGENCE_RESAMPLES, 0.025, scratch);
    row->nll_high = stats_quantile(nll, DIVERGENCE_RESAMPLES, 0.975, scratch);
    free(sums);
    free(kl);
    return ST_OK;
}

/* One row over codebooks [n]. */
static status_t sum_up(const struct series *codebooks, int n, uint64_t seed, struct quality_row *row)
{
    size_t count = 0, at = 0;
    double agree = 0, kl = 0, dp2 = 0, nll = 0, nll_ref = 0;
    for (int c = 0; c < n; c++)
        count += codebooks[c].n;
    double *all = malloc((2 * count + 1) * sizeof *all);
    if (!all)
        return FAIL(ST_ENOMEM, "no memory for %zu positions", count);
    row->n = (int)count;
    row->kl_max = count ? 0 : NAN;
    for (int c = 0; c < n; c++)
        for (size_t i = 0; i < codebooks[c].n; i++) {
            const struct position *p = &codebooks[c].at[i];
            all[at++] = p->kl;
            kl += p->kl;
            dp2 += p->dp * p->dp;
            nll += p->nll;
            nll_ref += p->nll_ref;
            agree += p->agrees;
            row->kl_max = fmax(row->kl_max, p->kl);
        }
    double divisor = count ? (double)count : NAN;
    row->kl_mean = kl / divisor;
    row->kl_p99 = stats_quantile_supported(all, count, 0.99, all + count);
    row->top1 = agree / divisor;
    row->rms_dp = sqrt(dp2 / divisor);
    row->nll = nll / divisor;
    row->nll_ref = nll_ref / divisor;
    free(all);
    return intervals(codebooks, n, seed, row);
}

status_t divergence_rows(const struct divergence *d, uint64_t seed, struct quality_row *rows)
{
    rows[0].codebook = QUALITY_ALL;
    TRY(sum_up(d->codebooks, d->num_codebooks, seed, &rows[0]));
    for (int c = 0; c < d->num_codebooks; c++) {
        rows[1 + c].codebook = c;
        TRY(sum_up(&d->codebooks[c], 1, seed, &rows[1 + c]));
    }
    return ST_OK;
}

/* ---- signal to noise --------------------------------------------------------------------------------------------- */

void sqnr_add(struct sqnr *s, const float *reference, const float *value, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double r = (double)reference[i], error = (double)value[i] - r;
        s->signal += r * r;
        s->noise += error * error;
    }
}

double sqnr_db(const struct sqnr *s)
{
    return s->signal > 0 && s->noise > 0 ? 10 * log10(s->signal / s->noise) : NAN;
}
