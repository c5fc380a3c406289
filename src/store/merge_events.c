/* merge_events.c — /events: the lines of every folder's progress.jsonl and the events of every merged input, in order.
 */
#include "store/merge_items.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_SIZE = 4400, EVENT_LINE_MAX = 1 << 14 };

struct event_writer {
    struct table         table;
    struct event_record *piece;
    size_t               n;
};

static status_t flush_events(struct event_writer *w)
{
    size_t n = w->n;
    w->n = 0;
    return table_append(&w->table, w->piece, n);
}

static void take_text(const json_t *line, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(line, key));
    size_t      n = strnlen(text ? text : "", size - 1);
    while (n && text && text[n] && ((unsigned char)text[n] & 0xC0) == 0x80)
        n--;
    memcpy(out, text ? text : "", n);
}

static int64_t take_number(const json_t *line, const char *key)
{
    const json_t *value = json_object_get(line, key);
    return json_is_integer(value) ? (int64_t)json_integer_value(value) : -1;
}

/* A line that is no JSON object (the last one of a killed launcher may be cut) is left out. */
static void parse_event(const char *text, struct event_writer *w)
{
    json_t *line = json_loads(text, 0, NULL);
    if (json_is_object(line)) {
        struct event_record *e = &w->piece[w->n++];
        const json_t        *seconds = json_object_get(line, "seconds");
        memset(e, 0, sizeof *e);
        take_text(line, "time", e->time, sizeof e->time);
        take_text(line, "event", e->event, sizeof e->event);
        take_text(line, "id", e->id, sizeof e->id);
        take_text(line, "status", e->status, sizeof e->status);
        take_text(line, "host", e->host, sizeof e->host);
        take_text(line, json_object_get(line, "reason") ? "reason" : "text", e->text, sizeof e->text);
        e->process = take_number(line, "process");
        e->rank = take_number(line, "rank");
        e->pid = take_number(line, "pid");
        e->seconds = json_is_number(seconds) ? json_number_value(seconds) : NAN;
    }
    json_decref(line);
}

static status_t events_of_folder(const struct merge_input *in, struct event_writer *w)
{
    char     path[PATH_SIZE];
    status_t st = ST_OK;
    bool     whole = true; /* the line began in this piece of it */
    snprintf(path, sizeof path, "%s/progress.jsonl", in->path);
    FILE *f = fopen(path, "r");
    char *line = malloc(EVENT_LINE_MAX);
    while (f && line && st == ST_OK && fgets(line, EVENT_LINE_MAX, f)) {
        bool ends = strchr(line, '\n') != NULL;
        if (whole && ends)
            parse_event(line, w);
        whole = ends;
        if (w->n == TABLE_PIECE)
            st = flush_events(w);
    }
    free(line);
    if (f)
        fclose(f);
    return st;
}

static status_t events_of_merged(const struct merge_input *in, struct event_writer *w)
{
    struct table t;
    status_t     st = ST_OK;
    h5_begin(in->path, ST_EINPUT);
    TRY_OUT(table_open(in->file, &event_schema, H5_ROWS_MAX, &t));
    for (size_t at = 0; at < t.rows; at += TABLE_PIECE) {
        TRY_OUT(flush_events(w));
        w->n = t.rows - at < TABLE_PIECE ? t.rows - at : TABLE_PIECE;
        TRY_OUT(table_read(&t, at, w->n, w->piece));
    }
    st = flush_events(w);
out:
    table_close(&t);
    return st;
}

status_t merge_events(hid_t out, const char *label, const struct item_list *l)
{
    struct event_writer w = {.piece = calloc(TABLE_PIECE, sizeof *w.piece)};
    status_t            st = ST_OK;
    if (!w.piece)
        return FAIL(ST_ENOMEM, "no memory for the events");
    TRY_OUT(table_create(out, &event_schema, TABLE_PIECE, &w.table));
    for (size_t i = 0; i < l->n_inputs; i++) {
        const struct merge_input *in = &l->inputs[i];
        TRY_OUT(in->folder ? events_of_folder(in, &w) : events_of_merged(in, &w));
        h5_begin(label, ST_EIO);
    }
    st = flush_events(&w);
out:
    table_close(&w.table);
    free(w.piece);
    return st;
}
