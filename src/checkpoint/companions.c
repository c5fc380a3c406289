#include "checkpoint/companions.h"

#include "base/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    DEPTH_MAX  = 8,        /* folders within folders; real checkpoints have none */
    COPY_BYTES = 16 << 20, /* between two looks at stop                           */
    BUFFER     = 1 << 20,
};

static bool is_left_out(const char *name, bool folder, int depth)
{
    if (folder)
        return strcmp(name, ".cache") == 0 || strcmp(name, ".git") == 0 || strcmp(name, "__pycache__") == 0;
    return depth == 0 && (strcmp(name, ".qsweep-fingerprint") == 0 || strcmp(name, "model.pth") == 0 || strcmp(name, "config.json") == 0 ||
                          (strncmp(name, "model", 5) == 0 && strstr(name, ".safetensors")));
}

/* ---- one file ---- */

static status_t copy_bytes(int in, int out, const char *from, const char *to, const volatile sig_atomic_t *stop)
{
    status_t st       = ST_OK;
    char    *buffer   = NULL;
    bool     in_kernel = true; /* copy_file_range: no trip through our memory, shared blocks where the file system can */
    for (;;) {
        if (stop && *stop) {
            st = FAIL(ST_EINTERRUPTED, "stopped while copying %s", from);
            break;
        }
        ssize_t n = in_kernel ? copy_file_range(in, NULL, out, NULL, COPY_BYTES, 0) : read(in, buffer, BUFFER);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && in_kernel && errno != ENOSPC && errno != EDQUOT && errno != EIO) {
            in_kernel = false; /* across file systems, or an old kernel; both offsets stand where it stopped */
            buffer    = malloc(BUFFER);
            if (!buffer) {
                st = FAIL(ST_ENOMEM, "no memory to copy %s", from);
                break;
            }
            continue;
        }
        for (ssize_t done = 0; !in_kernel && done < n;) {
            ssize_t m = write(out, buffer + done, (size_t)(n - done));
            if (m < 0 && errno != EINTR) {
                n = -1;
                break;
            }
            done += m > 0 ? m : 0;
        }
        if (n < 0) {
            st = FAIL(ST_EIO, "cannot copy %s to %s: %s", from, to, strerror(errno));
            break;
        }
        if (n == 0)
            break;
    }
    free(buffer);
    return st;
}

static status_t copy_file(const char *from, const char *to, const volatile sig_atomic_t *stop)
{
    status_t st  = ST_OK;
    int      out = -1, in = open(from, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (in < 0)
        return FAIL(ST_EIO, "%s: %s", from, strerror(errno));
    out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (out < 0) {
        st = FAIL(ST_EIO, "%s: %s", to, strerror(errno));
        goto out;
    }
    TRY_OUT(copy_bytes(in, out, from, to, stop));
    if (fsync(out) != 0)
        st = FAIL(ST_EIO, "%s: cannot flush to disk: %s", to, strerror(errno));
out:
    if (out >= 0)
        close(out);
    close(in);
    return st;
}

/* ---- the folder ---- */

/* Sum the bytes of dir's companions and, with `to`, copy them. */
static status_t walk(const char *dir, const char *to, int depth, const volatile sig_atomic_t *stop, size_t *bytes)
{
    status_t       st    = ST_OK;
    DIR           *d     = opendir(dir);
    struct dirent *entry;
    if (!d)
        return FAIL(ST_EIO, "%s: %s", dir, strerror(errno));
    while ((errno = 0, entry = readdir(d))) {
        char        from[PATH_MAX], into[PATH_MAX] = "";
        struct stat link, target;
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        if ((size_t)snprintf(from, sizeof from, "%s/%s", dir, name) >= sizeof from ||
            (to && (size_t)snprintf(into, sizeof into, "%s/%s", to, name) >= sizeof into)) {
            st = FAIL(ST_EINPUT, "%s/%s: the path is too long", dir, name);
            break;
        }
        if (lstat(from, &link) != 0 || stat(from, &target) != 0) {
            log_warn("%s: %s; not copied", from, strerror(errno));
            continue;
        }
        if (is_left_out(name, S_ISDIR(target.st_mode), depth))
            continue;
        if (S_ISREG(target.st_mode)) {
            *bytes += (size_t)target.st_size;
            if (to)
                st = copy_file(from, into, stop);
        } else if (S_ISDIR(link.st_mode) && depth < DEPTH_MAX) {
            if (to && mkdir(into, 0777) != 0)
                st = FAIL(ST_EIO, "%s: %s", into, strerror(errno));
            else
                st = walk(from, to ? into : NULL, depth + 1, stop, bytes);
        } else if (to) {
            log_warn("%s: neither a file nor a folder of its own; not copied", from);
        }
        if (st != ST_OK)
            break;
    }
    if (!entry && errno && st == ST_OK)
        st = FAIL(ST_EIO, "%s: %s", dir, strerror(errno));
    closedir(d);
    return st;
}

status_t companions_size(const char *dir, size_t *bytes)
{
    *bytes = 0;
    return walk(dir, NULL, 0, NULL, bytes);
}

status_t companions_copy(const char *dir, const char *to, const volatile sig_atomic_t *stop)
{
    size_t bytes = 0;
    return walk(dir, to, 0, stop, &bytes);
}

void companions_remove(const char *dir)
{
    DIR           *d = opendir(dir);
    struct dirent *entry;
    while (d && (entry = readdir(d))) {
        char path[PATH_MAX];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, entry->d_name) >= sizeof path)
            continue;
        if (unlink(path) != 0 && (errno == EISDIR || errno == EPERM))
            companions_remove(path);
    }
    if (d)
        closedir(d);
    rmdir(dir);
}

status_t companions_link(const char *dir, const char *to)
{
    char  *whole = realpath(dir, NULL);
    DIR   *d     = whole ? opendir(whole) : NULL;
    status_t st  = d ? ST_OK : FAIL(ST_EIO, "%s: %s", dir, strerror(errno));
    for (struct dirent *e; st == ST_OK && (e = readdir(d));) {
        char        from[PATH_MAX], into[PATH_MAX];
        struct stat info;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if ((size_t)snprintf(from, sizeof from, "%s/%s", whole, e->d_name) >= sizeof from ||
            (size_t)snprintf(into, sizeof into, "%s/%s", to, e->d_name) >= sizeof into)
            st = FAIL(ST_EIO, "%s: the path is too long", whole);
        else if (stat(from, &info) == 0 && !is_left_out(e->d_name, S_ISDIR(info.st_mode), 0) && symlink(from, into) != 0)
            st = FAIL(ST_EIO, "%s: cannot make a link: %s", into, strerror(errno));
    }
    if (d)
        closedir(d);
    free(whole);
    return st;
}
