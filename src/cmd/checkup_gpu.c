/* checkup_gpu.c — the NVIDIA driver, the cards and the libraries that are opened at run time. No CUDA context is made.
 */
#include "cmd/checkup.h"

#include "backend/nvml.h"
#include "base/log.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Set by the Makefile: the architectures compiled in ("sm_80 sm_90") and the toolkit ("13.0"); "" without CUDA. */
#ifndef QSWEEP_CUDA_ARCH
#define QSWEEP_CUDA_ARCH ""
#endif
#ifndef QSWEEP_CUDA_VERSION
#define QSWEEP_CUDA_VERSION ""
#endif

enum { CARDS_MAX = 64, PROCESSES_MAX = 32, VENDOR_NVIDIA = 0x10de };

/* Display controllers of NVIDIA on the PCI bus, driver or not; −1 when the bus cannot be read (as in some containers).
 */
static int cards_on_bus(void)
{
    DIR *d = opendir("/sys/bus/pci/devices");
    int  n = 0;
    if (!d)
        return -1;
    for (struct dirent *e; (e = readdir(d));) {
        char     path[512];
        unsigned vendor = 0, class = 0;
        FILE    *f;
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%.200s/vendor", e->d_name);
        if ((f = fopen(path, "re"))) {
            if (fscanf(f, "%x", &vendor) != 1)
                vendor = 0;
            fclose(f);
        }
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%.200s/class", e->d_name);
        if ((f = fopen(path, "re"))) {
            if (fscanf(f, "%x", &class) != 1)
                class = 0;
            fclose(f);
        }
        n += vendor == VENDOR_NVIDIA && class >> 16 == 3;
    }
    closedir(d);
    return n;
}

/* May code compiled for `arches` run on sm_<capability>? Binary code runs on a later card of the same generation; the
 * PTX of the last architecture is compiled by the driver for any later one. "sm_90a" code runs on 9.0 alone. */
static bool runs_on(const char *arches, int capability, bool *just_in_time)
{
    bool binary = false;
    int  last = 0;
    for (const char *at = arches; (at = strstr(at, "sm_"));) {
        char *end;
        int   arch = (int)strtol(at + 3, &end, 10);
        bool  only = *end == 'a' || *end == 'f';
        binary = binary || (only ? arch == capability : arch / 10 == capability / 10 && arch <= capability);
        last = arch;
        at = end;
    }
    *just_in_time = !binary && last > 0 && last <= capability;
    return binary || *just_in_time;
}

static void check_architecture(struct checkup *c, const struct wish *wish, const struct nvml_identity *id, int index)
{
    bool just_in_time = false;
    int  capability = id->capability;
    if (!QSWEEP_CUDA_ARCH[0])
        return; /* said once by check_build */
    if (capability < 0) {
        checkup_add(c, "gpu-architecture", FOUND_WARN, "cuda:%d does not tell its compute capability", index);
        return;
    }
    if (!runs_on(QSWEEP_CUDA_ARCH, capability, &just_in_time))
        finding_remedy(checkup_add(c, "gpu-architecture", wish->gpu ? FOUND_FAIL : FOUND_WARN,
                                   "cuda:%d is sm_%d; this program has code for %s", index, capability,
                                   QSWEEP_CUDA_ARCH),
                       "make CUDA_ARCH=sm_%d (or `make release`, which builds for every card we support)", capability);
    else if (just_in_time)
        finding_remedy(checkup_add(c, "gpu-architecture", FOUND_WARN,
                                   "cuda:%d is sm_%d; only PTX fits (%s), which the driver compiles at the first start",
                                   index, capability, QSWEEP_CUDA_ARCH),
                       "make CUDA_ARCH=sm_%d", capability);
    else
        checkup_add(c, "gpu-architecture", FOUND_OK, "cuda:%d is sm_%d; this program has code for %s", index,
                    capability, QSWEEP_CUDA_ARCH);
}

