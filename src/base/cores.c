/* cores.c — affinity masks as plain lists of numbers. */
#include "base/cores.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MASK_BYTES CPU_ALLOC_SIZE(CORES_MAX)

static bool affinity(pid_t pid, struct cores *out)
{
    cpu_set_t *set = CPU_ALLOC(CORES_MAX);
    out->n = 0;
    if (!set)
        return false;
    CPU_ZERO_S(MASK_BYTES, set);
    bool good = sched_getaffinity(pid, MASK_BYTES, set) == 0;
    for (int i = 0; good && i < CORES_MAX; i++)
        if (CPU_ISSET_S((size_t)i, MASK_BYTES, set))
            out->ids[out->n++] = i;
    CPU_FREE(set);
    return good && out->n > 0;
}

status_t cores_of_process(pid_t pid, struct cores *out)
{
    if (!affinity(pid, out))
        return FAIL(ST_EIO, "cannot read the processor affinity of process %d: %s", (int)pid, strerror(errno));
    return ST_OK;
}

/* Name and parent of a process from /proc/PID/stat; the name stands in parentheses and may itself contain some. */
static bool process_name(pid_t pid, char name[32], pid_t *parent)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    char *open = strchr(text, '('), *close = strrchr(text, ')');
    int   ppid;
    if (!open || !close || close < open || sscanf(close + 1, " %*c %d", &ppid) != 1)
        return false;
    *close = '\0';
    snprintf(name, 32, "%s", open + 1);
    *parent = ppid;
    return true;
}

status_t cores_of_job(struct cores *out)
{
    static const char *const daemons[] = {"orted", "mpirun", "orterun", "mpiexec", "prted", "prterun"};
    enum { DEEPEST = 16 };

    pid_t pid = getppid(), parent;
    char  name[32];
    for (int depth = 0; depth < DEEPEST && pid > 1 && process_name(pid, name, &parent); depth++, pid = parent)
        for (size_t i = 0; i < sizeof daemons / sizeof *daemons; i++)
            if (strcmp(name, daemons[i]) == 0 && affinity(pid, out))
                return ST_OK;
    return cores_of_process(0, out);
}

int cores_share(const struct cores *all, int index, int count, struct cores *out)
{
    out->n = 0;
    if (all->n < count) {
        out->ids[out->n++] = all->ids[index % all->n];
        return 0;
    }
    int first = (int)((long long)all->n * index / count), end = (int)((long long)all->n * (index + 1) / count);
    for (int i = first; i < end; i++)
        out->ids[out->n++] = all->ids[i];
    return 1;
}

void cores_text(const struct cores *c, char *out, size_t size)
{
    size_t used = 0;
    if (size)
        out[0] = '\0';
    for (int i = 0; i < c->n && used < size;) {
        int last = i;
        while (last + 1 < c->n && c->ids[last + 1] == c->ids[last] + 1)
            last++;
        int n = last > i ? snprintf(out + used, size - used, "%s%d-%d", i ? "," : "", c->ids[i], c->ids[last])
                         : snprintf(out + used, size - used, "%s%d", i ? "," : "", c->ids[i]);
        used += n > 0 ? (size_t)n : 0;
        i = last + 1;
    }
}

status_t cores_bind(const struct cores *c)
{
    cpu_set_t *set = CPU_ALLOC(CORES_MAX);
    if (!set)
        return FAIL(ST_ENOMEM, "no memory for an affinity mask");
    CPU_ZERO_S(MASK_BYTES, set);
    for (int i = 0; i < c->n; i++)
        CPU_SET_S((size_t)c->ids[i], MASK_BYTES, set);
    int rc = sched_setaffinity(0, MASK_BYTES, set);
    CPU_FREE(set);
    return rc == 0 ? ST_OK : FAIL(ST_EIO, "cannot bind to the cores asked for: %s", strerror(errno));
}
