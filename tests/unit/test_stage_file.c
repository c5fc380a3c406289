/* A weights file made in parts is the file that one process writes, byte for byte. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/file.h"
#include "checkpoint/companions.h"
#include "model/quantize.h"
#include "model/stage_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DUALAR "tests/golden/dualar-a"
enum { FILE_MAX = 64 << 20 };

static char folder[64];

static int make_folder(void **state)
{
    strcpy(folder, "/tmp/qsweep-stage-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    companions_remove(folder);
    return 0;
}

/* Make path in n parts, last part first; every digest is checked against the file. */
static void make_in_parts(const struct stage_file *f, int n, int n_threads, const char *path)
{
    unsigned char made[64][16], found[16];
    size_t        sum = 0, size;
    char         *bytes;
    int           fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)f->bytes), 0);
    assert_int_equal(pwrite(fd, f->head, f->head_bytes, 0), (ssize_t)f->head_bytes);
    for (int i = n - 1; i >= 0; i--) {
        struct stage_times times;
        assert_int_equal(stage_file_fill(f, i, n, n_threads, fd, &times, made[i]), ST_OK);
        assert_int_equal(times.bytes_written, stage_file_part_bytes(f, i, n));
        sum += times.bytes_written;
    }
    close(fd);
    assert_int_equal(sum + f->head_bytes, f->bytes);
    assert_int_equal(file_read(path, FILE_MAX, &bytes, &size), ST_OK);
    assert_int_equal(size, f->bytes);
    for (int i = 0; i < n; i++) {
        assert_int_equal(stage_file_digest(f, i, n, (unsigned char *)bytes, found), ST_OK);
        assert_memory_equal(found, made[i], 16);
    }
    free(bytes);
}

static void parts_of_any_number_make_the_file_that_quantize_writes(void **state)
{
    static const enum recipe recipes[] = {RECIPE_TORCHAO, RECIPE_TORCHAO_V2, RECIPE_LEGACY};
    static const int         counts[] = {1, 2, 3, 7, 64};
    struct checkpoint       *c;
    assert_int_equal(checkpoint_open(DUALAR, &c), ST_OK);
    for (int r = 0; r < 3; r++) {
        struct quantize_options options = {.recipe = recipes[r], .n_threads = 2};
        struct quantize_report  report;
        char                    dir[128], path[160], hash[33], *want, *got;
        size_t                  want_size, got_size;
        snprintf(dir, sizeof dir, "%s/int8-%d", folder, r);
        assert_int_equal(quantize_checkpoint(c, dir, &options, &report), ST_OK);
        snprintf(path, sizeof path, "%s/model.safetensors", dir);
        assert_int_equal(file_read(path, FILE_MAX, &want, &want_size), ST_OK);
        assert_int_equal(checkpoint_fingerprint(c, hash), ST_OK);
        for (int k = 0; k < 5; k++) {
            struct stage_file f;
            assert_int_equal(stage_file_plan(c, recipes[r], hash, &f), ST_OK);
            snprintf(path, sizeof path, "%s/parts", folder);
            make_in_parts(&f, counts[k], 1 + k % 3, path);
            assert_int_equal(file_read(path, FILE_MAX, &got, &got_size), ST_OK);
            assert_int_equal(got_size, want_size);
            assert_memory_equal(got, want, want_size);
            free(got);
            stage_file_free(&f);
        }
        free(want);
    }
    checkpoint_close(c);
}

static void an_unquantized_copy_has_the_fingerprint_of_its_source(void **state)
{
    struct checkpoint *c, *copy;
    struct stage_file  f;
    char               dir[128], path[192], hash[33], copy_hash[33], *config;
    size_t             size;
    assert_int_equal(checkpoint_open(DUALAR, &c), ST_OK);
    assert_int_equal(checkpoint_fingerprint(c, hash), ST_OK);
    assert_int_equal(stage_file_plan(c, RECIPE_NONE, hash, &f), ST_OK);
    snprintf(dir, sizeof dir, "%s/copy", folder);
    assert_int_equal(mkdir(dir, 0700), 0);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    make_in_parts(&f, 3, 1, path);
    assert_int_equal(companions_link(DUALAR, dir), ST_OK);
    assert_int_equal(file_read(DUALAR "/config.json", FILE_MAX, &config, &size), ST_OK);
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    assert_int_equal(fwrite(config, 1, size, out), size);
    fclose(out);
    free(config);
    assert_int_equal(checkpoint_open(dir, &copy), ST_OK);
    assert_int_equal(checkpoint_fingerprint(copy, copy_hash), ST_OK);
    assert_string_equal(copy_hash, hash);
    checkpoint_close(copy);
    stage_file_free(&f);
    checkpoint_close(c);
}

static void a_byte_that_changes_on_the_way_changes_the_digest_of_its_part(void **state)
{
    struct checkpoint *c;
    struct stage_file  f;
    unsigned char      before[2][16], after[2][16];
    char               path[128], *bytes;
    size_t             size;
    assert_int_equal(checkpoint_open(DUALAR, &c), ST_OK);
    assert_int_equal(stage_file_plan(c, RECIPE_TORCHAO, "0", &f), ST_OK);
    snprintf(path, sizeof path, "%s/parts", folder);
    make_in_parts(&f, 2, 1, path);
    assert_int_equal(file_read(path, FILE_MAX, &bytes, &size), ST_OK);
    for (int p = 0; p < 2; p++)
        assert_int_equal(stage_file_digest(&f, p, 2, (unsigned char *)bytes, before[p]), ST_OK);
    bytes[stage_file_segment(&f, 1, 2, f.plan.n / 2).offset] ^= 1;
    for (int p = 0; p < 2; p++)
        assert_int_equal(stage_file_digest(&f, p, 2, (unsigned char *)bytes, after[p]), ST_OK);
    assert_memory_equal(before[0], after[0], 16);
    assert_memory_not_equal(before[1], after[1], 16);
    free(bytes);
    stage_file_free(&f);
    checkpoint_close(c);
}

static void a_file_that_cannot_grow_is_an_error(void **state)
{
    struct checkpoint *c;
    struct stage_file  f;
    struct stage_times times;
    unsigned char      digest[16];
    assert_int_equal(checkpoint_open(DUALAR, &c), ST_OK);
    assert_int_equal(stage_file_plan(c, RECIPE_TORCHAO, "0", &f), ST_OK);
    int fd = open("/dev/full", O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(stage_file_fill(&f, 0, 1, 1, fd, &times, digest), ST_EIO);
    close(fd);
    stage_file_free(&f);
    checkpoint_close(c);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(parts_of_any_number_make_the_file_that_quantize_writes),
        TEST(an_unquantized_copy_has_the_fingerprint_of_its_source),
        TEST(a_byte_that_changes_on_the_way_changes_the_digest_of_its_part),
        TEST(a_file_that_cannot_grow_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
