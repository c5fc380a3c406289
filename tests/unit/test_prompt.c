/* Codes and prompts from files, and the S1 prompt built from text. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/npy.h"
#include "model/prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DUALAR "tests/golden/dualar-a"

enum { CODEBOOK = 4096, IM_END = 460 };

/* ---- codes ---- */

static status_t parse_codes(const char *json, struct codes *out)
{
    return codes_parse(json, strlen(json), "test", CODEBOOK, IM_END, out);
}

static void expect_codes(const struct codes *c, int codebooks, int frames, const int32_t *values)
{
    assert_int_equal(c->codebooks, codebooks);
    assert_int_equal(c->frames, frames);
    assert_memory_equal(c->values, values, (size_t)(codebooks * frames) * sizeof *values);
}

static void a_json_array_of_arrays_is_codebooks_by_frames(void **state)
{
    struct codes c = {0};
    assert_int_equal(parse_codes("[[1, 2, 4095], [4, 5, 0]]", &c), ST_OK);
    expect_codes(&c, 2, 3, (int32_t[]){1, 2, 4095, 4, 5, 0});
    codes_free(&c);
}

static void frames_of_generate_are_turned_and_lose_only_a_final_im_end(void **state)
{
    struct codes c = {0};
    assert_int_equal(parse_codes("{\"prompt\": [[1]], \"frames\": [[471, 0, 7], [460, 0, 8], [473, 2, 9], [460, 0, 1]]}", &c),
                     ST_OK);
    expect_codes(&c, 2, 3, (int32_t[]){0, 0, 2, 7, 8, 9});
    codes_free(&c);
    assert_int_equal(parse_codes("{\"frames\": [[471, 0, 7], [473, 2, 9]]}", &c), ST_OK);
    expect_codes(&c, 2, 2, (int32_t[]){0, 2, 7, 9});
    codes_free(&c);
    assert_int_equal(parse_codes("{\"frames\": [[460, 0, 1]]}", &c), ST_EINPUT); /* nothing but the end */
}

static void broken_codes_are_refused(void **state)
{
    static const char *const bad[] = {
        "", "[", "7", "[]", "[[]]", "[[1], [2, 3]]", "[[1], 2]", "[[1.0]]", "[[\"1\"]]", "[[4096]]", "[[-1]]", "[[1e3]]",
        "[[99999999999999999999]]", "{}", "{\"frames\": 3}", "{\"frames\": []}", "{\"frames\": [[]]}", "{\"frames\": [[471]]}",
        "[[[1]]]", "{\"codes\": [[1]]}", "[[1]] x", "[[2147483648]]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct codes c = {0};
        if (parse_codes(bad[i], &c) != ST_EINPUT)
            fail_msg("accepted: %s", bad[i]);
        assert_null(c.values);
    }
}

static void codes_in_a_directory_or_nowhere_are_refused(void **state)
{
    struct codes c = {0};
    assert_int_equal(codes_open("tests", CODEBOOK, IM_END, &c), ST_EINPUT);
    assert_int_equal(codes_open("tests/no-such-file.npy", CODEBOOK, IM_END, &c), ST_EIO);
}

/* ---- .npy ---- */

struct file {
    unsigned char bytes[512];
    size_t        size;
};

static struct file npy_file(int version, const char *dict, const void *data, size_t data_size)
{
    struct file f      = {.bytes = "\x93NUMPY"};
    size_t      header = strlen(dict);
    f.bytes[6]         = (unsigned char)version;
    f.bytes[8]         = (unsigned char)header;
    f.size             = version == 1 ? 10 : 12;
    memcpy(f.bytes + f.size, dict, header);
    memcpy(f.bytes + f.size + header, data, data_size);
    f.size += header + data_size;
    return f;
}

static void npy_reads_every_integer_type_order_and_version(void **state)
{
    static const int32_t want[] = {1, 2, 3, 4, 5, 100};
    static const char    types[][4] = {"|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", ">i2", ">u4", ">i8"};
    for (size_t type = 0; type < sizeof types / sizeof *types; type++)
        for (int version = 1; version <= 3; version++)
            for (int fortran = 0; fortran < 2; fortran++) {
                unsigned char data[48] = {0};
                int           n        = types[type][2] - '0';
                for (int i = 0; i < 2; i++)
                    for (int j = 0; j < 3; j++) {
                        int at                                              = fortran ? j * 2 + i : i * 3 + j;
                        data[at * n + (types[type][0] == '>' ? n - 1 : 0)] = (unsigned char)want[i * 3 + j];
                    }
                char dict[128];
                snprintf(dict, sizeof dict, "{'descr': '%s', 'fortran_order': %s, 'shape': (2, 3), }   \n", types[type],
                         fortran ? "True" : "False");
                struct file  f = npy_file(version, dict, data, (size_t)(6 * n));
                struct codes c = {0};
                assert_int_equal(codes_parse(f.bytes, f.size, "test.npy", CODEBOOK, -1, &c), ST_OK);
                expect_codes(&c, 2, 3, want);
                codes_free(&c);
            }
}

