/* Prompt matrices as the original built them (tests/golden/dualar-a: prompt.short, prompt.multi, prompt.voice). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "model/prompt.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define DUALAR "tests/golden/dualar-a"

static void prompts_equal_those_of_the_original(void **state)
{
    struct checkpoint  *c = NULL;
    struct tokenizer   *t = NULL;
    struct safetensors *s = NULL;
    json_t             *root = json_load_file(DUALAR "/expected.json", 0, NULL), *texts = json_object_get(root, "texts");
    assert_int_equal(checkpoint_open(DUALAR, &c), ST_OK);
    assert_int_equal(tokenizer_open(DUALAR, &t), ST_OK);
    assert_int_equal(safetensors_open(DUALAR "/expected.safetensors", &s), ST_OK);

    const struct tensor *refcodes = tensor_set_find(safetensors_tensors(s), "refcodes");
    assert_non_null(refcodes);
    int32_t *values = malloc(refcodes->bytes);
    assert_non_null(values);
    memcpy(values, refcodes->data, refcodes->bytes);
    struct voice voice = {"a voice sample", {(int)refcodes->shape[0], (int)refcodes->shape[1], values}};

    static const struct {
        const char *name;
        int         text, n_voices;
    } cases[] = {{"prompt.short", 0, 0}, {"prompt.multi", 3, 0}, {"prompt.voice", 0, 1}};
    for (size_t i = 0; i < 3; i++)
        /* None of the texts has a special token in it, so both readings give the original's matrix. */
        for (int control = 0; control < 2; control++) {
            const struct tensor *want = tensor_set_find(safetensors_tensors(s), cases[i].name);
            const char          *text = json_string_value(json_array_get(texts, (size_t)cases[i].text));
            struct prompt        p    = {0};
            assert_non_null(want);
            assert_int_equal(prompt_build(t, &c->config, text, &voice, cases[i].n_voices, control, &p), ST_OK);
            assert_int_equal(p.rows, want->shape[0]);
            assert_int_equal(p.columns, want->shape[1]);
            assert_memory_equal(p.values, want->data, want->bytes);
            prompt_free(&p);
        }
    free(values);
    safetensors_close(s);
    tokenizer_close(t);
    checkpoint_close(c);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(prompts_equal_those_of_the_original)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
