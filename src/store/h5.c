#include "store/h5.h"

#include "base/utf8.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local const char *label_now = "HDF5";
static _Thread_local status_t    code_now = ST_EIO;

void h5_begin(const char *label, status_t code)
{
    /* HDF5 flushes open files at exit; one whose disk is full would fail there again and print its stack. */
    static atomic_flag done = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&done))
        H5dont_atexit();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    label_now = label;
    code_now = code;
}

const char *h5_label(void)
{
    return label_now;
}

enum { CAUSE_SIZE = 400 };

/* The walk goes upward from where the failure was found: the first description is the cause. Of the driver's long ones
 * ("file write failed: time = …, errno = 28, error message = 'No space left on device', buf = …") the system's words
 * are kept. */
static herr_t first_cause(unsigned n, const H5E_error2_t *error, void *out)
{
    static const char system_words[] = "error message = '";
    char             *cause = out;
    const char       *words = error->desc ? strstr(error->desc, system_words) : NULL;
    if (n != 0 || !error->desc)
        return 0;
    if (words) {
        words += strlen(system_words);
        snprintf(cause, CAUSE_SIZE, "%.*s: %.*s", (int)strcspn(error->desc, ":,"), error->desc,
                 (int)strcspn(words, "'"), words);
    } else
        snprintf(cause, CAUSE_SIZE, "%s", error->desc);
    for (char *c = cause; (c = strchr(c, '\n'));)
        *c = ' ';
    return 0;
}

status_t h5_check(int64_t result, const char *call, const char *file, int line)
{
    if (result >= 0)
        return ST_OK;
    char cause[CAUSE_SIZE] = "no further cause", name[64] = "";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first_cause, cause);
    H5Eclear2(H5E_DEFAULT);
    if (strstr(cause, "signature not found"))
        return status_raise(code_now, file, line, "%s: not an HDF5 file", label_now);
    const char *assigned = strstr(call, "= ");
    call = assigned ? assigned + 2 : call;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(call, "("), call);
    const char *advice = strstr(cause, "lock file") ? "; another program holds it, or this file system has no locks: "
                                                      "HDF5_USE_FILE_LOCKING=FALSE does without"
                                                    : "";
    return status_raise(code_now, file, line, "%s: %s: %s%s", label_now, name, cause, advice);
}

status_t h5_open_read(const char *path, hid_t *out)
{
    status_t st = ST_OK;
    hid_t    fapl = H5I_INVALID_HID, file;
    if (access(path, R_OK) != 0)
        return FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    TRY_OUT(H5_DO(fapl = H5Pcreate(H5P_FILE_ACCESS)));
#if H5_VERSION_GE(1, 10, 7)
    TRY_OUT(H5_DO(H5Pset_file_locking(fapl, 0, 1)));
#endif
    TRY_OUT(H5_DO(file = H5Fopen(path, H5F_ACC_RDONLY, fapl)));
    *out = file;
out:
    h5_close(fapl);
    return st;
}

void h5_close(hid_t handle)
{
    if (handle < 0)
        return;
    switch (H5Iget_type(handle)) {
    case H5I_FILE:
        H5Fclose(handle);
        break;
    case H5I_GROUP:
        H5Gclose(handle);
        break;
    case H5I_DATASET:
        H5Dclose(handle);
        break;
    case H5I_DATASPACE:
        H5Sclose(handle);
        break;
    case H5I_DATATYPE:
        H5Tclose(handle);
        break;
    case H5I_ATTR:
        H5Aclose(handle);
        break;
    case H5I_GENPROP_LST:
        H5Pclose(handle);
        break;
    default:
        break;
    }
}

status_t h5_make_group(hid_t where, const char *name, hid_t *out)
{
    status_t st = ST_OK;
    hid_t    gcpl = H5I_INVALID_HID;
    TRY_OUT(H5_DO(gcpl = H5Pcreate(H5P_GROUP_CREATE)));
    TRY_OUT(H5_DO(H5Pset_obj_track_times(gcpl, 0)));
    TRY_OUT(H5_DO(*out = H5Gcreate2(where, name, H5P_DEFAULT, gcpl, H5P_DEFAULT)));
out:
    h5_close(gcpl);
    return st;
}

