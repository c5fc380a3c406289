/* config.json: both forms, every key's default and null, every constraint; the layout that follows from it. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/log.h"
#include "checkpoint/config.h"
#include "checkpoint/layout.h"
#include "checkpoint/shapes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct model_config parse(const char *text)
{
    struct model_config c;
    memset(&c, 0xee, sizeof c);
    if (config_parse(text, strlen(text), "config.json", &c) != ST_OK)
        fail_msg("refused: %s", status_last());
    return c;
}

static void refuse(const char *text, const char *reason)
{
    struct model_config c;
    if (config_parse(text, strlen(text), "config.json", &c) != ST_EINPUT)
        fail_msg("accepted: %s", text);
    if (!strstr(status_last(), reason) || strncmp(status_last(), "config.json", 11) != 0)
        fail_msg("want the reason \"%s\", got \"%s\"", reason, status_last());
}

static void absent_and_null_keys_take_the_defaults_of_the_original(void **state)
{
    static const char *const texts[] = {
        "{\"model_type\":\"dual_ar\"}",
        "{\"model_type\":\"dual_ar\",\"vocab_size\":null,\"n_layer\":null,\"n_head\":null,\"n_local_heads\":null,\"dim\":null,"
        "\"intermediate_size\":null,\"rope_base\":null,\"norm_eps\":null,\"max_seq_len\":null,\"tie_word_embeddings\":null,"
        "\"attention_qkv_bias\":null,\"attention_o_bias\":null,\"attention_qk_norm\":null,\"codebook_size\":null,"
        "\"num_codebooks\":null,\"n_fast_layer\":null,\"fast_dim\":null,\"fast_n_head\":null,\"fast_n_local_heads\":null,"
        "\"fast_head_dim\":null,\"fast_intermediate_size\":null,\"fast_attention_qkv_bias\":null,"
        "\"fast_attention_o_bias\":null,\"fast_attention_qk_norm\":null,\"scale_codebook_embeddings\":null,"
        "\"is_reward_model\":null,\"quantization\":null,\"norm_fastlayer_input\":null}",
    };
    for (int i = 0; i < 2; i++) {
        struct model_config c = parse(texts[i]);
        assert_int_equal(c.family, FAMILY_S1);
        assert_int_equal(c.vocab_size, 32000);
        assert_int_equal(c.slow.n_layer, 32);
        assert_int_equal(c.slow.n_head, 32);
        assert_int_equal(c.slow.n_kv_heads, 32);
        assert_int_equal(c.slow.head_dim, 64);
        assert_int_equal(c.slow.dim, 4096);
        assert_int_equal(c.slow.intermediate_size, 11008); /* 2/3 · 4 · 4096 = 10922, up to a multiple of 256 */
        assert_true(c.rope_base == 10000 && c.norm_eps == 1e-5f);
        assert_int_equal(c.max_seq_len, 2048);
        assert_true(c.tie_word_embeddings);
        assert_int_equal(c.codebook_size, 160);
        assert_int_equal(c.num_codebooks, 4);
        assert_int_equal(c.fast.n_layer, 4);
        assert_int_equal(c.fast.dim, 4096);
        assert_int_equal(c.fast.head_dim, 64);
        assert_int_equal(c.fast.intermediate_size, 11008);
        assert_false(c.slow.qkv_bias || c.slow.o_bias || c.slow.qk_norm || c.fast.qk_norm || c.scale_codebook_embeddings ||
                     c.norm_fastlayer_input);
        assert_int_equal(c.quantization.recipe, RECIPE_NONE);
        assert_string_equal(c.quantization.mode, "");
    }
}

