/* Quality of a whole cell on the small original checkpoint, against decoding both precisions by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "bench/quality.h"
#include "bench/worker.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MODEL "tests/golden/dualar-a"
enum { FRAMES = 24, TEXTS = 2 };
static const char *const texts[TEXTS] = {"Hello, this is a test.", "Second text."};

static void make(struct work *w, enum precision precision)
{
    memset(w, 0, sizeof *w);
    cell_defaults(&w->cell);
    assert_int_equal(cell_set_model(&w->cell, MODEL), ST_OK);
    assert_int_equal(workload_set_texts(&w->cell.workload, texts, TEXTS), ST_OK);
    strcpy(w->cell.fingerprint, "0123456789abcdef0123456789abcdef");
    w->cell.precision = precision;
    w->cell.kv = precision == PRECISION_FP32 ? KV_FP32 : KV_BF16;
    w->cell.workload.samples = 1;
    w->cell.workload.warmup = 0;
    w->cell.workload.max_new_tokens = FRAMES;
    w->cell.workload.length = LENGTH_FIXED;
    w->cell.workload.quality = true;
    assert_int_equal(cell_identify(&w->cell), ST_OK);
    w->n_parts = 1;
    w->n_threads = 1;
}

static struct result measure(const struct work *w)
{
    static const volatile sig_atomic_t never = 0;
    struct result                      r;
    worker_run(w, clock_ns(), &never, &r);
    return r;
}

/* ---- by hand: one utterance, all logits kept --------------------------------------------------------------------- */

struct record {
    float  *rows[FRAMES][32];
    int     n[32];
};

static void keep(void *ctx, int sequence, int frame, int codebook, const float *logits, int n)
{
    struct record *r = ctx;
    (void)sequence;
    r->rows[frame][codebook] = malloc((size_t)n * sizeof *logits);
    memcpy(r->rows[frame][codebook], logits, (size_t)n * sizeof *logits);
    r->n[codebook] = n;
}

static void record_free(struct record *r)
{
    for (int f = 0; f < FRAMES; f++)
        for (int c = 0; c < 32; c++)
            free(r->rows[f][c]);
}

static void decode(enum precision precision, const struct cell *cell, const int32_t *forced, struct record *record,
                   int32_t *frames)
{
    struct work w;
    make(&w, precision);
    w.cell.workload.quality = false;
    struct session s = {0};
    assert_int_equal(session_open_device(&s, &w), ST_OK);
    assert_int_equal(session_open_model(&s, &w), ST_OK);
    decoder_close(s.decoder);
    const struct decode_tap     tap = {.ctx = record, .logits = keep};
    const struct decode_options options = {.batch = 1, .max_seq_len = s.max_seq_len, .kv = w.cell.kv, .head = cell->head,
                                           .engine = ENGINE_OPS, .sampling = cell->sampling, .fixed_length = true,
                                           .forced = forced, .n_forced = forced ? FRAMES : 0, .tap = &tap};
    assert_int_equal(decoder_open(s.backend, s.weights, &options, &s.decoder), ST_OK);
    struct prompt  prompt;
    const uint32_t sequence = 0;
    int            done;
    double         ms[FRAMES];
    assert_int_equal(session_prompt(&s, texts[0], &prompt), ST_OK);
    assert_int_equal(decoder_prefill(s.decoder, &prompt, &sequence), ST_OK);
    prompt_free(&prompt);
    assert_int_equal(decoder_run(s.decoder, FRAMES, frames, ms, &done), ST_OK);
    assert_int_equal(done, FRAMES);
    session_close(&s);
    work_free(&w);
}

static double naive_kl(const float *a, const float *b, int n)
{
    long double sum_a = 0, sum_b = 0, kl = 0;
    for (int i = 0; i < n; i++) {
        sum_a += expl((long double)a[i]);
        sum_b += expl((long double)b[i]);
    }
    for (int i = 0; i < n; i++)
        kl += expl((long double)a[i]) / sum_a * ((long double)a[i] - logl(sum_a) - (long double)b[i] + logl(sum_b));
    return (double)kl;
}

static void int8_figures_are_those_of_decoding_both_by_hand(void **state)
{
    struct work w;
    make(&w, PRECISION_INT8);
    w.cell.workload.quality_texts = 1;
    struct result r = measure(&w);
    assert_int_equal(r.status, CELL_OK);
    assert_null(result_fact(&r, "quality_error"));
    assert_string_equal(result_fact(&r, "quality_reference"), "bf16");
    assert_null(result_fact(&r, "synthetic_weights"));

    static struct record reference, mode;
    int32_t              frames[FRAMES * 33], ignored[FRAMES * 33];
    decode(PRECISION_BF16, &w.cell, NULL, &reference, frames);
    decode(PRECISION_INT8, &w.cell, frames, &mode, ignored);
    assert_true(r.n_quality > 2);
    for (int c = 0; c + 1 < (int)r.n_quality; c++) {
        double kl = 0;
        for (int f = 0; f < FRAMES; f++)
            kl += naive_kl(reference.rows[f][c], mode.rows[f][c], reference.n[c]) / FRAMES;
        assert_int_equal(r.quality[1 + c].codebook, c);
        assert_int_equal(r.quality[1 + c].n, FRAMES);
        if (!(fabs(r.quality[1 + c].kl_mean - kl) <= 1e-9 * kl))
            fail_msg("codebook %d: mean KL %.12g, by hand %.12g", c, r.quality[1 + c].kl_mean, kl);
        assert_true(kl > 0);
    }
    record_free(&reference);
    record_free(&mode);
    result_free(&r);
    work_free(&w);
}

