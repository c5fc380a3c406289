/* The engine against what the original implementation computed on a small checkpoint (tests/golden/dualar-a, README in the
 * reference's words: fp32 on a CPU, greedy frames must match exactly and logits within 2e-4; bf16 on a GPU, per-row
 * relative L2 error at most 3e-2, median at most 1.5e-2). Every CPU backend runs it. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/backend.h"
#include "checkpoint/safetensors.h"
#include "model/decode.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DUALAR "tests/golden/dualar-a"

enum { BOOKS = 4, WIDTH = 1 + BOOKS, GREEDY_FRAMES = 24, FORCED = 12, RESIDUALS = 3, RESIDUAL_ROWS = 1024, DIM = 64, VOCAB = 4567 };

static const double BOUND_FP32          = 2e-4; /* largest |error| of logits and hidden states                   */
static const double BOUND_BF16_ROW      = 3e-2; /* relative L2 error of one row                                  */
static const double BOUND_BF16_MEDIAN   = 1.5e-2;
static const double BOUND_INT8_OVER_BF16 = 3e-2; /* median L2 distance of INT8 from BF16: noise of 8-bit weights  */

static const char *const prompts[]  = {"short", "multi", "voice"};
static const char *const backends[] = {"cpu_ref", "cpu"};

static struct checkpoint  *checkpoint;
static struct safetensors *expected;

static int setup(void **unused)
{
    return checkpoint_open(DUALAR, &checkpoint) != ST_OK || safetensors_open(DUALAR "/expected.safetensors", &expected) != ST_OK;
}

static int teardown(void **unused)
{
    safetensors_close(expected);
    checkpoint_close(checkpoint);
    return 0;
}

static const void *vector(const char *fmt, const char *a, const char *b, const char *c)
{
    char name[96];
    snprintf(name, sizeof name, fmt, a, b, c);
    const struct tensor *t = tensor_set_find(safetensors_tensors(expected), name);
    if (!t)
        fail_msg("no vector %s", name);
    return t->data;
}

static struct prompt prompt_of(const char *name)
{
    char at[64];
    snprintf(at, sizeof at, "prompt.%s", name);
    const struct tensor *t = tensor_set_find(safetensors_tensors(expected), at);
    assert_non_null(t);
    return (struct prompt){.rows = (int)t->shape[0], .columns = (int)t->shape[1], .values = (int32_t *)(uintptr_t)t->data};
}

/* Frame k of greedy.<prompt>.<dtype>.<pen>: column prompt + k. */
static void expected_frames(const char *prompt, const char *dtype, const char *pen, int32_t out[][WIDTH], int n)
{
    const int32_t *matrix  = vector("greedy.%s.%s.%s", prompt, dtype, pen);
    const int      columns = prompt_of(prompt).columns;
    for (int k = 0; k < n; k++)
        for (int row = 0; row < WIDTH; row++)
            out[k][row] = matrix[row * (columns + GREEDY_FRAMES) + columns + k];
}

static struct backend *open_backend(const char *name, enum rounding rounding)
{
    struct backend              *be = NULL;
    const struct backend_options o  = {.rounding = rounding, .n_threads = 2};
    assert_int_equal(backend_open(name, &o, &be), ST_OK);
    return be;
}

static struct decode_options greedy_options(int batch, enum kv_format kv, float penalty)
{
    struct decode_options o = {.batch = batch, .max_seq_len = 128, .kv = kv, .engine = ENGINE_OPS};
    sampling_defaults(SAMPLING_S1, &o.sampling);
    o.sampling.greedy             = true;
    o.sampling.repetition_penalty = penalty;
    return o;
}

static void greedy_one(const char *backend, float penalty, const char *pen)
{
    struct backend *be = open_backend(backend, ROUND_NONE);
    struct weights *w;
    struct decoder *d;
    assert_int_equal(weights_open(checkpoint, PRECISION_FP32, RECIPE_NONE, 1, &w), ST_OK);
    const struct decode_options o = greedy_options(1, KV_FP32, penalty);
    assert_int_equal(decoder_open(be, w, &o, &d), ST_OK);
    for (int p = 0; p < 3; p++) {
        int32_t       want[GREEDY_FRAMES][WIDTH], got[GREEDY_FRAMES][WIDTH];
        double        step_ms[GREEDY_FRAMES];
        int           done = 0;
        struct prompt prompt = prompt_of(prompts[p]);
        expected_frames(prompts[p], "fp32", pen, want, GREEDY_FRAMES);
        assert_int_equal(decoder_prefill(d, &prompt, NULL), ST_OK);
        assert_int_equal(decoder_run(d, GREEDY_FRAMES, &got[0][0], step_ms, &done), ST_OK);
        assert_int_equal(done, GREEDY_FRAMES);
        for (int k = 0; k < GREEDY_FRAMES; k++)
            for (int row = 0; row < WIDTH; row++)
                if (got[k][row] != want[k][row])
                    fail_msg("%s, prompt %s, %s: frame %d row %d is %d, the original has %d", backend, prompts[p], pen, k, row,
                             got[k][row], want[k][row]);
    }
    decoder_close(d);
    weights_close(w);
    backend_close(be);
}

