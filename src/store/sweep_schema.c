#include "store/sweep_schema.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- /summary ---------------------------------------------------------------------------------------------------- */

static struct table_column as_table_column(size_t i)
{
    struct summary_column c = summary_column(i);
    struct table_column   t = {
          .name = c.name, .units = c.units, .definition = c.definition, .offset = c.offset, .size = c.size};
    size_t axis = c.field ? (size_t)(c.field - cell_fields) : 0;
    switch (c.kind) {
    case SUMMARY_TEXT:
        t.kind = TABLE_TEXT;
        break;
    case SUMMARY_INT:
        t.kind = TABLE_INT;
        break;
    case SUMMARY_REAL:
        t.kind = TABLE_REAL;
        break;
    case SUMMARY_AXIS:
        t.kind = c.field->kind == FIELD_CHOICE ? TABLE_TEXT : c.field->kind == FIELD_FLOAT ? TABLE_REAL : TABLE_INT;
        if (t.kind == TABLE_TEXT) {
            t.size = sizeof((struct summary_record *)0)->choice[0];
            t.offset = offsetof(struct summary_record, choice) + axis * t.size;
        }
    }
    return t;
}

const struct table_schema *summary_schema(void)
{
    enum { COLUMNS_MAX = 128 };
    static struct table_column columns[COLUMNS_MAX];
    static struct table_schema schema;
    if (!schema.name) {
        size_t n = summary_column_count() < COLUMNS_MAX ? summary_column_count() : COLUMNS_MAX;
        for (size_t i = 0; i < n; i++)
            columns[i] = as_table_column(i);
        schema =
            (struct table_schema){"summary", "one row per planned cell", columns, n, sizeof(struct summary_record)};
    }
    return &schema;
}

void summary_pack(const struct summary_row *row, struct summary_record *out)
{
    memset(out, 0, sizeof *out);
    out->row = *row;
    for (int i = 0; i < FIELD_COUNT; i++) {
        char text[FIELD_TEXT_MAX];
        field_format(&cell_fields[i], row->axes[i], text);
        if (cell_fields[i].kind == FIELD_CHOICE)
            memcpy(out->choice[i], text, strnlen(text, sizeof out->choice[i] - 1));
        else if (cell_fields[i].kind == FIELD_FLOAT)
            out->row.axes[i].f = strtod(text, NULL); /* 0.7, not 0.69999998807907104 */
    }
}

/* An axis that an older file does not know had its default value then. */
void summary_record_init(struct summary_record *out)
{
    struct cell plain;
    cell_defaults(&plain);
    memset(out, 0, sizeof *out);
    for (int i = 0; i < FIELD_COUNT; i++)
        out->row.axes[i] = field_get(&cell_fields[i], &plain);
    for (size_t i = 0; i < summary_column_count(); i++) {
        struct summary_column c = summary_column(i);
        double                unknown = NAN;
        if (c.kind == SUMMARY_REAL)
            memcpy((char *)&out->row + c.offset, &unknown, sizeof unknown);
    }
}

/* Rows are printed: whatever a file holds, a text is one line of UTF-8 without control characters. */
static void clean_texts(struct summary_row *row)
{
    for (size_t i = 0; i < summary_column_count(); i++) {
        struct summary_column c = summary_column(i);
        char                 *text = (char *)row + c.offset;
        if (c.kind != SUMMARY_TEXT)
            continue;
        utf8_clean_in_place(text);
        for (; (text = strpbrk(text, "\t\n")); text++)
            *text = ' ';
    }
}

static const char UNKNOWN_CHOICE[] = "?";

/* A cell of which only a damaged file is left has axes that nobody knows: choice -1, in the file a question mark. */
status_t summary_unpack(const struct summary_record *record, struct summary_row *out)
{
    *out = record->row;
    clean_texts(out);
    for (int i = 0; i < FIELD_COUNT; i++) {
        const struct field *f = &cell_fields[i];
        char                why[512];
        if (f->kind != FIELD_CHOICE || !record->choice[i][0])
            continue;
        if (strcmp(record->choice[i], UNKNOWN_CHOICE) == 0)
            out->axes[i].i = -1;
        else if (!field_parse(f, record->choice[i], &out->axes[i], why, sizeof why))
            return FAIL(ST_EINPUT, "%s: summary: cell %.32s: %s", h5_label(), record->row.id, why);
    }
    return ST_OK;
}

/* ---- /sources, /events ------------------------------------------------------------------------------------------- */

