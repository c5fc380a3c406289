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

struct raw_pci {
    char     bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char     bus_id[32];
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
    int (*capability)(void *, int *, int *);
    int (*cuda_version)(int *);
    int (*ecc_errors)(void *, int, int, unsigned long long *);
    int (*count)(unsigned *);
    int (*pci)(void *, struct raw_pci *);
    int (*mig_mode)(void *, unsigned *, unsigned *);
    int (*mig_count)(void *, unsigned *);
    int (*mig_by_index)(void *, unsigned, void **);
    int (*process_name)(unsigned, char *, unsigned);
};

static bool find_symbols(struct nvml *n, char *why, size_t why_size)
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
        {(void **)&n->capability, "nvmlDeviceGetCudaComputeCapability", false},
        {(void **)&n->cuda_version, "nvmlSystemGetCudaDriverVersion_v2", false},
        {(void **)&n->ecc_errors, "nvmlDeviceGetTotalEccErrors", false},
        {(void **)&n->count, "nvmlDeviceGetCount_v2", true},
        {(void **)&n->pci, "nvmlDeviceGetPciInfo_v3", false},
        {(void **)&n->mig_mode, "nvmlDeviceGetMigMode", false},
        {(void **)&n->mig_count, "nvmlDeviceGetMaxMigDeviceCount", false},
        {(void **)&n->mig_by_index, "nvmlDeviceGetMigDeviceHandleByIndex", false},
        {(void **)&n->process_name, "nvmlSystemGetProcessName", false},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].slot = dlsym(n->library, wanted[i].name);
        if (!*wanted[i].slot && wanted[i].needed) {
            snprintf(why, why_size, "NVIDIA driver too old: libnvidia-ml.so.1 lacks %s", wanted[i].name);
            return false;
        }
    }
    return true;
}

/* Open and initialize the library; false with the reason. */
static bool load(struct nvml *n, char *why, size_t why_size)
{
    n->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!n->library) {
        snprintf(why, why_size, "no NVIDIA driver: %s", dlerror());
        return false;
    }
    int rc = 0;
    if (find_symbols(n, why, why_size) && (rc = n->init()) == 0)
        return true;
    if (rc)
        snprintf(why, why_size, "NVIDIA driver: %s", n->error(rc));
    dlclose(n->library);
    return false;
}

status_t nvml_open(const char *uuid, int index, struct nvml **out)
{
    char         why[512];
    status_t     st;
    struct nvml *n = calloc(1, sizeof *n);
    if (!n)
        return FAIL(ST_ENOMEM, "no host memory for NVML");
    if (!load(n, why, sizeof why)) {
        free(n);
        return FAIL(ST_EUNSUPPORTED, "%s", why);
    }
    int rc = uuid ? n->by_uuid(uuid, &n->device) : n->by_index((unsigned)index, &n->device);
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

/* Append one device; a handle that tells no UUID is no device to measure on. */
static int add_gpu(const struct nvml *n, void *device, int card, const char *bus_id, struct nvml_gpu *out)
{
    struct raw_memory memory = {0};
    memset(out, 0, sizeof *out);
    if (n->uuid(device, out->uuid, NVML_TEXT) != 0)
        return 0;
    if (n->name(device, out->name, NVML_TEXT) != 0)
        snprintf(out->name, sizeof out->name, "unknown");
    if (n->memory(device, &memory) == 0)
        out->memory_bytes = memory.total;
    snprintf(out->bus_id, sizeof out->bus_id, "%s", bus_id);
    out->card = card;
    return 1;
}

static bool is_divided(const struct nvml *n, void *device)
{
    unsigned now = 0, later = 0;
    return n->mig_mode && n->mig_count && n->mig_by_index && n->mig_mode(device, &now, &later) == 0 && now == 1;
}

int nvml_list(struct nvml_gpu *out, int most, char *why, size_t why_size)
{
    struct nvml n = {0};
    unsigned    cards = 0;
    int         found = 0, rc;
    if (why_size)
        why[0] = '\0';
    if (!load(&n, why, why_size))
        return 0;
    rc = n.count(&cards);
    for (unsigned c = 0; rc == 0 && c < cards && found < most; c++) {
        void          *card, *instance;
        unsigned       instances = 0;
        struct raw_pci pci = {.bus_id = ""};
        if (n.by_index(c, &card) != 0)
            continue; /* lost, or not ours to see */
        if (!n.pci || n.pci(card, &pci) != 0)
            pci.bus_id[0] = '\0';
        pci.bus_id[sizeof pci.bus_id - 1] = '\0';
        if (!is_divided(&n, card)) {
            found += add_gpu(&n, card, (int)c, pci.bus_id, &out[found]);
            continue;
        }
        if (n.mig_count(card, &instances) != 0)
            continue;
        for (unsigned i = 0; i < instances && found < most; i++)
            if (n.mig_by_index(card, i, &instance) == 0)
                found += add_gpu(&n, instance, (int)c, pci.bus_id, &out[found]);
    }
    if (rc != 0)
        snprintf(why, why_size, "NVIDIA driver: %s", n.error(rc));
    else if (!found)
        snprintf(why, why_size, "the NVIDIA driver sees no usable GPU");
    n.shutdown();
    dlclose(n.library);
    return found;
}

void nvml_process_name(const struct nvml *n, unsigned pid, char *out, unsigned size)
{
    out[0] = '\0';
    if (!n->process_name || n->process_name(pid, out, size) != 0)
        out[0] = '\0';
    out[size - 1] = '\0';
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
    int major = 0, minor = 0, version = 0;
    out->capability   = n->capability && n->capability(n->device, &major, &minor) == 0 ? major * 10 + minor : -1;
    out->cuda_version = n->cuda_version && n->cuda_version(&version) == 0 ? version : -1;
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
