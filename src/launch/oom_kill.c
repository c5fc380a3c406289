/* oom_kill.c — counters of cgroup v2 (memory.events), v1 (memory.oom_control) and /proc/vmstat. */
#include "launch/oom_kill.h"

#include <stdio.h>
#include <string.h>

/* The number after "oom_kill " at the start of a line, -1 if there is none. */
static long long counter_in(const char *path)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return -1;
    char      line[256];
    long long n = -1;
    while (n < 0 && fgets(line, sizeof line, f))
        if (sscanf(line, "oom_kill %lld", &n) != 1)
            n = -1;
    fclose(f);
    return n;
}

/* Lines of /proc/self/cgroup are "0::/path" (v2) or "4:memory:/path" (v1). */
static long long cgroup_counter(void)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f)
        return -1;
    char      line[4096], path[4300];
    long long v1 = -1, v2 = -1;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *dir = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!dir)
            continue;
        *dir++ = '\0';
        controllers++;
        if (!*controllers) {
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.events", dir);
            v2 = counter_in(path);
        } else if (strcmp(controllers, "memory") == 0) {
            snprintf(path, sizeof path, "/sys/fs/cgroup/memory%s/memory.oom_control", dir);
            v1 = counter_in(path);
        }
    }
    fclose(f);
    return v2 >= 0 ? v2 : v1;
}

void oom_kill_read(struct oom_kill *out)
{
    out->cgroup = cgroup_counter();
    out->host = counter_in("/proc/vmstat");
}

int oom_kill_between(const struct oom_kill *before, const struct oom_kill *after)
{
    if (before->cgroup >= 0 && after->cgroup > before->cgroup)
        return 2;
    return before->host >= 0 && after->host > before->host ? 1 : 0;
}
