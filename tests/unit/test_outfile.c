/* Files that appear whole or not at all, and maps of files that are what they should be. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/filemap.h"
#include "base/outfile.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/test_outfile.XXXXXX", path[64];

static int make_folder(void **state)
{
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/f", folder);
    return 0;
}

static int remove_folder(void **state)
{
    return rmdir(folder);
}

static int entries(void)
{
    int  n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void a_file_appears_when_it_is_committed_and_not_before(void **state)
{
    static unsigned char data[300000];
    struct outfile      *f   = NULL;
    struct filemap       map = {0};
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 31);
    assert_int_equal(outfile_open(path, &f), ST_OK);
    for (size_t at = 0, n = 1; at < sizeof data; at += n, n = n * 5 % 70001 + 1) /* small and large pieces in turn */
        assert_int_equal(outfile_write(f, data + at, n < sizeof data - at ? n : sizeof data - at), ST_OK);
    assert_int_equal(outfile_size(f), sizeof data);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(outfile_commit(f), ST_OK);
    assert_int_equal(entries(), 1);
    assert_int_equal(filemap_open(path, 0, &map), ST_OK);
    assert_int_equal(map.size, sizeof data);
    assert_memory_equal(map.data, data, sizeof data);
    filemap_close(&map);
    filemap_close(&map);

    assert_int_equal(outfile_open(path, &f), ST_EUSAGE); /* never replaced */
    assert_int_equal(filemap_open(path, sizeof data - 1, &map), ST_EINPUT);
    unlink(path);
}

static void a_name_taken_meanwhile_is_not_replaced(void **state)
{
    struct outfile *f = NULL;
    assert_int_equal(outfile_open(path, &f), ST_OK);
    assert_int_equal(outfile_write(f, "new", 3), ST_OK);
    FILE *other = fopen(path, "w");
    fputs("other", other);
    fclose(other);
    assert_int_equal(outfile_commit(f), ST_EUSAGE);
    assert_int_equal(entries(), 1);
    struct filemap map = {0};
    assert_int_equal(filemap_open(path, 0, &map), ST_OK);
    assert_int_equal(map.size, 5);
    filemap_close(&map);
    unlink(path);
}

static void an_aborted_file_leaves_nothing(void **state)
{
    struct outfile *f = NULL;
    outfile_abort(NULL);
    assert_int_equal(outfile_open(path, &f), ST_OK);
    assert_int_equal(outfile_write(f, "x", 1), ST_OK);
    assert_int_equal(entries(), 1);
    outfile_abort(f);
    assert_int_equal(entries(), 0);
    assert_int_equal(outfile_open("/nonexistent/f", &f), ST_EIO);
}

static void a_failing_write_is_told_and_leaves_nothing(void **state)
{
    static char         data[200000];
    struct outfile     *f = NULL;
    struct rlimit       old, small;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small          = old;
    small.rlim_cur = 100000;
    assert_int_equal(outfile_open(path, &f), ST_OK);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    status_t st = outfile_write(f, data, sizeof data);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(st, ST_EIO);
    assert_non_null(strstr(status_last(), path));
    outfile_abort(f);
    assert_int_equal(entries(), 0);
}

/* Opening a FIFO to read would wait for a writer for ever. */
static void what_is_not_a_regular_file_is_refused_at_once(void **state)
{
    struct filemap map = {0};
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(filemap_open(path, 0, &map), ST_EINPUT);
    unlink(path);
    assert_int_equal(filemap_open(folder, 0, &map), ST_EINPUT);
    assert_int_equal(filemap_open(path, 0, &map), ST_EIO);
    fclose(fopen(path, "w"));
    assert_int_equal(filemap_open(path, 0, &map), ST_EINPUT); /* empty */
    unlink(path);
    assert_null(map.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_appears_when_it_is_committed_and_not_before),
        cmocka_unit_test(a_name_taken_meanwhile_is_not_replaced),
        cmocka_unit_test(an_aborted_file_leaves_nothing),
        cmocka_unit_test(a_failing_write_is_told_and_leaves_nothing),
        cmocka_unit_test(what_is_not_a_regular_file_is_refused_at_once),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