static void fp32_greedy_frames_equal_the_originals(void **unused)
{
    for (int b = 0; b < 2; b++) {
        greedy_one(backends[b], 1.0f, "pen1.0");
        greedy_one(backends[b], 1.3f, "pen1.3");
    }
}

/* ---- teacher-forced logits ---- */

struct taps {
    float logits[FORCED][VOCAB], hidden[FORCED][DIM], fast[FORCED][RESIDUALS][RESIDUAL_ROWS];
    int   n_logits, n_hidden, n_fast;
};

static void tap_logits(void *ctx, int sequence, int frame, int codebook, const float *logits, int n)
{
    struct taps *t = ctx;
    assert_int_equal(sequence, 0);
    assert_in_range(frame, 0, FORCED - 1);
    assert_int_equal(n, codebook == 0 ? VOCAB : RESIDUAL_ROWS);
    memcpy(codebook == 0 ? t->logits[frame] : t->fast[frame][codebook - 1], logits, (size_t)n * sizeof *logits);
    *(codebook == 0 ? &t->n_logits : &t->n_fast) += 1;
}

static void tap_hidden(void *ctx, int sequence, int frame, const float *hidden, int n)
{
    struct taps *t = ctx;
    assert_int_equal(n, DIM);
    memcpy(t->hidden[frame], hidden, DIM * sizeof *hidden);
    t->n_hidden++;
}

/* Run the first 12 fp32 greedy frames teacher-forced and keep everything the taps see. */
static struct taps *forced_run(const char *backend, enum precision precision, const char *prompt_name)
{
    struct taps *t   = calloc(1, sizeof *t);
    const bool   f32 = precision == PRECISION_FP32;
    int32_t      frames[FORCED][WIDTH], got[FORCED][WIDTH];
    int          done = 0;
    expected_frames(prompt_name, "fp32", "pen1.0", frames, FORCED);
    struct backend         *be = open_backend(backend, f32 ? ROUND_NONE : ROUND_BF16);
    struct weights         *w;
    struct decoder         *d;
    struct prompt           prompt = prompt_of(prompt_name);
    const struct decode_tap tap    = {t, tap_logits, tap_hidden};
    struct decode_options   o      = greedy_options(1, f32 ? KV_FP32 : KV_BF16, 1.0f);
    o.forced   = &frames[0][0];
    o.n_forced = FORCED;
    o.tap      = &tap;
    assert_int_equal(weights_open(checkpoint, precision, RECIPE_NONE, 1, &w), ST_OK);
    assert_int_equal(decoder_open(be, w, &o, &d), ST_OK);
    assert_int_equal(decoder_prefill(d, &prompt, NULL), ST_OK);
    assert_int_equal(decoder_run(d, FORCED, &got[0][0], NULL, &done), ST_OK);
    assert_int_equal(done, FORCED);
    assert_memory_equal(got, frames, sizeof got);
    assert_int_equal(t->n_logits, FORCED);
    assert_int_equal(t->n_hidden, FORCED);
    assert_int_equal(t->n_fast, FORCED * RESIDUALS);
    decoder_close(d);
    weights_close(w);
    backend_close(be);
    return t;
}

static void assert_close(const char *what, const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= BOUND_FP32))
            fail_msg("%s: value %zu is %.9g, the original has %.9g", what, i, (double)got[i], (double)want[i]);
}

