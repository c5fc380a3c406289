/* Legacy INT8 of every linear weight as the original tool made it (tests/golden/dualar-a: int8.*, int8scale_*). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "model/floats.h"
#include "model/quantize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DUALAR "tests/golden/dualar-a"

static const struct tensor *expected(const struct safetensors *s, const char *kind, const char *name)
{
    char full[256];
    snprintf(full, sizeof full, "%s.%s", kind, name);
    return tensor_set_find(safetensors_tensors(s), full);
}

static void legacy_codes_and_both_forms_of_scales_equal_the_original_bit_for_bit(void **state)
{
    struct checkpoint  *c = NULL;
    struct safetensors *s = NULL;
    int                 n_linear = 0, n_expected = 0;
    assert_int_equal(checkpoint_open(DUALAR, &c), ST_OK);
    assert_int_equal(safetensors_open(DUALAR "/expected.safetensors", &s), ST_OK);
    for (size_t i = 0; i < safetensors_tensors(s)->count; i++)
        n_expected += strncmp(safetensors_tensors(s)->items[i].name, "int8.", 5) == 0;
    for (size_t i = 0; i < c->tensors.count; i++) {
        const struct tensor *t = &c->tensors.items[i];
        const struct tensor *codes = expected(s, "int8", t->name), *f32 = expected(s, "int8scale_f32", t->name),
                            *bf16 = expected(s, "int8scale_bf16", t->name);
        assert_int_equal(quantize_applies(&c->config, t->name), codes != NULL);
        if (!codes)
            continue;
        n_linear++;
        int64_t rows = t->shape[0], cols = t->shape[1];
        int8_t *q      = malloc((size_t)(rows * cols));
        float  *wide   = malloc((size_t)(rows * cols) * sizeof *wide);
        void   *scales = malloc((size_t)rows * sizeof(float));
        assert_true(q && wide && scales);
        for (int isa = 0; isa < INT8_ISA_COUNT; isa++) {
            if (!int8_isa_runs((enum int8_isa)isa))
                continue;
            assert_int_equal(quantize_rows_by((enum int8_isa)isa, RECIPE_LEGACY, t->data, DT_BF16, rows, cols, q, scales), rows);
            assert_memory_equal(q, codes->data, codes->bytes);
            assert_memory_equal(scales, bf16->data, bf16->bytes);
            /* The same weights as FP32 keep the scale in FP32: the one that made the codes. */
            for (int64_t k = 0; k < rows * cols; k++)
                wide[k] = float_element(t, (size_t)k);
            assert_int_equal(quantize_rows_by((enum int8_isa)isa, RECIPE_LEGACY, wide, DT_F32, rows, cols, q, scales), rows);
            assert_memory_equal(q, codes->data, codes->bytes);
            assert_memory_equal(scales, f32->data, f32->bytes);
        }
        free(q);
        free(wide);
        free(scales);
    }
    assert_int_equal(n_linear, n_expected);
    assert_int_equal(n_linear, 27);
    safetensors_close(s);
    checkpoint_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(legacy_codes_and_both_forms_of_scales_equal_the_original_bit_for_bit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
