#include "backend/nvml.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* NVML's own types, in the layout its reference gives. */
struct raw_memory {
    unsigned long long total, free, used;
};
struct raw_memory_v2 {
    unsigned           version;
    unsigned long long total, reserved, free, used;
};
struct raw_process {
    unsigned           pid;
    unsigned long long bytes;
    unsigned           gpu_instance, compute_instance;
};

enum { CLOCK_SM = 1, CLOCK_MEM = 2, TEMPERATURE_GPU = 0, ECC_UNCORRECTED = 1, ECC_VOLATILE = 0, MAX_PROCESSES = 128 };

struct nvml {
    void *library, *device;
    int (*init)(void);
    int (*shutdown)(void);
    int (*by_index)(unsigned, void **);
    int (*by_uuid)(const char *, void **);
    int (*name)(void *, char *, unsigned);
    int (*uuid)(void *, char *, unsigned);
    int (*driver)(char *, unsigned);
    const char *(*error)(int);
    int (*memory)(void *, struct raw_memory *);
    /* The rest may be missing in old drivers or be refused by a card. */
    int (*memory_v2)(void *, struct raw_memory_v2 *);
    int (*processes)(void *, unsigned *, struct raw_process *);
    int (*clock)(void *, int, unsigned *);
    int (*power)(void *, unsigned *);
    int (*temperature)(void *, int, unsigned *);
    int (*throttle)(void *, unsigned long long *);
    int (*energy)(void *, unsigned long long *);
    int (*ecc_mode)(void *, int *, int *);
    int (*ecc_errors)(void *, int, int, unsigned long long *);
};

static status_t find_symbols(struct nvml *n)
{
    const struct {
        void      **slot;
        const char *name;
        bool        needed;
    } wanted[] = {
        {(void **)&n->init, "nvmlInit_v2", true},
        {(void **)&n->shutdown, "nvmlShutdown", true},
        {(void **)&n->by_index, "nvmlDeviceGetHandleByIndex_v2", true},
        {(void **)&n->by_uuid, "nvmlDeviceGetHandleByUUID", true},
        {(void **)&n->name, "nvmlDeviceGetName", true},
        {(void **)&n->uuid, "nvmlDeviceGetUUID", true},
        {(void **)&n->driver, "nvmlSystemGetDriverVersion", true},
        {(void **)&n->error, "nvmlErrorString", true},
        {(void **)&n->memory, "nvmlDeviceGetMemoryInfo", true},
        {(void **)&n->memory_v2, "nvmlDeviceGetMemoryInfo_v2", false},
        {(void **)&n->processes, "nvmlDeviceGetComputeRunningProcesses_v3", false},
        {(void **)&n->clock, "nvmlDeviceGetClockInfo", false},
        {(void **)&n->power, "nvmlDeviceGetPowerUsage", false},
        {(void **)&n->temperature, "nvmlDeviceGetTemperature", false},
        {(void **)&n->throttle, "nvmlDeviceGetCurrentClocksThrottleReasons", false},
        {(void **)&n->energy, "nvmlDeviceGetTotalEnergyConsumption", false},
        {(void **)&n->ecc_mode, "nvmlDeviceGetEccMode", false},
        {(void **)&n->ecc_errors, "nvmlDeviceGetTotalEccErrors", false},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].slot = dlsym(n->library, wanted[i].name);
        if (!*wanted[i].slot && wanted[i].needed)
            return FAIL(ST_EUNSUPPORTED, "NVIDIA driver too old: libnvidia-ml.so.1 lacks %s", wanted[i].name);
    }
    return ST_OK;
}