static void fp32_logits_and_hidden_states_are_within_2e_4_of_the_originals(void **unused)
{
    for (int b = 0; b < 2; b++)
        for (int p = 0; p < 3; p++) {
            struct taps *t = forced_run(backends[b], PRECISION_FP32, prompts[p]);
            assert_close("hidden", &t->hidden[0][0], vector("hidden.%s.%s%s", prompts[p], "fp32", ""), FORCED * DIM);
            assert_close("logits", &t->logits[0][0], vector("logits.%s.%s%s", prompts[p], "fp32", ""), (size_t)FORCED * VOCAB);
            assert_close("fast_logits", &t->fast[0][0][0], vector("fast_logits.%s.%s%s", prompts[p], "fp32", ""),
                         (size_t)FORCED * RESIDUALS * RESIDUAL_ROWS);
            free(t);
        }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Relative L2 error of every row; checks the worst and the median. */
static void assert_rows(const char *what, const float *got, const float *want, size_t rows, size_t cols, double worst,
                        double median)
{
    double *e = malloc(rows * sizeof *e);
    for (size_t r = 0; r < rows; r++) {
        double d2 = 0, w2 = 0;
        for (size_t j = 0; j < cols; j++) {
            double g = (double)got[r * cols + j], v = (double)want[r * cols + j];
            d2 += (g - v) * (g - v);
            w2 += v * v;
        }
        e[r] = sqrt(d2 / w2);
    }
    qsort(e, rows, sizeof *e, ascending);
    print_message("# %s: relative L2 error of a row: median %.4f, worst %.4f\n", what, e[rows / 2], e[rows - 1]);
    if (!(e[rows - 1] <= worst && e[rows / 2] <= median))
        fail_msg("%s: median %.4f (bound %.4f), worst %.4f (bound %.4f)", what, e[rows / 2], median, e[rows - 1], worst);
    free(e);
}

static void bf16_logits_are_within_the_bounds_of_the_reference(void **unused)
{
    for (int b = 0; b < 2; b++)
        for (int p = 0; p < 3; p++) {
            struct taps *t = forced_run(backends[b], PRECISION_BF16, prompts[p]);
            assert_rows("bf16 hidden", &t->hidden[0][0], vector("hidden.%s.%s%s", prompts[p], "bf16", ""), FORCED, DIM,
                        BOUND_BF16_ROW, BOUND_BF16_MEDIAN);
            assert_rows("bf16 logits", &t->logits[0][0], vector("logits.%s.%s%s", prompts[p], "bf16", ""), FORCED, VOCAB,
                        BOUND_BF16_ROW, BOUND_BF16_MEDIAN);
            assert_rows("bf16 fast logits", &t->fast[0][0][0], vector("fast_logits.%s.%s%s", prompts[p], "bf16", ""),
                        FORCED * RESIDUALS, RESIDUAL_ROWS, BOUND_BF16_ROW, BOUND_BF16_MEDIAN);
            free(t);
        }
}

static void int8_logits_stay_near_bf16_and_differ_from_them(void **unused)
{
    for (int b = 0; b < 2; b++) {
        struct taps *bf16 = forced_run(backends[b], PRECISION_BF16, "short"), *int8 = forced_run(backends[b], PRECISION_INT8, "short");
        assert_rows("int8 logits", &int8->logits[0][0], &bf16->logits[0][0], FORCED, VOCAB, 2 * BOUND_INT8_OVER_BF16,
                    BOUND_INT8_OVER_BF16);
        assert_memory_not_equal(int8->logits, bf16->logits, sizeof bf16->logits);
        free(bf16);
        free(int8);
    }
}

/* ---- batches ---- */

/* All three prompts in one batch, sampled; each sequence must come out as it does alone, bit for bit. */
static void batch_one(const char *backend, enum precision precision, enum kv_format kv)
{
    enum { N = 20 };
    struct backend       *be = open_backend(backend, precision == PRECISION_FP32 ? ROUND_NONE : ROUND_BF16);
    struct weights       *w;
    struct decoder       *d;
    int32_t               together[3][N][WIDTH], alone[N][WIDTH];
    int                   done;
    struct prompt         three[3] = {prompt_of("voice"), prompt_of("short"), prompt_of("multi")};
    const uint32_t        ids[3]   = {7, 3, 1u << 31};
    struct decode_options o        = greedy_options(3, kv, 1.2f);
    o.sampling.greedy      = false;
    o.sampling.temperature = 0.9f;
    o.fixed_length         = true;
    o.sequence_ids         = ids;
    assert_int_equal(weights_open(checkpoint, precision, RECIPE_NONE, 1, &w), ST_OK);
    assert_int_equal(decoder_open(be, w, &o, &d), ST_OK);
    assert_int_equal(decoder_prefill(d, three, NULL), ST_OK);
    assert_int_equal(decoder_run(d, N, &together[0][0][0], NULL, &done), ST_OK);
    decoder_close(d);
    o.batch = 1;
    for (int s = 0; s < 3; s++) {
        o.sequence_ids = &ids[s];
        assert_int_equal(decoder_open(be, w, &o, &d), ST_OK);
        assert_int_equal(decoder_prefill(d, &three[s], NULL), ST_OK);
        for (int k = 0; k < N; k += 5) /* in pieces, too */
            assert_int_equal(decoder_run(d, 5, &alone[k][0], NULL, &done), ST_OK);
        decoder_close(d);
        if (memcmp(alone, together[s], sizeof alone) != 0)
            fail_msg("%s %s: sequence %d decodes otherwise in a batch", backend, precision_name(precision), s);
    }
    weights_close(w);
    backend_close(be);
}

static void a_sequence_in_a_batch_equals_it_alone_bit_for_bit(void **unused)
{
    for (int b = 0; b < 2; b++) {
        batch_one(backends[b], PRECISION_FP32, KV_FP32);
        batch_one(backends[b], PRECISION_BF16, KV_BF16);
        batch_one(backends[b], PRECISION_INT8, KV_INT8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp32_greedy_frames_equal_the_originals),
        cmocka_unit_test(fp32_logits_and_hidden_states_are_within_2e_4_of_the_originals),
        cmocka_unit_test(bf16_logits_are_within_the_bounds_of_the_reference),
        cmocka_unit_test(int8_logits_stay_near_bf16_and_differ_from_them),
        cmocka_unit_test(a_sequence_in_a_batch_equals_it_alone_bit_for_bit),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
