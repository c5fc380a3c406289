#include "launch/gpu_guard.h"

#include "backend/nvml.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const double GUARD_MARK_WAIT_S = 5, GUARD_WAIT_S = 600, GUARD_RETURN_S = 5;

enum { LISTED_MAX = 64, NAMED_MAX = 4, ENVIRONMENT_MAX = 1 << 18 };

/* Memory that may be in use on an idle card: with v2 the driver's reservation is apart, what remains is a display's or the
 * persistence daemon's; v1 counts the reservation too (some 600 MB on an H200). */
static const uint64_t IDLE_V2_BYTES = 512000000, IDLE_V1_BYTES = 2000000000;
static const uint64_t BACK_SLACK_BYTES = 64000000;

struct gpu_guard {
    struct nvml *nvml;
    char         mark[80]; /* "QSWEEP_RUN=…" */
};

status_t gpu_guard_open(const char *uuid, const char *run, struct gpu_guard **out)
{
    struct gpu_guard *g = calloc(1, sizeof *g);
    if (!g)
        return FAIL(ST_ENOMEM, "no memory to watch a GPU");
    snprintf(g->mark, sizeof g->mark, "QSWEEP_RUN=%s", run);
    status_t st = nvml_open(uuid, 0, &g->nvml);
    if (st != ST_OK) {
        free(g);
        return st;
    }
    *out = g;
    return ST_OK;
}

void gpu_guard_close(struct gpu_guard *g)
{
    if (g)
        nvml_close(g->nvml);
    free(g);
}

/* Up to size - 1 bytes of a file below /proc; 0 when it cannot be read. */
static size_t read_proc(unsigned pid, const char *name, char *out, size_t size)
{
    char    path[64];
    size_t  n = 0;
    ssize_t got = 0;
    snprintf(path, sizeof path, "/proc/%u/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && n < size - 1 && (got = read(fd, out + n, size - 1 - n)) > 0)
        n += (size_t)got;
    if (fd >= 0)
        close(fd);
    out[n] = '\0';
    return n;
}

static bool is_ours(const struct gpu_guard *g, unsigned pid)
{
    char *environment = malloc(ENVIRONMENT_MAX);
    bool  ours = false;
    if (!environment)
        return false;
    size_t n = read_proc(pid, "environ", environment, ENVIRONMENT_MAX);
    for (size_t at = 0; at < n && !ours; at += strlen(environment + at) + 1)
        ours = strcmp(environment + at, g->mark) == 0;
    free(environment);
    return ours;
}

/* The program's name: as this host's kernel knows it, else as the driver does (another container). */
static void name_of(const struct gpu_guard *g, unsigned pid, char *out, size_t size)
{
    size_t n = read_proc(pid, "comm", out, size);
    while (n && out[n - 1] == '\n')
        out[--n] = '\0';
    if (!n)
        nvml_process_name(g->nvml, pid, out, (unsigned)size);
    if (!out[0])
        snprintf(out, size, "of another container or user");
}

static size_t describe(const struct gpu_guard *g, const struct nvml_process *p, bool first, char *out, size_t size)
{
    char name[64], bytes[48] = "bytes unknown";
    name_of(g, p->pid, name, sizeof name);
    for (char *c = name; *c; c++)
        if ((unsigned char)*c < ' ')
            *c = ' ';
    if (p->bytes != NVML_UNKNOWN)
        snprintf(bytes, sizeof bytes, "%.0f MB", (double)p->bytes * 1e-6);
    int n = snprintf(out, size, "%sprocess %u (%s, %s)", first ? "" : ", ", p->pid, name, bytes);
    return n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;
}

uint64_t gpu_guard_used(struct gpu_guard *g)
{
    struct nvml_memory memory;
    nvml_memory(g->nvml, &memory);
    return memory.v2_used != NVML_UNKNOWN ? memory.v2_used : memory.v1_used;
}

/* Memory of processes that the driver does not list here. */
static bool hidden_work(struct gpu_guard *g, char *who, size_t size)
{
    struct nvml_memory memory;
    nvml_memory(g->nvml, &memory);
    bool     v2 = memory.v2_used != NVML_UNKNOWN;
    uint64_t used = v2 ? memory.v2_used : memory.v1_used, idle = v2 ? IDLE_V2_BYTES : IDLE_V1_BYTES;
    if (used == NVML_UNKNOWN || used <= idle)
        return false;
    snprintf(who, size, "%.0f MB in use by processes that NVML does not show here", (double)used * 1e-6);
    return true;
}

bool gpu_guard_is_clear(struct gpu_guard *g, bool ours_run, char *who, size_t size)
{
    struct nvml_process list[LISTED_MAX];
    int                 n = nvml_processes(g->nvml, list, LISTED_MAX), foreign = 0;
    size_t              at = 0;
    who[0] = '\0';
    for (int i = 0; i < n && i < LISTED_MAX; i++) {
        if (is_ours(g, list[i].pid)) {
            ours_run = true;
            continue;
        }
        if (foreign++ < NAMED_MAX)
            at += describe(g, &list[i], foreign == 1, who + at, size - at);
    }
    if (foreign > NAMED_MAX)
        snprintf(who + at, size - at, " and %d more", foreign - NAMED_MAX);
    if (foreign)
        return false;
    return ours_run || n > 0 || !hidden_work(g, who, size);
}

bool gpu_guard_is_back(uint64_t before, uint64_t now)
{
    return before == UINT64_MAX || now == UINT64_MAX || now <= before + BACK_SLACK_BYTES;
}
