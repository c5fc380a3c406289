#include "base/outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { GATHER_BYTES = 1 << 16 };

struct outfile {
    int           fd;
    uint64_t      size;
    size_t        gathered;
    char          path[PATH_MAX], temporary[PATH_MAX + 32];
    unsigned char gather[GATHER_BYTES];
};

status_t outfile_open(const char *path, struct outfile **out)
{
    struct stat info;
    if (strlen(path) >= PATH_MAX)
        return FAIL(ST_EUSAGE, "%.80s…: the path is too long", path);
    if (lstat(path, &info) == 0)
        return FAIL(ST_EUSAGE, "%s exists already and is never overwritten; remove it or choose another name", path);

    struct outfile *f = calloc(1, sizeof *f);
    if (!f)
        return FAIL(ST_ENOMEM, "%s: no memory for the output buffer", path);
    snprintf(f->path, sizeof f->path, "%s", path);
    snprintf(f->temporary, sizeof f->temporary, "%s.tmp.%ld", path, (long)getpid());
    f->fd = open(f->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f->fd < 0) {
        status_t st = FAIL(ST_EIO, "%s: cannot create: %s", f->temporary, strerror(errno));
        free(f);
        return st;
    }
    *out = f;
    return ST_OK;
}

static status_t put(struct outfile *f, const unsigned char *data, size_t bytes)
{
    while (bytes) {
        /* Linux moves at most 2 GiB − 4 KiB in one call. */
        ssize_t n = write(f->fd, data, bytes < (1u << 30) ? bytes : (1u << 30));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return FAIL(ST_EIO, "%s: cannot write: %s", f->path, n < 0 ? strerror(errno) : "nothing was taken");
        data += n;
        bytes -= (size_t)n;
    }
    return ST_OK;
}

static status_t flush_gathered(struct outfile *f)
{
    size_t n    = f->gathered;
    f->gathered = 0;
    return put(f, f->gather, n);
}

status_t outfile_write(struct outfile *f, const void *data, size_t bytes)
{
    f->size += bytes;
    if (bytes > GATHER_BYTES - f->gathered)
        TRY(flush_gathered(f));
    if (bytes >= GATHER_BYTES)
        return put(f, data, bytes);
    memcpy(f->gather + f->gathered, data, bytes);
    f->gathered += bytes;
    return ST_OK;
}

uint64_t outfile_size(const struct outfile *f)
{
    return f->size;
}

status_t outfile_rename_new(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return ST_OK;
    int         reason = errno;
    struct stat info;
    bool        exists = lstat(to, &info) == 0;
    /* Some file systems (NFS, FUSE) do not know the flag; there a check just before is the best there is. */
    if ((reason == EINVAL || reason == ENOSYS) && !exists) {
        if (rename(from, to) == 0)
            return ST_OK;
        reason = errno;
    }
    if (reason == EEXIST || exists)
        return FAIL(ST_EUSAGE, "%s exists already and is never overwritten", to);
    return FAIL(ST_EIO, "%s: cannot rename to %s: %s", from, to, strerror(reason));
}

/* A rename is durable only when the folder is, too. A file system that cannot sync folders keeps its own rules. */
static void sync_folder_of(const char *path)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

status_t outfile_commit(struct outfile *f)
{
    status_t st = ST_OK;
    TRY_OUT(flush_gathered(f));
    if (fsync(f->fd) != 0) {
        st = FAIL(ST_EIO, "%s: cannot flush to disk: %s", f->path, strerror(errno));
        goto out;
    }
    TRY_OUT(outfile_rename_new(f->temporary, f->path));
    f->temporary[0] = '\0';
    sync_folder_of(f->path);
out:
    outfile_abort(f);
    return st;
}

void outfile_abort(struct outfile *f)
{
    if (!f)
        return;
    close(f->fd);
    if (f->temporary[0])
        unlink(f->temporary);
    free(f);
}
