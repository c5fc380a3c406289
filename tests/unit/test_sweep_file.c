/* Merged files: every planned cell is a row, what was measured comes back, merging again changes nothing. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "store/cell_file.h"
#include "store/sweep_file.h"
#include "random_result.h"

#include <ctype.h>
#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char folder[200];
static int  folders;

static uint64_t fresh_seed(void)
{
    const char *given = getenv("SEED");
    uint64_t    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32;
    print_message("# SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

/* A new empty results folder. */
static const char *new_dir(char out[256])
{
    snprintf(out, 256, "%s/%d", folder, folders++);
    assert_int_equal(mkdir(out, 0700), 0);
    return out;
}

static void write_cell(const char *dir, const struct result *r, char path[512])
{
    cell_file_path(dir, r->cell.id, path, 512);
    assert_int_equal(cell_file_write(path, r), ST_OK);
}

static void fill(const char *dir, uint64_t *seed, struct result *r, int n)
{
    char path[512];
    for (int i = 0; i < n; i++) {
        assert_int_equal(random_result(seed, 1 + random_below(seed, 4), &r[i]), ST_OK);
        write_cell(dir, &r[i], path);
    }
}

static void free_all(struct result *r, int n)
{
    for (int i = 0; i < n; i++)
        result_free(&r[i]);
}

static struct merge_report merge(const char *dir, const char *out, bool fresh)
{
    struct merge_request request = {.inputs = &dir, .n_inputs = 1, .output = out, .fresh = fresh};
    struct merge_report  report;
    assert_int_equal(sweep_file_merge_all(&request, &report), ST_OK);
    return report;
}

static void expect_cells(const char *path, const struct result *r, int n)
{
    struct sweep_file *f;
    assert_int_equal(sweep_file_open(path, &f), ST_OK);
    assert_int_equal(sweep_file_rows(f), n);
    for (int i = 0; i < n; i++) {
        struct result read;
        char          why[128] = "";
        assert_int_equal(sweep_file_cell(f, r[i].cell.id, &read), ST_OK);
        if (!same_result(&r[i], &read, why, sizeof why))
            fail_msg("cell %s: %s differs", r[i].cell.id, why);
        result_free(&read);
    }
    sweep_file_close(f);
}

static const struct summary_row *find_row(const struct sweep_file *f, const char *id)
{
    for (size_t i = 0; i < sweep_file_rows(f); i++)
        if (strcmp(sweep_file_row(f, i)->id, id) == 0)
            return sweep_file_row(f, i);
    fail_msg("cell %s has no row", id);
    return NULL;
}

static void every_cell_is_a_row_and_comes_back(void **state)
{
    enum { N = 30 };
    uint64_t           seed = fresh_seed();
    char               dir[256], out[300];
    struct result      r[N];
    struct summary_row expected;
    struct sweep_file *f;
    fill(new_dir(dir), &seed, r, N);
    snprintf(out, sizeof out, "%s/sweep.h5", dir);
    struct merge_report report = merge(dir, out, false);
    assert_int_equal(report.rows, N);
    assert_int_equal(report.by_status[CELL_OK], N);
    expect_cells(out, r, N);
    assert_int_equal(sweep_file_open(out, &f), ST_OK);
    for (int i = 0; i < N; i++) {
        assert_int_equal(summary_from_result(&r[i], &expected), ST_OK);
        for (size_t c = 0; c < summary_column_count(); c++) {
            struct summary_column column = summary_column(c);
            char                  want[300], got[300];
            summary_value_text(&expected, &column, want, sizeof want);
            summary_value_text(find_row(f, r[i].cell.id), &column, got, sizeof got);
            if (strcmp(want, got))
                fail_msg("column %s: \"%s\" instead of \"%s\"", column.name, got, want);
        }
    }
    for (size_t i = 1; i < N; i++)
        assert_true(summary_order(sweep_file_row(f, i - 1), sweep_file_row(f, i)) < 0);
    sweep_file_close(f);
    free_all(r, N);
}

