/* safetensors: what is written is read back; every rule of the format that a file can break is refused with a reason. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkpoint/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file of this header (its length may be claimed wrongly) and n bytes of data. */
static unsigned char *file_of(const char *header, uint64_t claimed, size_t n, size_t *size)
{
    size_t         length = strlen(header);
    unsigned char *bytes  = malloc(8 + length + n + 1);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(claimed >> (8 * i));
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < n; i++)
        bytes[8 + length + i] = (unsigned char)i;
    *size = 8 + length + n;
    return bytes;
}

static status_t parse(const char *header, size_t n, struct safetensors **out, unsigned char **bytes)
{
    size_t size;
    *bytes = file_of(header, strlen(header), n, &size);
    return safetensors_parse(*bytes, size, "test.safetensors", out);
}

static void refuse(const char *header, size_t n, const char *reason)
{
    struct safetensors *s = NULL;
    unsigned char      *bytes;
    status_t            st = parse(header, n, &s, &bytes);
    free(bytes);
    if (st != ST_EINPUT)
        fail_msg("want a refusal for \"%s\" of %s", reason, header);
    if (!strstr(status_last(), reason) || strncmp(status_last(), "test.safetensors", 16) != 0)
        fail_msg("want the reason \"%s\", got \"%s\"", reason, status_last());
}

#define T(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void tensors_are_views_with_their_shapes(void **state)
{
    struct safetensors *s = NULL;
    unsigned char      *bytes;
    const char         *header = "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "BF16", "[2,3]", 4, 16) ","
                                 T("a", "F32", "[]", 0, 4) "," T("e", "I64", "[0,5]", 16, 16) "}   ";
    assert_int_equal(parse(header, 16, &s, &bytes), ST_OK);
    const struct tensor_set *set = safetensors_tensors(s);
    assert_int_equal(set->count, 3);
    assert_string_equal(set->items[0].name, "a");
    assert_int_equal(set->items[0].rank, 0);
    assert_ptr_equal(set->items[1].data, (const char *)set->items[0].data + 4);
    assert_int_equal(set->items[1].shape[1], 3);
    assert_int_equal(set->items[2].bytes, 0);
    assert_string_equal(safetensors_metadata(s, "format"), "pt");
    assert_null(safetensors_metadata(s, "other"));
    safetensors_close(s);
    free(bytes);
}

static void headers_that_lie_about_their_size_are_refused(void **state)
{
    static const uint64_t claims[] = {0, 1, 3, 100000001, UINT64_MAX, INT64_MAX, 40};
    struct safetensors   *s        = NULL;
    for (size_t i = 0; i < sizeof claims / sizeof *claims; i++) {
        size_t         size;
        unsigned char *bytes = file_of("{\"a\":1}", claims[i], 8, &size);
        assert_int_equal(safetensors_parse(bytes, size, "test.safetensors", &s), ST_EINPUT);
        free(bytes);
    }
    for (size_t size = 0; size < 10; size++)
        assert_int_equal(safetensors_parse("{}{}{}{}{}", size, "test.safetensors", &s), ST_EINPUT);
}

static void every_cut_of_a_file_is_refused(void **state)
{
    const char         *header = "{" T("a", "F32", "[2]", 0, 8) "," T("b", "U8", "[3]", 8, 11) "}";
    size_t              size;
    unsigned char      *bytes = file_of(header, strlen(header), 11, &size);
    struct safetensors *s     = NULL;
    for (size_t n = 0; n < size; n++) {
        unsigned char *cut = malloc(n + 1);
        memcpy(cut, bytes, n);
        if (safetensors_parse(cut, n, "test.safetensors", &s) != ST_EINPUT)
            fail_msg("%zu of %zu bytes were accepted", n, size);
        free(cut);
    }
    free(bytes);
}