static void the_fast_stack_inherits_what_the_file_does_not_say(void **state)
{
    struct model_config c = parse("{\"model_type\":\"dual_ar\",\"n_head\":6,\"n_local_heads\":2,\"head_dim\":10,\"dim\":48,"
                                  "\"intermediate_size\":30,\"attention_qkv_bias\":true,\"attention_o_bias\":true,"
                                  "\"attention_qk_norm\":true,\"fast_attention_o_bias\":false}");
    assert_int_equal(c.fast.n_head, 6);
    assert_int_equal(c.fast.n_kv_heads, 2);
    assert_int_equal(c.fast.head_dim, 10);
    assert_int_equal(c.fast.dim, 48);
    assert_int_equal(c.fast.intermediate_size, 30);
    assert_true(c.fast.qkv_bias && c.fast.qk_norm);
    assert_false(c.fast.o_bias);
    c = parse("{\"model_type\":\"dual_ar\",\"n_head\":6,\"dim\":48,\"head_dim\":8,\"fast_dim\":32,\"fast_n_head\":4,"
              "\"fast_n_local_heads\":-1,\"fast_head_dim\":2,\"fast_intermediate_size\":5}");
    assert_int_equal(c.fast.dim, 32);
    assert_int_equal(c.fast.n_kv_heads, 4); /* −1 means one for each query head */
    assert_int_equal(c.fast.head_dim, 2);
    assert_int_equal(c.fast.intermediate_size, 5);
    c = parse("{\"model_type\":\"dual_ar\",\"n_head\":6,\"dim\":48,\"head_dim\":null}");
    assert_int_equal(c.slow.head_dim, 8); /* null, unlike absent, means dim / n_head */
}

static void impossible_values_are_refused_with_key_and_value(void **state)
{
#define WITH(body) "{\"model_type\":\"dual_ar\"," body "}"
    refuse("", "not valid JSON");
    refuse("[]", "not a JSON object");
    refuse("{\"model_type\":\"dual_ar\"", "not valid JSON");
    refuse(WITH("\"dim\":1,\"dim\":1"), "duplicate");
    refuse("{}", "model_type");
    refuse("{\"model_type\":\"naive\"}", "\"naive\" is not supported");
    refuse("{\"model_type\":7}", "model_type");
    refuse(WITH("\"n_layer\":0"), "n_layer = 0");
    refuse(WITH("\"n_layer\":-3"), "n_layer = -3");
    refuse(WITH("\"n_layer\":\"28\""), "n_layer is not an integer");
    refuse(WITH("\"n_layer\":2.5"), "n_layer is not an integer");
    refuse(WITH("\"n_layer\":99999999999999999999"), "not valid JSON");
    refuse(WITH("\"n_head\":3,\"dim\":64"), "dim 64 is not a multiple of n_head 3");
    refuse(WITH("\"n_head\":32,\"n_local_heads\":5"), "not a multiple of n_local_heads 5");
    refuse(WITH("\"n_local_heads\":0"), "n_local_heads 0");
    refuse(WITH("\"n_local_heads\":-2"), "n_local_heads = -2");
    refuse(WITH("\"head_dim\":63"), "head_dim 63");
    refuse(WITH("\"fast_head_dim\":7"), "fast stack: head_dim 7");
    refuse(WITH("\"fast_n_head\":5"), "fast stack");
    refuse(WITH("\"n_head\":4096,\"dim\":4096,\"head_dim\":1048576"), "rows");
    refuse(WITH("\"num_codebooks\":0"), "num_codebooks = 0");
    refuse(WITH("\"codebook_size\":0"), "codebook_size = 0");
    refuse(WITH("\"vocab_size\":0"), "vocab_size = 0");
    refuse(WITH("\"max_seq_len\":0"), "max_seq_len = 0");
    refuse(WITH("\"rope_base\":0"), "rope_base = 0");
    refuse(WITH("\"rope_base\":\"1e6\""), "rope_base is not a number");
    refuse(WITH("\"norm_eps\":-1e-6"), "norm_eps");
    refuse(WITH("\"norm_eps\":1e999"), "not valid JSON");
    refuse(WITH("\"tie_word_embeddings\":1"), "neither true nor false");
    refuse(WITH("\"is_reward_model\":true"), "reward model");
}

