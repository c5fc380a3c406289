/* Token ids of eight texts as the original tokenizer wrote them (tests/golden/dualar-a/expected.json). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkpoint/tokenizer.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define DUALAR "tests/golden/dualar-a"

static void token_ids_equal_those_of_the_original(void **state)
{
    struct tokenizer *t    = NULL;
    json_t           *root = json_load_file(DUALAR "/expected.json", 0, NULL);
    json_t           *texts = json_object_get(root, "texts"), *lists = json_object_get(root, "token_ids");
    assert_int_equal(tokenizer_open(DUALAR, &t), ST_OK);
    assert_int_equal(json_array_size(texts), 8);
    assert_int_equal(json_array_size(lists), 8);
    for (size_t i = 0; i < 8; i++) {
        const char *text = json_string_value(json_array_get(texts, i));
        json_t     *want = json_array_get(lists, i);
        int32_t    *ids  = NULL;
        size_t      n    = 0;
        assert_int_equal(tokenizer_encode(t, text, strlen(text), true, &ids, &n), ST_OK);
        assert_int_equal(n, json_array_size(want));
        for (size_t k = 0; k < n; k++)
            if (ids[k] != json_integer_value(json_array_get(want, k)))
                fail_msg("text %zu, id %zu: %d, want %lld", i, k, ids[k], (long long)json_integer_value(json_array_get(want, k)));
        free(ids);
    }
    assert_int_equal(tokenizer_special(t, "<|im_end|>"), 460);
    assert_int_equal(tokenizer_size(t), 456 + 4111);
    tokenizer_close(t);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(token_ids_equal_those_of_the_original)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
