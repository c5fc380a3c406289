#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "sweep/cell.h"
#include "sweep/field.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const two_texts[] = {"Hello.", "今天天气真好 \"quoted\" \\ \t end"};

static struct cell sample_cell(void)
{
    struct cell c;
    cell_defaults(&c);
    assert_int_equal(cell_set_model(&c, "checkpoints/a model"), ST_OK);
    assert_int_equal(workload_set_texts(&c.workload, two_texts, 2), ST_OK);
    strcpy(c.fingerprint, "00112233445566778899aabbccddeeff");
    assert_int_equal(cell_identify(&c), ST_OK);
    return c;
}

static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static void random_seed(void)
{
    random_state = (uint64_t)time(NULL);
    print_message("# seed %llu\n", (unsigned long long)random_state);
}

static union field_value random_value(const struct field *f)
{
    union field_value v;
    switch (f->kind) {
    case FIELD_CHOICE:
        v.i = random_below((uint32_t)f->n_choices);
        break;
    case FIELD_BOOL:
        v.i = random_below(2);
        break;
    case FIELD_FLOAT:
        v.f = (double)(float)(0.001 + 0.998 * random_below(1000000) / 999999.0);
        break;
    case FIELD_INT:
        v.i = (int64_t)f->min + random_below((uint32_t)(f->max - f->min) + 1);
        break;
    default:
        v.i = (int64_t)random_below(UINT32_MAX) << random_below(24);
    }
    return v;
}

static void fields_stand_in_the_order_of_their_names(void **state)
{
    for (int i = 1; i < FIELD_COUNT; i++)
        assert_true(strcmp(cell_fields[i - 1].name, cell_fields[i].name) < 0);
}

static void the_canonical_text_of_the_default_cell_is_this_one(void **state)
{
    static const char expected[] = "batch = 1\n"
                                   "codec = off\n"
                                   "context = 0\n"
                                   "control_tokens = false\n"
                                   "device = cpu\n"
                                   "engine = auto\n"
                                   "fingerprint = 00112233445566778899aabbccddeeff\n"
                                   "format = 1\n"
                                   "greedy = false\n"
                                   "head = full\n"
                                   "history = faithful\n"
                                   "kv = bf16\n"
                                   "length = natural\n"
                                   "max_new_tokens = 1024\n"
                                   "max_seq_len = 0\n"
                                   "precision = bf16\n"
                                   "processes = 1\n"
                                   "recipe = none\n"
                                   "repetition_penalty = 1.1\n"
                                   "samples = 10\n"
                                   "sampling = s1\n"
                                   "seed = 42\n"
                                   "temperature = 0.7\n"
                                   "texts = 2 71e6e52992499db6818c9092a4cb02b8\n"
                                   "top_k = 0\n"
                                   "top_p = 0.8\n"
                                   "warmup = 3\n";
    struct cell       c = sample_cell();
    char             *text;
    assert_int_equal(cell_canonical(&c, &text), ST_OK);
    assert_string_equal(text, expected);
    free(text);
    cell_free(&c);
}

/* Ids stand in files of users, so these may never change. Both were computed apart, as XXH3-128 of texts written by hand. */
static void ids_of_known_cells_never_change(void **state)
{
    struct cell c = sample_cell();
    assert_string_equal(c.id, "df690d5d7f97993141e39c4710034e2d");
    c.precision     = PRECISION_INT8;
    c.recipe        = RECIPE_TORCHAO;
    c.memory_limit  = 8000000000;
    c.workload.stop = (struct stop_rule){0.01f, 10, 200, 60};
    assert_int_equal(cell_identify(&c), ST_OK);
    assert_string_equal(c.id, "d9e334acc13fb372880f0becdeae506e");
    cell_free(&c);
}

static void the_id_depends_on_every_field(void **state)
{
    struct cell c = sample_cell();
    for (int i = 0; i < FIELD_COUNT; i++) {
        union field_value before = field_get(&cell_fields[i], &c), other = before;
        if (cell_fields[i].kind == FIELD_FLOAT)
            other.f = 0.25;
        else
            other.i = before.i == 1 ? 0 : 1;
        char id[33];
        strcpy(id, c.id);
        field_set(&cell_fields[i], &c, other);
        assert_int_equal(cell_identify(&c), ST_OK);
        if (strcmp(id, c.id) == 0)
            fail_msg("%s does not change the id", cell_fields[i].name);
        field_set(&cell_fields[i], &c, before);
        assert_int_equal(cell_identify(&c), ST_OK);
        assert_string_equal(id, c.id);
    }
    cell_free(&c);
}

