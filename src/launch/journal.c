#include "launch/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void journal_init(struct journal *j, const char *folder)
{
    memset(j, 0, sizeof *j);
    snprintf(j->path, sizeof j->path, "%s/progress.jsonl", folder);
}

void journal_free(struct journal *j)
{
    free(j->partial);
    free(j->ranks);
    j->partial = NULL;
    j->ranks = NULL;
    j->n_partial = j->n_ranks = 0;
}

static void text_of(const json_t *event, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(event, key));
    size_t      n = 0;
    for (; text && text[n] && n + 1 < size; n++) /* a terminal obeys control characters */
        out[n] = (unsigned char)text[n] < 0x20 || text[n] == 0x7f ? ' ' : text[n];
    out[n] = '\0';
}

static size_t count_of(const json_t *event, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(event, key));
    return n > 0 ? (size_t)n : 0;
}

static double wall_of(const json_t *event)
{
    const char *text = json_string_value(json_object_get(event, "time"));
    struct tm   tm = {0};
    return text && strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm) ? (double)timegm(&tm) : 0;
}

static status_t rank_of(struct journal *j, const json_t *event, struct journal_rank **out)
{
    const json_t *number = json_object_get(event, "rank");
    json_int_t    rank = json_integer_value(number);
    *out = NULL;
    if (!json_is_integer(number) || rank < 0 || rank >= JOURNAL_RANKS_MAX)
        return ST_OK;
    if ((size_t)rank >= j->n_ranks) {
        size_t               n = (size_t)rank + 1 > 2 * j->n_ranks ? (size_t)rank + 1 : 2 * j->n_ranks;
        struct journal_rank *grown = realloc(j->ranks, n * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "%s: no memory for %zu ranks", j->path, n);
        memset(grown + j->n_ranks, 0, (n - j->n_ranks) * sizeof *grown);
        for (size_t i = j->n_ranks; i < n; i++)
            grown[i].rank = -1;
        j->ranks = grown;
        j->n_ranks = n;
    }
    *out = &j->ranks[rank];
    (*out)->rank = (int)rank;
    text_of(event, "host", (*out)->host, sizeof (*out)->host);
    (*out)->last_s = wall_of(event);
    return ST_OK;
}

static void begin_run(struct journal *j)
{
    j->state = JOURNAL_RUNNING;
    j->started_s = j->last_s;
    j->done_before = j->done;
    j->slowest_s = 0;
    j->note[0] = '\0';
    for (size_t i = 0; i < j->n_ranks; i++)
        j->ranks[i].rank = -1;
}

static void take_cell(struct journal *j, const json_t *event, struct journal_rank *r)
{
    const char *status = json_string_value(json_object_get(event, "status"));
    double      seconds = json_number_value(json_object_get(event, "seconds"));
    if (r) {
        r->done++;
        r->failed += !status || strcmp(status, "ok") != 0;
    }
    if (seconds <= j->slowest_s)
        return;
    j->slowest_s = seconds;
    text_of(event, "label", j->slowest, sizeof j->slowest);
    text_of(event, "host", j->slowest_host, sizeof j->slowest_host);
}

static status_t take(struct journal *j, const json_t *event, const char *kind)
{
    struct journal_rank *r;
    j->cells = count_of(event, "cells");
    j->done = count_of(event, "done");
    j->failed = count_of(event, "failed");
    j->last_s = wall_of(event);
    if (strcmp(kind, "run") == 0)
        begin_run(j);
    TRY(rank_of(j, event, &r));
    if (strcmp(kind, "start") == 0 && r) {
        r->busy = true;
        r->since_s = j->last_s;
        text_of(event, "label", r->label, sizeof r->label);
    } else if (strcmp(kind, "end") == 0 && r) {
        r->busy = false;
    } else if (strcmp(kind, "cell") == 0) {
        take_cell(j, event, r);
    } else if (strcmp(kind, "end") == 0) {
        j->state = JOURNAL_ENDED;
        for (size_t i = 0; i < j->n_ranks; i++)
            j->ranks[i].busy = false;
    } else if (!r && strcmp(kind, "run") != 0) {
        snprintf(j->note, sizeof j->note, "%.40s: ", kind);
        size_t n = strlen(j->note);
        text_of(event, "text", j->note + n, sizeof j->note - n);
    }
    return ST_OK;
}

status_t journal_line(struct journal *j, const char *line, size_t size)
{
    json_t     *event = json_loadb(line, size, 0, NULL);
    const char *kind = json_string_value(json_object_get(event, "event"));
    status_t    st = ST_OK;
    if (kind)
        st = take(j, event, kind);
    else
        j->bad_lines++;
    json_decref(event);
    return st;
}

/* Bytes that follow those of the last call. */
static status_t take_bytes(struct journal *j, const char *bytes, size_t n)
{
    while (n) {
        const char *end = memchr(bytes, '\n', n);
        size_t      part = end ? (size_t)(end - bytes) : n;
        if (j->n_partial + part <= JOURNAL_LINE_MAX)
            memcpy(j->partial + j->n_partial, bytes, part);
        j->n_partial += part; /* beyond the most: the line is dropped at its end */
        if (!end)
            return ST_OK;
        status_t st = ST_OK;
        if (j->n_partial > JOURNAL_LINE_MAX)
            j->bad_lines++;
        else if (j->n_partial)
            st = journal_line(j, j->partial, j->n_partial);
        j->n_partial = 0;
        TRY(st);
        bytes = end + 1;
        n -= part + 1;
    }
    return ST_OK;
}

status_t journal_read(struct journal *j)
{
    char buffer[1 << 16];
    if (!j->partial && !(j->partial = malloc(JOURNAL_LINE_MAX)))
        return FAIL(ST_ENOMEM, "%s: no memory", j->path);
    int fd = open(j->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return ST_OK;
    if (fd < 0)
        return FAIL(ST_EIO, "cannot open %s: %s", j->path, strerror(errno));
    status_t st = ST_OK;
    ssize_t  n = 0;
    if (lseek(fd, 0, SEEK_END) < j->offset) { /* another sweep took the place of the one we read */
        char path[sizeof j->path];
        memcpy(path, j->path, sizeof path);
        journal_free(j);
        journal_init(j, "");
        memcpy(j->path, path, sizeof path);
        close(fd);
        return journal_read(j);
    }
    while (st == ST_OK && (n = pread(fd, buffer, sizeof buffer, j->offset)) > 0) {
        j->offset += n;
        st = take_bytes(j, buffer, (size_t)n);
    }
    if (n < 0)
        st = FAIL(ST_EIO, "cannot read %s: %s", j->path, strerror(errno));
    close(fd);
    return st;
}

double journal_eta(const struct journal *j, double now_s)
{
    size_t here = j->done > j->done_before ? j->done - j->done_before : 0;
    if (j->done >= j->cells)
        return 0;
    if (!here || !(now_s > j->started_s))
        return NAN;
    return (now_s - j->started_s) * (double)(j->cells - j->done) / (double)here;
}