status_t h5_find_group(hid_t where, const char *name, hid_t *out)
{
    *out = H5I_INVALID_HID;
    htri_t exists = H5Lexists(where, name, H5P_DEFAULT);
    TRY(H5_DO(exists));
    return exists ? H5_DO(*out = H5Gopen2(where, name, H5P_DEFAULT)) : ST_OK;
}

/* ---- attributes -------------------------------------------------------------------------------------------------- */

static hid_t text_type(size_t length)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type < 0 || H5Tset_size(type, length) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0) {
        h5_close(type);
        return H5I_INVALID_HID;
    }
    return type;
}

static status_t put_attribute(hid_t where, const char *name, hid_t file_type, hid_t memory_type, const void *value)
{
    status_t st = ST_OK;
    hid_t    space = H5I_INVALID_HID, attr = H5I_INVALID_HID;
    TRY_OUT(H5_DO(space = H5Screate(H5S_SCALAR)));
    TRY_OUT(H5_DO(attr = H5Acreate2(where, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT)));
    TRY_OUT(H5_DO(H5Awrite(attr, memory_type, value)));
out:
    h5_close(attr);
    h5_close(space);
    return st;
}

status_t h5_put_text(hid_t where, const char *name, const char *value)
{
    status_t st = ST_OK;
    hid_t    type = H5I_INVALID_HID;
    char    *clean = utf8_clean(value);
    if (!clean)
        return FAIL(ST_ENOMEM, "%s: no memory for attribute \"%s\"", label_now, name);
    const char *text = clean;
    TRY_OUT(H5_DO(type = text_type(H5T_VARIABLE)));
    st = put_attribute(where, name, type, type, &text);
out:
    h5_close(type);
    free(clean);
    return st;
}

status_t h5_put_fixed_text(hid_t where, const char *name, const char *value)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    TRY(H5_DO(type));
    status_t st = H5_DO(H5Tset_size(type, strlen(value) + 1));
    if (st == ST_OK)
        st = put_attribute(where, name, type, type, value);
    h5_close(type);
    return st;
}