static void the_id_depends_on_the_fingerprint_and_on_how_the_texts_are_split(void **state)
{
    static const char *const split_1[] = {"ab", "c"}, *const split_2[] = {"a", "bc"}, *const joined[] = {"abc"};
    struct cell              c = sample_cell();
    char                     ids[5][33];
    strcpy(ids[0], c.id);
    c.fingerprint[31] = 'e';
    assert_int_equal(cell_identify(&c), ST_OK);
    strcpy(ids[1], c.id);
    const char *const *const sets[] = {split_1, split_2, joined};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(workload_set_texts(&c.workload, sets[i], i < 2 ? 2 : 1), ST_OK);
        assert_int_equal(cell_identify(&c), ST_OK);
        strcpy(ids[2 + i], c.id);
    }
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < i; k++)
            assert_string_not_equal(ids[i], ids[k]);
    cell_free(&c);
}

static void the_id_does_not_depend_on_path_place_deadline_or_audio(void **state)
{
    struct cell c = sample_cell();
    char        id[33];
    strcpy(id, c.id);
    assert_int_equal(cell_set_model(&c, "/elsewhere"), ST_OK);
    strcpy(c.device, "cuda:GPU-5f1c");
    c.keep_audio = true;
    c.deadline_s = 17;
    assert_int_equal(cell_identify(&c), ST_OK);
    assert_string_equal(c.id, id);
    cell_free(&c);
}

static void a_cell_without_a_fingerprint_gets_no_id(void **state)
{
    static const char *const wrong[] = {"", "0123", "00112233445566778899AABBCCDDEEFF",
                                        "zz112233445566778899aabbccddeeff"};
    struct cell              c       = sample_cell();
    for (int i = 0; i < 4; i++) {
        snprintf(c.fingerprint, sizeof c.fingerprint, "%s", wrong[i]);
        assert_int_equal(cell_identify(&c), ST_EINPUT);
    }
    cell_free(&c);
}

static void any_cell_survives_json_with_its_id(void **state)
{
    enum { CELLS = 500 };
    random_seed();
    for (int n = 0; n < CELLS; n++) {
        struct cell c = sample_cell(), back;
        for (int i = 0; i < FIELD_COUNT; i++)
            field_set(&cell_fields[i], &c, random_value(&cell_fields[i]));
        if (random_below(2))
            c.workload.stop = (struct stop_rule){(float)(1 + random_below(98)) / 99, 2 + (int)random_below(9), 20,
                                                 (float)random_below(1000) / 7};
        c.keep_audio = random_below(2);
        c.deadline_s = random_below(1000) / 8.0;
        strcpy(c.device, "cuda:GPU-5f1c");
        assert_int_equal(cell_identify(&c), ST_OK);

        char *json, *json_again;
        assert_int_equal(cell_to_json(&c, &json), ST_OK);
        assert_int_equal(cell_from_json(json, strlen(json), "cell", &back), ST_OK);
        assert_string_equal(back.id, c.id);
        assert_string_equal(back.model, c.model);
        assert_string_equal(back.device, c.device);
        assert_int_equal(cell_to_json(&back, &json_again), ST_OK);
        assert_string_equal(json, json_again);
        assert_int_equal(cell_identify(&back), ST_OK);
        assert_string_equal(back.id, c.id);
        free(json);
        free(json_again);
        cell_free(&c);
        cell_free(&back);
    }
}

