/* The parts of synthetic checkpoints: noise, rotary tables, the codec's layout, the tokenizer. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/file.h"
#include "checkpoint/codec_layout.h"
#include "checkpoint/noise.h"
#include "checkpoint/rope_table.h"
#include "checkpoint/synth_tokenizer.h"
#include "checkpoint/tokenizer.h"
#include "checkpoint/torch_file.h"
#include "model/bf16.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static float f32_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Against the machine's own conversions, which are exact here: |value| < 2^53. */
static void fixed_point_numbers_are_rounded_to_nearest_even(void **state)
{
    unsigned seed = 99;
    srand(seed);
    for (int i = 0; i < 200000; i++) {
        int64_t value = ((int64_t)rand() << 22 ^ rand()) >> rand() % 50;
        int     shift = 10 + rand() % 40;
        if (rand() % 2)
            value = -value;
        double exact = ldexp((double)value, -shift);
        float  want  = (float)exact;
        if (f32_of(fixed_to_f32(value, shift)) != want)
            fail_msg("seed %u: %lld·2^-%d becomes %a, want %a", seed, (long long)value, shift,
                     (double)f32_of(fixed_to_f32(value, shift)), (double)want);
        /* BF16 from the exact value: ties must not be rounded twice, so only values of at most 24 bits go through FP32. */
        if (llabs(value) < 1 << 24 && fixed_to_bf16(value, shift) != bf16_from_f32(want))
            fail_msg("seed %u: %lld·2^-%d becomes %04x, want %04x", seed, (long long)value, shift,
                     fixed_to_bf16(value, shift), bf16_from_f32(want));
    }
    assert_int_equal(fixed_to_bf16(0, 20), 0);
    assert_int_equal(fixed_to_bf16((INT64_C(1) << 40) + 1 + (INT64_C(1) << 32), 40), 0x3f81); /* just above a tie */
    assert_int_equal(fixed_to_bf16((INT64_C(1) << 40) + (INT64_C(1) << 32), 40), 0x3f80);     /* the tie: to even */
}

static void integer_square_roots_are_exact(void **state)
{
    for (uint64_t i = 0; i < 3000; i++)
        assert_int_equal(integer_sqrt(i), (uint64_t)floor(sqrt((double)i)));
    unsigned __int128 big = (unsigned __int128)0xfffffffffffffffeu * 0xfffffffffffffffeu;
    assert_true(integer_sqrt(big) == 0xfffffffffffffffeu);
    assert_true(integer_sqrt(big - 1) == 0xfffffffffffffffdu);
}

static void noise_has_the_scale_that_was_asked_for(void **state)
{
    enum { N = 400000, STEP_PERCENT = 4 };
    static float x[N];
    const struct {
        uint32_t num, den;
        uint64_t fan;
    } cases[] = {{1, 1, 1}, {317, 100, 1024}, {5, 3, 3072 * 56}, {1, 50, 1}};
    for (size_t c = 0; c < 4; c++) {
        struct noise noise = {.key = noise_key(5, "x"), .scale = noise_scale_make(cases[c].num, cases[c].den, cases[c].fan)};
        double       want  = cases[c].num / (double)cases[c].den / sqrt((double)cases[c].fan), sum = 0, squares = 0;
        noise_fill(&noise, DT_F32, 0, N, x);
        for (int i = 0; i < N; i++) {
            sum += x[i];
            squares += (double)x[i] * x[i];
        }
        double sigma = sqrt(squares / N);
        if (sigma > want * 1.005 || sigma < want * (1 - STEP_PERCENT / 100.0))
            fail_msg("sigma %g, want %g", sigma, want);
        if (fabs(sum / N) > 5 * want / sqrt(N))
            fail_msg("mean %g of sigma %g", sum / N, want);
        assert_true(fabs(noise_scale_sigma(noise.scale) / sigma - 1) < 0.01);
    }
}

/* Known answers: they must be the same on every machine and stay the same for ever, or old seeds lose their meaning. */
static void noise_gives_known_bits(void **state)
{
    static const uint16_t want[6] = {0x3dab, 0x3a85, 0x3c91, 0xbb78, 0xbe15, 0x3d45};
    uint16_t              bf16[6];
    struct noise          noise = {.key = noise_key(1, "layers.0.attention.wqkv.weight"), .scale = noise_scale_make(1, 1, 64)};
    noise_fill(&noise, DT_BF16, 1000, 6, bf16);
    for (int i = 0; i < 6; i++)
        if (bf16[i] != want[i])
            fail_msg("element %d is %04x, want %04x", 1000 + i, bf16[i], want[i]);
}

static void any_chunking_gives_the_same_elements(void **state)
{
    enum { N = 5000 };
    uint16_t     whole[N], pieces[N];
    struct noise noise = {.key = noise_key(2, "y"), .scale = noise_scale_make(1, 1, 7), .base = 1 << 15, .cols = 37,
                          .edge_cols = 5, .edges = {{3, 4, 1 << 16}, {0, 90, -(1 << 14)}}, .n_edges = 2, .scaled_row = 11,
                          .scaled_by = 1};
    noise_fill(&noise, DT_BF16, 0, N, whole);
    for (int at = 0, n = 1; at < N; at += n, n = n % 97 + 13)
        noise_fill(&noise, DT_BF16, at, n < N - at ? n : N - at, pieces + at);
    assert_memory_equal(whole, pieces, sizeof whole);
    assert_true(bf16_to_f32(whole[3 * 37]) == 1 && bf16_to_f32(whole[3 * 37 + 4]) == 1);
    assert_true(bf16_to_f32(whole[4 * 37 + 4]) == -0.25f && bf16_to_f32(whole[4 * 37 + 5]) != -0.25f);
    assert_true(bf16_to_f32(whole[90 * 37]) != -0.25f);
}