static void headers_that_are_not_the_format_are_refused(void **state)
{
    refuse("[1]", 0, "does not begin");
    refuse("{\"a\":", 0, "not valid JSON");
    refuse("{\"a\":1}", 0, "dtype");
    refuse("{\"a\":{}}", 0, "dtype");
    refuse("{" T("a", "F33", "[1]", 0, 4) "}", 4, "\"F33\" is not known");
    refuse("{" T("a", "F32", "3", 0, 4) "}", 4, "not a list");
    refuse("{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, "not a list");
    refuse("{" T("a", "F32", "[-1]", 0, 4) "}", 4, "not a count");
    refuse("{" T("a", "F32", "[1.5]", 0, 4) "}", 4, "not a count");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "pair");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[\"0\",4]}}", 4, "pair");
    refuse("{" T("a", "F32", "[1]", 0, 4) "," T("a", "F32", "[1]", 4, 8) "}", 8, "not valid JSON: duplicate");
    refuse("{" T("", "F32", "[1]", 0, 4) "}", 4, "name");
    refuse("{" T("a\\nb", "F32", "[1]", 0, 4) "}", 4, "name");
    refuse("{" T("a\\u0000b", "F32", "[1]", 0, 4) "}", 4, "not valid JSON");
    refuse("{\"a\xff\":1}", 4, "not valid JSON");
    refuse("{\"__metadata__\":3}", 0, "__metadata__");
    refuse("{\"__metadata__\":{\"a\":3}}", 0, "__metadata__");
}

static void ranges_that_do_not_tile_the_buffer_are_refused(void **state)
{
    refuse("{" T("a", "F32", "[1]", 0, 8) "}", 8, "does not take");
    refuse("{" T("a", "F32", "[2]", 0, 4) "}", 8, "does not take");
    refuse("{" T("a", "F32", "[1]", 4, 0) "}", 4, "leave the buffer");
    refuse("{" T("a", "F32", "[1]", -4, 0) "}", 4, "leave the buffer");
    refuse("{" T("a", "F32", "[2]", 0, 8) "}", 4, "leave the buffer");
    refuse("{" T("a", "F32", "[1]", 0, 4) "," T("b", "F32", "[1]", 0, 4) "}", 4, "overlaps");
    refuse("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 4, 12) "}", 12, "overlaps");
    refuse("{" T("a", "F32", "[1]", 0, 4) "," T("b", "F32", "[1]", 8, 12) "}", 12, "hole");
    refuse("{" T("a", "F32", "[1]", 4, 8) "}", 8, "hole");
    refuse("{" T("a", "F32", "[1]", 0, 4) "}", 5, "belong to no tensor");
    refuse("{}", 1, "belong to no tensor");
    refuse("{" T("a", "I64", "[4294967296,4294967296,0]", 0, 0) "}", 0, "does not take");
    refuse("{" T("a", "I64", "[2305843009213693952]", 0, 0) "}", 0, "does not take");
}

static void indexes_that_name_other_folders_are_refused(void **state)
{
    static const struct {
        const char *text, *reason;
    } bad[] = {
        {"", "not valid JSON"},
        {"{}", "no weight_map"},
        {"{\"weight_map\":{}}", "no weight_map"},
        {"{\"weight_map\":[\"a\"]}", "no weight_map"},
        {"{\"weight_map\":{\"a\":\"../x.safetensors\"}}", "no folders"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "no folders"},
        {"{\"weight_map\":{\"a\":\"x\\\\y\"}}", "no folders"},
        {"{\"weight_map\":{\"a\":\".hidden\"}}", "no folders"},
        {"{\"weight_map\":{\"a\":\"\"}}", "no folders"},
        {"{\"weight_map\":{\"a\":7}}", "no folders"},
        {"{\"weight_map\":{\"\":\"x\"}}", "no folders"},
        {"{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}", "duplicate"},
    };
    struct safetensors_index index;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(safetensors_index_parse(bad[i].text, strlen(bad[i].text), "i.json", &index), ST_EINPUT);
        if (!strstr(status_last(), bad[i].reason))
            fail_msg("%s: want \"%s\", got \"%s\"", bad[i].text, bad[i].reason, status_last());
    }
    const char *good = "{\"metadata\":{\"total_size\":5},\"weight_map\":{\"b\":\"x.safetensors\",\"a\":\"y.safetensors\"}}";
    assert_int_equal(safetensors_index_parse(good, strlen(good), "i.json", &index), ST_OK);
    assert_int_equal(index.count, 2);
    assert_string_equal(index.tensors[0], "b");
    assert_string_equal(index.files[1], "y.safetensors");
    safetensors_index_free(&index);
}

/* ---- the writer ---- */

static char folder[] = "/tmp/test_safetensors.XXXXXX";
static char path[64];

static int make_folder(void **state)
{
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/x.safetensors", folder);
    return 0;
}

static int remove_folder(void **state)
{
    unlink(path);
    return rmdir(folder); /* fails when a test left anything behind */
}