#define MEMBER(type, name) offsetof(struct type, name), sizeof(((struct type *)0)->name)
#define COLUMN(type, name, kind, units, definition)                                                                    \
    {                                                                                                                  \
#name, kind, MEMBER(type, name), units, definition                                                             \
    }

static const struct table_column source_columns[] = {
    COLUMN(source_record, id, TABLE_TEXT, "text", "cell"),
    COLUMN(source_record, file, TABLE_TEXT, "text", "its file, relative to the results folder"),
    COLUMN(source_record, size, TABLE_UINT, "byte", "size of the file"),
    COLUMN(source_record, xxh3, TABLE_UINT, "1", "XXH3-64 checksum that the file carries"),
};
const struct table_schema source_schema = {"sources", "the cell files that were merged", source_columns,
                                           sizeof source_columns / sizeof *source_columns,
                                           sizeof(struct source_record)};

static const struct table_column event_columns[] = {
    COLUMN(event_record, time, TABLE_TEXT, "text", "wall clock, ISO 8601 UTC"),
    COLUMN(event_record, event, TABLE_TEXT, "text", "run, start, end, cell, stop, …"),
    COLUMN(event_record, id, TABLE_TEXT, "text", "cell"),
    COLUMN(event_record, process, TABLE_INT, "1", "which of the cell's processes, -1 = not about one"),
    COLUMN(event_record, rank, TABLE_INT, "1", "rank, -1 = not about one"),
    COLUMN(event_record, pid, TABLE_INT, "1", "process id of the worker, -1 = not about one"),
    COLUMN(event_record, status, TABLE_TEXT, "text", "how it ended"),
    COLUMN(event_record, seconds, TABLE_REAL, "s", "life of the worker, or of all workers of a cell"),
    COLUMN(event_record, host, TABLE_TEXT, "text", "host of the worker"),
    COLUMN(event_record, text, TABLE_TEXT, "text", "the reason or remark"),
};
const struct table_schema event_schema = {"events", "what happened in the sweep, in the order of progress.jsonl",
                                          event_columns, sizeof event_columns / sizeof *event_columns,
                                          sizeof(struct event_record)};

static const struct table_column staging_columns[] = {
    COLUMN(staging_record, host, TABLE_TEXT, "text", "node"),
    COLUMN(staging_record, model, TABLE_TEXT, "text", "checkpoint that was read"),
    COLUMN(staging_record, form, TABLE_TEXT, "text", "recipe of its INT8 weights, or: as it is"),
    COLUMN(staging_record, mode, TABLE_TEXT, "text", "shard or shared"),
    COLUMN(staging_record, checksum, TABLE_TEXT, "text", "fingerprint of the staged checkpoint, the same on every node"),
    COLUMN(staging_record, bytes, TABLE_UINT, "byte", "the staged file"),
    COLUMN(staging_record, bytes_read, TABLE_UINT, "byte", "of the source, read by this node"),
    COLUMN(staging_record, bytes_received, TABLE_UINT, "byte", "from other nodes"),
    COLUMN(staging_record, init_s, TABLE_REAL, "s", "start of the slowest staging process, until it knew its work"),
    COLUMN(staging_record, read_s, TABLE_REAL, "s", "reading, of the slowest process; overlaps with quantizing"),
    COLUMN(staging_record, quantize_s, TABLE_REAL, "s", "until the slowest process had written its last byte"),
    COLUMN(staging_record, copy_s, TABLE_REAL, "s", "between the file and the buffers of the transfer"),
    COLUMN(staging_record, transfer_s, TABLE_REAL, "s", "in the fabric's collectives"),
    COLUMN(staging_record, verify_s, TABLE_REAL, "s", "checksums of all parts over the node's file"),
    COLUMN(staging_record, total_s, TABLE_REAL, "s", "from opening the source to the finished checkpoint"),
    COLUMN(staging_record, read_gb_s, TABLE_REAL, "GB/s", "bytes_read / read_s"),
    COLUMN(staging_record, quantize_gb_s, TABLE_REAL, "GB/s", "bytes_read / quantize_s"),
    COLUMN(staging_record, transfer_gb_s, TABLE_REAL, "GB/s", "bytes_received / transfer_s"),
};
const struct table_schema staging_schema = {"nodes", "how weights reached each node", staging_columns,
                                            sizeof staging_columns / sizeof *staging_columns, sizeof(struct staging_record)};
