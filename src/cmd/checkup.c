#include "cmd/checkup.h"

#include "backend/cpu_kernels.h"
#include "backend/cpu_topology.h"
#include "base/clock.h"
#include "base/log.h"
#include "checkpoint/checkpoint.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

const char *found_name(enum verdict_word w)
{
    static const char *const names[FOUND_COUNT] = {"ok", "warn", "fail", "absent"};
    return names[w];
}

struct finding *checkup_add(struct checkup *c, const char *name, enum verdict_word word, const char *fmt, ...)
{
    struct finding *f = &c->all[c->n < FINDINGS_MAX ? c->n++ : FINDINGS_MAX - 1];
    va_list         args;
    *f = (struct finding){.name = name, .word = word};
    va_start(args, fmt);
    vsnprintf(f->seen, sizeof f->seen, fmt, args);
    va_end(args);
    return f;
}

void finding_remedy(struct finding *f, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(f->remedy, sizeof f->remedy, fmt, args);
    va_end(args);
}

bool checkup_which(const char *program, char *out, int size)
{
    const char *path = getenv("PATH");
    for (const char *at = path ? path : "/usr/bin:/bin"; *at;) {
        int n = (int)strcspn(at, ":");
        int k = snprintf(out, (size_t)size, "%.*s/%s", n, at, program);
        if (n > 0 && k < size && access(out, X_OK) == 0)
            return true;
        at += n + (at[n] == ':');
    }
    out[0] = '\0';
    return false;
}

void checkup_own_folder(char *out, int size)
{
    ssize_t n = readlink("/proc/self/exe", out, (size_t)size - 1);
    if (n <= 0) {
        snprintf(out, (size_t)size, ".");
        return;
    }
    out[n] = '\0';
    char *slash = strrchr(out, '/');
    if (slash)
        *slash = '\0';
}

int checkup_command(const char *command, char *out, int size)
{
    out[0] = '\0';
    FILE *f = popen(command, "r");
    if (!f)
        return -1;
    if (!fgets(out, size, f))
        out[0] = '\0';
    out[strcspn(out, "\r\n")] = '\0';
    for (char rest[512]; fgets(rest, sizeof rest, f);) /* read to the end, or the writer dies of SIGPIPE */
        continue;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool first_line(const char *path, char *out, int size)
{
    FILE *f = fopen(path, "re");
    bool  good = f && fgets(out, size, f);
    if (f)
        fclose(f);
    if (good)
        out[strcspn(out, "\n")] = '\0';
    return good && out[0];
}

/* Sum of the files of a folder whose names are those of weights. */
static long long weight_bytes(const char *dir)
{
    long long sum = 0;
    DIR      *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        const char *dot = strrchr(e->d_name, '.');
        struct stat s;
        char        path[4096];
        if (dot && (!strcmp(dot, ".pth") || !strcmp(dot, ".safetensors")) &&
            snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < (int)sizeof path && stat(path, &s) == 0)
            sum += s.st_size;
    }
    if (d)
        closedir(d);
    return sum;
}

void checkup_model(struct checkup *c, struct wish *wish)
{
    if (!wish->model)
        return;
    struct checkpoint *ckpt = NULL;
    enum log_level     level = log_get_level();
    log_set_level(LOG_NONE); /* the reason goes into the finding */
    status_t st = checkpoint_open(wish->model, &ckpt);
    log_set_level(level);
    if (st != ST_OK) {
        finding_remedy(checkup_add(c, "model", FOUND_FAIL, "%s", status_last()),
                       "give a folder with config.json, model.pth or model.safetensors and the tokenizer's files; "
                       "`qsweep synth DIR "
                       "--shape s1-nano` makes one");
        return;
    }
    checkpoint_close(ckpt);
    wish->model_bytes = weight_bytes(wish->model);
    checkup_add(c, "model", FOUND_OK, "%s opens, %.2f GB of weight files", wish->model,
                (double)wish->model_bytes * 1e-9);
}

