/* The codec against the original's outputs on a small codec (tests/golden/codec-a, written by fishaudio/fish-speech). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkpoint/safetensors.h"
#include "model/codec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CODEC_DIR "tests/golden/codec-a"

/* FP32 against FP32 with sums in another order, through 20 layers (reference/README). */
static const float FP32_BOUND = 1e-4f;
/* BF16 weights and inputs of every product, FP32 between: 2^-9 relative a rounding; measured 41 dB on this codec. */
static const double BF16_SNR_DB = 30.0;

static struct safetensors *expected;

static const struct tensor *want(const char *name)
{
    const struct tensor *t = tensor_set_find(safetensors_tensors(expected), name);
    assert_non_null(t);
    return t;
}

static float want_f32(const struct tensor *t, size_t i)
{
    float f;
    memcpy(&f, (const char *)t->data + 4 * i, sizeof f);
    return f;
}

static struct codec *open_codec(const char *device, enum codec_mode mode, bool encoder, int chunk, struct backend **be)
{
    struct backend_options options = {.rounding = ROUND_NONE, .n_threads = 2};
    struct codec          *c;
    assert_int_equal(backend_open(device, &options, be), ST_OK);
    struct codec_options wanted = {.mode = mode, .decoder = true, .encoder = encoder, .chunk_frames = chunk};
    assert_int_equal(codec_open(*be, CODEC_DIR, &wanted, &c), ST_OK);
    return c;
}

static struct codes golden_codes(void)
{
    const struct tensor *t = want("codes");
    struct codes         c = {.codebooks = (int)t->shape[0], .frames = (int)t->shape[1], .values = malloc(t->bytes)};
    assert_non_null(c.values);
    memcpy(c.values, t->data, t->bytes);
    return c;
}

static float *decode(const char *device, enum codec_mode mode, int chunk, float **latent)
{
    struct backend *be;
    struct codec   *c     = open_codec(device, mode, false, chunk, &be);
    struct codes    codes = golden_codes();
    size_t          n     = (size_t)codes.frames * (size_t)codec_hop(c);
    float          *wav   = malloc(n * sizeof *wav);
    memset(wav, 0xff, n * sizeof *wav); /* NaN: every sample must be written */
    assert_int_equal(codec_decode(c, &codes, wav), ST_OK);
    if (latent) {
        *latent = malloc(4 * (size_t)codes.frames * 64 * sizeof **latent);
        assert_int_equal(codec_latent(c, *latent), ST_OK);
    }
    codes_free(&codes);
    codec_close(c);
    backend_close(be);
    return wav;
}

static double snr_db(const float *wav, const struct tensor *t)
{
    double signal = 0, noise = 0;
    for (size_t i = 0; i < (size_t)tensor_elements(t); i++) {
        double s = want_f32(t, i), d = wav[i] - s;
        signal += s * s;
        noise += d * d;
    }
    return 10 * log10(signal / noise);
}

static void check_fp32(const char *device)
{
    const struct tensor *wav = want("wav"), *z = want("latent");
    float               *latent, *got = decode(device, CODEC_FP32, 16, &latent);
    float                worst = 0, worst_latent = 0;
    for (size_t i = 0; i < (size_t)tensor_elements(wav); i++) {
        assert_true(isfinite(got[i]));
        worst = fmaxf(worst, fabsf(got[i] - want_f32(wav, i)));
    }
    size_t width = (size_t)z->shape[0], rows = (size_t)z->shape[1];
    for (size_t c = 0; c < width; c++)
        for (size_t t = 0; t < rows; t++)
            worst_latent = fmaxf(worst_latent, fabsf(latent[t * width + c] - want_f32(z, c * rows + t)));
    print_message("# %s: largest error wav %.2e, latent %.2e\n", device, (double)worst, (double)worst_latent);
    assert_true(worst <= FP32_BOUND);
    assert_true(worst_latent <= FP32_BOUND);
    free(got);
    free(latent);
}

static void fp32_samples_of_the_scalar_twin_equal_the_originals(void **state)
{
    check_fp32("cpu_ref");
}

static void fp32_samples_of_the_fast_cpu_equal_the_originals(void **state)
{
    check_fp32("cpu");
}

