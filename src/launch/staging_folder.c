/* staging_folder.c — where staged weights lie: a folder of this run, of this user alone, in a memory file system. */
#include "launch/staging.h"

#include "base/log.h"
#include "checkpoint/companions.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

const char *stage_folder_base(void)
{
    const char *given = getenv("QSWEEP_STAGE_DIR");
    return given && given[0] && strlen(given) < 1900 ? given : "/dev/shm";
}

void stage_folder_name(uint64_t run_id, char *out, size_t size)
{
    snprintf(out, size, "%s/qsweep-%u-%016llx", stage_folder_base(), (unsigned)getuid(), (unsigned long long)run_id);
}

uint64_t stage_folder_free(void)
{
    struct statvfs info;
    return statvfs(stage_folder_base(), &info) == 0 ? (uint64_t)info.f_bavail * info.f_frsize : UINT64_MAX;
}

/* A real folder of ours that nobody else can write to. */
static bool is_ours(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0 && S_ISDIR(info.st_mode) && info.st_uid == getuid() && (info.st_mode & 077) == 0;
}

/* The lock of a folder in use is held by its launcher. A folder without one is being made just now, or was left so. */
static int take_lock(const char *folder, int flags)
{
    char path[2200];
    snprintf(path, sizeof path, "%s/in-use", folder);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

void stage_folder_sweep(void)
{
    char prefix[64], path[2100];
    DIR *d = opendir(stage_folder_base());
    snprintf(prefix, sizeof prefix, "qsweep-%u-", (unsigned)getuid());
    for (struct dirent *e; d && (e = readdir(d));) {
        if (strncmp(e->d_name, prefix, strlen(prefix)) != 0 || strlen(e->d_name) != strlen(prefix) + 16)
            continue;
        snprintf(path, sizeof path, "%s/%.100s", stage_folder_base(), e->d_name);
        if (!is_ours(path))
            continue;
        int fd = take_lock(path, 0);
        if (fd < 0)
            continue;
        log_info("%s: staged weights of a launcher that died are removed", path);
        companions_remove(path);
        close(fd);
    }
    if (d)
        closedir(d);
}

status_t stage_folder_make(uint64_t run_id, struct stage_folder *out)
{
    stage_folder_name(run_id, out->path, sizeof out->path);
    out->lock_fd = -1;
    if (mkdir(out->path, 0700) != 0)
        return FAIL(ST_EIO, "%s: cannot create it for staged weights: %s; QSWEEP_STAGE_DIR names another place, weights.share=none "
                    "does without", out->path, strerror(errno));
    out->lock_fd = take_lock(out->path, O_CREAT);
    if (out->lock_fd >= 0)
        return ST_OK;
    int error = errno;
    rmdir(out->path);
    return FAIL(ST_EIO, "%s: cannot lock it: %s", out->path, strerror(error));
}

void stage_folder_remove(struct stage_folder *f)
{
    if (f->path[0])
        companions_remove(f->path);
    if (f->lock_fd >= 0)
        close(f->lock_fd);
    *f = (struct stage_folder){.lock_fd = -1};
}