static void process_name(unsigned pid, char *out, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    FILE *f = fopen(path, "re");
    if (!f || !fgets(out, (int)size, f))
        snprintf(out, size, "of another container");
    out[strcspn(out, "\n")] = '\0';
    if (f)
        fclose(f);
}

static void check_empty(struct checkup *c, const struct nvml *n, const struct nvml_memory *m, int index)
{
    struct nvml_process list[PROCESSES_MAX];
    int                 count = nvml_processes(n, list, PROCESSES_MAX);
    char                who[300];
    size_t              at = 0;
    /* The driver itself keeps some hundred megabytes on the large cards. */
    const uint64_t      reserved = m->v2_reserved == NVML_UNKNOWN ? 0 : m->v2_reserved;
    const double        used_mb = m->v2_used != NVML_UNKNOWN   ? (double)m->v2_used * 1e-6
                                  : m->v1_used != NVML_UNKNOWN ? (double)(m->v1_used - reserved) * 1e-6
                                                               : 0;
    who[0] = '\0';
    for (int i = 0; i < count && i < PROCESSES_MAX && at + 64 < sizeof who; i++) {
        char name[40];
        process_name(list[i].pid, name, sizeof name);
        at += (size_t)snprintf(who + at, sizeof who - at, "%s%u (%s)", at ? ", " : "", list[i].pid, name);
    }
    if (count > 0)
        finding_remedy(
            checkup_add(c, "gpu-empty", FOUND_WARN, "cuda:%d is used by process %s; %.0f MB taken", index, who,
                        used_mb),
            "wait for them, or ask their owner; choose another card with CUDA_VISIBLE_DEVICES (qsweep ends nothing "
            "that it did not start)");
    else if (used_mb > 1000)
        finding_remedy(
            checkup_add(c, "gpu-empty", FOUND_WARN, "cuda:%d has %.0f MB in use by nobody we can see", index, used_mb),
            "nvidia-smi on the host: a container does not see other containers' processes");
    else
        checkup_add(c, "gpu-empty", FOUND_OK, "cuda:%d: no other process, %.0f MB in use", index, used_mb);
}

static void check_card(struct checkup *c, const struct wish *wish, const struct nvml *n, int index)
{
    struct nvml_identity id;
    struct nvml_memory   m;
    nvml_identity(n, &id);
    nvml_memory(n, &m);
    checkup_add(c, "gpu", FOUND_OK, "cuda:%d %s, %.1f GB, ECC %s, %s", index, id.name,
                m.v1_total == NVML_UNKNOWN ? 0.0 : (double)m.v1_total * 1e-9,
                id.ecc < 0 ? "unknown"
                : id.ecc   ? "on"
                           : "off",
                id.uuid);
    check_architecture(c, wish, &id, index);
    check_empty(c, n, &m, index);
    if (wish->model_bytes > 0 && m.v1_free != NVML_UNKNOWN && (uint64_t)wish->model_bytes > m.v1_free)
        finding_remedy(checkup_add(c, "gpu-memory", FOUND_WARN,
                                   "cuda:%d has %.1f GB free, the weight files are %.1f GB", index,
                                   (double)m.v1_free * 1e-9, (double)wish->model_bytes * 1e-9),
                       "qsweep inspect %s (predicted memory per precision)", wish->model);
}

static void check_driver(struct checkup *c, const struct wish *wish, const struct nvml_identity *id)
{
    int need_major = atoi(QSWEEP_CUDA_VERSION), has = id->cuda_version;
    if (has < 0 || !QSWEEP_CUDA_VERSION[0]) {
        checkup_add(c, "nvidia-driver", FOUND_OK, "%s", id->driver);
        return;
    }
    /* Within a major version an older driver runs newer code (NVIDIA, CUDA compatibility); across majors it does not.
     */
    if (has / 1000 < need_major)
        finding_remedy(checkup_add(c, "nvidia-driver", wish->gpu ? FOUND_FAIL : FOUND_WARN,
                                   "driver %s speaks CUDA %d.%d; this program was built with CUDA %s", id->driver,
                                   has / 1000, has % 1000 / 10, QSWEEP_CUDA_VERSION),
                       need_major == 13 ? "install driver 580 or newer, or build with the CUDA toolkit %d"
                                        : "install a newer driver, or build with the CUDA toolkit %d",
                       has / 1000);
    else
        checkup_add(c, "nvidia-driver", FOUND_OK, "driver %s speaks CUDA %d.%d (built with %s)", id->driver, has / 1000,
                    has % 1000 / 10, QSWEEP_CUDA_VERSION);
}

