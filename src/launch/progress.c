#include "launch/progress.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double LINE_EVERY_S = 10, BAR_EVERY_S = 0.25;
enum { FAILURES_TOLD = 50 };

struct progress {
    const struct plan *plan;
    size_t             kept, n_runs, runs_done, cells_done, failed, running;
    int64_t            t0_ns, last_line_ns;
    int                fd;
    bool               terminal, quiet, file_failed, bar_drawn, line_due;
    char               last_cell[192];
};

void progress_duration(double seconds, char *out, size_t size)
{
    long s = seconds < 0 ? 0 : (long)(seconds + 0.5);
    if (seconds < 10)
        snprintf(out, size, "%.1f s", seconds < 0 ? 0 : seconds);
    else if (s >= 3600)
        snprintf(out, size, "%ld h %02ld min", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(out, size, "%ld min %02ld s", s / 60, s % 60);
    else
        snprintf(out, size, "%ld s", s);
}

status_t progress_open(const char *output, const struct plan *plan, size_t kept, size_t n_runs, bool quiet,
                       struct progress **out)
{
    struct progress *p = calloc(1, sizeof *p);
    if (!p)
        return FAIL(ST_ENOMEM, "no memory for the progress");
    char path[4400];
    snprintf(path, sizeof path, "%s/progress.jsonl", output);
    *p = (struct progress){
        .plan = plan,
        .kept = kept,
        .n_runs = n_runs,
        .t0_ns = clock_ns(),
        .quiet = quiet,
        .terminal = isatty(STDERR_FILENO) == 1,
        .fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644),
    };
    if (p->fd < 0) {
        int error = errno;
        free(p);
        return FAIL(ST_EIO, "cannot open %s: %s", path, strerror(error));
    }
    *out = p;
    progress_note(p, "run", kept ? "resumed" : "started");
    return ST_OK;
}

/* One write a line, so that readers see whole lines. A full disk costs the events, never the sweep. */
static void write_line(struct progress *p, json_t *line)
{
    char now[32];
    clock_iso(now, sizeof now);
    json_object_set_new(line, "time", json_string(now));
    json_object_set_new(line, "t_s", json_real(clock_ms_since(p->t0_ns) * 1e-3));
    json_object_set_new(line, "done", json_integer((json_int_t)(p->kept + p->cells_done)));
    json_object_set_new(line, "failed", json_integer((json_int_t)p->failed));
    json_object_set_new(line, "running", json_integer((json_int_t)p->running));
    json_object_set_new(line, "cells", json_integer((json_int_t)p->plan->n));
    char *text = json_dumps(line, JSON_COMPACT);
    json_decref(line);
    size_t n = text ? strlen(text) : 0;
    if (text) {
        text[n] = '\n'; /* in the place of the NUL: one write */
        if (write(p->fd, text, n + 1) != (ssize_t)(n + 1) && !p->file_failed) {
            p->file_failed = true;
            log_warn("progress.jsonl cannot be written: %s", strerror(errno));
        }
    }
    free(text);
}

void progress_note(struct progress *p, const char *event, const char *text)
{
    json_t *line = json_pack("{s:s, s:s}", "event", event, "text", text);
    if (line)
        write_line(p, line);
}

static void log_event(struct progress *p, const struct progress_event *e)
{
    static const char *const kinds[] = {"start", "end", "cell"};
    const struct cell       *cell = &p->plan->cells[e->cell];
    char                     label[128];
    cell_label(cell, label, sizeof label);
    json_t *line = json_pack("{s:s, s:s, s:s, s:i, s:s}", "event", kinds[e->kind], "id", cell->id, "label", label,
                             "rank", (int)e->rank, "host", e->host);
    if (!line)
        return;
    if (e->kind != PROGRESS_CELL) {
        json_object_set_new(line, "process", json_integer(e->process));
        json_object_set_new(line, "pid", json_integer(e->pid));
    }
    if (e->kind != PROGRESS_START) {
        json_object_set_new(line, "status", json_string(cell_status_name((enum cell_status)e->status)));
        json_object_set_new(line, "seconds", json_real(e->seconds));
        if (e->reason[0]) /* cut somewhere in UTF-8 it would not be a JSON string: then it is left out */
            json_object_set_new(line, "reason", json_string(e->reason));
    }
    write_line(p, line);
}

