#include "launch/lock.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OWNER_BYTES_MAX = 4096 };

struct lock {
    int  fd;
    char path[4200];
};

struct owner {
    char      host[256], boot_id[64], started[32], slurm_job[64];
    long long pid, start_ticks, slurm_restart;
};

/* Start of a process in clock ticks after boot: with the pid it names a process for good. -1 = no such process. */
static long long start_ticks(long long pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%lld/stat", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return -1;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    char     *end = strrchr(text, ')');
    char      state;
    long long ticks;
    if (!end || sscanf(end + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %lld",
                       &state, &ticks) != 2)
        return -1;
    return state == 'Z' || state == 'X' ? -1 : ticks;
}

static void copy_text(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from ? from : "");
}

static void describe_self(struct owner *o)
{
    memset(o, 0, sizeof *o);
    gethostname(o->host, sizeof o->host - 1);
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f) {
        if (fgets(o->boot_id, sizeof o->boot_id, f))
            o->boot_id[strcspn(o->boot_id, "\n")] = '\0';
        fclose(f);
    }
    clock_iso(o->started, sizeof o->started);
    o->pid = getpid();
    o->start_ticks = start_ticks(o->pid);
    copy_text(o->slurm_job, sizeof o->slurm_job, getenv("SLURM_JOB_ID"));
    const char *restart = getenv("SLURM_RESTART_COUNT");
    o->slurm_restart = restart ? strtoll(restart, NULL, 10) : 0;
}

/* False when the file is empty (its maker died between open and write): then nobody owns it. */
static bool read_owner(int fd, struct owner *o)
{
    char    text[OWNER_BYTES_MAX];
    ssize_t n = pread(fd, text, sizeof text, 0);
    memset(o, 0, sizeof *o);
    json_t *j = n > 0 ? json_loadb(text, (size_t)n, 0, NULL) : NULL;
    if (!j)
        return false;
    copy_text(o->host, sizeof o->host, json_string_value(json_object_get(j, "host")));
    copy_text(o->boot_id, sizeof o->boot_id, json_string_value(json_object_get(j, "boot_id")));
    copy_text(o->started, sizeof o->started, json_string_value(json_object_get(j, "started")));
    copy_text(o->slurm_job, sizeof o->slurm_job, json_string_value(json_object_get(j, "slurm_job_id")));
    o->pid = json_integer_value(json_object_get(j, "pid"));
    o->start_ticks = json_integer_value(json_object_get(j, "start_ticks"));
    o->slurm_restart = json_integer_value(json_object_get(j, "slurm_restart_count"));
    json_decref(j);
    return o->host[0] != '\0';
}

static status_t write_owner(const struct lock *l, const struct owner *o)
{
    json_t *j = json_pack("{s:s, s:I, s:s, s:I, s:s, s:s, s:I}", "host", o->host, "pid", (json_int_t)o->pid, "started",
                          o->started, "start_ticks", (json_int_t)o->start_ticks, "boot_id", o->boot_id, "slurm_job_id",
                          o->slurm_job, "slurm_restart_count", (json_int_t)o->slurm_restart);
    char   *text = j ? json_dumps(j, JSON_INDENT(1)) : NULL;
    json_decref(j);
    if (!text)
        return FAIL(ST_ENOMEM, "%s: no memory", l->path);
    size_t n = strlen(text);
    bool   good = ftruncate(l->fd, 0) == 0 && pwrite(l->fd, text, n, 0) == (ssize_t)n && fsync(l->fd) == 0;
    int    error = errno;
    free(text);
    return good ? ST_OK : FAIL(ST_EIO, "cannot write %s: %s", l->path, strerror(error));
}

static bool is_alive(const struct owner *o, const struct owner *self)
{
    bool same_boot = !o->boot_id[0] || strcmp(o->boot_id, self->boot_id) == 0;
    return same_boot && o->pid > 0 && start_ticks(o->pid) == o->start_ticks;
}