static void every_value_in_a_cell_json_is_checked(void **state)
{
    static const struct {
        const char *json, *complaint;
    } bad[] = {
        {"", "cell.json:"},
        {"[]", "want an object"},
        {"{}", "\"workload\""},
        {"{\"workload\": {}}", "texts"},
        {"{\"workload\": {\"texts\": []}}", "texts"},
        {"{\"workload\": {\"texts\": [1]}}", "texts"},
        {"{\"workload\": {\"texts\": [\"a\"]}}", "model"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"\"]}}", "texts: number 1 has 0 bytes"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}, \"batch\": 0}", "batch = \"0\", want a whole number"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}, \"batch\": 1.5}", "batch"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}, \"batch\": \"1\"}", "batch"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}, \"batch\": 99999999999}", "batch"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}, \"precision\": \"int9\"}", "did you mean int8?"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"], \"top_p\": 1.5}}", "workload.top_p"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"], \"batch\": 1}}", "workload.batch: unknown key"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}, \"samples\": 1}", "samples: unknown key"},
        {"{\"model\": \"m\", \"model\": \"n\", \"workload\": {\"texts\": [\"a\"]}}", "duplicate"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}, \"id\": \"xyz\"}", "id: want 32 hex digits"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}, \"deadline_s\": -1}", "deadline"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}, \"keep_audio\": 1}", "keep_audio"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"], \"stop\": 5}}", "workload.stop"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"], \"stop\": {\"maximum\": 5}}}", "unknown key"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"], \"stop\": {\"rel_ci\": 0.1, \"min\": 9, \"max\": 5}}}",
         "stop: min = 9, max = 5"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"\xff\"]}}", "unable to decode"},
        {"{\"model\": \"m\", \"workload\": {\"texts\": [\"a\\u0000b\"]}}", "cell.json:1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct cell c = {.batch = 77};
        assert_int_equal(cell_from_json(bad[i].json, strlen(bad[i].json), "cell.json", &c), ST_EINPUT);
        if (!strstr(status_last(), bad[i].complaint))
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].json, status_last(), bad[i].complaint);
        assert_int_equal(c.batch, 77);
    }
}

static void keys_missing_from_a_cell_json_take_defaults(void **state)
{
    static const char json[] = "{\"model\": \"m\", \"workload\": {\"texts\": [\"a\"]}}";
    struct cell       c;
    assert_int_equal(cell_from_json(json, strlen(json), "cell", &c), ST_OK);
    assert_int_equal(c.batch, 1);
    assert_int_equal(c.workload.samples, 10);
    assert_int_equal(c.workload.warmup, 3);
    assert_int_equal(c.sampling.seed, 42);
    assert_true(c.sampling.temperature == 0.7f && c.sampling.top_p == 0.8f && c.sampling.repetition_penalty == 1.1f);
    cell_free(&c);
}

static void a_text_that_is_not_utf8_has_no_json(void **state)
{
    static const char *const text[] = {"caf\xe9"};
    struct cell              c      = sample_cell();
    char                    *json;
    assert_int_equal(workload_set_texts(&c.workload, text, 1), ST_OK);
    assert_int_equal(cell_to_json(&c, &json), ST_EINPUT);
    assert_non_null(strstr(status_last(), "UTF-8"));
    cell_free(&c);
}

static void a_copy_shares_nothing_with_its_source(void **state)
{
    struct cell c = sample_cell(), copy;
    char       *a, *b;
    assert_int_equal(cell_copy(&c, &copy), ST_OK);
    assert_int_equal(cell_to_json(&c, &a), ST_OK);
    c.workload.texts[0][0] = 'J';
    c.model[0]             = 'x';
    cell_free(&c);
    assert_int_equal(cell_to_json(&copy, &b), ST_OK);
    assert_string_equal(a, b);
    free(a);
    free(b);
    cell_free(&copy);
    cell_free(&copy);
    cell_free(NULL);
}

static void sizes_are_read_in_decimal_and_binary_units(void **state)
{
    static const struct {
        const char *text;
        int64_t     bytes; /* -1: refused */
    } sizes[] = {{"0", 0},
                 {"1024", 1024},
                 {"8GB", 8000000000},
                 {"8 GB", 8000000000},
                 {"1.5GiB", 1610612736},
                 {"500MB", 500000000},
                 {"2kB", 2000},
                 {"8G", -1},
                 {"GB", -1},
                 {"-1", -1},
                 {"1e3", -1},
                 {"8GB ", -1},
                 {"9999999999GB", -1},
                 {"1.2.3GB", -1},
                 {"", -1}};
    const struct field *f = &cell_fields[field_find("memory_limit")];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        union field_value v = {.i = -1};
        char              why[512];
        if (field_parse(f, sizes[i].text, &v, why, sizeof why) != (sizes[i].bytes >= 0) || v.i != sizes[i].bytes)
            fail_msg("%s: %lld", sizes[i].text, (long long)v.i);
    }
}

