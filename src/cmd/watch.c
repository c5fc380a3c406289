/* watch.c — `qsweep watch`: a running sweep, seen from another terminal. */
#include "cmd/command.h"
#include "base/log.h"
#include "launch/journal.h"
#include "launch/progress.h"

#include <getopt.h>
#include <glob.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char help_text[] =
    "usage: qsweep watch DIR [--once] [--interval SECONDS] [-o md|json]\n"
    "\n"
    "Shows how far the sweep that writes to DIR is: cells done, running and failed, time left, the slowest cell, and what\n"
    "every host does. It reads DIR/progress.jsonl and disturbs nothing. For the folder of a job array it sums up its\n"
    "shards. On a terminal it stays until the sweep ends; elsewhere, or with --once, it prints one state.\n"
    "\n"
    "  --once              one state, then exit\n"
    "  --interval SECONDS  between two looks (default 2)\n"
    "  -o md|json          json prints one object a look\n"
    "\n"
    "examples:\n"
    "  qsweep watch results/precision\n"
    "  qsweep watch results/precision --once -o json\n";

enum { RUNNING_SHOWN = 8 };

/* One sweep, or the shards of one. */
struct view {
    const char     *dir;
    struct journal *journals;
    size_t          n;
    double          now_s;
};

struct host_row {
    const char *name;
    size_t      ranks, running, done, failed;
    double      last_s;
    char        doing[256];
};

/* ---- what there is to watch ---- */

static status_t view_open(const char *dir, struct view *v)
{
    char        pattern[4200];
    struct stat info;
    glob_t      found = {0};
    memset(v, 0, sizeof *v);
    v->dir = dir;
    if (stat(dir, &info) != 0 || !S_ISDIR(info.st_mode))
        return FAIL(ST_EIO, "%s: want the output folder of a sweep", dir);
    snprintf(pattern, sizeof pattern, "%.4000s/shard-*-of-*", dir);
    glob(pattern, 0, NULL, &found);
    v->n = found.gl_pathc ? found.gl_pathc : 1;
    v->journals = calloc(v->n, sizeof *v->journals);
    for (size_t i = 0; v->journals && i < v->n; i++)
        journal_init(&v->journals[i], found.gl_pathc ? found.gl_pathv[i] : dir);
    globfree(&found);
    return v->journals ? ST_OK : FAIL(ST_ENOMEM, "no memory to watch %s", dir);
}

static void view_close(struct view *v)
{
    for (size_t i = 0; v->journals && i < v->n; i++)
        journal_free(&v->journals[i]);
    free(v->journals);
}

static status_t view_read(struct view *v)
{
    v->now_s = (double)time(NULL);
    for (size_t i = 0; i < v->n; i++)
        TRY(journal_read(&v->journals[i]));
    return ST_OK;
}

/* ---- sums ---- */

struct sums {
    size_t      cells, done, failed, running, bad_lines;
    double      eta_s, slowest_s, started_s, last_s;
    const char *slowest, *slowest_host, *note;
    enum journal_state state;
};

static struct sums view_sums(const struct view *v)
{
    struct sums s = {.state = JOURNAL_EMPTY, .slowest = "", .slowest_host = "", .note = ""};
    for (size_t i = 0; i < v->n; i++) {
        const struct journal *j = &v->journals[i];
        s.cells += j->cells;
        s.done += j->done;
        s.failed += j->failed;
        s.bad_lines += j->bad_lines;
        for (size_t r = 0; r < j->n_ranks; r++)
            s.running += j->ranks[r].rank >= 0 && j->ranks[r].busy;
        double eta = j->state == JOURNAL_RUNNING ? journal_eta(j, v->now_s) : 0;
        s.eta_s = isnan(eta) || eta > s.eta_s ? eta : s.eta_s; /* the last one ends the sweep */
        if (j->slowest_s > s.slowest_s) {
            s.slowest_s = j->slowest_s;
            s.slowest = j->slowest;
            s.slowest_host = j->slowest_host;
        }
        if (j->state != JOURNAL_EMPTY && (!s.started_s || j->started_s < s.started_s))
            s.started_s = j->started_s;
        if (j->last_s >= s.last_s) {
            s.last_s = j->last_s;
            s.note = j->note;
        }
        if (j->state == JOURNAL_RUNNING || (j->state == JOURNAL_ENDED && s.state == JOURNAL_EMPTY))
            s.state = j->state;
    }
    return s;
}

