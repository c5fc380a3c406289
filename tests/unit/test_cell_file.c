/* Cell files: what is written comes back; what is cut, altered or foreign is refused by name. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "store/cell_file.h"
#include "random_result.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char folder[256];

static void path_in(char *out, size_t size, const char *name)
{
    snprintf(out, size, "%s/%s", folder, name);
}

static uint64_t fresh_seed(void)
{
    const char *given = getenv("SEED");
    uint64_t    seed  = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32;
    print_message("# SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

static char *slurp(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *size       = (size_t)ftell(f);
    char *bytes = malloc(*size + 1);
    rewind(f);
    assert_int_equal(fread(bytes, 1, *size, f), *size);
    fclose(f);
    return bytes;
}

static void spit(const char *path, const char *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static void random_results_come_back_whole(void **state)
{
    uint64_t seed = fresh_seed();
    for (int round = 0; round < 40; round++) {
        struct result written, read;
        char          path[512], why[128] = "";
        assert_int_equal(random_result(&seed, -1, &written), ST_OK);
        cell_file_path(folder, written.cell.id, path, sizeof path);
        assert_int_equal(cell_file_write(path, &written), ST_OK);
        assert_int_equal(cell_file_read(path, &read), ST_OK);
        if (!same_result(&written, &read, why, sizeof why))
            fail_msg("round %d: %s differs", round, why);
        enum cell_status status;
        char             id[33];
        assert_int_equal(cell_file_status(path, &status, id), ST_OK);
        assert_int_equal(status, CELL_OK);
        assert_string_equal(id, written.cell.id);
        result_free(&written);
        result_free(&read);
    }
}

static void a_long_trace_is_compressed_and_comes_back(void **state)
{
    uint64_t      seed = 7;
    struct result written, read;
    char          path[512], why[128] = "";
    assert_int_equal(random_result(&seed, 3, &written), ST_OK);
    for (int i = 0; i < 200000; i++) {
        struct trace_point p = {.t_ns = i * 10000000LL, .device_used = UINT64_MAX, .process_used = 1u << 30, .pss = 1u << 30,
                                .arena = 12345678, .phase = PHASE_MEASURE, .sm_clock_mhz = NAN, .mem_clock_mhz = NAN,
                                .power_mw = NAN, .temperature_c = NAN};
        assert_int_equal(result_add_trace(&written, &p, 1), ST_OK);
    }
    path_in(path, sizeof path, "long.h5");
    assert_int_equal(cell_file_write(path, &written), ST_OK);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_in_range(info.st_size, 1, 200000 * 8); /* 200,000 rows of 84 bytes */
    assert_int_equal(cell_file_read(path, &read), ST_OK);
    if (!same_result(&written, &read, why, sizeof why))
        fail_msg("%s differs", why);
    result_free(&written);
    result_free(&read);
}

static void equal_results_make_equal_bytes(void **state)
{
    char   path[512];
    char  *bytes[2];
    size_t size[2];
    for (int i = 0; i < 2; i++) {
        uint64_t      seed = 11;
        struct result r;
        assert_int_equal(random_result(&seed, 5, &r), ST_OK);
        path_in(path, sizeof path, "same.h5");
        assert_int_equal(cell_file_write(path, &r), ST_OK);
        bytes[i] = slurp(path, &size[i]);
        result_free(&r);
    }
    assert_int_equal(size[0], size[1]);
    assert_memory_equal(bytes[0], bytes[1], size[0]);
    free(bytes[0]);
    free(bytes[1]);
}

static void failures_keep_their_reason_and_no_samples(void **state)
{
    uint64_t      seed = 5;
    struct result written, read;
    char          path[512];
    result_init(&written);
    assert_int_equal(random_cell(&seed, &written.cell), ST_OK);
    written.status    = CELL_CRASHED;
    written.signal    = 9;
    written.exit_code = -1;
    assert_int_equal(result_set_reason(&written, "killed by signal 9"), ST_OK);
    assert_int_equal(result_set_log(&written, "bad \xff\xfe bytes\x01\n"), ST_OK);
    path_in(path, sizeof path, "crashed.h5");
    assert_int_equal(cell_file_write(path, &written), ST_OK);
    assert_int_equal(cell_file_read(path, &read), ST_OK);
    assert_int_equal(read.status, CELL_CRASHED);
    assert_int_equal(read.signal, 9);
    assert_string_equal(read.reason, "killed by signal 9");
    assert_string_equal(read.log, "bad ?? bytes \n");
    assert_int_equal(read.n_samples, 0);
    assert_true(isnan(read.load_s));
    assert_true(read.peak_bytes == UINT64_MAX);
    result_free(&written);
    result_free(&read);
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    uint64_t      seed = fresh_seed();
    struct result r;
    char          path[512], cut[512];
    assert_int_equal(random_result(&seed, 4, &r), ST_OK);
    path_in(path, sizeof path, "whole.h5");
    path_in(cut, sizeof cut, "cut.h5");
    assert_int_equal(cell_file_write(path, &r), ST_OK);
    result_free(&r);
    size_t size;
    char  *bytes = slurp(path, &size);
    for (size_t length = 0; length < size; length += length < 1100 ? 37 : 977) {
        struct result    read;
        enum cell_status status;
        char             id[33];
        spit(cut, bytes, length);
        if (cell_file_read(cut, &read) != ST_EINPUT || cell_file_status(cut, &status, id) != ST_EINPUT)
            fail_msg("%zu of %zu bytes were accepted", length, size);
        assert_non_null(strstr(status_last(), "cut.h5"));
        assert_int_equal(read.n_samples, 0);
    }
    free(bytes);
}

