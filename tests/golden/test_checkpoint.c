/* The reader against a model.pth that PyTorch wrote (tests/golden/dualar-a). Expected bytes and hashes were taken with
 * Python's zipfile from the same archive. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define DIR "tests/golden/dualar-a"

static void tensors_of_a_real_file_have_the_names_and_bytes_pytorch_gave_them(void **state)
{
    struct torch_file *f = NULL;
    assert_int_equal(torch_file_open(DIR "/model.pth", &f), ST_OK);
    const struct tensor_set *set = torch_file_tensors(f);
    assert_int_equal(set->count, 48);
    assert_string_equal(torch_file_first_key(f), "embeddings.weight");

    const struct tensor *t = tensor_set_find(set, "embeddings.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_BF16);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->shape[0], 4567);
    assert_int_equal(t->shape[1], 64);
    assert_int_equal(t->bytes, 584576);
    static const unsigned char first[8] = {0x5e, 0xbe, 0x14, 0x3e, 0x88, 0xbc, 0x83, 0xbc};
    assert_memory_equal(t->data, first, 8);
    assert_int_equal((uintptr_t)t->data % 2, 0);

    t = tensor_set_find(set, "fast_output.weight");
    assert_non_null(t);
    assert_int_equal(t->bytes, 524288);
    torch_file_close(f);
}

static void a_checkpoint_opens_with_its_configuration_and_token_ids(void **state)
{
    struct checkpoint *c = NULL;
    assert_int_equal(checkpoint_open(DIR, &c), ST_OK);
    assert_int_equal(c->config.family, FAMILY_S1);
    assert_int_equal(c->config.slow.n_layer, 3);
    assert_int_equal(c->config.fast.head_dim, 16);
    assert_int_equal(c->config.semantic_begin_id, 471);
    assert_int_equal(c->config.semantic_end_id, 471 + 4095);
    assert_int_equal(c->config.im_end_id, 460);
    assert_int_equal(c->tensors.count, 48);
    assert_int_equal(c->weight_bytes, 2 * config_parameters(&c->config));

    char a[33], b[33];
    unlink(DIR "/.qsweep-fingerprint");
    assert_int_equal(checkpoint_fingerprint(c, a), ST_OK);
    assert_int_equal(checkpoint_fingerprint(c, b), ST_OK); /* from the cache */
    assert_string_equal(a, b);
    assert_int_equal(strlen(a), 32);
    unlink(DIR "/.qsweep-fingerprint");
    checkpoint_close(c);
}

static void a_safetensors_file_of_another_writer_is_read(void **state)
{
    struct safetensors *s = NULL;
    assert_int_equal(safetensors_open(DIR "/expected.safetensors", &s), ST_OK);
    const struct tensor *t = tensor_set_find(safetensors_tensors(s), "refcodes");
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_I32);
    assert_int_equal(t->shape[0], 4);
    assert_int_equal(t->shape[1], 13);
    safetensors_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_of_a_real_file_have_the_names_and_bytes_pytorch_gave_them),
        cmocka_unit_test(a_checkpoint_opens_with_its_configuration_and_token_ids),
        cmocka_unit_test(a_safetensors_file_of_another_writer_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