static void add_doing(struct host_row *h, const struct journal_rank *r, double now_s)
{
    char   took[32];
    size_t at = strlen(h->doing);
    progress_duration(now_s - r->since_s, took, sizeof took);
    if (h->running <= RUNNING_SHOWN)
        snprintf(h->doing + at, sizeof h->doing - at, "%s%s (%s)", at ? ", " : "", r->label, took);
}

static int compare_hosts(const void *a, const void *b)
{
    return strcmp(((const struct host_row *)a)->name, ((const struct host_row *)b)->name);
}

/* Rows [*n] by host name; malloc'ed. */
static status_t view_hosts(const struct view *v, struct host_row **out, size_t *n)
{
    size_t most = 0;
    for (size_t i = 0; i < v->n; i++)
        most += v->journals[i].n_ranks;
    struct host_row *rows = calloc(most + 1, sizeof *rows);
    if (!rows)
        return FAIL(ST_ENOMEM, "no memory for %zu hosts", most);
    *n = 0;
    for (size_t i = 0; i < v->n; i++)
        for (size_t k = 0; k < v->journals[i].n_ranks; k++) {
            const struct journal_rank *r = &v->journals[i].ranks[k];
            size_t                     h = 0;
            if (r->rank < 0)
                continue;
            /* Ranks of a host are neighbours: look from the last one found. */
            for (h = *n; h > 0 && strcmp(rows[h - 1].name, r->host) != 0; h--)
                ;
            struct host_row *row = h ? &rows[h - 1] : &rows[(*n)++];
            row->name = r->host;
            row->ranks++;
            row->running += r->busy;
            row->done += r->done;
            row->failed += r->failed;
            row->last_s = r->last_s > row->last_s ? r->last_s : row->last_s;
            if (r->busy)
                add_doing(row, r, v->now_s);
        }
    qsort(rows, *n, sizeof *rows, compare_hosts);
    *out = rows;
    return ST_OK;
}

/* ---- showing ---- */

static const char *state_name(enum journal_state s)
{
    return s == JOURNAL_RUNNING ? "running" : s == JOURNAL_ENDED ? "ended" : "not started";
}

/* Returns the lines printed. */
static int show_table(const struct view *v, const struct sums *s, const struct host_row *rows, size_t n)
{
    char eta[48] = "unknown", since[32], took[32];
    int  lines = 0;
    progress_duration(v->now_s - s->started_s, since, sizeof since);
    if (!isnan(s->eta_s))
        progress_duration(s->eta_s, eta, sizeof eta);
    printf("%s: %s", v->dir, state_name(s->state));
    if (s->state == JOURNAL_RUNNING)
        printf(" for %s", since);
    printf("; %zu of %zu cells done, %zu running, %zu failed", s->done, s->cells, s->running, s->failed);
    if (s->state == JOURNAL_RUNNING)
        printf("; ETA %s", eta);
    if (v->n > 1)
        printf("; %zu shards", v->n);
    putchar('\n');
    lines++;
    if (s->slowest_s > 0) {
        progress_duration(s->slowest_s, took, sizeof took);
        printf("slowest cell: %s, %s on %s\n", s->slowest, took, s->slowest_host);
        lines++;
    }
    if (s->note[0]) {
        printf("last word: %s\n", s->note);
        lines++;
    }
    if (n) {
        printf("\n| %-20s | ranks | done | failed | last news | running\n|----------------------|------:|-----:|-------:|-----------|--------\n",
               "host");
        lines += 3;
    }
    for (size_t i = 0; i < n; i++, lines++) {
        progress_duration(v->now_s - rows[i].last_s, took, sizeof took);
        printf("| %-20s | %5zu | %4zu | %6zu | %9s | %.100s\n", rows[i].name, rows[i].ranks, rows[i].done, rows[i].failed, took,
               rows[i].doing);
    }
    return lines;
}