static void quantization_is_ours_or_refused(void **state)
{
    struct model_config c = parse(WITH("\"quantization\":{\"method\":\"qsweep\",\"mode\":\"int8\",\"recipe\":\"torchao-v2\","
                                       "\"group_size\":null,\"source_hash\":\"00ff\"}"));
    assert_int_equal(c.quantization.recipe, RECIPE_TORCHAO_V2);
    assert_string_equal(c.quantization.mode, "int8");
    assert_string_equal(c.quantization.source_hash, "00ff");
    assert_int_equal(c.quantization.group_size, 0);
    refuse(WITH("\"quantization\":{\"method\":\"torchao\",\"mode\":\"int8\",\"group_size\":null,"
                "\"torchao_version\":\"0.15.0\"}"), "qsweep quantize");
    refuse(WITH("\"quantization\":{}"), "quantization.method");
    refuse(WITH("\"quantization\":[]"), "quantization.method");
    refuse(WITH("\"quantization\":{\"method\":\"qsweep\",\"mode\":\"int3\",\"recipe\":\"legacy\"}"), "\"int3\"");
    refuse(WITH("\"quantization\":{\"method\":\"qsweep\",\"mode\":\"int8\",\"recipe\":\"best\"}"), "\"best\"");
    refuse(WITH("\"quantization\":{\"method\":\"qsweep\",\"mode\":\"int8\",\"recipe\":\"none\"}"), "\"none\"");
    refuse(WITH("\"quantization\":{\"method\":\"qsweep\",\"mode\":\"int8\",\"recipe\":\"legacy\",\"group_size\":128}"),
           "group_size");
    refuse(WITH("\"quantization\":{\"method\":\"qsweep\",\"mode\":\"int8\",\"recipe\":\"legacy\",\"source_hash\":"
                "\"0123456789012345678901234567890123456789012345678901234567890123456789\"}"), "source_hash");
}

#define NESTED(top, text, audio) \
    "{\"model_type\":\"fish_qwen3_omni\",\"semantic_start_token_id\":100,\"semantic_end_token_id\":163,\"eos_token_id\":90" top \
    ",\"text_config\":{\"vocab_size\":200,\"n_layer\":3,\"n_head\":4,\"n_local_heads\":2,\"head_dim\":16,\"dim\":64," \
    "\"intermediate_size\":96,\"rope_base\":1000000,\"norm_eps\":1e-6,\"max_seq_len\":512,\"attention_qk_norm\":true" text \
    "},\"audio_decoder_config\":{\"vocab_size\":64,\"n_layer\":2,\"num_codebooks\":5,\"max_seq_len\":6" audio "}}"

static void the_nested_form_is_flattened_as_the_s2_loader_does(void **state)
{
    struct model_config c = parse(NESTED("", "", ",\"dim\":32,\"head_dim\":8"));
    assert_int_equal(c.family, FAMILY_S2);
    assert_int_equal(c.vocab_size, 200);
    assert_int_equal(c.codebook_size, 64);
    assert_int_equal(c.num_codebooks, 5);
    assert_int_equal(c.fast.n_layer, 2);
    assert_int_equal(c.fast.dim, 32);
    assert_int_equal(c.fast.n_head, 4);
    assert_true(c.slow.qk_norm);
    assert_false(c.fast.qk_norm);
    assert_true(c.scale_codebook_embeddings && c.norm_fastlayer_input && c.tie_word_embeddings);
    assert_int_equal(c.semantic_begin_id, 100);
    assert_int_equal(c.semantic_end_id, 163);
    assert_int_equal(c.im_end_id, 90);
    assert_true(c.rope_base == 1000000);

    refuse("{\"model_type\":\"fish_qwen3_omni\"}", "text_config");
    refuse("{\"text_config\":{},\"audio_decoder_config\":3}", "audio_decoder_config");
    refuse(NESTED("", ",\"dropout\":0,\"n_head\":3", ""), "not valid JSON");
    refuse(NESTED("", "", ",\"n_head\":\"x\""), "audio_decoder_config.n_head is not an integer");
    refuse(NESTED("", "", ",\"rope_base\":500"), "differ");
    refuse("{\"text_config\":{\"vocab_size\":50},\"audio_decoder_config\":{},\"semantic_start_token_id\":10,"
           "\"semantic_end_token_id\":50,\"eos_token_id\":3}", "do not fit a vocabulary of 50");
    refuse("{\"text_config\":{},\"audio_decoder_config\":{},\"semantic_start_token_id\":30,"
           "\"semantic_end_token_id\":20,\"eos_token_id\":3}", "do not fit");
    refuse("{\"text_config\":{},\"audio_decoder_config\":{},\"semantic_start_token_id\":10,\"eos_token_id\":3}", "must be given");
    refuse("{\"text_config\":{},\"audio_decoder_config\":{\"max_seq_len\":3},\"semantic_start_token_id\":1,"
           "\"semantic_end_token_id\":2,\"eos_token_id\":3}", "less than num_codebooks");
}

