/* devices.c — `qsweep devices`: what this machine can measure on, and what keeps it from more. */
#include "backend/cpu_kernels.h"
#include "backend/cpu_topology.h"
#include "backend/nvml.h"
#include "cmd/command.h"

#include "base/status.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help_text[] =
    "usage: qsweep devices [-o text|json]\n"
    "\n"
    "What is here: the processor as this process may use it (cores its affinity mask and its control\n"
    "group allow, vector instructions, memory), and the GPUs, or why there are none.\n"
    "\n"
    "  -o, --output text|json   default text\n"
    "\n"
    "QSWEEP_CPU=portable|avx2|avx512 makes every command use those CPU kernels.\n"
    "\n"
    "examples\n"
    "  qsweep devices\n"
    "  taskset -c 0-3 qsweep devices -o json\n";

enum { GPUS_MAX = 64 };

struct gpus {
    struct nvml_gpu all[GPUS_MAX];
    int             n;
    char            reason[512]; /* why there are none, "" otherwise */
};

static void probe_gpus(struct gpus *out)
{
    *out = (struct gpus){.n = 0};
    out->n = nvml_list(out->all, GPUS_MAX, out->reason, sizeof out->reason);
}

static const char *const kernel_names[] = {"avx512", "avx2", "portable"};

static void print_text(const struct cpu_topology *t, const struct cpu_kernels *used, const struct gpus *gpus)
{
    printf("cpu      %s\n", t->model);
    printf("cores    %d thread%s by default, %d logical CPU%s allowed", t->n_cores, t->n_cores == 1 ? "" : "s", t->n_allowed,
           t->n_allowed == 1 ? "" : "s");
    if (t->quota > 0)
        printf(", control group grants %.2f CPUs", t->quota);
    printf("\nkernels  %s (here:", used->name);
    for (size_t i = 0; i < sizeof kernel_names / sizeof *kernel_names; i++)
        if (cpu_kernels_find(kernel_names[i]))
            printf(" %s", kernel_names[i]);
    printf(")\nmemory   %.1f GB", (double)t->memory_bytes * 1e-9);
    if (t->memory_limit > 0)
        printf(", control group allows %.1f GB", (double)t->memory_limit * 1e-9);
    putchar('\n');
    for (int i = 0; i < gpus->n; i++)
        printf("cuda:%-3d %s, %.1f GB, %s\n", i, gpus->all[i].name, (double)gpus->all[i].memory_bytes * 1e-9,
               gpus->all[i].uuid);
    if (gpus->n == 0)
        printf("gpu      none; %s\n", gpus->reason);
}

static status_t print_json(const struct cpu_topology *t, const struct cpu_kernels *used, const struct gpus *gpus)
{
    json_t *kernels = json_array(), *cards = json_array();
    for (size_t i = 0; i < sizeof kernel_names / sizeof *kernel_names; i++)
        if (cpu_kernels_find(kernel_names[i]))
            json_array_append_new(kernels, json_string(kernel_names[i]));
    for (int i = 0; i < gpus->n; i++)
        json_array_append_new(cards, json_pack("{s:i, s:s, s:s, s:I}", "index", i, "name", gpus->all[i].name, "uuid",
                                               gpus->all[i].uuid, "memory_bytes", (json_int_t)gpus->all[i].memory_bytes));
    json_t *root = json_pack("{s:{s:s%, s:i, s:i, s:f, s:s, s:o, s:I, s:I}, s:o, s:s}", "cpu", "model", t->model,
                             strlen(t->model), "threads", t->n_cores, "allowed_cpus", t->n_allowed, "quota_cpus", t->quota,
                             "kernels", used->name, "available_kernels", kernels, "memory_bytes",
                             (json_int_t)t->memory_bytes, "memory_limit_bytes", (json_int_t)t->memory_limit, "gpus", cards,
                             "gpu_reason", gpus->reason);
    status_t st = root && json_dumpf(root, stdout, JSON_INDENT(2)) == 0 && putchar('\n') != EOF
                      ? ST_OK
                      : FAIL(ST_EIO, "standard output: the JSON could not be written");
    json_decref(root);
    return st;
}

static status_t devices(int argc, char **argv)
{
    static const struct option options[] = {{"output", required_argument, NULL, 'o'}, {0}};
    bool                       json = false;
    for (int c; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;) {
        if (c != 'o')
            return FAIL(ST_EUSAGE, "`qsweep help devices` lists the options");
        if (strcmp(optarg, "json") != 0 && strcmp(optarg, "text") != 0)
            return FAIL(ST_EUSAGE, "-o %.40s: want text or json", optarg);
        json = strcmp(optarg, "json") == 0;
    }
    if (optind != argc)
        return FAIL(ST_EUSAGE, "devices takes no \"%.100s\"; usage: qsweep devices [-o text|json]", argv[optind]);
    const struct cpu_kernels *used = cpu_kernels_find(NULL);
    if (!used)
        return FAIL(ST_EUSAGE, "QSWEEP_CPU=%s: this machine or build has no such kernels", getenv("QSWEEP_CPU"));
    struct gpus *gpus = malloc(sizeof *gpus);
    if (!gpus)
        return FAIL(ST_ENOMEM, "no host memory for the list of GPUs");
    probe_gpus(gpus);
    status_t st = ST_OK;
    if (json)
        st = print_json(cpu_topology_get(), used, gpus);
    else
        print_text(cpu_topology_get(), used, gpus);
    free(gpus);
    if (st == ST_OK && fflush(stdout) != 0)
        st = FAIL(ST_EIO, "standard output: %s", strerror(errno));
    return st;
}

static int run(int argc, char **argv)
{
    return status_exit(devices(argc, argv));
}

const struct command command_devices = {
    .name = "devices", .summary = "what this machine can measure on", .help = help_text, .run = run};