static void numbers_are_read_strictly(void **state)
{
    static const struct {
        const char *name, *text;
    } wrong[] = {{"batch", "0x10"}, {"batch", "1e3"},    {"batch", " 1"},
                 {"batch", "+1"},   {"batch", ""},       {"batch", "99999999999999999999"},
                 {"top_p", "nan"},  {"top_p", "inf"},    {"top_p", "0x1p-1"},
                 {"seed", "-1"},    {"seed", "4.0"},     {"seed", "9223372036854775808"},
                 {"top_p", "0"},    {"greedy", "maybe"}, {"temperature", "2"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        union field_value v;
        char              why[512];
        if (field_parse(&cell_fields[field_find(wrong[i].name)], wrong[i].text, &v, why, sizeof why))
            fail_msg("%s took \"%s\"", wrong[i].name, wrong[i].text);
    }
}

static void a_misspelt_name_finds_the_nearest_and_nonsense_finds_none(void **state)
{
    static const char *const names[] = {"precision", "batch", "context"};
    assert_string_equal(nearest_name("precison", names, 3), "precision");
    assert_string_equal(nearest_name("bacth", names, 3), "batch");
    assert_string_equal(nearest_name("Batch", names, 3), "batch");
    assert_null(nearest_name("flavour", names, 3));
    assert_null(nearest_name("", names, 3));
    char longest[4096];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    assert_null(nearest_name(longest, names, 3));
}

static void every_float_survives_its_text(void **state)
{
    enum { FLOATS = 20000 };
    random_seed();
    for (int i = 0; i < FLOATS; i++) {
        uint32_t bits = random_below(0x7f7fffff); /* finite, not negative */
        float    v, back;
        char     text[24];
        memcpy(&v, &bits, sizeof v);
        float_text(v, text);
        back = strtof(text, NULL);
        if (memcmp(&back, &v, sizeof v) != 0)
            fail_msg("%a became %s", (double)v, text);
    }
}

static void short_decimals_are_written_as_printf_writes_them(void **state)
{
    enum { DECIMALS = 200000 };
    random_seed();
    for (int i = 0; i < DECIMALS; i++) {
        static const double scale[] = {1, 10, 100, 1e3, 1e4, 1e5};
        float               v       = (float)(random_below(1000000) / scale[random_below(6)]);
        char                text[24], expected[24];
        float_text(v, text);
        snprintf(expected, sizeof expected, "%.6g", (double)v);
        assert_string_equal(text, expected);
    }
}

static void status_names_round_trip(void **state)
{
    for (int i = 0; i < CELL_STATUS_COUNT; i++)
        assert_int_equal(cell_status_parse(cell_status_name((enum cell_status)i)), i);
    assert_int_equal(cell_status_parse("fine"), -1);
}

static void labels_name_what_differs_and_are_cut_to_size(void **state)
{
    struct cell c = sample_cell();
    char        label[96], small[8];
    cell_label(&c, label, sizeof label);
    assert_string_equal(label, "bf16 b1 ctx0");
    c.precision    = PRECISION_INT8;
    c.recipe       = RECIPE_LEGACY;
    c.kv           = KV_INT8;
    c.batch        = 2;
    c.context      = 64;
    c.memory_limit = 8000000000;
    cell_label(&c, label, sizeof label);
    assert_string_equal(label, "int8 b2 ctx64 legacy kv-int8 limit-8GB");
    cell_label(&c, small, sizeof small);
    assert_string_equal(small, "int8 b2");
    cell_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_stand_in_the_order_of_their_names),
        cmocka_unit_test(the_canonical_text_of_the_default_cell_is_this_one),
        cmocka_unit_test(ids_of_known_cells_never_change),
        cmocka_unit_test(the_id_depends_on_every_field),
        cmocka_unit_test(the_id_depends_on_the_fingerprint_and_on_how_the_texts_are_split),
        cmocka_unit_test(the_id_does_not_depend_on_path_place_deadline_or_audio),
        cmocka_unit_test(a_cell_without_a_fingerprint_gets_no_id),
        cmocka_unit_test(any_cell_survives_json_with_its_id),
        cmocka_unit_test(every_value_in_a_cell_json_is_checked),
        cmocka_unit_test(keys_missing_from_a_cell_json_take_defaults),
        cmocka_unit_test(a_text_that_is_not_utf8_has_no_json),
        cmocka_unit_test(a_copy_shares_nothing_with_its_source),
        cmocka_unit_test(sizes_are_read_in_decimal_and_binary_units),
        cmocka_unit_test(numbers_are_read_strictly),
        cmocka_unit_test(a_misspelt_name_finds_the_nearest_and_nonsense_finds_none),
        cmocka_unit_test(every_float_survives_its_text),
        cmocka_unit_test(short_decimals_are_written_as_printf_writes_them),
        cmocka_unit_test(status_names_round_trip),
        cmocka_unit_test(labels_name_what_differs_and_are_cut_to_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
