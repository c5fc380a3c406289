/* A test double of NVIDIA's management library: it tells what a text file says, read anew at every question, so that a
 * test on a machine without a GPU can add and remove processes while our own code runs unchanged. Built as
 * libnvidia-ml.so.1; the file is named by QSWEEP_FAKE_NVML. Lines:
 *   gpu UUID NAME MEMORY_MB USED_MB BUS_ID     a card; "_" in names stands for a blank
 *   mig UUID NAME MEMORY_MB USED_MB            an instance of the card above, which is thereby divided
 *   process PID MB|na [NAME]                   on the device above; na: bytes are not told, as in a container
 *   state SM_MHZ MEM_MHZ MILLIWATT CELSIUS THROTTLE MILLIJOULE      of the device above
 *   ecc ON ERRORS                              of the device above
 *   v1                                         no v2 memory call and no process list: an old driver */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEVICES_MAX = 32, PROCESSES_MAX = 16, OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, DRIVER = 9 };

struct process {
    unsigned           pid;
    unsigned long long bytes;
    char               name[64];
};

struct device {
    bool               mig;
    int                card; /* of an instance: index of its card */
    char               uuid[96], name[96], bus_id[32];
    unsigned long long total, used;
    struct process     processes[PROCESSES_MAX];
    int                n_processes, ecc;
    bool               has_state;
    unsigned           sm, mem, milliwatt, celsius;
    unsigned long long throttle, millijoule, ecc_errors;
};

struct host {
    struct device all[DEVICES_MAX];
    int           n;
    bool          v1;
};

static _Thread_local struct host host; /* the trace thread asks beside the main thread */

static bool reload(void)
{
    char        line[512];
    const char *path = getenv("QSWEEP_FAKE_NVML");
    FILE       *f = path ? fopen(path, "re") : NULL;
    memset(&host, 0, sizeof host);
    if (!f)
        return false;
    while (fgets(line, sizeof line, f)) {
        struct device      d = {.ecc = -1}, *last = host.n ? &host.all[host.n - 1] : NULL;
        struct process     p = {0};
        unsigned long long total, used;
        char               bytes[32];
        bool               card = sscanf(line, "gpu %95s %95s %llu %llu %31s", d.uuid, d.name, &total, &used, d.bus_id) == 5;
        if ((card || sscanf(line, "mig %95s %95s %llu %llu", d.uuid, d.name, &total, &used) == 4) && host.n < DEVICES_MAX) {
            d.mig = !card;
            d.card = card ? host.n : last ? (last->mig ? last->card : host.n - 1) : 0;
            d.total = total * 1000000;
            d.used = used * 1000000;
            for (char *c = d.name; *c; c++)
                *c = *c == '_' ? ' ' : *c;
            host.all[host.n++] = d;
        } else if (last && sscanf(line, "process %u %31s %63s", &p.pid, bytes, p.name) >= 2 &&
                   last->n_processes < PROCESSES_MAX) {
            p.bytes = strcmp(bytes, "na") == 0 ? ~0ull : strtoull(bytes, NULL, 10) * 1000000;
            last->processes[last->n_processes++] = p;
        } else if (last && strncmp(line, "state ", 6) == 0) {
            last->has_state = sscanf(line, "state %u %u %u %u %llu %llu", &last->sm, &last->mem, &last->milliwatt,
                                     &last->celsius, &last->throttle, &last->millijoule) == 6;
        } else if (last && strncmp(line, "ecc ", 4) == 0) {
            sscanf(line, "ecc %d %llu", &last->ecc, &last->ecc_errors);
        } else if (strncmp(line, "v1", 2) == 0) {
            host.v1 = true;
        }
    }
    fclose(f);
    return true;
}

static struct device *at(void *handle)
{
    size_t i = (size_t)handle;
    return reload() && i >= 1 && i <= (size_t)host.n ? &host.all[i - 1] : NULL;
}

static int handle_of(int i, void **out)
{
    *out = (void *)((size_t)i + 1);
    return OK;
}

int nvmlInit_v2(void)
{
    return reload() ? OK : DRIVER;
}

int nvmlShutdown(void)
{
    return OK;
}

const char *nvmlErrorString(int code)
{
    return code == NOT_FOUND ? "Not Found" : code == DRIVER ? "Driver Not Loaded" : "Invalid Argument";
}

int nvmlSystemGetDriverVersion(char *out, unsigned size)
{
    snprintf(out, size, "999.99 (test double)");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *n)
{
    *n = 0;
    reload();
    for (int i = 0; i < host.n; i++)
        *n += !host.all[i].mig;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out)
{
    reload();
    for (int i = 0; i < host.n; i++)
        if (!host.all[i].mig && index-- == 0)
            return handle_of(i, out);
    return INVALID;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **out)
{
    reload();
    for (int i = 0; i < host.n; i++)
        if (strcmp(host.all[i].uuid, uuid) == 0)
            return handle_of(i, out);
    return NOT_FOUND;
}

