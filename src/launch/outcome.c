#include "launch/outcome.h"

#include "base/file.h"
#include "store/cell_file.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static status_t set_failure(struct result *r, enum cell_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static status_t set_failure(struct result *r, enum cell_status status, const char *fmt, ...)
{
    char    text[1400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    r->status = status;
    return result_set_reason(r, text);
}

void outcome_last_words(const char *log, char *out, size_t size)
{
    const char *end = log ? log + strlen(log) : NULL;
    while (end && end > log && (end[-1] == '\n' || end[-1] == ' '))
        end--;
    const char *start = end;
    while (start && start > log && start[-1] != '\n')
        start--;
    if (start && strncmp(start, "error: ", 7) == 0)
        start += 7;
    snprintf(out, size, "%.*s", start ? (int)(end - start) : 0, start ? start : "");
}

/* Why a worker ended that left no result of its own. */
static status_t explain(const struct work *work, const struct spawn_result *end, const char *why, struct result *r)
{
    char   words[600];
    double life_s = (double)(end->end_ns - end->exec_ns) * 1e-9;
    outcome_last_words(end->log, words, sizeof words);
    switch (end->end) {
    case SPAWN_DEADLINE:
        return set_failure(r, CELL_TIMEOUT, "no result within the deadline of %g s; ended by %s after %.1f s",
                           work->cell.deadline_s, end->signal == SIGKILL ? "SIGKILL" : "SIGTERM", life_s);
    case SPAWN_DROPPED:
        return set_failure(r, CELL_INTERRUPTED, "%s", why[0] ? why : "dropped by the launcher");
    case SPAWN_UNKILLABLE:
        return set_failure(r, CELL_CRASHED, "did not die of SIGKILL (stuck in the kernel); left behind after %.1f s",
                           life_s);
    default:
        break;
    }
    if (end->signal == SIGKILL && end->oom_kill == 2)
        return set_failure(r, CELL_OOM,
                           "killed by the kernel's out-of-memory killer (memory cgroup of this job); largest "
                           "resident set %ld MB",
                           end->max_rss_kib / 1000 * 1024 / 1000);
    if (end->signal == SIGKILL && end->oom_kill == 1)
        return set_failure(r, CELL_OOM,
                           "killed by SIGKILL while the host's out-of-memory killer was at work; largest resident "
                           "set %ld MB",
                           end->max_rss_kib / 1000 * 1024 / 1000);
    if (end->signal)
        return set_failure(r, CELL_CRASHED, "killed by signal %d (%s) after %.1f s%s%s", end->signal,
                           strsignal(end->signal), life_s, words[0] ? "; last words: " : "", words);
    return set_failure(r, CELL_CRASHED, "ended with status %d without a result%s%s", end->exit_code,
                       words[0] ? ": " : "", words);
}

static status_t add_number(struct result *r, const char *key, double value)
{
    char text[40];
    snprintf(text, sizeof text, "%.6g", value);
    return result_add_fact(r, key, text);
}

/* What the launcher saw of the process. */
static status_t add_process(const struct spawn_result *end, struct result *r)
{
    r->exit_code = end->exit_code;
    r->signal = end->signal;
    TRY(add_number(r, "worker_user_s", end->user_s));
    TRY(add_number(r, "worker_system_s", end->system_s));
    TRY(add_number(r, "worker_max_rss_bytes", (double)end->max_rss_kib * 1024));
    TRY(add_number(r, "worker_major_faults", (double)end->major_faults));
    TRY(add_number(r, "worker_involuntary_switches", (double)end->involuntary_switches));
    return result_set_log(r, end->log);
}

static status_t start_result(const struct work *work, struct result *out)
{
    struct timespec wall;
    result_init(out);
    TRY(cell_copy(&work->cell, &out->cell));
    out->rank = work->rank;
    out->attempt = work->attempt;
    gethostname(out->host, sizeof out->host - 1);
    clock_gettime(CLOCK_REALTIME, &wall);
    out->started_ns = (int64_t)wall.tv_sec * 1000000000 + wall.tv_nsec;
    for (size_t i = 0; i < work->n_facts; i++)
        TRY(result_add_fact(out, work->facts[i].key, work->facts[i].value));
    return ST_OK;
}

status_t outcome_without_run(const struct work *work, enum cell_status status, const char *reason, struct result *out)
{
    status_t st = start_result(work, out);
    if (st == ST_OK)
        st = set_failure(out, status, "%s", reason);
    if (st == ST_OK)
        st = result_set_log(out, "");
    if (st != ST_OK)
        result_free(out);
    return st;
}

/* The worker's own file; false when there is none that is whole and about this cell. */
static bool read_part(const struct work *work, const char *path, struct result *out)
{
    if (!file_exists(path) || cell_file_read(path, out) != ST_OK)
        return false;
    if (strcmp(out->cell.id, work->cell.id) == 0)
        return true;
    result_free(out);
    return false;
}

/* A worker's own word stands, unless the launcher knows better: who told it to stop, or that it died after writing. */
static status_t correct(const struct work *work, const struct spawn_result *end, const char *why, struct result *r)
{
    if (end->end == SPAWN_DEADLINE && r->status == CELL_INTERRUPTED)
        return set_failure(r, CELL_TIMEOUT, "deadline of %g s: %zu samples were finished", work->cell.deadline_s,
                           r->n_samples);
    if (end->end == SPAWN_DROPPED && r->status == CELL_INTERRUPTED)
        return set_failure(r, CELL_INTERRUPTED, "%s; %zu samples were finished",
                           why[0] ? why : "dropped by the launcher", r->n_samples);
    if (end->end == SPAWN_EXITED && end->signal && r->status == CELL_OK)
        return set_failure(r, CELL_CRASHED, "measured, but then killed by signal %d (%s)", end->signal,
                           strsignal(end->signal));
    return ST_OK;
}

status_t outcome_of(const struct work *work, const struct spawn_result *end, const char *part_path, const char *why,
                    struct result *out)
{
    status_t st;
    if (read_part(work, part_path, out)) {
        st = correct(work, end, why, out);
    } else {
        st = start_result(work, out);
        if (st == ST_OK)
            st = explain(work, end, why, out);
    }
    if (st == ST_OK)
        st = add_process(end, out);
    if (st != ST_OK)
        result_free(out);
    return st;
}

/* ---- joining ---- */

/* CLOCK_MONOTONIC of the worker's exec, from which its trace counts; 0 when it left no result of its own. */
static int64_t trace_zero(const struct result *r)
{
    const char *text = result_fact(r, "trace_t0_ns");
    return text ? strtoll(text, NULL, 10) : 0;
}

static uint64_t highest(uint64_t a, uint64_t b)
{
    return a == UINT64_MAX ? b : b == UINT64_MAX ? a : a > b ? a : b;
}

/* Mean of the values that are known. */
struct mean {
    double sum;
    int    n;
};

static void mean_add(struct mean *m, double value)
{
    if (!isnan(value)) {
        m->sum += value;
        m->n++;
    }
}

static double mean_value(const struct mean *m)
{
    return m->n ? m->sum / m->n : NAN;
}

/* Append a part's samples with their steps, and its trace shifted to the first part's clock. */
static status_t append(struct result *to, const struct result *part, int64_t shift_ns)
{
    for (size_t i = 0; i < part->n_samples; i++)
        TRY(result_add_sample(to, &part->samples[i], part->step_ms + part->samples[i].step_offset));
    for (size_t i = 0; i < part->n_trace; i++)
        part->trace[i].t_ns += shift_ns;
    return result_add_trace(to, part->trace, part->n_trace);
}

static status_t append_log(struct result *to, const struct result *part, int index)
{
    size_t have = to->log ? strlen(to->log) : 0, more = part->log ? strlen(part->log) : 0;
    if (!more)
        return ST_OK;
    char *text = malloc(have + more + 64);
    if (!text)
        return FAIL(ST_ENOMEM, "no memory for a log");
    snprintf(text, have + more + 64, "%s--- process %d ---\n%s", have ? to->log : "", index, part->log);
    status_t st = result_set_log(to, text);
    free(text);
    return st;
}

static status_t take_status(struct result *to, const struct result *part, int index, int n)
{
    if (to->status != CELL_OK || part->status == CELL_OK)
        return ST_OK;
    to->exit_code = part->exit_code;
    to->signal = part->signal;
    return set_failure(to, part->status, "process %d of %d: %s", index + 1, n, part->reason ? part->reason : "");
}

/* Only the first process measures quality, which does not vary from process to process. */
static void take_quality(struct result *to, struct result *part)
{
    to->quality = part->quality;
    to->n_quality = part->n_quality;
    to->quality_texts = part->quality_texts;
    to->n_quality_texts = part->n_quality_texts;
    to->quality_linears = part->quality_linears;
    to->n_quality_linears = part->n_quality_linears;
    part->quality = NULL;
    part->quality_texts = NULL;
    part->quality_linears = NULL;
    part->n_quality = part->n_quality_texts = part->n_quality_linears = 0;
}

static status_t join(struct result *parts, int n, struct result *out)
{
    struct mean load = {0}, warmup = {0}, first = {0}, nucleus = {0};
    double      total = 0, bytes = 0, steps = 0;
    int64_t     zero = 0;
    TRY(cell_copy(&parts[0].cell, &out->cell));
    out->status = CELL_OK;
    TRY(result_set_reason(out, ""));
    TRY(result_set_log(out, ""));
    out->rank = parts[0].rank;
    out->attempt = parts[0].attempt;
    out->started_ns = parts[0].started_ns;
    memcpy(out->host, parts[0].host, sizeof out->host);
    for (int i = 0; i < n; i++) {
        struct result *p = &parts[i];
        TRY(take_status(out, p, i, n));
        zero = zero ? zero : trace_zero(p);
        TRY(append(out, p, trace_zero(p) - zero));
        TRY(append_log(out, p, i));
        for (size_t k = 0; k < p->n_facts; k++)
            if (!result_fact(out, p->facts[k].key))
                TRY(result_add_fact(out, p->facts[k].key, p->facts[k].value));
        for (int c = 0; c < MEM_CLASS_COUNT; c++) {
            out->memory_ready[c] =
                p->memory_ready[c] > out->memory_ready[c] ? p->memory_ready[c] : out->memory_ready[c];
            out->memory_peak[c] = p->memory_peak[c] > out->memory_peak[c] ? p->memory_peak[c] : out->memory_peak[c];
        }
        out->baseline_bytes = highest(out->baseline_bytes, p->baseline_bytes);
        out->peak_bytes = highest(out->peak_bytes, p->peak_bytes);
        out->process_ready = highest(out->process_ready, p->process_ready);
        out->process_peak = highest(out->process_peak, p->process_peak);
        out->device_ready = highest(out->device_ready, p->device_ready);
        out->device_peak = highest(out->device_peak, p->device_peak);
        if (!out->n_quality)
            take_quality(out, p);
        mean_add(&load, p->load_s);
        mean_add(&warmup, p->warmup_s);
        mean_add(&first, p->first_frame_s);
        mean_add(&nucleus, p->nucleus);
        total += isnan(p->total_s) ? 0 : p->total_s;
        if (!isnan(p->step_bytes)) {
            bytes += p->step_bytes * (double)p->n_steps;
            steps += (double)p->n_steps;
        }
        if (!out->engine[0])
            memcpy(out->engine, p->engine, sizeof out->engine);
    }
    out->load_s = mean_value(&load);
    out->warmup_s = mean_value(&warmup);
    out->first_frame_s = mean_value(&first);
    out->nucleus = mean_value(&nucleus);
    out->total_s = total;
    out->step_bytes = steps > 0 ? bytes / steps : NAN;
    for (size_t i = 0; i < out->n_samples; i++)
        out->samples[i].order = (int)i;
    return ST_OK;
}

status_t outcome_join(struct result *parts, int n, struct result *out)
{
    status_t st = ST_OK;
    result_init(out);
    if (n == 1) {
        *out = parts[0];
        result_init(&parts[0]);
    } else {
        st = join(parts, n, out);
        for (int i = 0; i < n; i++)
            result_free(&parts[i]);
    }
    if (st != ST_OK)
        result_free(out);
    return st;
}