static void cells_without_a_result_are_rows_with_a_reason(void **state)
{
    uint64_t      seed = 17;
    char          dir[256], path[512], out[300];
    struct result r[4];
    fill(new_dir(dir), &seed, r, 4);
    snprintf(out, sizeof out, "%s/sweep.h5", dir);
    cell_file_path(dir, r[0].cell.id, path, sizeof path);
    assert_int_equal(truncate(path, 1000), 0); /* planned and damaged */
    cell_file_path(dir, r[1].cell.id, path, sizeof path);
    assert_int_equal(truncate(path, 700), 0); /* damaged, and no plan knows it */
    cell_file_path(dir, r[2].cell.id, path, sizeof path);
    assert_int_equal(unlink(path), 0); /* planned and never run */
    struct cell       plan[3] = {r[0].cell, r[2].cell, r[3].cell};
    const char       *invalid[3] = {0};
    struct sweep_meta meta = {.job_text = "model: m\n", .command = "qsweep run", .plan = plan, .n_plan = 3, .invalid = invalid};
    const char       *input = dir;
    struct merge_request request = {.inputs = &input, .n_inputs = 1, .output = out, .meta = &meta};
    struct merge_report  report;
    assert_int_equal(sweep_file_merge_all(&request, &report), ST_OK);
    assert_int_equal(report.rows, 4);
    assert_int_equal(report.damaged, 2);
    assert_int_equal(report.by_status[CELL_OK], 1);
    assert_int_equal(report.by_status[CELL_PENDING], 1);
    assert_int_equal(report.by_status[CELL_INVALID], 2);

    struct sweep_file *f;
    assert_int_equal(sweep_file_open(out, &f), ST_OK);
    assert_string_equal(sweep_file_job(f), "model: m\n");
    const struct summary_row *damaged = find_row(f, r[0].cell.id), *unknown = find_row(f, r[1].cell.id),
                             *pending = find_row(f, r[2].cell.id);
    assert_string_equal(damaged->status, "invalid");
    assert_non_null(strstr(damaged->reason, "cut short: 1000 bytes"));
    assert_int_equal(summary_axis(damaged, "batch").i, r[0].cell.batch);
    assert_string_equal(unknown->label, "unknown");
    assert_int_equal(summary_axis(unknown, "precision").i, -1);
    assert_string_equal(pending->status, "pending");
    assert_int_equal(summary_axis(pending, "batch").i, r[2].cell.batch);
    const double *missing[] = {&damaged->latency_mean_s, &unknown->vram_peak_mb, &pending->frames_per_s, &pending->rtf,
                               &pending->vram_baseline_mb};
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++)
        assert_true(isnan(*missing[i])); /* never zero */
    struct result read;
    assert_int_equal(sweep_file_cell(f, r[2].cell.id, &read), ST_OK);
    assert_int_equal(read.status, CELL_PENDING);
    result_free(&read);
    assert_int_equal(sweep_file_cell(f, r[1].cell.id, &read), ST_OK);
    assert_int_equal(read.status, CELL_INVALID);
    result_free(&read);
    sweep_file_close(f);

    invalid[1] = "S2 sampling needs an S2 checkpoint";
    assert_int_equal(sweep_file_merge_all(&request, &report), ST_OK);
    assert_int_equal(sweep_file_open(out, &f), ST_OK);
    assert_string_equal(find_row(f, r[2].cell.id)->reason, invalid[1]);
    assert_string_equal(find_row(f, r[2].cell.id)->status, "invalid");
    sweep_file_close(f);
    free_all(r, 4);
}

/* Bytes of a file with its seal and every "2026-01-31T12:00:00Z" blanked: the one attribute that may differ is file_time,
 * and with it the checksum in the seal. */