static void npy_signed_values_keep_their_sign(void **state)
{
    struct npy  a;
    struct file f = npy_file(1, "{'descr': '<i2', 'fortran_order': False, 'shape': (2,)}", "\xfe\xff\x00\x80", 4);
    assert_int_equal(npy_parse(f.bytes, f.size, "test", &a), ST_OK);
    assert_int_equal(npy_at(&a, 0, 0), -2);
    assert_int_equal(npy_at(&a, 1, 0), -32768);
    f = npy_file(1, "{'descr': '<u8', 'fortran_order': False, 'shape': (1,)}", "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    assert_int_equal(npy_parse(f.bytes, f.size, "test", &a), ST_OK);
    assert_true(npy_at(&a, 0, 0) == INT64_MAX);
}

static void a_broken_npy_is_refused(void **state)
{
    static const char *const bad[] = {
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1)}",
        "{'descr': '|b1', 'fortran_order': False, 'shape': (1, 4)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2)}",         /* more than there is */
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 0)}",         /* less than there is */
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 1)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': ()}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (-1, 1)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (2147483647, 2147483647)}",
        "{'descr': '<i4', 'fortran_order': 0, 'shape': (1, 1)}",
        "{'descr': '<i4', 'shape': (1, 1)}",
        "{'descr': '<i4', 'descr': '<i4', 'fortran_order': False, 'shape': (1, 1)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1), 'x': 1}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1)} x",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1)",
        "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1, 1)}",
        "",
    };
    struct codes c = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int version = 1; version <= 3; version++) {
            struct file f = npy_file(version, bad[i], "\1\0\0\0", 4);
            if (codes_parse(f.bytes, f.size, "test.npy", CODEBOOK, -1, &c) != ST_EINPUT)
                fail_msg("accepted: %s", bad[i]);
        }
    struct file f = npy_file(1, "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1)}", "\1\0\0\0", 4);
    for (size_t cut = 0; cut < f.size; cut++)
        assert_int_not_equal(codes_parse(f.bytes, cut, "test.npy", CODEBOOK, -1, &c), ST_OK);
    f.bytes[6] = 4;
    assert_int_equal(codes_parse(f.bytes, f.size, "test.npy", CODEBOOK, -1, &c), ST_EINPUT);
}

/* ---- prompts ---- */

static struct model_config dualar_config(void)
{
    return (struct model_config){.family = FAMILY_S1, .vocab_size = 4567, .codebook_size = CODEBOOK, .num_codebooks = 4,
                                 .max_seq_len = 512, .semantic_begin_id = 471, .semantic_end_id = 4566, .im_end_id = IM_END};
}

static struct tokenizer *dualar_tokenizer(void)
{
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_open(DUALAR, &t), ST_OK);
    return t;
}

static void control_tokens_in_text_are_inert_unless_asked(void **state)
{
    struct model_config config = dualar_config();
    struct tokenizer   *t      = dualar_tokenizer();
    struct prompt       p = {0}, q = {0}, empty = {0};
    assert_int_equal(prompt_build(t, &config, "", NULL, 0, false, &empty), ST_OK);
    assert_int_equal(prompt_build(t, &config, "a<|im_end|><|semantic:3|>", NULL, 0, false, &p), ST_OK);
    assert_int_equal(prompt_build(t, &config, "a<|im_end|><|semantic:3|>", NULL, 0, true, &q), ST_OK);
    assert_int_equal(p.values[0], 467); /* <|interleave|>, the only control token */
    for (int i = 1; i < p.columns; i++)
        assert_in_range(p.values[i], 0, 455);
    assert_int_equal(q.columns, empty.columns + 3);
    assert_int_equal(q.values[q.columns - 3], 97);
    assert_int_equal(q.values[q.columns - 2], IM_END);
    assert_int_equal(q.values[q.columns - 1], 474);
    prompt_free(&p);
    prompt_free(&q);
    prompt_free(&empty);
    tokenizer_close(t);
}