/* Open the first of the names; what it says of itself into version. */
static void *open_any(const char *const *names, const char **opened)
{
    for (; *names; names++) {
        void *library = dlopen(*names, RTLD_NOW | RTLD_LOCAL);
        if (library) {
            *opened = *names;
            return library;
        }
    }
    return NULL;
}

static void check_libraries(struct checkup *c, bool cards)
{
    static const char *const blas[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so", NULL};
    static const char *const nccl[] = {"libnccl.so.2", "libnccl.so", NULL};
    const char              *name = "";
    void                    *library = open_any(blas, &name);
    const enum verdict_word  missing = cards ? FOUND_WARN : FOUND_ABSENT;
    if (library) {
        checkup_add(c, "cublas", FOUND_OK, "%s opens", name);
        dlclose(library);
    } else {
        finding_remedy(
            checkup_add(c, "cublas", missing, "not found: long prompts and large batches use our own kernels"),
            "pip install nvidia-cublas; export LD_LIBRARY_PATH=$(python3 -c 'import nvidia, glob; "
            "print(\":\".join(glob.glob(nvidia.__path__[0] + \"/*/lib\")))')");
    }
    library = open_any(nccl, &name);
    if (library) {
        int version = 0;
        int (*get_version)(int *);
        *(void **)&get_version = dlsym(library, "ncclGetVersion");
        if (get_version)
            get_version(&version);
        checkup_add(c, "nccl", FOUND_OK, "%s, version %d.%d.%d", name, version / 10000, version / 100 % 100,
                    version % 100);
        dlclose(library);
    } else {
        finding_remedy(
            checkup_add(c, "nccl", FOUND_ABSENT, "not found: only weights spread over several GPUs would use it"),
            "pip install nvidia-nccl-cu%s", QSWEEP_CUDA_VERSION[0] ? "13" : "12");
    }
}

void checkup_gpu(struct checkup *c, const struct wish *wish)
{
    enum log_level level = log_get_level();
    struct nvml   *n = NULL;
    int            cards = 0;
    if (!QSWEEP_CUDA_ARCH[0])
        finding_remedy(
            checkup_add(c, "cuda-build", wish->gpu ? FOUND_FAIL : FOUND_ABSENT, "this program was built without CUDA"),
            "install the CUDA toolkit (nvcc) and make again");
    else
        checkup_add(c, "cuda-build", FOUND_OK, "CUDA %s for %s", QSWEEP_CUDA_VERSION, QSWEEP_CUDA_ARCH);
    log_set_level(LOG_NONE); /* the reasons go into the findings */
    for (; cards < CARDS_MAX && nvml_open(NULL, cards, &n) == ST_OK; cards++) {
        struct nvml_identity id;
        nvml_identity(n, &id);
        if (cards == 0)
            check_driver(c, wish, &id);
        check_card(c, wish, n, cards);
        nvml_close(n);
    }
    log_set_level(level);
    if (cards == 0) {
        int                     on_bus = cards_on_bus();
        const enum verdict_word word = wish->gpu ? FOUND_FAIL : on_bus > 0 ? FOUND_WARN : FOUND_ABSENT;
        struct finding         *f = checkup_add(c, "nvidia-driver", word, "%s", status_last());
        if (on_bus > 0)
            finding_remedy(
                f, "an NVIDIA card is on the bus: install its driver (580 or newer), or docker run --gpus all with the "
                   "NVIDIA container toolkit");
        else if (wish->gpu)
            finding_remedy(f, "run on a machine with an NVIDIA card, or in a container started with --gpus all");
    }
    check_libraries(c, cards > 0);
}
