#include "store/table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Type of one column, in memory or in the file: fixed, little-endian. */
static hid_t column_type(const struct table_column *c, bool in_file)
{
    hid_t type;
    switch (c->kind) {
    case TABLE_INT:
        return H5Tcopy(in_file ? H5T_STD_I64LE : H5T_NATIVE_INT64);
    case TABLE_UINT:
        return H5Tcopy(in_file ? H5T_STD_U64LE : H5T_NATIVE_UINT64);
    case TABLE_REAL:
        return H5Tcopy(in_file ? H5T_IEEE_F64LE : H5T_NATIVE_DOUBLE);
    default:
        type = H5Tcopy(H5T_C_S1);
        if (type >= 0 && (H5Tset_size(type, c->size) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)) {
            h5_close(type);
            type = H5I_INVALID_HID;
        }
        return type;
    }
}

/* Compound of the columns for which `there` says so (NULL: all), packed for the file or as the struct lies in memory.
 */
static status_t row_type(const struct table_schema *s, bool in_file, const bool *there, hid_t *out)
{
    status_t st = ST_OK;
    hid_t    type = H5I_INVALID_HID, member = H5I_INVALID_HID;
    size_t   at = 0, packed = 0;
    for (size_t i = 0; i < s->n_columns; i++)
        packed += s->columns[i].size;
    TRY_OUT(H5_DO(type = H5Tcreate(H5T_COMPOUND, in_file ? packed : s->row_size)));
    for (size_t i = 0; i < s->n_columns; i++) {
        const struct table_column *c = &s->columns[i];
        if (there && !there[i])
            continue;
        TRY_OUT(H5_DO(member = column_type(c, in_file)));
        TRY_OUT(H5_DO(H5Tinsert(type, c->name, in_file ? at : c->offset, member)));
        h5_close(member);
        member = H5I_INVALID_HID;
        at += c->size;
    }
    *out = type;
    type = H5I_INVALID_HID;
out:
    h5_close(member);
    h5_close(type);
    return st;
}

static status_t describe(hid_t dset, const struct table_schema *s)
{
    char name[128];
    TRY(h5_put_text(dset, "units", "see the attributes units.<column>"));
    TRY(h5_put_text(dset, "long_name", s->long_name));
    for (size_t i = 0; i < s->n_columns; i++) {
        snprintf(name, sizeof name, "units.%s", s->columns[i].name);
        TRY(h5_put_text(dset, name, s->columns[i].units));
        snprintf(name, sizeof name, "definition.%s", s->columns[i].name);
        TRY(h5_put_text(dset, name, s->columns[i].definition));
    }
    return ST_OK;
}

status_t table_create(hid_t where, const struct table_schema *schema, size_t rows_hint, struct table *out)
{
    status_t st = ST_OK;
    hid_t    type = H5I_INVALID_HID, space = H5I_INVALID_HID, dcpl = H5I_INVALID_HID;
    hsize_t  none = 0, unlimited = H5S_UNLIMITED;
    hsize_t  chunk = rows_hint == 0 ? 1 : rows_hint < TABLE_PIECE ? rows_hint : TABLE_PIECE;
    *out = (struct table){.schema = schema, .dset = H5I_INVALID_HID, .memory = H5I_INVALID_HID};
    TRY_OUT(row_type(schema, true, NULL, &type));
    TRY_OUT(row_type(schema, false, NULL, &out->memory));
    TRY_OUT(H5_DO(space = H5Screate_simple(1, &none, &unlimited)));
    TRY_OUT(H5_DO(dcpl = H5Pcreate(H5P_DATASET_CREATE)));
    TRY_OUT(H5_DO(H5Pset_obj_track_times(dcpl, 0)));
    TRY_OUT(H5_DO(H5Pset_chunk(dcpl, 1, &chunk)));
    TRY_OUT(H5_DO(H5Pset_shuffle(dcpl)));
    TRY_OUT(H5_DO(H5Pset_deflate(dcpl, 1)));
    TRY_OUT(H5_DO(H5Pset_fletcher32(dcpl)));
    TRY_OUT(H5_DO(out->dset = H5Dcreate2(where, schema->name, type, space, H5P_DEFAULT, dcpl, H5P_DEFAULT)));
    st = describe(out->dset, schema);
out:
    h5_close(dcpl);
    h5_close(space);
    h5_close(type);
    return st;
}

/* Rows first … first + n of the file and the matching space in memory. */
static status_t select_rows(hid_t dset, size_t first, size_t n, hid_t *file_space, hid_t *memory_space)
{
    hsize_t start = first, count = n;
    TRY(H5_DO(*file_space = H5Dget_space(dset)));
    TRY(H5_DO(H5Sselect_hyperslab(*file_space, H5S_SELECT_SET, &start, NULL, &count, NULL)));
    return H5_DO(*memory_space = H5Screate_simple(1, &count, NULL));
}

