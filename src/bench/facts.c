/* facts.c — reads /proc, /sys, uname and the environment for provenance. */
#include "bench/facts.h"

#include "base/clock.h"
#include "base/cores.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#ifndef QSWEEP_GIT
#define QSWEEP_GIT "unknown"
#endif

/* First line of a small file without its newline; false when it cannot be read or is empty. */
static bool first_line(const char *path, char *out, int size)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool good = fgets(out, size, f) != NULL;
    fclose(f);
    if (good)
        out[strcspn(out, "\n")] = '\0';
    return good && out[0];
}

/* Value of the first line "key<blanks>separator<blanks>value"; false when there is none. */
static bool line_of(const char *path, const char *key, char separator, char *out, size_t size)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    char   line[2048];
    bool   found = false;
    size_t n = strlen(key);
    while (!found && fgets(line, sizeof line, f)) {
        if (strncmp(line, key, n) != 0)
            continue;
        char *at = line + n;
        at += strspn(at, " \t");
        if (*at != separator)
            continue;
        at++;
        at += strspn(at, " \t\"");
        at[strcspn(at, "\"\n")] = '\0';
        snprintf(out, size, "%s", at);
        found = true;
    }
    fclose(f);
    return found;
}

static status_t add_number(struct result *r, const char *key, long long value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", value);
    return result_add_fact(r, key, text);
}

static const char *isa(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return __builtin_cpu_supports("avx512vnni") ? "avx512 (f, bw, vl, vnni)" : "avx512 (f, bw, vl)";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "avx2+fma";
    return "x86-64";
#elif defined(__aarch64__)
    return "aarch64 (neon)";
#else
    return "portable";
#endif
}

static status_t add_program(struct result *r)
{
    TRY(result_add_fact(r, "program", "qsweep " QSWEEP_VERSION));
    TRY(result_add_fact(r, "git", QSWEEP_GIT));
#if defined(__clang__)
    TRY(result_add_fact(r, "compiler", "clang " __clang_version__));
#else
    TRY(result_add_fact(r, "compiler", "gcc " __VERSION__));
#endif
    return result_add_fact(r, "isa", isa());
}

static status_t add_processor(struct result *r)
{
    char text[512];
    if (line_of("/proc/cpuinfo", "model name", ':', text, sizeof text) ||
        line_of("/proc/cpuinfo", "CPU part", ':', text, sizeof text))
        TRY(result_add_fact(r, "cpu_model", text));
    if (line_of("/proc/cpuinfo", "microcode", ':', text, sizeof text))
        TRY(result_add_fact(r, "microcode", text));
    TRY(add_number(r, "cpu_count", sysconf(_SC_NPROCESSORS_ONLN)));
    struct cores *own = malloc(sizeof *own);
    if (own && cores_of_process(0, own) == ST_OK) {
        cores_text(own, text, sizeof text);
        status_t st = result_add_fact(r, "cores", text);
        if (st == ST_OK)
            st = add_number(r, "core_count", own->n);
        free(own);
        return st;
    }
    free(own);
    return ST_OK;
}

static status_t add_file(struct result *r, const char *key, const char *path)
{
    char text[512];
    return first_line(path, text, sizeof text) ? result_add_fact(r, key, text) : ST_OK;
}

status_t facts_host(struct result *r)
{
    char           text[512];
    struct utsname u;
    TRY(add_program(r));
    if (uname(&u) == 0) {
        TRY(result_add_fact(r, "host", u.nodename));
        snprintf(text, sizeof text, "%s %s %s", u.sysname, u.release, u.machine);
        TRY(result_add_fact(r, "kernel", text));
    }
    if (line_of("/etc/os-release", "PRETTY_NAME", '=', text, sizeof text))
        TRY(result_add_fact(r, "os", text));
    TRY(add_processor(r));
    TRY(add_number(r, "ram_bytes", (long long)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE)));
    TRY(add_number(r, "page_bytes", sysconf(_SC_PAGESIZE)));
    TRY(add_file(r, "numa_nodes", "/sys/devices/system/node/online"));
    TRY(add_file(r, "governor", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
    TRY(add_file(r, "transparent_hugepages", "/sys/kernel/mm/transparent_hugepage/enabled"));
    TRY(add_file(r, "boot_id", "/proc/sys/kernel/random/boot_id"));
    clock_iso(text, sizeof text);
    return result_add_fact(r, "started", text);
}

status_t facts_job(struct result *r)
{
    static const char *const names[] = {
        "SLURM_JOB_ID",         "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",  "SLURM_RESTART_COUNT",
        "SLURM_CLUSTER_NAME",   "SLURM_JOB_NODELIST", "SLURM_JOB_PARTITION",  "SLURM_PROCID",
        "SLURM_LOCALID",        "SLURM_NODEID",       "SLURM_STEP_ID",        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE",     "CUDA_VISIBLE_DEVICES",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *value = getenv(names[i]);
        if (!value)
            continue;
        char key[64];
        for (size_t k = 0; k < sizeof key; k++) {
            key[k] = (char)tolower((unsigned char)names[i][k]);
            if (!key[k])
                break;
        }
        TRY(result_add_fact(r, key, value));
    }
    return ST_OK;
}

char *facts_command(int argc, char *const *argv)
{
    size_t size = 1;
    for (int i = 0; i < argc; i++)
        size += 4 * strlen(argv[i]) + 3;
    char *text = malloc(size), *at = text;
    for (int i = 0; text && i < argc; i++) {
        bool plain = argv[i][0] != '\0';
        for (const char *c = argv[i]; *c; c++)
            plain = plain && (isalnum((unsigned char)*c) || strchr("-_./=,:+@%", *c) || (unsigned char)*c >= 0x80);
        if (i)
            *at++ = ' ';
        if (!plain)
            *at++ = '\'';
        for (const char *c = argv[i]; *c; c++) {
            if (*c == '\'') {
                memcpy(at, "'\\''", 4);
                at += 4;
            } else {
                *at++ = *c;
            }
        }
        if (!plain)
            *at++ = '\'';
    }
    if (text)
        *at = '\0';
    return text;
}

void cpu_time_read(struct cpu_time *out)
{
    *out = (struct cpu_time){NAN, NAN};
    char               line[512];
    unsigned long long user, nice_, system, idle, iowait, irq, softirq, steal;
    /* proc(5): user nice system idle iowait irq softirq steal, in clock ticks; steal is the hypervisor's other guests.
     */
    if (first_line("/proc/stat", line, sizeof line) &&
        sscanf(line, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice_, &system, &idle, &iowait, &irq,
               &softirq, &steal) == 8)
        out->host_busy_s = (double)(user + nice_ + system + irq + softirq + steal) / (double)sysconf(_SC_CLK_TCK);
    struct rusage u;
    if (getrusage(RUSAGE_SELF, &u) == 0)
        out->own_s =
            (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

double cpu_time_others(const struct cpu_time *from, const struct cpu_time *to)
{
    double others = (to->host_busy_s - from->host_busy_s) - (to->own_s - from->own_s);
    return others < 0 ? 0 : others;
}