static status_t show_json(const struct view *v, const struct sums *s, const struct host_row *rows, size_t n)
{
    json_t *hosts = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(hosts, json_pack("{s:s, s:I, s:I, s:I, s:I, s:f}", "host", rows[i].name, "ranks",
                                               (json_int_t)rows[i].ranks, "running", (json_int_t)rows[i].running, "done",
                                               (json_int_t)rows[i].done, "failed", (json_int_t)rows[i].failed, "silent_s",
                                               v->now_s - rows[i].last_s));
    json_t *all = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:o, s:f, s:s, s:s, s:s, s:I, s:o}", "dir", v->dir, "state",
                            state_name(s->state), "shards", (json_int_t)v->n, "cells", (json_int_t)s->cells, "done",
                            (json_int_t)s->done, "running", (json_int_t)s->running, "failed", (json_int_t)s->failed, "eta_s",
                            isnan(s->eta_s) ? json_null() : json_real(s->eta_s), "slowest_s", s->slowest_s, "slowest",
                            s->slowest, "slowest_host", s->slowest_host, "note", s->note, "bad_lines",
                            (json_int_t)s->bad_lines, "hosts", hosts);
    char *text = all ? json_dumps(all, JSON_COMPACT) : NULL;
    json_decref(all);
    if (!text)
        return FAIL(ST_ENOMEM, "no memory for the state of %s", v->dir);
    puts(text);
    free(text);
    return ST_OK;
}

static status_t look(struct view *v, bool json, int *lines, bool *over)
{
    struct host_row *rows = NULL;
    size_t           n = 0;
    TRY(view_read(v));
    struct sums s = view_sums(v);
    if (s.bad_lines && !json)
        log_warn("%s: %zu lines of progress.jsonl are no events", v->dir, s.bad_lines);
    TRY(view_hosts(v, &rows, &n));
    status_t st = ST_OK;
    if (json)
        st = show_json(v, &s, rows, n);
    else
        *lines = show_table(v, &s, rows, n);
    free(rows);
    *over = s.state == JOURNAL_ENDED;
    return st == ST_OK && fflush(stdout) != 0 ? FAIL(ST_EIO, "standard output cannot be written") : st;
}

static int run(int argc, char **argv)
{
    enum { OPT_ONCE = 1000, OPT_INTERVAL };
    static const struct option options[] = {{"once", no_argument, NULL, OPT_ONCE}, {"interval", required_argument, NULL, OPT_INTERVAL},
                                            {"format", required_argument, NULL, 'o'}, {0}};
    bool   once = false, json = false, over = false;
    double interval = 2;
    char  *end;
    for (int c; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;)
        switch (c) {
        case OPT_ONCE:
            once = true;
            break;
        case OPT_INTERVAL:
            interval = strtod(optarg, &end);
            if (!*optarg || *end || !(interval >= 0.1 && interval <= 3600))
                return status_exit(FAIL(ST_EUSAGE, "--interval %s: want seconds from 0.1 to 3600", optarg));
            break;
        case 'o':
            json = strcmp(optarg, "json") == 0;
            if (json || strcmp(optarg, "md") == 0)
                break;
            return status_exit(FAIL(ST_EUSAGE, "-o %s: want md or json", optarg));
        default:
            return status_exit(FAIL(ST_EUSAGE, "`qsweep help watch` explains the options"));
        }
    if (optind + 1 != argc)
        return status_exit(FAIL(ST_EUSAGE, "want one folder: qsweep watch DIR"));
    bool        terminal = isatty(STDOUT_FILENO) == 1;
    struct view v;
    int         lines = 0;
    status_t    st = view_open(argv[optind], &v);
    while (st == ST_OK) {
        if (terminal && !json && lines)
            printf("\033[%dA\033[J", lines);
        st = look(&v, json, &lines, &over);
        if (once || over || !terminal)
            break;
        nanosleep(&(struct timespec){(time_t)interval, (long)((interval - floor(interval)) * 1e9)}, NULL);
    }
    view_close(&v);
    return status_exit(st);
}

const struct command command_watch = {
    .name = "watch", .summary = "how far a running sweep is, from another terminal", .help = help_text, .run = run};