/* Per-row absmax INT8 of what is nearly Gaussian keeps 42 dB; 6 dB less would be truncation instead of rounding. */
static void every_linear_layer_is_compared_and_keeps_its_signal(void **state)
{
    enum { WEIGHT_DB_MIN = 38, OUTPUT_DB_MIN = 30 };
    struct work w;
    make(&w, PRECISION_INT8);
    struct result      r = measure(&w);
    struct checkpoint *c;
    assert_int_equal(checkpoint_open(MODEL, &c), ST_OK);
    size_t want = 5 * (size_t)(c->config.slow.n_layer + c->config.fast.n_layer) + 1 + !c->config.tie_word_embeddings +
                  (c->config.fast.dim != c->config.slow.dim);
    assert_int_equal(r.n_quality_linears, want);
    checkpoint_close(c);
    for (size_t i = 0; i < r.n_quality_linears; i++) {
        const struct quality_linear *l = &r.quality_linears[i];
        bool                         fast = strncmp(l->name, "fast", 4) == 0;
        if (!(l->weight_sqnr_db > WEIGHT_DB_MIN && l->output_sqnr_db > OUTPUT_DB_MIN))
            fail_msg("%s: weights %.1f dB, outputs %.1f dB", l->name, l->weight_sqnr_db, l->output_sqnr_db);
        /* The first frame's slow pass belongs to the prefill; its head does not. */
        if (!fast)
            assert_int_equal(l->products, TEXTS * (QUALITY_PRODUCT_FRAMES - (strcmp(l->name, "output") != 0)));
        else
            assert_true(l->products >= TEXTS * QUALITY_PRODUCT_FRAMES);
    }
    double                weight_db, output_db;
    struct quality_gate   gates[QUALITY_GATES];
    assert_int_equal(quality_sqnr(&r, &weight_db, &output_db), ST_OK);
    quality_gates(&r, gates);
    assert_true(gates[3].known && gates[3].value == output_db && gates[3].passed == (output_db >= 38));
    assert_true(gates[0].known && gates[0].value == r.quality[0].kl_mean);
    result_free(&r);
    work_free(&w);
}

/* The free run parts from the reference exactly when the measured samples' codes differ. */
static void divergence_of_free_runs_is_that_of_the_samples(void **state)
{
    struct work w[2];
    make(&w[0], PRECISION_BF16);
    make(&w[1], PRECISION_INT8);
    w[0].cell.workload.quality = false;
    w[1].cell.workload.quality_frames = FRAMES;
    struct result bf16 = measure(&w[0]), int8 = measure(&w[1]);
    assert_int_equal(bf16.n_quality, 0);
    assert_int_equal(int8.n_quality_texts, TEXTS);
    for (int t = 0; t < TEXTS; t++) {
        const struct quality_text *q = &int8.quality_texts[t];
        bool                       same = bf16.samples[t].codes_hash == int8.samples[t].codes_hash;
        assert_true(q->text == t && q->frames == FRAMES && q->diverged < FRAMES);
        assert_int_equal(q->diverged < 0, same);
    }
    for (int k = 0; k < 2; k++)
        work_free(&w[k]);
    result_free(&bf16);
    result_free(&int8);
}

static void bf16_against_fp32_is_a_noise_floor_below_int8(void **state)
{
    struct work w[3];
    make(&w[0], PRECISION_FP32);
    make(&w[1], PRECISION_BF16);
    make(&w[2], PRECISION_INT8);
    struct result fp32 = measure(&w[0]), bf16 = measure(&w[1]), int8 = measure(&w[2]);
    assert_int_equal(fp32.status, CELL_OK);
    assert_int_equal(fp32.n_quality, 0);
    assert_string_equal(result_fact(&bf16, "quality_reference"), "fp32");
    assert_true(bf16.quality[0].kl_mean > 0);
    if (!(bf16.quality[0].kl_mean < int8.quality[0].kl_mean))
        fail_msg("mean KL of bf16 %g, of int8 %g", bf16.quality[0].kl_mean, int8.quality[0].kl_mean);
    for (size_t i = 0; i < bf16.n_quality_linears; i++) /* the same weights: only roundings of outputs */
        assert_true(isnan(bf16.quality_linears[i].weight_sqnr_db) && bf16.quality_linears[i].output_sqnr_db > 45);
    assert_true(bf16.n_quality_linears > 0);
    for (int k = 0; k < 3; k++)
        work_free(&w[k]);
    result_free(&fp32);
    result_free(&bf16);
    result_free(&int8);
}

static void a_reference_that_cannot_be_opened_costs_only_the_quality(void **state)
{
    struct work w;
    make(&w, PRECISION_INT8);
    strcpy(w.reference, "no/such/folder");
    log_set_level(LOG_NONE);
    struct result r = measure(&w);
    log_set_level(LOG_INFO);
    assert_int_equal(r.status, CELL_OK);
    assert_int_equal(r.n_samples, TEXTS);
    assert_int_equal(r.n_quality + r.n_quality_texts + r.n_quality_linears, 0);
    assert_non_null(strstr(result_fact(&r, "quality_error"), "no/such/folder"));
    result_free(&r);
    work_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(int8_figures_are_those_of_decoding_both_by_hand),
        cmocka_unit_test(every_linear_layer_is_compared_and_keeps_its_signal),
        cmocka_unit_test(divergence_of_free_runs_is_that_of_the_samples),
        cmocka_unit_test(bf16_against_fp32_is_a_noise_floor_below_int8),
        cmocka_unit_test(a_reference_that_cannot_be_opened_costs_only_the_quality),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