status_t table_append(struct table *t, const void *rows, size_t n)
{
    status_t st = ST_OK;
    hid_t    file_space = H5I_INVALID_HID, memory_space = H5I_INVALID_HID;
    hsize_t  size = t->rows + n;
    if (n == 0)
        return ST_OK;
    TRY_OUT(H5_DO(H5Dset_extent(t->dset, &size)));
    TRY_OUT(select_rows(t->dset, t->rows, n, &file_space, &memory_space));
    TRY_OUT(H5_DO(H5Dwrite(t->dset, t->memory, memory_space, file_space, H5P_DEFAULT, rows)));
    t->rows += n;
out:
    h5_close(memory_space);
    h5_close(file_space);
    return st;
}

/* Which of our columns does the file's compound have, and are they of our class? */
static status_t match_columns(hid_t type, const struct table_schema *s, bool *there)
{
    for (size_t i = 0; i < s->n_columns; i++) {
        const struct table_column *c = &s->columns[i];
        int                        member = H5Tget_member_index(type, c->name);
        H5Eclear2(H5E_DEFAULT);
        there[i] = member >= 0;
        if (!there[i])
            continue;
        H5T_class_t class = H5Tget_member_class(type, (unsigned)member);
        hid_t its = H5Tget_member_type(type, (unsigned)member);
        bool  fits = c->kind == TABLE_TEXT ? class == H5T_STRING && H5Tis_variable_str(its) == 0
                                           : class == H5T_INTEGER || class == H5T_FLOAT;
        fits = fits && its >= 0 && H5Tget_size(its) <= (c->kind == TABLE_TEXT ? 4096 : 8);
        h5_close(its);
        if (!fits)
            return FAIL(ST_EINPUT, "%s: %s: column \"%s\" has another type", h5_label(), s->name, c->name);
    }
    return ST_OK;
}

status_t table_open(hid_t where, const struct table_schema *schema, size_t max_rows, struct table *out)
{
    status_t st = ST_OK;
    hid_t    type = H5I_INVALID_HID;
    bool    *there = calloc(schema->n_columns, sizeof *there);
    *out = (struct table){.schema = schema, .dset = H5I_INVALID_HID, .memory = H5I_INVALID_HID};
    if (!there)
        return FAIL(ST_ENOMEM, "%s: no memory for the columns of %s", h5_label(), schema->name);
    TRY_OUT(h5_open_dataset(where, schema->name, 1, &out->dset, &type, &out->rows));
    if (out->dset < 0)
        st = FAIL(ST_EINPUT, "%s: table \"%s\" is missing", h5_label(), schema->name);
    else if (H5Tget_class(type) != H5T_COMPOUND || H5Tget_size(type) > 1 << 16)
        st = FAIL(ST_EINPUT, "%s: \"%s\" is not a table", h5_label(), schema->name);
    else if (out->rows > max_rows)
        st = FAIL(ST_EINPUT, "%s: table \"%s\" claims %zu rows, at most %zu are read", h5_label(), schema->name,
                  out->rows, max_rows);
    if (st != ST_OK)
        goto out;
    TRY_OUT(match_columns(type, schema, there));
    /* A column that differs in text length is converted, cut or padded, by HDF5. */
    st = row_type(schema, false, there, &out->memory);
out:
    free(there);
    h5_close(type);
    return st;
}

status_t table_read(const struct table *t, size_t first, size_t n, void *rows)
{
    status_t st = ST_OK;
    hid_t    file_space = H5I_INVALID_HID, memory_space = H5I_INVALID_HID;
    if (n == 0)
        return ST_OK;
    TRY_OUT(select_rows(t->dset, first, n, &file_space, &memory_space));
    TRY_OUT(H5_DO(H5Dread(t->dset, t->memory, memory_space, file_space, H5P_DEFAULT, rows)));
    for (size_t i = 0; i < t->schema->n_columns; i++) /* texts end, whatever the file holds */
        for (size_t k = 0; t->schema->columns[i].kind == TABLE_TEXT && k < n; k++) {
            const struct table_column *c = &t->schema->columns[i];
            ((char *)rows)[k * t->schema->row_size + c->offset + c->size - 1] = '\0';
        }
out:
    h5_close(memory_space);
    h5_close(file_space);
    return st;
}

void table_close(struct table *t)
{
    h5_close(t->memory);
    h5_close(t->dset);
    t->memory = t->dset = H5I_INVALID_HID;
}
