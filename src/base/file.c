#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

status_t file_read(const char *path, size_t max_size, char **bytes, size_t *size)
{
    status_t    st   = ST_OK;
    char       *data = NULL;
    size_t      n = 0, capacity;
    struct stat info;
    int         fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0) {
        st = FAIL(ST_EIO, "%s: %s", path, strerror(errno));
        goto out;
    }
    if (S_ISDIR(info.st_mode)) {
        st = FAIL(ST_EINPUT, "%s: is a directory, want a file", path);
        goto out;
    }
    /* The size is only a first guess: a pipe has none, and a file may grow while it is read. */
    capacity = info.st_size > 0 && (size_t)info.st_size <= max_size ? (size_t)info.st_size + 2 : 65536;
    for (;;) {
        char *grown = data && n + 1 < capacity ? data : realloc(data, data ? capacity *= 2 : capacity);
        if (!grown) {
            st = FAIL(ST_ENOMEM, "%s: no memory for %zu bytes", path, capacity);
            goto out;
        }
        data        = grown;
        ssize_t got = read(fd, data + n, capacity - n - 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            st = FAIL(ST_EIO, "%s: %s", path, strerror(errno));
            goto out;
        }
        if (got == 0)
            break;
        n += (size_t)got;
        if (n > max_size) {
            st = FAIL(ST_EINPUT, "%s: more than %zu bytes, too large for a file of this kind", path, max_size);
            goto out;
        }
    }
    data[n] = 0;
    *bytes  = data;
    *size   = n;
    data    = NULL;
out:
    free(data);
    close(fd);
    return st;
}

bool file_exists(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0;
}