status_t h5_put_int(hid_t where, const char *name, int64_t value)
{
    return put_attribute(where, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

status_t h5_put_uint(hid_t where, const char *name, uint64_t value)
{
    return put_attribute(where, name, H5T_STD_U64LE, H5T_NATIVE_UINT64, &value);
}

status_t h5_put_real(hid_t where, const char *name, double value)
{
    return put_attribute(where, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

/* Open attribute `name` when it is one value of the wanted class; *attr < 0 when it is absent and may be. */
static status_t open_attribute(hid_t where, const char *name, bool text, bool *found, hid_t *attr, hid_t *type)
{
    status_t st = ST_OK;
    hid_t    space = H5I_INVALID_HID;
    htri_t   there = H5Aexists(where, name);
    TRY(H5_DO(there));
    if (found)
        *found = there > 0;
    if (!there)
        return found ? ST_OK : FAIL(code_now, "%s: attribute \"%s\" is missing", label_now, name);
    TRY_OUT(H5_DO(*attr = H5Aopen(where, name, H5P_DEFAULT)));
    TRY_OUT(H5_DO(*type = H5Aget_type(*attr)));
    TRY_OUT(H5_DO(space = H5Aget_space(*attr)));
    H5T_class_t class = H5Tget_class(*type);
    bool fits = text ? class == H5T_STRING : (class == H5T_INTEGER || class == H5T_FLOAT) && H5Tget_size(*type) <= 8;
    if (!fits || H5Sget_simple_extent_npoints(space) != 1)
        st = FAIL(code_now, "%s: attribute \"%s\" is not one %s", label_now, name, text ? "text" : "number");
out:
    h5_close(space);
    return st;
}

static status_t get_number(hid_t where, const char *name, hid_t memory_type, void *out, bool *found)
{
    status_t st = ST_OK;
    hid_t    attr = H5I_INVALID_HID, type = H5I_INVALID_HID;
    TRY_OUT(open_attribute(where, name, false, found, &attr, &type));
    if (attr >= 0)
        st = H5_DO(H5Aread(attr, memory_type, out));
out:
    h5_close(type);
    h5_close(attr);
    return st;
}

status_t h5_get_int(hid_t where, const char *name, int64_t *out, bool *found)
{
    return get_number(where, name, H5T_NATIVE_INT64, out, found);
}

status_t h5_get_uint(hid_t where, const char *name, uint64_t *out, bool *found)
{
    return get_number(where, name, H5T_NATIVE_UINT64, out, found);
}

status_t h5_get_real(hid_t where, const char *name, double *out, bool *found)
{
    return get_number(where, name, H5T_NATIVE_DOUBLE, out, found);
}

status_t h5_get_text(hid_t where, const char *name, char **out, bool *found)
{
    status_t st = ST_OK;
    hid_t    attr = H5I_INVALID_HID, type = H5I_INVALID_HID, memory = H5I_INVALID_HID;
    char    *text = NULL;
    TRY_OUT(open_attribute(where, name, true, found, &attr, &type));
    if (attr < 0)
        goto out;
    bool variable = H5Tis_variable_str(type) > 0;
    if (variable) {
        char *value = NULL;
        TRY_OUT(H5_DO(memory = text_type(H5T_VARIABLE)));
        TRY_OUT(H5_DO(H5Tset_cset(memory, H5Tget_cset(type))));
        TRY_OUT(H5_DO(H5Aread(attr, memory, &value)));
        if (strlen(value ? value : "") > H5_TEXT_MAX)
            st = FAIL(code_now, "%s: attribute \"%s\" is longer than %d bytes", label_now, name, H5_TEXT_MAX);
        else if (!(text = strdup(value ? value : "")))
            st = FAIL(ST_ENOMEM, "%s: no memory for attribute \"%s\"", label_now, name);
        H5free_memory(value);
    } else {
        size_t size = H5Tget_size(type);
        if (size > H5_TEXT_MAX || !(text = calloc(1, size + 1)))
            st = FAIL(ST_ENOMEM, "%s: attribute \"%s\" of %zu bytes", label_now, name, size);
        else
            st = H5_DO(H5Aread(attr, type, text));
    }
    if (st == ST_OK) {
        free(*out);
        *out = text;
        text = NULL;
    }
out:
    free(text);
    h5_close(memory);
    h5_close(type);
    h5_close(attr);
    return st;
}

status_t h5_get_chars(hid_t where, const char *name, char *out, size_t size, bool *found)
{
    char *text = NULL;
    TRY(h5_get_text(where, name, &text, found));
    if (!text)
        return ST_OK;
    status_t st = ST_OK;
    if (strlen(text) >= size)
        st = FAIL(code_now, "%s: attribute \"%s\" has %zu bytes, want fewer than %zu", label_now, name, strlen(text),
                  size);
    else
        strcpy(out, text);
    free(text);
    return st;
}

/* ---- datasets ---------------------------------------------------------------------------------------------------- */

size_t h5_kind_size(enum h5_kind kind)
{
    return kind == H5_I32 ? 4 : 8;
}

static hid_t file_type_of(enum h5_kind kind)
{
    switch (kind) {
    case H5_I32:
        return H5T_STD_I32LE;
    case H5_I64:
        return H5T_STD_I64LE;
    case H5_U64:
        return H5T_STD_U64LE;
    default:
        return H5T_IEEE_F64LE;
    }
}

static hid_t memory_type_of(enum h5_kind kind)
{
    switch (kind) {
    case H5_I32:
        return H5T_NATIVE_INT32;
    case H5_I64:
        return H5T_NATIVE_INT64;
    case H5_U64:
        return H5T_NATIVE_UINT64;
    default:
        return H5T_NATIVE_DOUBLE;
    }
}

/* Small data stay contiguous: a chunk index and three filters cost more than they save below 8 KiB. */
static status_t layout_for(size_t n, size_t element, hid_t *out)
{
    enum { SMALL = 8 << 10, CHUNK_MAX = 1 << 20 };
    TRY(H5_DO(*out = H5Pcreate(H5P_DATASET_CREATE)));
    TRY(H5_DO(H5Pset_obj_track_times(*out, 0)));
    if (n * element < SMALL)
        return ST_OK;
    hsize_t chunk = n * element > CHUNK_MAX ? CHUNK_MAX / element : n;
    TRY(H5_DO(H5Pset_chunk(*out, 1, &chunk)));
    TRY(H5_DO(H5Pset_shuffle(*out)));
    TRY(H5_DO(H5Pset_deflate(*out, 1)));
    return H5_DO(H5Pset_fletcher32(*out));
}

static status_t put_dataset(hid_t group, const char *name, hid_t file_type, hid_t memory_type, hid_t space, hid_t dcpl,
                            const void *data, const char *units, const char *long_name, const char *meanings)
{
    status_t st = ST_OK;
    hid_t    dset = H5I_INVALID_HID;
    TRY_OUT(H5_DO(dset = H5Dcreate2(group, name, file_type, space, H5P_DEFAULT, dcpl, H5P_DEFAULT)));
    TRY_OUT(H5_DO(H5Dwrite(dset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data)));
    TRY_OUT(h5_put_text(dset, "units", units));
    TRY_OUT(h5_put_text(dset, "long_name", long_name));
    if (meanings)
        st = h5_put_text(dset, "flag_meanings", meanings);
out:
    h5_close(dset);
    return st;
}

status_t h5_put_column(hid_t group, const char *name, enum h5_kind kind, const void *data, size_t n, const char *units,
                       const char *long_name, const char *meanings)
{
    status_t st = ST_OK;
    hsize_t  dim = n;
    hid_t    space = H5I_INVALID_HID, dcpl = H5I_INVALID_HID;
    if (n > H5_ROWS_MAX)
        return FAIL(ST_EUNSUPPORTED, "%s: column \"%s\" has %zu rows, at most %d can be kept", label_now, name, n,
                    H5_ROWS_MAX);
    TRY_OUT(H5_DO(space = H5Screate_simple(1, &dim, NULL)));
    TRY_OUT(layout_for(n, h5_kind_size(kind), &dcpl));
    st = put_dataset(group, name, file_type_of(kind), memory_type_of(kind), space, dcpl, data, units, long_name,
                     meanings);
out:
    h5_close(dcpl);
    h5_close(space);
    return st;
}

status_t h5_open_dataset(hid_t group, const char *name, int rank, hid_t *dset, hid_t *type, size_t *rows)
{
    status_t st = ST_OK;
    hid_t    space = H5I_INVALID_HID;
    hsize_t  dim = 1;
    htri_t   there = H5Lexists(group, name, H5P_DEFAULT);
    TRY(H5_DO(there));
    if (!there)
        return ST_OK;
    /* Soft and external links would read other files on the word of this one. */
    H5L_info_t link;
    TRY(H5_DO(H5Lget_info(group, name, &link, H5P_DEFAULT)));
    if (link.type != H5L_TYPE_HARD)
        return FAIL(code_now, "%s: \"%s\" is a link to elsewhere", label_now, name);
    TRY_OUT(H5_DO(*dset = H5Dopen2(group, name, H5P_DEFAULT)));
    TRY_OUT(H5_DO(*type = H5Dget_type(*dset)));
    TRY_OUT(H5_DO(space = H5Dget_space(*dset)));
    if (H5Sget_simple_extent_ndims(space) != rank) {
        st = FAIL(code_now, "%s: \"%s\" has %d dimensions, want %d", label_now, name, H5Sget_simple_extent_ndims(space),
                  rank);
        goto out;
    }
    if (rank == 1)
        TRY_OUT(H5_DO(H5Sget_simple_extent_dims(space, &dim, NULL)));
    if (dim > H5_ROWS_MAX)
        st = FAIL(code_now, "%s: \"%s\" claims %llu rows, at most %d are read", label_now, name,
                  (unsigned long long)dim, H5_ROWS_MAX);
    else
        *rows = (size_t)dim;
out:
    h5_close(space);
    return st;
}

status_t h5_column_rows(hid_t group, const char *name, size_t *rows, bool *found)
{
    hid_t    dset = H5I_INVALID_HID, type = H5I_INVALID_HID;
    status_t st = h5_open_dataset(group, name, 1, &dset, &type, rows);
    *found = dset >= 0;
    h5_close(type);
    h5_close(dset);
    return st;
}

status_t h5_get_column(hid_t group, const char *name, enum h5_kind kind, void *data, size_t n, bool *found)
{
    status_t st = ST_OK;
    hid_t    dset = H5I_INVALID_HID, type = H5I_INVALID_HID;
    size_t   rows = 0;
    TRY_OUT(h5_open_dataset(group, name, 1, &dset, &type, &rows));
    H5T_class_t class = dset < 0 ? H5T_NO_CLASS : H5Tget_class(type);
    if (found)
        *found = dset >= 0;
    if (dset < 0)
        st = found ? ST_OK : FAIL(code_now, "%s: column \"%s\" is missing", label_now, name);
    else if ((class != H5T_INTEGER && class != H5T_FLOAT) || H5Tget_size(type) > 8)
        st = FAIL(code_now, "%s: column \"%s\" does not hold numbers", label_now, name);
    else if (rows != n)
        st = FAIL(code_now, "%s: column \"%s\" has %zu rows, its neighbours %zu", label_now, name, rows, n);
    else if (n > 0)
        st = H5_DO(H5Dread(dset, memory_type_of(kind), H5S_ALL, H5S_ALL, H5P_DEFAULT, data));
out:
    h5_close(type);
    h5_close(dset);
    return st;
}

status_t h5_put_document(hid_t group, const char *name, const char *text, const char *long_name)
{
    status_t st = ST_OK;
    hid_t    type = H5I_INVALID_HID, space = H5I_INVALID_HID, dcpl = H5I_INVALID_HID;
    char    *clean = utf8_clean(text);
    if (!clean)
        return FAIL(ST_ENOMEM, "%s: no memory for \"%s\"", label_now, name);
    size_t length = strlen(clean);
    TRY_OUT(H5_DO(type = text_type(length ? length : 1))); /* HDF5 has no text of length 0 */
    TRY_OUT(H5_DO(H5Tset_strpad(type, H5T_STR_NULLPAD)));
    TRY_OUT(H5_DO(space = H5Screate(H5S_SCALAR)));
    TRY_OUT(layout_for(0, 1, &dcpl));
    st = put_dataset(group, name, type, type, space, dcpl, clean, "text", long_name, NULL);
out:
    h5_close(dcpl);
    h5_close(space);
    h5_close(type);
    free(clean);
    return st;
}

status_t h5_get_document(hid_t group, const char *name, char **out, bool *found)
{
    status_t st = ST_OK;
    hid_t    dset = H5I_INVALID_HID, type = H5I_INVALID_HID;
    size_t   rows = 0, size;
    char    *text = NULL;
    TRY_OUT(h5_open_dataset(group, name, 0, &dset, &type, &rows));
    *found = dset >= 0;
    if (dset < 0)
        goto out;
    size = H5Tget_size(type);
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) || size > H5_TEXT_MAX)
        st = FAIL(code_now, "%s: \"%s\" is not a text of at most %d bytes", label_now, name, H5_TEXT_MAX);
    else if (!(text = calloc(1, size + 1)))
        st = FAIL(ST_ENOMEM, "%s: no memory for \"%s\" of %zu bytes", label_now, name, size);
    else
        st = H5_DO(H5Dread(dset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text));
    if (st == ST_OK) {
        free(*out);
        *out = text;
        text = NULL;
    }
out:
    free(text);
    h5_close(type);
    h5_close(dset);
    return st;
}

status_t h5_put_names(hid_t group, const char *name, const char *const *names, size_t n, const char *long_name)
{
    status_t st = ST_OK;
    hsize_t  dim = n;
    size_t   width = 1;
    hid_t    type = H5I_INVALID_HID, space = H5I_INVALID_HID, dcpl = H5I_INVALID_HID;
    for (size_t i = 0; i < n; i++)
        width = strlen(names[i]) > width ? strlen(names[i]) : width;
    char *block = calloc(n ? n : 1, width + 1);
    if (!block)
        return FAIL(ST_ENOMEM, "%s: no memory for \"%s\"", label_now, name);
    for (size_t i = 0; i < n; i++) {
        char *clean = utf8_clean(names[i]);
        if (clean)
            memcpy(block + i * width, clean, strlen(clean));
        free(clean);
    }
    TRY_OUT(H5_DO(type = text_type(width)));
    TRY_OUT(H5_DO(H5Tset_strpad(type, H5T_STR_NULLPAD)));
    TRY_OUT(H5_DO(space = H5Screate_simple(1, &dim, NULL)));
    TRY_OUT(layout_for(n, width, &dcpl));
    st = put_dataset(group, name, type, type, space, dcpl, block, "text", long_name, NULL);
out:
    h5_close(dcpl);
    h5_close(space);
    h5_close(type);
    free(block);
    return st;
}

/* Read as the file has them and spread afterwards: HDF5 would convert texts through a cleared buffer of 1 MiB. */
status_t h5_get_names(hid_t group, const char *name, size_t max_rows, char **block, size_t *n, size_t *width)
{
    status_t st = ST_OK;
    hid_t    dset = H5I_INVALID_HID, type = H5I_INVALID_HID;
    size_t   rows = 0, size = 0;
    char    *raw = NULL, *names = NULL;
    TRY_OUT(h5_open_dataset(group, name, 1, &dset, &type, &rows));
    if (dset < 0) {
        st = FAIL(code_now, "%s: column \"%s\" is missing", label_now, name);
        goto out;
    }
    size = H5Tget_size(type);
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) || rows > max_rows || size > 4096) {
        st = FAIL(code_now, "%s: \"%s\" is not a column of at most %zu short names", label_now, name, max_rows);
        goto out;
    }
    raw = calloc(rows + 1, size);
    names = calloc(rows + 1, size + 1);
    if (!raw || !names) {
        st = FAIL(ST_ENOMEM, "%s: no memory for \"%s\"", label_now, name);
        goto out;
    }
    if (rows)
        TRY_OUT(H5_DO(H5Dread(dset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, raw)));
    for (size_t i = 0; i < rows; i++)
        memcpy(names + i * (size + 1), raw + i * size, size);
    *block = names;
    *n = rows;
    *width = size + 1;
    names = NULL;
out:
    free(names);
    free(raw);
    h5_close(type);
    h5_close(dset);
    return st;
}

void utf8_clean_in_place(char *text)
{
    for (size_t left = strlen(text), n; left; text += n, left -= n) {
        n = utf8_length(text, left);
        if (n == 0)
            *text = '?';
        else if (n == 1 && (unsigned char)*text < 0x20 && *text != '\t' && *text != '\n')
            *text = ' ';
        n += n == 0;
    }
}

char *utf8_clean(const char *text)
{
    char *clean = strdup(text ? text : "");
    if (clean)
        utf8_clean_in_place(clean);
    return clean;
}