static void bf16_and_int8_samples_stay_within_their_noise(void **state)
{
    for (enum codec_mode mode = CODEC_BF16; mode <= CODEC_INT8; mode++) {
        float *got = decode("cpu", mode, 16, NULL);
        double snr = snr_db(got, want("wav"));
        print_message("# %s: SNR %.1f dB\n", codec_mode_name(mode), snr);
        assert_true(snr >= BF16_SNR_DB);
        free(got);
    }
}

static void chunks_of_any_size_give_the_samples_of_one_shot(void **state)
{
    const char *devices[] = {"cpu_ref", "cpu"};
    size_t      bytes     = (size_t)tensor_elements(want("wav")) * sizeof(float);
    for (int d = 0; d < 2; d++)
        for (enum codec_mode mode = CODEC_FP32; mode <= CODEC_INT8; mode++) {
            float *whole = decode(devices[d], mode, 16, NULL);
            for (int chunk = 1; chunk <= 7; chunk += 2) {
                float *pieces = decode(devices[d], mode, chunk, NULL);
                assert_memory_equal(whole, pieces, bytes);
                free(pieces);
            }
            free(whole);
        }
}

/* The codes of the golden samples are not recorded, so the property is self-consistency on a real signal: chunked encoding
 * equals one-shot encoding, and both CPU backends agree where the choice is not a tie. */
static void encoding_does_not_depend_on_chunks_or_backend(void **state)
{
    const struct tensor *t = want("wav");
    size_t               n = (size_t)tensor_elements(t) - 700; /* the last frame is padded */
    float               *wav = malloc(n * sizeof *wav);
    for (size_t i = 0; i < n; i++)
        wav[i] = want_f32(t, i);
    struct codes first = {0};
    for (int round = 0; round < 4; round++) {
        struct backend *be;
        struct codec   *c = open_codec(round < 2 ? "cpu_ref" : "cpu", CODEC_FP32, true, round % 2 ? 3 : 16, &be);
        struct codes    codes;
        assert_int_equal(codec_encode(c, wav, n, &codes), ST_OK);
        assert_int_equal(codes.frames, 11);
        assert_int_equal(codes.codebooks, 4);
        if (round == 0)
            first = codes;
        else {
            assert_memory_equal(first.values, codes.values, (size_t)codes.frames * 4 * sizeof *codes.values);
            codes_free(&codes);
        }
        codec_close(c);
        backend_close(be);
    }
    int distinct = 0;
    for (int i = 1; i < first.frames; i++)
        distinct += first.values[i] != first.values[0];
    assert_true(distinct > 0);
    codes_free(&first);
    free(wav);
}

static void a_negative_code_and_a_wrong_number_of_codebooks_are_refused(void **state)
{
    struct backend *be;
    struct codec   *c     = open_codec("cpu_ref", CODEC_FP32, false, 4, &be);
    struct codes    codes = golden_codes();
    float          *wav   = malloc((size_t)codes.frames * 2048 * sizeof *wav);
    codes.values[5]       = -1;
    assert_int_equal(codec_decode(c, &codes, wav), ST_EINPUT);
    codes.codebooks = 3;
    assert_int_equal(codec_decode(c, &codes, wav), ST_EINPUT);
    codes_free(&codes);
    free(wav);
    codec_close(c);
    backend_close(be);
}

static int open_expected(void **state)
{
    return safetensors_open(CODEC_DIR "/expected.safetensors", &expected) != ST_OK;
}

static int close_expected(void **state)
{
    safetensors_close(expected);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp32_samples_of_the_scalar_twin_equal_the_originals),
        cmocka_unit_test(fp32_samples_of_the_fast_cpu_equal_the_originals),
        cmocka_unit_test(bf16_and_int8_samples_stay_within_their_noise),
        cmocka_unit_test(chunks_of_any_size_give_the_samples_of_one_shot),
        cmocka_unit_test(encoding_does_not_depend_on_chunks_or_backend),
        cmocka_unit_test(a_negative_code_and_a_wrong_number_of_codebooks_are_refused),
    };
    return cmocka_run_group_tests(tests, open_expected, close_expected);
}
