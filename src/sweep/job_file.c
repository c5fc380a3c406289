/* job_file.c — a job from a file, and the files of texts that it names. The only part of a job that reads files. */
#include "sweep/job.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXT_FILE_MAX = 1 << 24 };

/* Whole regular file of at most max bytes; malloc'ed. A pipe or a device would block or never end. */
static status_t read_whole(const char *path, size_t max, char **bytes, size_t *size)
{
    status_t    st  = ST_OK;
    char       *buf = NULL;
    size_t      n   = 0;
    struct stat s;
    int         fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        st = FAIL(ST_EINPUT, "%s: not a regular file", path);
        goto out;
    }
    if (s.st_size < 0 || (uintmax_t)s.st_size > max) {
        st = FAIL(ST_EINPUT, "%s: %jd bytes, want at most %zu", path, (intmax_t)s.st_size, max);
        goto out;
    }
    if (!(buf = malloc((size_t)s.st_size + 1))) {
        st = FAIL(ST_ENOMEM, "no memory for the %jd bytes of %s", (intmax_t)s.st_size, path);
        goto out;
    }
    while (n < (size_t)s.st_size) {
        ssize_t got = read(fd, buf + n, (size_t)s.st_size - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            st = FAIL(ST_EIO, "%s: %s", path, strerror(errno));
            goto out;
        }
        if (got == 0)
            break;
        n += (size_t)got;
    }
    *bytes = buf;
    *size  = n;
    buf    = NULL;
out:
    free(buf);
    close(fd);
    return st;
}

static status_t read_beside(void *ctx, const char *path, char **bytes, size_t *size)
{
    const char *job = ctx, *slash = strrchr(job, '/');
    char        full[2 * JOB_PATH_MAX];
    if (path[0] == '/' || !slash)
        snprintf(full, sizeof full, "%.*s", JOB_PATH_MAX, path);
    else
        snprintf(full, sizeof full, "%.*s/%.*s", (int)(slash - job < JOB_PATH_MAX ? slash - job : JOB_PATH_MAX), job,
                 JOB_PATH_MAX - 1, path);
    return read_whole(full, TEXT_FILE_MAX, bytes, size);
}

status_t job_load(const char *path, const char *const *set, int n_set, struct job **out)
{
    char                  *bytes;
    size_t                 size;
    const struct job_files files = {read_beside, (void *)path};
    TRY(read_whole(path, JOB_BYTES_MAX, &bytes, &size));
    status_t st = job_parse(bytes, size, path, set, n_set, &files, out);
    free(bytes);
    return st;
}