static void voices_stand_between_speaker_tag_and_im_end(void **state)
{
    struct model_config config = dualar_config();
    struct tokenizer   *t      = dualar_tokenizer();
    struct prompt       p = {0}, bare = {0};
    int32_t             one[] = {5, 6, 11, 12, 21, 22, 31, 32}, two[] = {7, 13, 23, 33};
    struct voice        voices[] = {{"a", {4, 2, one}}, {"", {4, 1, two}}};
    assert_int_equal(prompt_build(t, &config, "a", NULL, 0, false, &bare), ST_OK);
    int tag = bare.columns - 2; /* columns of the speaker tag */
    assert_int_equal(prompt_build(t, &config, "a", voices, 2, false, &p), ST_OK);
    assert_int_equal(p.rows, 5);
    assert_int_equal(p.columns, 1 + (tag + 1 + 2 + 1) + (tag + 0 + 1 + 1) + tag + 1);
    int first = 1 + tag + 1, second = first + 3 + tag;
    for (int k = 0; k < 4; k++) {
        const int32_t *row = p.values + (k + 1) * p.columns;
        int32_t        sum = 0;
        assert_int_equal(row[first], one[2 * k]);
        assert_int_equal(row[first + 1], one[2 * k + 1]);
        assert_int_equal(row[second], two[k]);
        for (int i = 0; i < p.columns; i++)
            sum += row[i];
        assert_int_equal(sum, one[2 * k] + one[2 * k + 1] + two[k]); /* zero everywhere else */
    }
    assert_int_equal(p.values[first], 471 + 5);
    assert_int_equal(p.values[first + 1], 471 + 6);
    assert_int_equal(p.values[first + 2], IM_END);
    assert_int_equal(p.values[second], 471 + 7);
    assert_int_equal(p.values[second + 1], IM_END);
    prompt_free(&p);
    prompt_free(&bare);
    tokenizer_close(t);
}

static void prompts_that_do_not_fit_the_model_are_refused(void **state)
{
    struct model_config config = dualar_config();
    struct tokenizer   *t      = dualar_tokenizer();
    struct prompt       p      = {0};
    int32_t             values[] = {5, 6, 7};
    struct voice        voice    = {"a", {3, 1, values}};
    assert_int_equal(prompt_build(t, &config, "a", &voice, 1, false, &p), ST_EINPUT); /* three codebooks, want four */
    assert_int_equal(prompt_build(t, &config, "\xff", NULL, 0, false, &p), ST_EINPUT);
    assert_int_equal(prompt_build(t, &config, "a", NULL, 0, false, &p), ST_OK);
    config.max_seq_len = p.columns + 1; /* one position must stay for the first frame */
    prompt_free(&p);
    assert_int_equal(prompt_build(t, &config, "a", NULL, 0, false, &p), ST_OK);
    prompt_free(&p);
    config.max_seq_len--;
    assert_int_equal(prompt_build(t, &config, "a", NULL, 0, false, &p), ST_EINPUT);
    config.max_seq_len = 512;
    config.vocab_size  = 460;
    assert_int_equal(prompt_build(t, &config, "a", NULL, 0, false, &p), ST_EINPUT);
    config        = dualar_config();
    config.family = FAMILY_S2;
    assert_int_equal(prompt_build(t, &config, "a", NULL, 0, false, &p), ST_EUNSUPPORTED);
    assert_non_null(strstr(status_last(), "--prompt-ids"));
    assert_null(p.values);
    tokenizer_close(t);
}

static void ready_prompts_are_read_and_checked(void **state)
{
    struct model_config config = dualar_config();
    struct prompt       p      = {0};
    config.num_codebooks       = 2;
    const char *object         = "{\"frames\": [], \"prompt\": [[467, 472], [0, 1], [0, 4095]]}";
    assert_int_equal(prompt_ids_parse(object, strlen(object), "test", &config, &p), ST_OK);
    assert_int_equal(p.rows, 3);
    assert_int_equal(p.columns, 2);
    assert_memory_equal(p.values, ((int32_t[]){467, 472, 0, 1, 0, 4095}), 6 * sizeof(int32_t));
    prompt_free(&p);
    assert_int_equal(prompt_ids_parse("[467, 4566]", 11, "test", &config, &p), ST_OK);
    assert_int_equal(p.rows, 3);
    assert_memory_equal(p.values, ((int32_t[]){467, 4566, 0, 0, 0, 0}), 6 * sizeof(int32_t));
    prompt_free(&p);
    static const char *const bad[] = {"[]", "[[1], [2]]", "[[4567], [0], [0]]", "[[-1], [0], [0]]", "[[1], [4096], [0]]",
                                      "{\"frames\": [[1, 2, 3]]}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (prompt_ids_parse(bad[i], strlen(bad[i]), "test", &config, &p) != ST_EINPUT)
            fail_msg("accepted: %s", bad[i]);
        assert_null(p.values);
    }
    config.max_seq_len = 2;
    assert_int_equal(prompt_ids_parse("[467, 4566]", 11, "test", &config, &p), ST_EINPUT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_json_array_of_arrays_is_codebooks_by_frames),
        cmocka_unit_test(frames_of_generate_are_turned_and_lose_only_a_final_im_end),
        cmocka_unit_test(broken_codes_are_refused),
        cmocka_unit_test(codes_in_a_directory_or_nowhere_are_refused),
        cmocka_unit_test(npy_reads_every_integer_type_order_and_version),
        cmocka_unit_test(npy_signed_values_keep_their_sign),
        cmocka_unit_test(a_broken_npy_is_refused),
        cmocka_unit_test(control_tokens_in_text_are_inert_unless_asked),
        cmocka_unit_test(voices_stand_between_speaker_tag_and_im_end),
        cmocka_unit_test(prompts_that_do_not_fit_the_model_are_refused),
        cmocka_unit_test(ready_prompts_are_read_and_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