static int text(void *handle, size_t offset, char *out, unsigned size)
{
    struct device *d = at(handle);
    if (!d)
        return INVALID;
    snprintf(out, size, "%s", (const char *)d + offset);
    return OK;
}

int nvmlDeviceGetName(void *handle, char *out, unsigned size)
{
    return text(handle, offsetof(struct device, name), out, size);
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned size)
{
    return text(handle, offsetof(struct device, uuid), out, size);
}

int nvmlDeviceGetPciInfo_v3(void *handle, void *out)
{
    struct device *d = at(handle);
    if (!d)
        return INVALID;
    memset(out, 0, 68);
    memcpy((char *)out + 36, d->bus_id, sizeof d->bus_id); /* busId follows a legacy text and five numbers */
    return OK;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *later)
{
    size_t i = (size_t)handle;
    if (!at(handle))
        return INVALID;
    *now = *later = i < (size_t)host.n && host.all[i].mig;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *n)
{
    *n = at(handle) ? 7 : 0;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **out)
{
    int card = (int)(size_t)handle - 1;
    if (!at(handle))
        return INVALID;
    for (int i = 0; i < host.n; i++)
        if (host.all[i].mig && host.all[i].card == card && index-- == 0)
            return handle_of(i, out);
    return NOT_FOUND;
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long out[3])
{
    struct device *d = at(handle);
    if (!d)
        return INVALID;
    const unsigned long long reserved = 600000000; /* v1 counts the driver's own as used */
    out[0] = d->total;
    out[2] = d->used + reserved;
    out[1] = out[0] - out[2];
    return OK;
}

struct memory_v2 {
    unsigned           version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *out)
{
    struct device *d = at(handle);
    if (!d || host.v1 || out->version != ((unsigned)sizeof *out | 2u << 24))
        return d ? UNSUPPORTED : INVALID;
    out->total = d->total;
    out->reserved = 600000000;
    out->used = d->used;
    out->free = out->total - out->reserved - out->used;
    return OK;
}

struct raw_process {
    unsigned           pid;
    unsigned long long bytes;
    unsigned           gpu_instance, compute_instance;
};

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *n, struct raw_process *out)
{
    struct device *d = at(handle);
    if (!d || host.v1)
        return d ? UNSUPPORTED : INVALID;
    for (int i = 0; i < d->n_processes && (unsigned)i < *n; i++)
        out[i] = (struct raw_process){d->processes[i].pid, d->processes[i].bytes, 0, 0};
    *n = (unsigned)d->n_processes;
    return OK;
}

int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size)
{
    reload();
    for (int i = 0; i < host.n; i++)
        for (int k = 0; k < host.all[i].n_processes; k++)
            if (host.all[i].processes[k].pid == pid && host.all[i].processes[k].name[0]) {
                snprintf(out, size, "%s", host.all[i].processes[k].name);
                return OK;
            }
    return NOT_FOUND;
}

/* One number of the device's state, where it has one. */
#define STATE(function, signature, type, value)                                                                       \
    int function signature                                                                                            \
    {                                                                                                                 \
        struct device *d = at(handle);                                                                                \
        if (!d || !d->has_state)                                                                                      \
            return UNSUPPORTED;                                                                                       \
        *out = (type)(value);                                                                                         \
        return OK;                                                                                                    \
    }
STATE(nvmlDeviceGetClockInfo, (void *handle, int which, unsigned *out), unsigned, which == 1 ? d->sm : d->mem)
STATE(nvmlDeviceGetPowerUsage, (void *handle, unsigned *out), unsigned, d->milliwatt)
STATE(nvmlDeviceGetTemperature, (void *handle, int sensor, unsigned *out), unsigned, sensor == 0 ? d->celsius : 0)
STATE(nvmlDeviceGetCurrentClocksThrottleReasons, (void *handle, unsigned long long *out), unsigned long long, d->throttle)
STATE(nvmlDeviceGetTotalEnergyConsumption, (void *handle, unsigned long long *out), unsigned long long, d->millijoule)

int nvmlDeviceGetEccMode(void *handle, int *now, int *later)
{
    struct device *d = at(handle);
    if (!d || d->ecc < 0)
        return UNSUPPORTED;
    *now = *later = d->ecc;
    return OK;
}

int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *out)
{
    struct device *d = at(handle);
    if (!d || d->ecc < 0 || kind != 1 || counter != 0)
        return UNSUPPORTED;
    *out = d->ecc_errors;
    return OK;
}
