/* Predicted memory against the byte counts of the published S1-mini, and the table of cards. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkpoint/shapes.h"
#include "model/footprint.h"

enum { NORM_PARAMETERS = 28 * (2 * 1024 + 2 * 128) + 4 * 2 * 1024 + 2 * 1024 };

static struct footprint s1_mini(enum precision p, enum recipe r, enum kv_format kv)
{
    return footprint_of(&shape_find("s1-mini")->config, p, r, kv, 8192);
}

static void s1_mini_takes_the_bytes_that_its_tensors_add_up_to(void **state)
{
    /* Norms are held in FP32: two bytes more for each of their elements than the file has. */
    struct footprint bf16 = s1_mini(PRECISION_BF16, RECIPE_NONE, KV_BF16);
    assert_int_equal(bf16.weights, 1720338432 + 2 * NORM_PARAMETERS);
    assert_int_equal(bf16.scales, 0);
    assert_int_equal(bf16.kv, 28LL * 2 * 8 * 8192 * 128 * 2 + 4LL * 2 * 8 * 10 * 64 * 2);

    struct footprint int8 = s1_mini(PRECISION_INT8, RECIPE_TORCHAO, KV_BF16);
    assert_int_equal(int8.weights + int8.scales, 1066985728 + 2 * NORM_PARAMETERS);
    assert_int_equal(int8.scales, 2 * 544896);
    assert_int_equal(s1_mini(PRECISION_INT8, RECIPE_TORCHAO_V2, KV_BF16).scales, 4 * 544896);
    assert_int_equal(s1_mini(PRECISION_FP32, RECIPE_NONE, KV_FP32).weights, 4 * 860169216LL);
    assert_int_equal(s1_mini(PRECISION_FP32, RECIPE_NONE, KV_FP32).kv, 2 * bf16.kv);
}

static void a_larger_card_never_fits_less(void **state)
{
    struct footprint f = s1_mini(PRECISION_BF16, RECIPE_NONE, KV_BF16);
    for (int i = 1; cards[i].name; i++) {
        assert_true(cards[i].mib > cards[i - 1].mib);
        assert_true(footprint_batch(&f, 0, &cards[i]) >= footprint_batch(&f, 0, &cards[i - 1]));
    }
}

static void what_fits_fits_and_one_more_does_not(void **state)
{
    struct footprint  f    = s1_mini(PRECISION_BF16, RECIPE_NONE, KV_BF16);
    const struct card card = {"test", 8192};
    long              n    = footprint_batch(&f, 100000000, &card);
    size_t            used = f.weights + 100000000 + FOOTPRINT_CONTEXT_BYTES + (size_t)n * f.kv;
    assert_true(n > 0);
    assert_true(used <= (size_t)8192 << 20 && used + f.kv > (size_t)8192 << 20);
    const struct card small = {"small", 2048};
    assert_int_equal(footprint_batch(&f, 0, &small), 0);
}

static void the_codec_is_counted_by_its_decode_path(void **state)
{
    long long n = -1;
    assert_int_equal(footprint_codec_parameters("tests/golden/codec-a", &n), ST_OK);
    assert_true(n > 0 && n < 1054108); /* all float32 elements of the file */
    assert_int_equal(footprint_codec_parameters("tests/golden/dualar-a", &n), ST_OK);
    assert_int_equal(n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(s1_mini_takes_the_bytes_that_its_tensors_add_up_to),
        cmocka_unit_test(a_larger_card_never_fits_less),
        cmocka_unit_test(what_fits_fits_and_one_more_does_not),
        cmocka_unit_test(the_codec_is_counted_by_its_decode_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