static char *slurp_timeless(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    char *bytes = malloc(*size + 1);
    rewind(f);
    assert_int_equal(fread(bytes, 1, *size, f), *size);
    fclose(f);
    memset(bytes, '#', 512);
    for (size_t i = 0; i + 20 <= *size; i++)
        if (bytes[i + 4] == '-' && bytes[i + 7] == '-' && bytes[i + 10] == 'T' && bytes[i + 13] == ':' &&
            bytes[i + 16] == ':' && bytes[i + 19] == 'Z' && isdigit((unsigned char)bytes[i]))
            memset(bytes + i, '#', 20);
    return bytes;
}

static void merging_again_changes_nothing(void **state)
{
    enum { N = 12 };
    uint64_t      seed = fresh_seed();
    char          dir[256], out[300], again[300];
    struct result r[N];
    size_t        size[3];
    fill(new_dir(dir), &seed, r, N);
    snprintf(out, sizeof out, "%s/sweep.h5", dir);
    snprintf(again, sizeof again, "%s/again.h5", dir);
    merge(dir, out, false);
    char *first = slurp_timeless(out, &size[0]);
    struct stat before, after;
    assert_int_equal(stat(out, &before), 0);
    struct merge_report report = merge(dir, out, false);
    assert_true(report.unchanged);
    assert_int_equal(report.by_status[CELL_OK], N);
    assert_int_equal(stat(out, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino); /* left alone */
    assert_false(merge(dir, out, true).unchanged);
    merge(dir, again, true);
    char *second = slurp_timeless(out, &size[1]), *third = slurp_timeless(again, &size[2]);
    assert_int_equal(size[0], size[1]);
    assert_int_equal(size[0], size[2]);
    assert_memory_equal(first, second, size[0]);
    assert_memory_equal(first, third, size[0]);
    free(first);
    free(second);
    free(third);
    free_all(r, N);
}

static void verify(const char *out, const char *dir, size_t n)
{
    size_t compared = 0;
    assert_int_equal(sweep_file_verify(out, &dir, 1, &compared), ST_OK);
    assert_int_equal(compared, n);
}

static void late_and_repeated_cells_extend_the_file(void **state)
{
    enum { N = 20, LATE = 4 };
    uint64_t      seed = fresh_seed();
    char          dir[256], out[300], path[512];
    struct result r[N + LATE];
    new_dir(dir);
    for (int i = 0; i < N + LATE; i++)
        assert_int_equal(random_result(&seed, 2, &r[i]), ST_OK);
    r[0].status = CELL_CRASHED; /* runs again later */
    assert_int_equal(result_set_reason(&r[0], "worker ended with signal 11"), ST_OK);
    for (int i = 0; i < N; i++)
        write_cell(dir, &r[i], path);
    snprintf(out, sizeof out, "%s/sweep.h5", dir);
    assert_int_equal(merge(dir, out, false).reused, 0);

    r[0].status = CELL_OK;
    assert_int_equal(result_set_reason(&r[0], ""), ST_OK);
    write_cell(dir, &r[0], path);
    for (int i = N; i < N + LATE; i++)
        write_cell(dir, &r[i], path);
    struct merge_report report = merge(dir, out, false);
    assert_int_equal(report.reused, N - 1);
    assert_int_equal(report.rows, N + LATE);
    assert_int_equal(report.by_status[CELL_OK], N + LATE);
    expect_cells(out, r, N + LATE);
    verify(out, dir, N + LATE);

    cell_file_path(dir, r[3].cell.id, path, sizeof path);
    assert_int_equal(unlink(path), 0); /* a cell that is gone leaves the file */
    report = merge(dir, out, false);
    assert_int_equal(report.rows, N + LATE - 1);
    assert_int_equal(report.reused, N + LATE - 1);
    verify(out, dir, N + LATE - 1);
    free_all(r, N + LATE);
}

static void a_cell_that_differs_from_its_source_fails_verify(void **state)
{
    uint64_t      seed = 23;
    char          dir[256], out[300], path[512];
    const char   *input = dir;
    struct result r[3];
    size_t        compared;
    fill(new_dir(dir), &seed, r, 3);
    snprintf(out, sizeof out, "%s/sweep.h5", dir);
    merge(dir, out, false);
    r[1].samples[0].latency_ms += 1e-9;
    write_cell(dir, &r[1], path);
    assert_int_equal(sweep_file_verify(out, &input, 1, &compared), ST_EINPUT);
    assert_non_null(strstr(status_last(), r[1].cell.id));
    free_all(r, 3);
}

/* All rows, and every `stride`-th cell whole. */
static void expect_equal_sweeps(const char *a, const char *b, size_t stride)
{
    struct sweep_file *fa, *fb;
    assert_int_equal(sweep_file_open(a, &fa), ST_OK);
    assert_int_equal(sweep_file_open(b, &fb), ST_OK);
    assert_int_equal(sweep_file_rows(fa), sweep_file_rows(fb));
    for (size_t i = 0; i < sweep_file_rows(fa); i++) {
        const struct summary_row *x = sweep_file_row(fa, i), *y = sweep_file_row(fb, i);
        for (size_t c = 0; c < summary_column_count(); c++) {
            struct summary_column column = summary_column(c);
            char                  want[300], got[300];
            summary_value_text(x, &column, want, sizeof want);
            summary_value_text(y, &column, got, sizeof got);
            if (strcmp(want, got))
                fail_msg("row %zu, %s: \"%s\" and \"%s\"", i, column.name, want, got);
        }
        if (i % stride)
            continue;
        struct result u, v;
        char          why[128] = "";
        assert_int_equal(sweep_file_cell(fa, x->id, &u), ST_OK);
        assert_int_equal(sweep_file_cell(fb, x->id, &v), ST_OK);
        if (!same_result(&u, &v, why, sizeof why))
            fail_msg("cell %s: %s differs", x->id, why);
        result_free(&u);
        result_free(&v);
    }
    sweep_file_close(fa);
    sweep_file_close(fb);
}

/* 1,000 small cells, dealt to two folders with some in both: merged at once, and each folder first. */
static void a_merge_of_merges_equals_the_merge(void **state)
{
    enum { N = 1000 };
    uint64_t    seed = fresh_seed();
    char        dirs[2][256], parts[2][300], path[512], whole[300], twice[300];
    const char *folders_in[2], *parts_in[2];
    for (int i = 0; i < 2; i++) {
        folders_in[i] = new_dir(dirs[i]);
        snprintf(parts[i], sizeof parts[i], "%s/sweep.h5", dirs[i]);
        parts_in[i] = parts[i];
    }
    for (int i = 0; i < N; i++) {
        struct result r;
        result_init(&r);
        assert_int_equal(random_cell(&seed, &r.cell), ST_OK);
        r.status = CELL_OK;
        double        steps[] = {2, 3};
        struct sample s = {.frames = 2, .latency_ms = 10 + i, .audio_s = 0.05, .steps = 2, .energy_j = NAN};
        assert_int_equal(result_add_sample(&r, &s, steps), ST_OK);
        int where = random_below(&seed, 5); /* 0, 1: first; 2, 3: second; 4: both, the first one crashed */
        if (where != 2 && where != 3) {
            r.status = where == 4 ? CELL_CRASHED : CELL_OK;
            write_cell(dirs[0], &r, path);
        }
        r.status = CELL_OK;
        if (where >= 2)
            write_cell(dirs[1], &r, path);
        result_free(&r);
    }
    snprintf(whole, sizeof whole, "%s/whole.h5", folder);
    snprintf(twice, sizeof twice, "%s/twice.h5", folder);
    merge(dirs[0], parts[0], false);
    merge(dirs[1], parts[1], false);
    struct merge_request at_once = {.inputs = folders_in, .n_inputs = 2, .output = whole};
    struct merge_request of_merges = {.inputs = parts_in, .n_inputs = 2, .output = twice};
    struct merge_report  a, b;
    assert_int_equal(sweep_file_merge_all(&at_once, &a), ST_OK);
    assert_int_equal(sweep_file_merge_all(&of_merges, &b), ST_OK);
    assert_int_equal(a.rows, N);
    assert_int_equal(a.by_status[CELL_OK], N); /* the better of two results wins */
    assert_int_equal(b.by_status[CELL_OK], N);
    expect_equal_sweeps(whole, twice, 20);
}

static int entries_in(const char *path)
{
    DIR *dir = opendir(path);
    int  n = 0;
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* A file-size limit stands for a full disk. */
static void a_merge_that_fails_leaves_the_old_file_and_nothing_else(void **state)
{
    enum { N = 6 };
    uint64_t      seed = 29;
    char          dir[256], out[300];
    struct result r[N];
    struct rlimit old, tight;
    fill(new_dir(dir), &seed, r, N);
    snprintf(out, sizeof out, "%s/sweep.h5", dir);
    merge(dir, out, false);
    int entries = entries_in(dir);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    for (rlim_t limit = 2000; limit < 200000; limit *= 3) {
        const char          *input = dir;
        struct merge_request request = {.inputs = &input, .n_inputs = 1, .output = out, .fresh = true};
        struct merge_report  report;
        tight = (struct rlimit){limit, old.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
        status_t st = sweep_file_merge_all(&request, &report);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        assert_int_equal(st, ST_EIO);
        assert_int_equal(entries_in(dir), entries);
        expect_cells(out, r, N);
    }
    free_all(r, N);
}

static void what_is_no_sweep_is_neither_read_nor_overwritten(void **state)
{
    uint64_t             seed = 31;
    char                 dir[256], out[300], path[512];
    const char          *input = dir;
    struct result        r[2];
    struct sweep_file   *f;
    struct merge_report  report;
    fill(new_dir(dir), &seed, r, 2);
    snprintf(out, sizeof out, "%s/notes.txt", dir);
    FILE *notes = fopen(out, "w");
    fputs("these are notes, not a sweep", notes);
    fclose(notes);
    struct merge_request request = {.inputs = &input, .n_inputs = 1, .output = out};
    assert_int_equal(sweep_file_merge_all(&request, &report), ST_EINPUT);
    assert_non_null(strstr(status_last(), "notes.txt: exists and is not a qsweep-sweep file"));
    assert_int_equal(sweep_file_open(out, &f), ST_EINPUT);
    cell_file_path(dir, r[0].cell.id, path, sizeof path);
    assert_int_equal(sweep_file_open(path, &f), ST_EINPUT); /* a cell file is no sweep */
    assert_non_null(strstr(status_last(), "not a qsweep-sweep file (schema \"qsweep-cell\")"));
    input = "/nonexistent";
    assert_int_equal(sweep_file_merge_all(&request, &report), ST_EIO);
    char empty[256];
    input = new_dir(empty);
    request.output = "/nonexistent/x.h5";
    assert_int_equal(sweep_file_merge_all(&request, &report), ST_EINPUT);
    assert_non_null(strstr(status_last(), "not a results folder"));
    free_all(r, 2);
}

static int make_folder(void **state)
{
    const char *base = getenv("TMPDIR") ? getenv("TMPDIR") : access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof folder, "%.150s/qsweep-sweep-XXXXXX", base);
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
        cmocka_unit_test(every_cell_is_a_row_and_comes_back),
        cmocka_unit_test(cells_without_a_result_are_rows_with_a_reason),
        cmocka_unit_test(merging_again_changes_nothing),
        cmocka_unit_test(late_and_repeated_cells_extend_the_file),
        cmocka_unit_test(a_cell_that_differs_from_its_source_fails_verify),
        cmocka_unit_test(a_merge_of_merges_equals_the_merge),
        cmocka_unit_test(a_merge_that_fails_leaves_the_old_file_and_nothing_else),
        cmocka_unit_test(what_is_no_sweep_is_neither_read_nor_overwritten),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
