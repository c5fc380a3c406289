#include "store/atomic_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Length of the folder part of path, without the slash; 0 when there is none. */
static size_t folder_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) : 0;
}

status_t atomic_name(const char *path, char temporary[ATOMIC_PATH_MAX])
{
    static atomic_uint calls;
    char               host[64] = "host";
    size_t             folder = folder_length(path);
    const char        *name = folder || path[0] == '/' ? path + folder + 1 : path;
    gethostname(host, sizeof host - 1);
    int n = snprintf(temporary, ATOMIC_PATH_MAX, "%.*s.%s.%s.%ld.%u.tmp", (int)(name - path), path, name, host,
                     (long)getpid(), atomic_fetch_add(&calls, 1));
    return n < ATOMIC_PATH_MAX ? ST_OK : FAIL(ST_EIO, "%s: the path is too long", path);
}

/* A rename is on disk only when its folder is. Some file systems cannot sync a folder (EINVAL): nothing to be done. */
static status_t sync_folder(const char *path)
{
    char   folder[ATOMIC_PATH_MAX];
    size_t length = folder_length(path);
    snprintf(folder, sizeof folder, "%.*s", (int)(length ? length : 1), length ? path : path[0] == '/' ? "/" : ".");
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return FAIL(ST_EIO, "%s: %s", folder, strerror(errno));
    int failed = fsync(fd) != 0 && errno != EINVAL;
    int cause = errno;
    close(fd);
    return failed ? FAIL(ST_EIO, "%s: fsync: %s", folder, strerror(cause)) : ST_OK;
}

static status_t give_up(const char *temporary, const char *path, const char *what)
{
    int cause = errno;
    unlink(temporary);
    return FAIL(ST_EIO, "%s: %s: %s", path, what, strerror(cause));
}

status_t atomic_commit(const char *temporary, const char *path)
{
    int fd = open(temporary, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return give_up(temporary, path, "open");
    /* Cutting a file at its own length gives back what atomic_reserve() took too much. */
    struct stat info;
    if (fstat(fd, &info) != 0 || ftruncate(fd, info.st_size) != 0 || fsync(fd) != 0) {
        int cause = errno;
        close(fd);
        errno = cause;
        return give_up(temporary, path, "flush to disk");
    }
    close(fd);
    if (rename(temporary, path) != 0)
        return give_up(temporary, path, "rename");
    return sync_folder(path);
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

status_t atomic_write(const char *path, const struct piece *pieces, int n)
{
    char temporary[ATOMIC_PATH_MAX];
    TRY(atomic_name(path, temporary));
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return give_up(temporary, path, "create");
    for (int i = 0; i < n; i++)
        if (write_all(fd, pieces[i].data, pieces[i].size) != 0) {
            int cause = errno;
            close(fd);
            errno = cause;
            return give_up(temporary, path, "write");
        }
    if (close(fd) != 0)
        return give_up(temporary, path, "close");
    return atomic_commit(temporary, path);
}

/* The process id in "<prefix><pid>.<call>.tmp", or 0. */
static long owner_of(const char *name, const char *prefix)
{
    size_t   n = strlen(prefix);
    long     pid = 0;
    unsigned call;
    int      end = 0;
    if (strncmp(name, prefix, n) != 0 || sscanf(name + n, "%ld.%u.tmp%n", &pid, &call, &end) != 2 || !end ||
        name[n + (size_t)end])
        return 0;
    return pid;
}

void atomic_sweep(const char *path)
{
    char        prefix[ATOMIC_PATH_MAX], folder[ATOMIC_PATH_MAX], host[64] = "host";
    size_t      length = folder_length(path);
    const char *name = length || path[0] == '/' ? path + length + 1 : path;
    gethostname(host, sizeof host - 1);
    snprintf(prefix, sizeof prefix, ".%s.%s.", name, host);
    snprintf(folder, sizeof folder, "%.*s", (int)(length ? length : 1), length ? path : path[0] == '/' ? "/" : ".");
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        long pid = owner_of(entry->d_name, prefix);
        if (pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH)
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    if (dir)
        closedir(dir);
}

status_t atomic_reserve(const char *temporary, const char *path, uint64_t bytes)
{
    struct statvfs fs;
    int            fd = open(temporary, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return FAIL(ST_EIO, "%s: %s", temporary, strerror(errno));
    int cause = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) == 0 ? 0 : errno;
    if (cause == EOPNOTSUPP || cause == ENOSYS || cause == EINVAL) {
        cause = 0;
        if (fstatvfs(fd, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < bytes)
            cause = ENOSPC;
    }
    close(fd);
    return cause ? FAIL(ST_EIO, "%s: %.1f MB are needed: %s", path, (double)bytes * 1e-6, strerror(cause)) : ST_OK;
}

status_t atomic_make_folder(const char *path)
{
    char folder[ATOMIC_PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    for (char *slash = strchr(folder + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(folder, 0777) != 0 && errno != EEXIST)
            return FAIL(ST_EIO, "%s: %s", folder, strerror(errno));
        *slash = '/';
    }
    return ST_OK;
}