static void a_file_written_in_odd_pieces_is_read_back(void **state)
{
    unsigned char data[200003];
    srand(7);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)rand();
    const struct tensor list[] = {
        {.name = "w", .dtype = DT_BF16, .rank = 2, .shape = {1000, 100}, .bytes = 200000},
        {.name = "s\"quoted\"", .dtype = DT_I8, .rank = 1, .shape = {3}, .bytes = 3},
        {.name = "none", .dtype = DT_F32, .rank = 1, .shape = {0}, .bytes = 0},
    };
    struct safetensors_writer *w = NULL;
    struct safetensors        *s = NULL;
    assert_int_equal(safetensors_writer_begin(path, list, 3, "{\"recipe\":\"legacy\"}", &w), ST_OK);
    for (size_t at = 0, n = 1; at < sizeof data; at += n, n = n * 3 + 1)
        assert_int_equal(safetensors_writer_data(w, data + at, n < sizeof data - at ? n : sizeof data - at), ST_OK);
    assert_int_equal(access(path, F_OK), -1); /* nothing under the name before the end */
    assert_int_equal(safetensors_writer_end(w), ST_OK);

    assert_int_equal(safetensors_open(path, &s), ST_OK);
    const struct tensor_set *set = safetensors_tensors(s);
    assert_memory_equal(tensor_set_find(set, "w")->data, data, 200000);
    assert_memory_equal(tensor_set_find(set, "s\"quoted\"")->data, data + 200000, 3);
    assert_int_equal(tensor_set_find(set, "none")->bytes, 0);
    assert_string_equal(safetensors_metadata(s, "recipe"), "legacy");
    assert_int_equal((uintptr_t)tensor_set_find(set, "w")->data % 64, 0);
    safetensors_close(s);
    assert_int_equal(safetensors_writer_begin(path, list, 3, NULL, &w), ST_EUSAGE); /* never overwritten */
    unlink(path);
}

static void an_unfinished_file_leaves_nothing(void **state)
{
    const struct tensor        list = {.name = "w", .dtype = DT_F32, .rank = 1, .shape = {4}, .bytes = 16};
    struct safetensors_writer *w    = NULL;
    assert_int_equal(safetensors_writer_begin(path, &list, 1, NULL, &w), ST_OK);
    assert_int_equal(safetensors_writer_data(w, "01234567", 8), ST_OK);
    assert_int_equal(safetensors_writer_end(w), ST_EINTERNAL); /* 8 bytes are missing */
    assert_int_equal(safetensors_writer_begin(path, &list, 1, NULL, &w), ST_OK);
    assert_int_equal(safetensors_writer_data(w, "0123456789abcdefg", 17), ST_EINTERNAL);
    safetensors_writer_abort(w);
    assert_int_equal(access(path, F_OK), -1);
}

static void a_list_that_does_not_add_up_is_refused(void **state)
{
    const struct tensor        wrong[] = {{.name = "w", .dtype = DT_F32, .rank = 1, .shape = {4}, .bytes = 15}};
    const struct tensor        twice[] = {{.name = "w", .dtype = DT_I8, .rank = 1, .shape = {4}, .bytes = 4},
                                          {.name = "w", .dtype = DT_I8, .rank = 1, .shape = {4}, .bytes = 4}};
    struct safetensors_writer *w       = NULL;
    assert_int_equal(safetensors_writer_begin(path, wrong, 1, NULL, &w), ST_EINTERNAL);
    assert_int_equal(safetensors_writer_begin(path, twice, 2, NULL, &w), ST_EINTERNAL);
    assert_int_equal(safetensors_writer_begin(path, twice, 1, "not json", &w), ST_EINTERNAL);
    assert_int_equal(safetensors_writer_begin("/nonexistent/x.safetensors", twice, 1, NULL, &w), ST_EIO);
    assert_non_null(strstr(status_last(), "/nonexistent/x.safetensors"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_views_with_their_shapes),
        cmocka_unit_test(headers_that_lie_about_their_size_are_refused),
        cmocka_unit_test(every_cut_of_a_file_is_refused),
        cmocka_unit_test(headers_that_are_not_the_format_are_refused),
        cmocka_unit_test(ranges_that_do_not_tile_the_buffer_are_refused),
        cmocka_unit_test(indexes_that_name_other_folders_are_refused),
        cmocka_unit_test(a_file_written_in_odd_pieces_is_read_back),
        cmocka_unit_test(an_unfinished_file_leaves_nothing),
        cmocka_unit_test(a_list_that_does_not_add_up_is_refused),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