/* May this lock, whose flock (where the file system has one) is ours, be taken from its former owner? */
static status_t judge(const struct lock *l, const struct owner *o, const struct owner *self, bool have_flock,
                      bool force)
{
    if (strcmp(o->host, self->host) == 0) {
        if (!have_flock && is_alive(o, self))
            return FAIL(ST_EIO,
                        "%s: process %lld of this host has been running this sweep since %s: wait for it, or "
                        "choose another --output",
                        l->path, o->pid, o->started);
        log_info("%s: taking over from process %lld of this host, started %s, which is gone", l->path, o->pid,
                 o->started);
        return ST_OK;
    }
    if (self->slurm_job[0] && strcmp(o->slurm_job, self->slurm_job) == 0 && self->slurm_restart > o->slurm_restart) {
        log_info("%s: taking over from host %s: Slurm restarted job %s", l->path, o->host, self->slurm_job);
        return ST_OK;
    }
    if (force) {
        log_warn("%s: taking the lock of process %lld on host %s as told", l->path, o->pid, o->host);
        return ST_OK;
    }
    return FAIL(ST_EIO,
                "%s: process %lld on host %s has held this folder since %s, and from here nobody can see whether "
                "it still runs. If it certainly does not, run again with --take-lock",
                l->path, o->pid, o->host, o->started);
}

/* flock the file that stands under the path now. *again: it was removed between our open and our flock. */
static status_t flock_path(struct lock *l, bool *have_flock, bool *again)
{
    struct stat by_fd, by_path;
    *again = false;
    l->fd = open(l->path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (l->fd < 0)
        return FAIL(ST_EIO, "cannot open %s: %s", l->path, strerror(errno));
    *have_flock = flock(l->fd, LOCK_EX | LOCK_NB) == 0;
    if (!*have_flock && errno == EWOULDBLOCK) {
        struct owner o;
        bool         known = read_owner(l->fd, &o);
        return FAIL(ST_EIO,
                    "%s: in use by another launcher (process %lld on host %s since %s): wait for it, or choose "
                    "another --output",
                    l->path, known ? o.pid : 0LL, known ? o.host : "unknown", known ? o.started : "just now");
    }
    *again = fstat(l->fd, &by_fd) != 0 || stat(l->path, &by_path) != 0 || by_fd.st_ino != by_path.st_ino;
    return ST_OK;
}

static status_t take(struct lock *l, bool force)
{
    struct owner self, other;
    bool         have_flock = false, again = true;
    describe_self(&self);
    for (int tries = 0; again && tries < 100; tries++) {
        if (l->fd >= 0)
            close(l->fd);
        TRY(flock_path(l, &have_flock, &again));
    }
    if (again)
        return FAIL(ST_EIO, "%s: other launchers take and release this lock faster than we can", l->path);
    if (read_owner(l->fd, &other))
        TRY(judge(l, &other, &self, have_flock, force));
    TRY(write_owner(l, &self));
    if (!have_flock) {
        /* Two launchers may have come this far at once on a file system without flock; the last writer wins. */
        nanosleep(&(struct timespec){0, 200000000}, NULL);
        if (!read_owner(l->fd, &other) || other.pid != self.pid || strcmp(other.host, self.host) != 0)
            return FAIL(ST_EIO, "%s: another launcher took it at the same moment", l->path);
    }
    return ST_OK;
}

status_t lock_take(const char *dir, bool force, struct lock **out)
{
    struct lock *l = calloc(1, sizeof *l);
    if (!l)
        return FAIL(ST_ENOMEM, "no memory for a lock");
    l->fd = -1;
    snprintf(l->path, sizeof l->path, "%s/lock", dir);
    status_t st = take(l, force);
    if (st != ST_OK) {
        if (l->fd >= 0)
            close(l->fd);
        free(l);
        return st;
    }
    *out = l;
    return ST_OK;
}

void lock_release(struct lock *l)
{
    if (!l)
        return;
    unlink(l->path); /* while the flock is held: who opened the old file sees another inode and tries again */
    close(l->fd);
    free(l);
}