static void rotary_tables_agree_with_libm_to_half_a_step_of_bf16(void **state)
{
    enum { POSITIONS = 16384, PAIRS = 32 };
    uint16_t *table = malloc((size_t)POSITIONS * PAIRS * 4);
    rope_table_fill(POSITIONS, PAIRS, table);
    for (int t = 0; t < POSITIONS; t++)
        for (int i = 0; i < PAIRS; i++) {
            double angle = t * pow(10000, -i / (double)PAIRS);
            double c = bf16_to_f32(table[(t * PAIRS + i) * 2]), s = bf16_to_f32(table[(t * PAIRS + i) * 2 + 1]);
            if (fabs(c - cos(angle)) > 1 / 512.0 + 1e-6 || fabs(s - sin(angle)) > 1 / 512.0 + 1e-6)
                fail_msg("position %d pair %d: %g %g, want %g %g", t, i, c, s, cos(angle), sin(angle));
        }
    free(table);
}

/* The layout with the sizes of the small codec that PyTorch wrote must be that file's, name by name. */
static void the_codec_layout_is_that_of_a_real_file(void **state)
{
    static const struct codec_dims dims = {.latent = 64, .encoder_width = 8, .decoder_width = 96, .residual_books = 3,
                                           .layers = 2, .window = 8, .head_dim = 16, .n_head = 4, .intermediate = 192,
                                           .table_length = 256};
    struct torch_file             *f    = NULL;
    struct codec_layout            layout;
    assert_int_equal(torch_file_open("tests/golden/codec-a/codec.pth", &f), ST_OK);
    assert_int_equal(codec_layout_build(&dims, &layout), ST_OK);
    assert_int_equal(layout.count, torch_file_tensors(f)->count);
    for (size_t i = 0; i < layout.count; i++) {
        const struct codec_entry *e = &layout.entries[i];
        const struct tensor      *t = tensor_set_find(torch_file_tensors(f), e->name);
        if (!t || t->dtype != e->dtype || t->rank != e->rank || memcmp(t->shape, e->shape, (size_t)e->rank * 8) != 0)
            fail_msg("\"%s\" is missing in the file or has another shape or dtype", e->name);
    }
    codec_layout_free(&layout);
    torch_file_close(f);
}

static void the_published_codec_has_its_published_size(void **state)
{
    struct codec_layout layout;
    long long           parameters = 0, buffers = 0;
    assert_int_equal(codec_layout_build(&codec_dims_published, &layout), ST_OK);
    for (size_t i = 0; i < layout.count; i++) {
        bool buffer = layout.entries[i].kind == CODEC_ROPE || layout.entries[i].kind == CODEC_MASK;
        *(buffer ? &buffers : &parameters) +=
            codec_entry_elements(&layout.entries[i]) * (buffer ? (int)dtype_size(layout.entries[i].dtype) : 1);
    }
    assert_int_equal(layout.count, 541);
    assert_int_equal(parameters, 391430530);
    assert_int_equal(buffers, 305135616);
    codec_layout_free(&layout);
}

static void tokenizer_files_have_the_ids_of_the_real_one(void **state)
{
    static const int  ranks[]  = {256, 512, 151643};
    char              folder[] = "/tmp/test_synth.XXXXXX", path[64];
    struct tokenizer *t        = NULL;
    assert_non_null(mkdtemp(folder));
    for (int i = 0; i < 3; i++) {
        assert_int_equal(synth_tokenizer_write(folder, ranks[i]), ST_OK);
        assert_int_equal(tokenizer_open(folder, &t), ST_OK);
        assert_int_equal(tokenizer_size(t), ranks[i] + 4111);
        assert_int_equal(tokenizer_special(t, "<|im_end|>"), ranks[i] + 4);
        assert_int_equal(tokenizer_special(t, "<|interleave|>"), ranks[i] + 11);
        assert_int_equal(tokenizer_special(t, "<|semantic:0|>"), ranks[i] + 15);
        assert_int_equal(tokenizer_special(t, "<|semantic:4095|>"), ranks[i] + 4110);
        int32_t *ids = NULL;
        size_t   n   = 0;
        assert_int_equal(tokenizer_encode(t, "the sound of the machine", 24, false, &ids, &n), ST_OK);
        assert_true(i == 0 ? n == 24 : n <= 8); /* merges were learned from English */
        free(ids);
        tokenizer_close(t);
        snprintf(path, sizeof path, "%s/tokenizer.tiktoken", folder);
        unlink(path);
        snprintf(path, sizeof path, "%s/special_tokens.json", folder);
        unlink(path);
    }
    rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fixed_point_numbers_are_rounded_to_nearest_even),
        cmocka_unit_test(integer_square_roots_are_exact),
        cmocka_unit_test(noise_has_the_scale_that_was_asked_for),
        cmocka_unit_test(noise_gives_known_bits),
        cmocka_unit_test(any_chunking_gives_the_same_elements),
        cmocka_unit_test(rotary_tables_agree_with_libm_to_half_a_step_of_bf16),
        cmocka_unit_test(the_codec_layout_is_that_of_a_real_file),
        cmocka_unit_test(the_published_codec_has_its_published_size),
        cmocka_unit_test(tokenizer_files_have_the_ids_of_the_real_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
