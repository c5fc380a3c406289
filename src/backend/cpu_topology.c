#include "backend/cpu_topology.h"

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct cpu_topology topology;
static pthread_once_t      topology_once = PTHREAD_ONCE_INIT;

/* First line of a file without its newline; false if it cannot be read. */
static bool read_line(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "r");
    if (!f)
        return false;
    bool ok = fgets(out, (int)size, f) != NULL;
    fclose(f);
    if (ok)
        out[strcspn(out, "\n")] = '\0';
    return ok;
}

static void read_model(struct cpu_topology *t)
{
    static const char *const keys[] = {"model name", "Hardware", "cpu model", "Processor"};
    char                     line[256];
    snprintf(t->model, sizeof t->model, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "r");
    if (!f)
        return;
    while (fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        for (size_t i = 0; colon && i < sizeof keys / sizeof keys[0]; i++)
            if (strncmp(line, keys[i], strlen(keys[i])) == 0) {
                colon += 1 + strspn(colon + 1, " \t");
                colon[strcspn(colon, "\n")] = '\0';
                snprintf(t->model, sizeof t->model, "%.*s", (int)sizeof t->model - 1, colon);
                fclose(f);
                return;
            }
    }
    fclose(f);
}

/* The lowest-numbered hardware thread of the core that cpu belongs to; cpu itself where the kernel does not say. */
static int core_leader(int cpu)
{
    char path[128], text[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    return read_line(path, text, sizeof text) ? atoi(text) : cpu;
}

static int read_allowed(struct cpu_topology *t)
{
    static int  first[CPU_MAX_CORES], siblings[CPU_MAX_CORES];
    static bool seen[CPU_MAX_CORES]; /* by leader */
    int         n_first = 0, n_siblings = 0;
    size_t     size = CPU_ALLOC_SIZE(CPU_MAX_CORES);
    cpu_set_t *set = CPU_ALLOC(CPU_MAX_CORES);
    if (!set || sched_getaffinity(0, size, set) != 0) {
        CPU_FREE(set);
        t->cpus[0] = 0;
        t->n_allowed = 1;
        return 1;
    }
    for (int cpu = 0; cpu < CPU_MAX_CORES; cpu++) {
        if (!CPU_ISSET_S(cpu, size, set))
            continue;
        int leader = core_leader(cpu);
        if (leader < 0 || leader >= CPU_MAX_CORES)
            leader = cpu;
        if (seen[leader])
            siblings[n_siblings++] = cpu;
        else
            first[n_first++] = cpu;
        seen[leader] = true;
    }
    CPU_FREE(set);
    memcpy(t->cpus, first, (size_t)n_first * sizeof(int));
    memcpy(t->cpus + n_first, siblings, (size_t)n_siblings * sizeof(int));
    t->n_allowed = n_first + n_siblings;
    return n_first;
}

double cpu_topology_quota(const char *cpu_max)
{
    double quota = 0, period = 0;
    if (sscanf(cpu_max, "%lf %lf", &quota, &period) != 2 || !(quota > 0) || !(period > 0))
        return 0;
    return quota / period;
}

/* Smallest limit on the way from this process's version-2 group to the root; groups of version 1 only at their root,
 * where a container sees its own. */
static void read_limits(struct cpu_topology *t)
{
    char group[512] = "", line[600], path[1200], text[128];
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "0::", 3) == 0)
            snprintf(group, sizeof group, "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
    if (f)
        fclose(f);
    for (;;) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
        double quota = read_line(path, text, sizeof text) ? cpu_topology_quota(text) : 0;
        if (quota > 0 && (t->quota <= 0 || quota < t->quota))
            t->quota = quota;
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group);
        size_t limit = read_line(path, text, sizeof text) ? strtoull(text, NULL, 10) : 0; /* "max" reads as 0 */
        if (limit > 0 && (t->memory_limit == 0 || limit < t->memory_limit))
            t->memory_limit = limit;
        char *slash = strrchr(group, '/');
        if (!slash)
            break;
        *slash = '\0';
    }
    char period[64];
    if (t->quota <= 0 && read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", text, sizeof text) &&
        read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us", period, sizeof period)) {
        snprintf(line, sizeof line, "%s %s", text, period);
        t->quota = cpu_topology_quota(line);
    }
    if (t->memory_limit == 0 && read_line("/sys/fs/cgroup/memory/memory.limit_in_bytes", text, sizeof text)) {
        size_t limit = strtoull(text, NULL, 10);
        t->memory_limit = limit < t->memory_bytes ? limit : 0; /* "no limit" is written as a huge number */
    }
}

static void topology_read(void)
{
    struct cpu_topology *t = &topology;
    long                 pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    t->memory_bytes = pages > 0 && page > 0 ? (size_t)pages * (size_t)page : 0;
    read_model(t);
    t->n_cores = read_allowed(t);
    read_limits(t);
    if (t->quota > 0 && t->n_cores > (int)(t->quota + 0.99))
        t->n_cores = (int)(t->quota + 0.99);
    if (t->n_cores < 1)
        t->n_cores = 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    t->avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    t->avx512 = t->avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
}

const struct cpu_topology *cpu_topology_get(void)
{
    pthread_once(&topology_once, topology_read);
    return &topology;
}