/* Time left at the pace of the workers that have ended in this run. */
static void eta_text(const struct progress *p, char *out, size_t size)
{
    char left[32];
    if (!p->runs_done || p->runs_done >= p->n_runs) {
        snprintf(out, size, "ETA %s", p->runs_done ? "0 s" : "unknown");
        return;
    }
    progress_duration(clock_ms_since(p->t0_ns) * 1e-3 * (double)(p->n_runs - p->runs_done) / (double)p->runs_done, left,
                      sizeof left);
    snprintf(out, size, "ETA %s", left);
}

static void clear_bar(struct progress *p)
{
    if (p->bar_drawn)
        fputs("\r\033[K", stderr);
    p->bar_drawn = false;
}

static void draw_bar(struct progress *p)
{
    enum { WIDTH = 28 };
    char   eta[48], bar[WIDTH + 1], failed[48] = "";
    size_t before = p->kept, total = p->plan->n ? p->plan->n : 1;
    /* Workers fill the bar, since a cell may take several. */
    double share =
        ((double)before + (double)(total - before) * (p->n_runs ? (double)p->runs_done / (double)p->n_runs : 1)) /
        (double)total;
    for (int i = 0; i < WIDTH; i++)
        bar[i] = (i + 0.5) / WIDTH <= share ? '#' : '.';
    bar[WIDTH] = '\0';
    eta_text(p, eta, sizeof eta);
    if (p->failed)
        snprintf(failed, sizeof failed, "  %zu failed", p->failed);
    fprintf(stderr, "\r\033[K[%s] %zu/%zu cells%s  %s  %.60s", bar, p->kept + p->cells_done, p->plan->n, failed, eta,
            p->last_cell);
    fflush(stderr);
    p->bar_drawn = true;
}

static void tell(struct progress *p, const struct progress_event *e)
{
    char label[128], took[32];
    cell_label(&p->plan->cells[e->cell], label, sizeof label);
    progress_duration(e->seconds, took, sizeof took);
    snprintf(p->last_cell, sizeof p->last_cell, "%s %s %s", cell_status_name((enum cell_status)e->status), label, took);
    p->line_due = true;
    if (e->status != CELL_OK && p->failed <= FAILURES_TOLD && !p->quiet) {
        clear_bar(p);
        log_warn("%s: %s (%s, rank %d on %s)", label, cell_status_name((enum cell_status)e->status), e->reason,
                 (int)e->rank, e->host);
        if (p->failed == FAILURES_TOLD)
            log_warn("further failures are in progress.jsonl and in the summary");
    }
}

void progress_event(struct progress *p, const struct progress_event *e)
{
    if (e->cell >= p->plan->n || e->kind < PROGRESS_START || e->kind > PROGRESS_CELL)
        return;
    switch (e->kind) {
    case PROGRESS_START:
        p->running++;
        break;
    case PROGRESS_END:
        p->running -= p->running > 0;
        p->runs_done++;
        break;
    default:
        p->cells_done++;
        p->failed += e->status != CELL_OK;
        p->n_runs -= (size_t)e->process < p->n_runs - p->runs_done ? (size_t)e->process : p->n_runs - p->runs_done;
        tell(p, e);
    }
    log_event(p, e);
    progress_tick(p);
}

void progress_tick(struct progress *p)
{
    if (p->quiet)
        return;
    double since = clock_ms_since(p->last_line_ns) * 1e-3;
    if (p->terminal && (since >= BAR_EVERY_S || p->line_due)) {
        draw_bar(p);
    } else if (!p->terminal && p->line_due && since >= LINE_EVERY_S) {
        char eta[48];
        eta_text(p, eta, sizeof eta);
        log_info("%zu/%zu cells, %zu failed, %s; last: %s", p->kept + p->cells_done, p->plan->n, p->failed, eta,
                 p->last_cell);
    } else {
        return;
    }
    p->line_due = false;
    p->last_line_ns = clock_ns();
}

void progress_close(struct progress *p)
{
    if (!p)
        return;
    char took[32];
    progress_duration(clock_ms_since(p->t0_ns) * 1e-3, took, sizeof took);
    clear_bar(p);
    if (!p->quiet)
        log_info("%zu of %zu cells done after %s, %zu failed", p->kept + p->cells_done, p->plan->n, took, p->failed);
    progress_note(p, "end", took);
    close(p->fd);
    free(p);
}

size_t progress_done(const struct progress *p)
{
    return p->cells_done;
}

size_t progress_failed(const struct progress *p)
{
    return p->failed;
}