status_t nvml_open(const char *uuid, int index, struct nvml **out)
{
    struct nvml *n = calloc(1, sizeof *n);
    if (!n)
        return FAIL(ST_ENOMEM, "no host memory for NVML");
    n->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!n->library) {
        free(n);
        return FAIL(ST_EUNSUPPORTED, "no NVIDIA driver: %s", dlerror());
    }
    status_t st = find_symbols(n);
    int      rc = st == ST_OK ? n->init() : 0;
    if (st != ST_OK || rc != 0) {
        if (rc != 0)
            st = FAIL(ST_EUNSUPPORTED, "NVIDIA driver: %s", n->error(rc));
        dlclose(n->library);
        free(n);
        return st;
    }
    rc = uuid ? n->by_uuid(uuid, &n->device) : n->by_index((unsigned)index, &n->device);
    if (rc != 0) {
        st = uuid ? FAIL(ST_EUNSUPPORTED, "NVML: device %s: %s", uuid, n->error(rc))
                  : FAIL(ST_EUNSUPPORTED, "NVML: device %d: %s", index, n->error(rc));
        nvml_close(n);
        return st;
    }
    *out = n;
    return ST_OK;
}

void nvml_close(struct nvml *n)
{
    if (!n)
        return;
    n->shutdown();
    dlclose(n->library);
    free(n);
}

void nvml_identity(const struct nvml *n, struct nvml_identity *out)
{
    int now = 0, later = 0;
    memset(out, 0, sizeof *out);
    if (n->name(n->device, out->name, NVML_TEXT) != 0)
        snprintf(out->name, sizeof out->name, "unknown");
    if (n->uuid(n->device, out->uuid, NVML_TEXT) != 0)
        out->uuid[0] = '\0';
    if (n->driver(out->driver, NVML_TEXT) != 0)
        snprintf(out->driver, sizeof out->driver, "unknown");
    out->ecc = n->ecc_mode && n->ecc_mode(n->device, &now, &later) == 0 ? now != 0 : -1;
}

void nvml_memory(const struct nvml *n, struct nvml_memory *out)
{
    struct raw_memory    v1;
    struct raw_memory_v2 v2 = {.version = (unsigned)sizeof v2 | 2u << 24};
    struct nvml_process  list[MAX_PROCESSES];
    memset(out, 0xff, sizeof *out); /* every field NVML_UNKNOWN */
    if (n->memory(n->device, &v1) == 0) {
        out->v1_total = v1.total;
        out->v1_free  = v1.free;
        out->v1_used  = v1.used;
    }
    if (n->memory_v2 && n->memory_v2(n->device, &v2) == 0) {
        out->v2_total    = v2.total;
        out->v2_free     = v2.free;
        out->v2_used     = v2.used;
        out->v2_reserved = v2.reserved;
    }
    const int count = nvml_processes(n, list, MAX_PROCESSES);
    for (int i = 0; i < count && i < MAX_PROCESSES; i++)
        if (list[i].pid == (unsigned)getpid())
            out->process = list[i].bytes;
}

void nvml_state(const struct nvml *n, struct nvml_state *out)
{
    unsigned           v;
    unsigned long long w;
    out->sm_clock_mhz    = n->clock && n->clock(n->device, CLOCK_SM, &v) == 0 ? v : NAN;
    out->mem_clock_mhz   = n->clock && n->clock(n->device, CLOCK_MEM, &v) == 0 ? v : NAN;
    out->power_mw        = n->power && n->power(n->device, &v) == 0 ? v : NAN;
    out->temperature_c   = n->temperature && n->temperature(n->device, TEMPERATURE_GPU, &v) == 0 ? v : NAN;
    out->throttle        = n->throttle && n->throttle(n->device, &w) == 0 ? w : 0;
    out->energy_mj       = n->energy && n->energy(n->device, &w) == 0 ? w : NVML_UNKNOWN;
    out->ecc_uncorrected = n->ecc_errors && n->ecc_errors(n->device, ECC_UNCORRECTED, ECC_VOLATILE, &w) == 0 ? w : NVML_UNKNOWN;
}

int nvml_processes(const struct nvml *n, struct nvml_process *out, int most)
{
    struct raw_process raw[MAX_PROCESSES];
    unsigned           count = MAX_PROCESSES;
    if (!n->processes || n->processes(n->device, &count, raw) != 0)
        return -1;
    for (unsigned i = 0; i < count && i < MAX_PROCESSES && (int)i < most; i++)
        out[i] = (struct nvml_process){raw[i].pid, raw[i].bytes}; /* "not available" is all ones there too */
    return (int)count;
}
