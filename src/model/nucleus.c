#include "model/nucleus.h"

#include "backend/backend.h"
#include "model/decode.h"

#include <math.h>
#include <stdlib.h>

enum { PROMPT_COLUMNS = 24 };

/* What the tap gathers. Sizes are kept one by one for their medians. */
struct gathered {
    const struct model_config *config;
    struct sampling            sampling;
    void                      *scratch;
    int                       *slow, *fast;
    int                        n_slow, n_fast, most_slow, most_fast;
    double                     slow_variance, fast_variance, semantic_mass, im_end_mass;
};

static double variance(const float *x, int n)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++) {
        sum += x[i];
        squares += (double)x[i] * x[i];
    }
    return squares / n - (sum / n) * (sum / n);
}

/* Share of the probability that semantic tokens and im_end have. */
static void add_masses(struct gathered *g, const float *logits, int n)
{
    double semantic = 0, im_end = 0, all = 0;
    float  highest = logits[0];
    for (int i = 1; i < n; i++)
        highest = logits[i] > highest ? logits[i] : highest;
    for (int i = 0; i < n; i++) {
        double p = exp((double)logits[i] - highest);
        all += p;
        semantic += i >= g->config->semantic_begin_id && i <= g->config->semantic_end_id ? p : 0;
        im_end += i == g->config->im_end_id ? p : 0;
    }
    g->semantic_mass += semantic / all;
    g->im_end_mass += im_end / all;
}

static void on_logits(void *ctx, int sequence, int frame, int codebook, const float *logits, int n)
{
    struct gathered *g = ctx;
    (void)sequence;
    (void)frame;
    if (codebook == 0 && g->n_slow < g->most_slow) {
        int begin = g->config->semantic_begin_id, rows = g->config->semantic_end_id - begin + 1;
        g->slow[g->n_slow++] = sampler_nucleus(&g->sampling, logits, n, NULL, NULL, 0, g->scratch);
        g->slow_variance += variance(logits + begin, rows);
        add_masses(g, logits, n);
    } else if (codebook > 0 && g->n_fast < g->most_fast) {
        g->fast[g->n_fast++] = sampler_nucleus(&g->sampling, logits, n, NULL, NULL, 0, g->scratch);
        g->fast_variance += variance(logits, n);
    }
}

static int compare_ints(const void *a, const void *b)
{
    return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b);
}

static void summarize(int *sizes, int n, int *median, int *least, int *most)
{
    if (n == 0)
        return;
    qsort(sizes, (size_t)n, sizeof *sizes, compare_ints);
    *median = sizes[n / 2];
    *least  = sizes[0];
    *most   = sizes[n - 1];
}

/* Some text ids; which ones does not matter to random weights. */
static status_t fixed_prompt(const struct model_config *config, struct prompt *out)
{
    *out        = (struct prompt){.rows = 1 + config->num_codebooks, .columns = PROMPT_COLUMNS};
    out->values = calloc((size_t)out->rows * PROMPT_COLUMNS, sizeof *out->values);
    if (!out->values)
        return FAIL(ST_ENOMEM, "no memory for a prompt");
    for (int i = 0; i < PROMPT_COLUMNS; i++)
        out->values[i] = (int32_t)(1 + (int64_t)i * 37 % (config->vocab_size < 256 ? config->vocab_size - 1 : 255));
    return ST_OK;
}

static status_t decode(struct decoder *d, const struct model_config *config, const struct prompt *prompt, int n_frames)
{
    int32_t *frames  = malloc((size_t)n_frames * (size_t)(1 + config->num_codebooks) * sizeof *frames);
    double  *step_ms = malloc((size_t)n_frames * sizeof *step_ms);
    int      done;
    status_t st = ST_OK;
    if (!frames || !step_ms) {
        st = FAIL(ST_ENOMEM, "no memory for %d frames", n_frames);
        goto out;
    }
    TRY_OUT(decoder_prefill(d, prompt, NULL));
    TRY_OUT(decoder_run(d, n_frames, frames, step_ms, &done));
out:
    free(frames);
    free(step_ms);
    return st;
}

status_t nucleus_measure(const char *dir, int n_frames, struct nucleus *out)
{
    struct checkpoint *c      = NULL;
    struct weights    *w      = NULL;
    struct backend    *be     = NULL;
    struct decoder    *d      = NULL;
    struct prompt      prompt = {0};
    struct gathered    g      = {0};
    status_t           st     = ST_OK;
    TRY_OUT(checkpoint_open(dir, &c));
    TRY_OUT(fixed_prompt(&c->config, &prompt));
    int rows    = c->config.vocab_size > c->config.codebook_size ? c->config.vocab_size : c->config.codebook_size;
    g.config    = &c->config;
    g.most_slow = n_frames;
    g.most_fast = n_frames * c->config.num_codebooks;
    g.slow      = malloc((size_t)g.most_slow * sizeof *g.slow);
    g.fast      = malloc((size_t)g.most_fast * sizeof *g.fast);
    g.scratch   = malloc((size_t)rows * 8);
    if (!g.slow || !g.fast || !g.scratch) {
        st = FAIL(ST_ENOMEM, "no memory for %d frames", n_frames);
        goto out;
    }
    sampling_defaults(c->config.family == FAMILY_S2 ? SAMPLING_S2 : SAMPLING_S1, &g.sampling);
    g.sampling.temperature = 0.7f;
    g.sampling.top_p       = 0.8f;

    const struct backend_options bo  = {.rounding = ROUND_BF16};
    const struct decode_tap      tap = {.ctx = &g, .logits = on_logits};
    const struct decode_options  o   = {.batch = 1, .max_seq_len = PROMPT_COLUMNS + n_frames + 1, .kv = KV_BF16,
                                        .engine = ENGINE_OPS, .sampling = g.sampling, .fixed_length = true, .tap = &tap};
    TRY_OUT(backend_open("cpu", &bo, &be));
    TRY_OUT(weights_open(c, PRECISION_BF16, RECIPE_NONE, 0, &w));
    TRY_OUT(decoder_open(be, w, &o, &d));
    TRY_OUT(decode(d, &c->config, &prompt, n_frames));

    *out = (struct nucleus){.n_frames = g.n_slow};
    summarize(g.slow, g.n_slow, &out->slow, &out->slow_least, &out->slow_most);
    summarize(g.fast, g.n_fast, &out->fast, &out->fast_least, &out->fast_most);
    if (g.n_slow) {
        out->slow_sigma    = sqrt(g.slow_variance / g.n_slow);
        out->semantic_mass = g.semantic_mass / g.n_slow;
        out->im_end_mass   = g.im_end_mass / g.n_slow;
    }
    if (g.n_fast)
        out->fast_sigma = sqrt(g.fast_variance / g.n_fast);
out:
    decoder_close(d);
    weights_close(w);
    backend_close(be);
    prompt_free(&prompt);
    free(g.slow);
    free(g.fast);
    free(g.scratch);
    checkpoint_close(c);
    return st;
}