static void check_clock(struct checkup *c)
{
    char source[64];
    enum { READS = 10000 };
    uint64_t t0 = clock_ns();
    for (int i = 0; i < READS; i++)
        clock_ns();
    double ns = (double)(clock_ns() - t0) / READS;
    if (!first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", source, sizeof source))
        snprintf(source, sizeof source, "unknown");
    /* A read through the vDSO costs 20 to 50 ns; one that enters the kernel or asks the HPET costs a microsecond. */
    bool            slow = ns > 500;
    struct finding *f =
        checkup_add(c, "clock", slow ? FOUND_WARN : FOUND_OK, "clock source %s, %.0f ns a reading", source, ns);
    if (slow)
        finding_remedy(
            f, "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource (a reading that "
               "enters the kernel blurs steps of microseconds)");
}

static void check_governor(struct checkup *c)
{
    char governor[64];
    if (!first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", governor, sizeof governor))
        return; /* virtual machines have none */
    bool            fixed = strcmp(governor, "performance") == 0;
    struct finding *f = checkup_add(c, "cpu-governor", fixed ? FOUND_OK : FOUND_WARN, "%s", governor);
    if (!fixed)
        finding_remedy(f,
                       "sudo cpupower frequency-set -g performance (clocks that move add noise to CPU measurements)");
}

static void check_memory(struct checkup *c, const struct cpu_topology *t)
{
    char   line[128];
    double available = -1;
    FILE  *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lf kB", &available) == 1)
            break;
    if (f)
        fclose(f);
    char limit[64] = "";
    if (t->memory_limit > 0)
        snprintf(limit, sizeof limit, ", the control group allows %.1f GB", (double)t->memory_limit * 1e-9);
    checkup_add(c, "memory", FOUND_OK, "%.1f GB installed, %.1f GB available%s", (double)t->memory_bytes * 1e-9,
                available * 1024e-9, limit);
}

static void check_limits(struct checkup *c)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
        /* A rank keeps a few descriptors for each of its workers and one for each cell file being merged. */
        bool            low = r.rlim_cur != RLIM_INFINITY && r.rlim_cur < 1024;
        struct finding *f = checkup_add(c, "open-files", low ? FOUND_WARN : FOUND_OK, "ulimit -n is %lld",
                                        r.rlim_cur == RLIM_INFINITY ? -1LL : (long long)r.rlim_cur);
        if (low)
            finding_remedy(f, "ulimit -n 4096");
    }
    if (getrlimit(RLIMIT_MEMLOCK, &r) == 0) {
        if (r.rlim_cur == RLIM_INFINITY)
            checkup_add(c, "locked-memory", FOUND_OK, "ulimit -l is unlimited");
        else if (r.rlim_cur >= 64u << 20)
            checkup_add(c, "locked-memory", FOUND_OK, "ulimit -l is %lld MB", (long long)(r.rlim_cur >> 20));
        else
            finding_remedy(
                checkup_add(c, "locked-memory", FOUND_WARN, "ulimit -l is %lld kB", (long long)(r.rlim_cur >> 10)),
                "ulimit -l unlimited (in /etc/security/limits.conf, or docker run --ulimit memlock=-1): InfiniBand and "
                "NCCL register memory; runs on one machine do without");
    }
}

void checkup_cpu(struct checkup *c)
{
    const struct cpu_topology *t = cpu_topology_get();
    const struct cpu_kernels  *used = cpu_kernels_find(NULL);
    char                       quota[64] = "";
    if (t->quota > 0)
        snprintf(quota, sizeof quota, ", the control group grants %.2f CPUs", t->quota);
    checkup_add(c, "cpu", FOUND_OK, "%s: %d thread%s by default, %d CPU%s allowed%s", t->model, t->n_cores,
                t->n_cores == 1 ? "" : "s", t->n_allowed, t->n_allowed == 1 ? "" : "s", quota);
    if (!used)
        finding_remedy(
            checkup_add(c, "cpu-kernels", FOUND_FAIL, "QSWEEP_CPU=%s: no such kernels here", getenv("QSWEEP_CPU")),
            "unset QSWEEP_CPU");
#if defined(__x86_64__)
    else if (strcmp(used->name, "portable") == 0)
        finding_remedy(checkup_add(c, "cpu-kernels", FOUND_WARN,
                                   "portable: this processor has neither AVX2+FMA nor AVX-512, or "
                                   "QSWEEP_CPU asks for it"),
                       "unset QSWEEP_CPU, or measure on a processor with AVX2");
#endif
    else
        checkup_add(c, "cpu-kernels", FOUND_OK, "%s", used->name);
    if (t->quota > 0 && t->quota < 1)
        finding_remedy(
            checkup_add(c, "cpu-quota", FOUND_WARN, "less than one CPU (%.2f): steps will be throttled", t->quota),
            "raise the control group's cpu.max (docker run --cpus 2)");
    check_memory(c, t);
    check_clock(c);
    check_governor(c);
    check_limits(c);
}
