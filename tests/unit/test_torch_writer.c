/* The torch.save writer: our reader gets back what was written, and the archive obeys the rules of the container. That
 * other programs read it is tests/flow/test_synth.py's part. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkpoint/torch_file.h"
#include "checkpoint/torch_writer.h"
#include "checkpoint/zip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/test_torch_writer.XXXXXX", path[64];

static int make_folder(void **state)
{
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/x.pth", folder);
    return 0;
}

static int remove_folder(void **state)
{
    unlink(path);
    return rmdir(folder);
}

static void every_dtype_and_rank_comes_back(void **state)
{
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_F16, DT_F64, DT_I8, DT_U8, DT_I16, DT_I32, DT_I64, DT_BOOL};
    unsigned char           data[4096];
    struct tensor           list[40];
    char                    names[40][16];
    struct torch_writer    *w = NULL;
    struct torch_file      *f = NULL;
    size_t                  n = 0;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 7 + i / 256);
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (int rank = 0; rank < 4; rank++) {
            struct tensor t = {.name = names[n], .dtype = dtypes[d], .rank = rank, .shape = {3, rank == 2 ? 0 : 2, 4}};
            int64_t       elements;
            assert_true(tensor_measure(t.dtype, rank, t.shape, &elements, &t.bytes));
            snprintf(names[n], sizeof names[n], "t%zu", n);
            list[n++] = t;
        }
    assert_int_equal(torch_writer_begin(path, "archive", list, n, &w), ST_OK);
    for (size_t i = 0; i < n; i++)
        for (size_t at = 0; at < list[i].bytes; at += 5)
            assert_int_equal(torch_writer_data(w, data + i + at, list[i].bytes - at < 5 ? list[i].bytes - at : 5), ST_OK);
    assert_int_equal(torch_writer_end(w), ST_OK);

    assert_int_equal(torch_file_open(path, &f), ST_OK);
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = tensor_set_find(torch_file_tensors(f), names[i]);
        assert_non_null(t);
        assert_int_equal(t->dtype, list[i].dtype);
        assert_int_equal(t->rank, list[i].rank);
        for (int k = 0; k < t->rank; k++)
            assert_int_equal(t->shape[k], list[i].shape[k]);
        assert_int_equal(t->bytes, list[i].bytes);
        assert_memory_equal(t->data, data + i, t->bytes);
    }

    /* The parts of the container, payloads on multiples of 64 bytes. */
    const struct filemap *map = torch_file_map(f);
    struct zip            zip;
    assert_int_equal(zip_parse(map->data, map->size, path, &zip), ST_OK);
    assert_int_equal(zip.count, n + 6);
    assert_true(zip.first_name_length == 16 && memcmp(zip.first_name, "archive/data.pkl", 16) == 0);
    const struct zip_entry *id = zip_find(&zip, "archive/.data/serialization_id", 30);
    assert_non_null(id);
    assert_int_equal(id->size, 40);
    for (size_t i = 0; i < zip.count; i++)
        assert_int_equal((size_t)(zip.entries[i].data - map->data) % 64, 0);
    zip_free(&zip);
    torch_file_close(f);
    assert_int_equal(torch_writer_begin(path, "archive", list, n, &w), ST_EUSAGE); /* never overwritten */
    unlink(path);
}

/* SETITEMS carries at most 1000 pairs, so a large dict has several. */
static void a_dict_of_thousands_of_tensors_comes_back(void **state)
{
    enum { N = 2345 };
    struct tensor       *list = calloc(N, sizeof *list);
    char(*names)[16]          = calloc(N, sizeof *names);
    struct torch_writer *w    = NULL;
    struct torch_file   *f    = NULL;
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "t%d", i);
        list[i] = (struct tensor){.name = names[i], .dtype = DT_I32, .rank = 1, .shape = {1}, .bytes = 4};
    }
    assert_int_equal(torch_writer_begin(path, "m", list, N, &w), ST_OK);
    for (int32_t i = 0; i < N; i++)
        assert_int_equal(torch_writer_data(w, &i, 4), ST_OK);
    assert_int_equal(torch_writer_end(w), ST_OK);
    assert_int_equal(torch_file_open(path, &f), ST_OK);
    assert_int_equal(torch_file_tensors(f)->count, N);
    for (int32_t i = 0; i < N; i++)
        assert_memory_equal(tensor_set_find(torch_file_tensors(f), names[i])->data, &i, 4);
    torch_file_close(f);
    unlink(path);
    free(list);
    free(names);
}

static void an_unfinished_archive_leaves_nothing(void **state)
{
    const struct tensor  list[] = {{.name = "w", .dtype = DT_F32, .rank = 1, .shape = {4}, .bytes = 16}};
    const struct tensor  f8     = {.name = "w", .dtype = DT_F8_E4M3, .rank = 1, .shape = {4}, .bytes = 4};
    struct torch_writer *w      = NULL;
    assert_int_equal(torch_writer_begin(path, "m", list, 1, &w), ST_OK);
    assert_int_equal(torch_writer_data(w, "0123456789", 10), ST_OK);
    assert_int_equal(torch_writer_end(w), ST_EINTERNAL);
    assert_int_equal(torch_writer_begin(path, "m", list, 1, &w), ST_OK);
    assert_int_equal(torch_writer_data(w, "0123456789abcdefg", 17), ST_EINTERNAL);
    torch_writer_abort(w);
    assert_int_equal(torch_writer_begin(path, "m", &f8, 1, &w), ST_EINTERNAL);
    assert_int_equal(access(path, F_OK), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dtype_and_rank_comes_back),
        cmocka_unit_test(a_dict_of_thousands_of_tensors_comes_back),
        cmocka_unit_test(an_unfinished_archive_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
