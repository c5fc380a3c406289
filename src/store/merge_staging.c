/* merge_staging.c — /staging/nodes: the lines of every folder's staging.jsonl and the rows of every merged input. */
#include "store/merge_items.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_SIZE = 4400, LINE_MAX_BYTES = 1 << 14 };

static void take_text(const json_t *line, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(line, key));
    size_t      n = strnlen(text ? text : "", size - 1);
    while (n && text && text[n] && ((unsigned char)text[n] & 0xC0) == 0x80)
        n--;
    memcpy(out, text ? text : "", n);
}

static double take_real(const json_t *line, const char *key)
{
    const json_t *value = json_object_get(line, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static uint64_t take_size(const json_t *line, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(line, key));
    return value > 0 ? (uint64_t)value : 0;
}

/* GB are 10^9 bytes; NaN where nothing moved. */
static double rate(uint64_t bytes, double seconds)
{
    return bytes && seconds > 0 ? (double)bytes * 1e-9 / seconds : NAN;
}

static bool parse_line(const char *text, struct staging_record *r)
{
    json_t *line = json_loads(text, 0, NULL);
    bool    good = json_is_object(line);
    memset(r, 0, sizeof *r);
    if (good) {
        take_text(line, "host", r->host, sizeof r->host);
        take_text(line, "model", r->model, sizeof r->model);
        take_text(line, "form", r->form, sizeof r->form);
        take_text(line, "mode", r->mode, sizeof r->mode);
        take_text(line, "checksum", r->checksum, sizeof r->checksum);
        r->bytes = take_size(line, "bytes");
        r->bytes_read = take_size(line, "bytes_read");
        r->bytes_received = take_size(line, "bytes_received");
        r->init_s = take_real(line, "init_s");
        r->read_s = take_real(line, "read_s");
        r->quantize_s = take_real(line, "quantize_s");
        r->copy_s = take_real(line, "copy_s");
        r->transfer_s = take_real(line, "transfer_s");
        r->verify_s = take_real(line, "verify_s");
        r->total_s = take_real(line, "total_s");
        r->read_gb_s = rate(r->bytes_read, r->read_s);
        r->quantize_gb_s = rate(r->bytes_read, r->quantize_s);
        r->transfer_gb_s = rate(r->bytes_received, r->transfer_s);
    }
    json_decref(line);
    return good;
}

static status_t from_folder(const struct merge_input *in, struct table *t)
{
    char     path[PATH_SIZE];
    status_t st = ST_OK;
    bool     whole = true;
    snprintf(path, sizeof path, "%s/staging.jsonl", in->path);
    FILE *f = fopen(path, "r");
    char *line = malloc(LINE_MAX_BYTES);
    while (f && line && st == ST_OK && fgets(line, LINE_MAX_BYTES, f)) {
        struct staging_record r;
        bool                  ends = strchr(line, '\n') != NULL;
        if (whole && ends && parse_line(line, &r))
            st = table_append(t, &r, 1);
        whole = ends;
    }
    free(line);
    if (f)
        fclose(f);
    return st;
}

static status_t from_merged(const struct merge_input *in, const char *label, struct table *t)
{
    struct table old = {.dset = H5I_INVALID_HID, .memory = H5I_INVALID_HID};
    hid_t        group = H5I_INVALID_HID, dset = H5I_INVALID_HID, type = H5I_INVALID_HID;
    size_t       rows = 0;
    status_t     st = ST_OK;
    h5_begin(in->path, ST_EINPUT);
    TRY_OUT(h5_find_group(in->file, "staging", &group));
    if (group < 0)
        goto out;
    TRY_OUT(h5_open_dataset(group, staging_schema.name, 1, &dset, &type, &rows)); /* files of version 1.0.0 have none */
    if (dset < 0)
        goto out;
    TRY_OUT(table_open(group, &staging_schema, H5_ROWS_MAX, &old));
    for (size_t i = 0; i < old.rows; i++) {
        struct staging_record r = {0};
        h5_begin(in->path, ST_EINPUT);
        TRY_OUT(table_read(&old, i, 1, &r));
        h5_begin(label, ST_EIO);
        TRY_OUT(table_append(t, &r, 1));
    }
out:
    table_close(&old);
    h5_close(type);
    h5_close(dset);
    h5_close(group);
    h5_begin(label, ST_EIO);
    return st;
}

status_t merge_staging(hid_t out, const char *label, const struct item_list *l)
{
    struct table t = {.dset = H5I_INVALID_HID, .memory = H5I_INVALID_HID};
    hid_t        group = H5I_INVALID_HID;
    status_t     st = ST_OK;
    h5_begin(label, ST_EIO);
    TRY_OUT(h5_make_group(out, "staging", &group));
    TRY_OUT(h5_put_text(group, "long_name", "how weights reached each node; no rows when every cell read them itself"));
    TRY_OUT(table_create(group, &staging_schema, TABLE_PIECE, &t));
    for (size_t i = 0; i < l->n_inputs && st == ST_OK; i++)
        st = l->inputs[i].folder ? from_folder(&l->inputs[i], &t) : from_merged(&l->inputs[i], label, &t);
out:
    table_close(&t);
    h5_close(group);
    return st;
}
