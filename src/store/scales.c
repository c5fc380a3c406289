/* scales.c — dimension scales of a cell's trace, as HDF5's dimension scale specification 1.1 lays them out in
 * attributes. Written here rather than through HDF5's high-level library, which opens every column twice. */
#include "store/cell_group.h"
#include "store/rows.h"

#include <string.h>

/* The scale's entry for one column that it scales (HDF5 dimension scale specification, version 1.1). */
struct scale_user {
    hobj_ref_t dataset;
    int        dimension;
};

/* Attribute `name` [n] of the object `object` in group; one that a copy left behind is replaced. */
static status_t put_vector(hid_t group, const char *object, const char *name, hid_t type, const void *values, size_t n)
{
    status_t st = ST_OK;
    hsize_t  dim = n;
    hid_t    space = H5I_INVALID_HID, attr = H5I_INVALID_HID;
    htri_t   there = H5Aexists_by_name(group, object, name, H5P_DEFAULT);
    TRY_OUT(H5_DO(there));
    if (there)
        TRY_OUT(H5_DO(H5Adelete_by_name(group, object, name, H5P_DEFAULT)));
    TRY_OUT(H5_DO(space = H5Screate_simple(1, &dim, NULL)));
    TRY_OUT(H5_DO(attr = H5Acreate_by_name(group, object, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)));
    TRY_OUT(H5_DO(H5Awrite(attr, type, values)));
out:
    h5_close(attr);
    h5_close(space);
    return st;
}

static status_t make_scale(hid_t group, const char *name)
{
    hid_t  dset = H5I_INVALID_HID;
    htri_t is_scale = H5Aexists_by_name(group, name, "CLASS", H5P_DEFAULT);
    TRY(H5_DO(is_scale));
    if (is_scale)
        return ST_OK;
    TRY(H5_DO(dset = H5Dopen2(group, name, H5P_DEFAULT)));
    status_t st = h5_put_fixed_text(dset, "CLASS", "DIMENSION_SCALE");
    if (st == ST_OK)
        st = h5_put_fixed_text(dset, "NAME", name);
    h5_close(dset);
    return st;
}

/* Scale every other column of `kind` below cell by its column `scale`. */
static status_t attach(hid_t cell, const struct row_kind *kind, const char *scale)
{
    enum { USERS_MAX = 32 };
    status_t          st = ST_OK;
    hid_t             group = H5I_INVALID_HID, list = H5I_INVALID_HID, user = H5I_INVALID_HID;
    struct scale_user users[USERS_MAX];
    hobj_ref_t        scale_ref;
    hvl_t             dimension = {1, &scale_ref};
    size_t            n = 0;
    TRY(h5_find_group(cell, kind->group, &group));
    if (group < 0 || H5Lexists(group, scale, H5P_DEFAULT) <= 0)
        goto out;
    TRY_OUT(H5_DO(H5Rcreate(&scale_ref, group, scale, H5R_OBJECT, -1)));
    TRY_OUT(H5_DO(list = H5Tvlen_create(H5T_STD_REF_OBJ)));
    for (size_t i = 0; i < kind->n_columns && n < USERS_MAX; i++) {
        const char *name = kind->columns[i].name;
        if (strcmp(name, scale) == 0 || H5Lexists(group, name, H5P_DEFAULT) <= 0)
            continue;
        TRY_OUT(H5_DO(H5Rcreate(&users[n].dataset, group, name, H5R_OBJECT, -1)));
        users[n++].dimension = 0;
        TRY_OUT(put_vector(group, name, "DIMENSION_LIST", list, &dimension, 1));
    }
    TRY_OUT(make_scale(group, scale));
    TRY_OUT(H5_DO(user = H5Tcreate(H5T_COMPOUND, sizeof(struct scale_user))));
    TRY_OUT(H5_DO(H5Tinsert(user, "dataset", HOFFSET(struct scale_user, dataset), H5T_STD_REF_OBJ)));
    TRY_OUT(H5_DO(H5Tinsert(user, "dimension", HOFFSET(struct scale_user, dimension), H5T_NATIVE_INT)));
    st = put_vector(group, scale, "REFERENCE_LIST", user, users, n);
out:
    h5_close(user);
    h5_close(list);
    h5_close(group);
    return st;
}

status_t cell_group_attach_scales(hid_t cells, const char *id)
{
    hid_t cell = H5I_INVALID_HID;
    TRY(H5_DO(cell = H5Gopen2(cells, id, H5P_DEFAULT)));
    status_t st = attach(cell, &trace_rows, "t_ns");
    h5_close(cell);
    return st;
}