static void the_published_models_have_their_published_sizes(void **state)
{
    assert_int_equal(config_parameters(&shape_find("s1-mini")->config), 860169216);
    assert_int_equal(config_parameters(&shape_find("s2-pro")->config), 4561852416);
}

/* Property: the layout's elements add up to config_parameters(), whatever the switches; names are unique. */
static void layout_and_parameter_count_agree(void **state)
{
    unsigned seed = 12345;
    srand(seed);
    for (int round = 0; round < 200; round++) {
        struct model_config c = {
            .slow = {.n_layer = 1 + rand() % 4, .n_head = 4, .n_kv_heads = 1 << rand() % 3, .head_dim = 2 + 2 * (rand() % 9),
                     .dim = 4 * (1 + rand() % 20), .intermediate_size = 1 + rand() % 90, .qkv_bias = rand() % 2,
                     .o_bias = rand() % 2, .qk_norm = rand() % 2},
            .fast = {.n_layer = 1 + rand() % 3, .n_head = 2, .n_kv_heads = 1 + rand() % 2, .head_dim = 2 + 2 * (rand() % 9),
                     .dim = 4 * (1 + rand() % 20), .intermediate_size = 1 + rand() % 90, .qkv_bias = rand() % 2,
                     .o_bias = rand() % 2, .qk_norm = rand() % 2},
            .vocab_size = 1 + rand() % 500, .codebook_size = 1 + rand() % 100, .num_codebooks = 1 + rand() % 10,
            .tie_word_embeddings = rand() % 2};
        struct layout     layout;
        struct tensor_set names = {0};
        long long         sum   = 0;
        assert_int_equal(layout_build(&c, &layout), ST_OK);
        for (size_t i = 0; i < layout.count; i++) {
            const struct tensor t = {.name = layout.entries[i].name};
            sum += layout_elements(&layout.entries[i]);
            assert_int_equal(tensor_set_add(&names, &t), ST_OK);
        }
        if (sum != config_parameters(&c))
            fail_msg("seed %u round %d: layout %lld, config %lld", seed, round, sum, config_parameters(&c));
        assert_int_equal(tensor_set_sort(&names, "layout"), ST_OK);
        tensor_set_free(&names);
        layout_free(&layout);
    }
}

static void identity_text_tells_models_apart(void **state)
{
    struct model_config a = shape_find("s1-nano")->config, b = a;
    char                x[512], y[512];
    config_canonical(&a, x, sizeof x);
    config_canonical(&b, y, sizeof y);
    assert_string_equal(x, y);
    strcpy(b.quantization.source_hash, "abc"); /* where it came from is not what it is */
    config_canonical(&b, y, sizeof y);
    assert_string_equal(x, y);
    b.fast.o_bias = true;
    config_canonical(&b, y, sizeof y);
    assert_string_not_equal(x, y);
}

int main(void)
{
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absent_and_null_keys_take_the_defaults_of_the_original),
        cmocka_unit_test(the_fast_stack_inherits_what_the_file_does_not_say),
        cmocka_unit_test(impossible_values_are_refused_with_key_and_value),
        cmocka_unit_test(quantization_is_ours_or_refused),
        cmocka_unit_test(the_nested_form_is_flattened_as_the_s2_loader_does),
        cmocka_unit_test(the_published_models_have_their_published_sizes),
        cmocka_unit_test(layout_and_parameter_count_agree),
        cmocka_unit_test(identity_text_tells_models_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