static void a_changed_byte_is_refused(void **state)
{
    uint64_t      seed = fresh_seed();
    struct result r, read;
    char          path[512];
    assert_int_equal(random_result(&seed, 4, &r), ST_OK);
    path_in(path, sizeof path, "changed.h5");
    assert_int_equal(cell_file_write(path, &r), ST_OK);
    result_free(&r);
    size_t size;
    char  *bytes = slurp(path, &size);
    for (int i = 0; i < 256; i++) {
        size_t at = i < 128 ? (size_t)i * 4 + (size_t)random_below(&seed, 4) : 512 + (size_t)(random_u64(&seed) % (size - 512));
        bytes[at] ^= 0x04;
        spit(path, bytes, size);
        status_t st = cell_file_read(path, &read);
        if (st == ST_OK)
            fail_msg("a changed byte at %zu was accepted", at);
        bytes[at] ^= 0x04;
    }
    spit(path, bytes, size);
    assert_int_equal(cell_file_read(path, &read), ST_OK);
    result_free(&read);
    free(bytes);
}

static void foreign_files_are_refused_by_name(void **state)
{
    struct result    read;
    enum cell_status status;
    char             path[512], id[33];
    path_in(path, sizeof path, "absent.h5");
    assert_int_equal(cell_file_read(path, &read), ST_EIO);
    assert_int_equal(cell_file_status(path, &status, id), ST_EIO);
    assert_int_equal(cell_file_read(folder, &read), ST_EIO);
    path_in(path, sizeof path, "foreign.h5");
    char text[2000];
    memset(text, 'x', sizeof text);
    spit(path, text, sizeof text);
    assert_int_equal(cell_file_read(path, &read), ST_EINPUT);
    assert_non_null(strstr(status_last(), "foreign.h5: not a qsweep-cell file"));
    path_in(path, sizeof path, "pipe");
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(cell_file_read(path, &read), ST_EIO);
}

static void another_major_version_is_refused_by_its_number(void **state)
{
    uint64_t      seed = 3;
    struct result r, read;
    char          path[512];
    assert_int_equal(random_result(&seed, 1, &r), ST_OK);
    path_in(path, sizeof path, "future.h5");
    assert_int_equal(cell_file_write(path, &r), ST_OK);
    result_free(&r);
    size_t size;
    char  *bytes = slurp(path, &size);
    bytes[strlen("qsweep-cell ")] = '9';
    spit(path, bytes, size);
    assert_int_equal(cell_file_read(path, &read), ST_EINPUT);
    char want[80];
    snprintf(want, sizeof want, "schema version 9%s, this qsweep reads 1.x", &SCHEMA_VERSION[1]);
    assert_non_null(strstr(status_last(), want));
    free(bytes);
}

static int entries_in(const char *path)
{
    DIR *dir = opendir(path);
    int  n   = 0;
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));)
        n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(dir);
    return n;
}

/* A file-size limit stands for a full disk: write fails in the middle, with an errno. */
static void a_write_that_fails_leaves_the_old_file_and_nothing_else(void **state)
{
    uint64_t      seed = 21;
    struct result r, read;
    char          path[512], why[128] = "";
    struct rlimit old, tight = {4096, RLIM_INFINITY};
    assert_int_equal(random_result(&seed, 4, &r), ST_OK);
    snprintf(path, sizeof path, "%s/full/cell.h5", folder);
    assert_int_equal(cell_file_write(path, &r), ST_OK);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    tight.rlim_max = old.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    status_t st = cell_file_write(path, &r);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(st, ST_EIO);
    assert_non_null(strstr(status_last(), "full/cell.h5: write: "));
    assert_int_equal(cell_file_read(path, &read), ST_OK);
    if (!same_result(&r, &read, why, sizeof why))
        fail_msg("%s differs", why);
    snprintf(path, sizeof path, "%s/full", folder);
    assert_int_equal(entries_in(path), 1);
    result_free(&r);
    result_free(&read);
}

static void a_read_result_can_grow(void **state)
{
    uint64_t      seed = 8;
    struct result r, read;
    char          path[512];
    assert_int_equal(random_result(&seed, 5, &r), ST_OK);
    path_in(path, sizeof path, "grow.h5");
    assert_int_equal(cell_file_write(path, &r), ST_OK);
    assert_int_equal(cell_file_read(path, &read), ST_OK);
    double step = 1.5;
    for (int i = 0; i < 100; i++) {
        struct sample s = {.steps = 1};
        assert_int_equal(result_add_sample(&read, &s, &step), ST_OK);
        assert_int_equal(result_add_trace(&read, &(struct trace_point){0}, 1), ST_OK);
    }
    assert_int_equal(read.n_samples, r.n_samples + 100);
    assert_int_equal(read.samples[5].step_offset, r.n_steps);
    result_free(&r);
    result_free(&read);
}

static int make_folder(void **state)
{
    snprintf(folder, sizeof folder, "%s/qsweep-cell-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    char command[320];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_results_come_back_whole),
        cmocka_unit_test(a_long_trace_is_compressed_and_comes_back),
        cmocka_unit_test(equal_results_make_equal_bytes),
        cmocka_unit_test(failures_keep_their_reason_and_no_samples),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(a_changed_byte_is_refused),
        cmocka_unit_test(foreign_files_are_refused_by_name),
        cmocka_unit_test(another_major_version_is_refused_by_its_number),
        cmocka_unit_test(a_write_that_fails_leaves_the_old_file_and_nothing_else),
        cmocka_unit_test(a_read_result_can_grow),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
