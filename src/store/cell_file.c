#include "store/cell_file.h"

#include "store/atomic_file.h"
#include "store/cell_group.h"
#include "store/seal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void cell_file_path(const char *output, const char *id, char *path, size_t size)
{
    snprintf(path, size, "%s/cells/%.2s/cell-%s.h5", output, id, id);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* Build the HDF5 file in memory: the disk then sees one plain sequential write, whose failures have an errno, and file
 * systems without locks never see HDF5 at all. HDF5's image leaves out its user block; *image begins with room for it.
 */
static status_t build_image(const struct result *r, char **image, size_t *size)
{
    status_t st = ST_OK;
    hid_t    fapl = H5I_INVALID_HID, fcpl = H5I_INVALID_HID, file = H5I_INVALID_HID, root = H5I_INVALID_HID;
    ssize_t  length;
    char    *bytes = NULL;
    TRY_OUT(H5_DO(fapl = H5Pcreate(H5P_FILE_ACCESS)));
    TRY_OUT(H5_DO(H5Pset_fapl_core(fapl, 256 << 10, 0)));
    TRY_OUT(H5_DO(fcpl = H5Pcreate(H5P_FILE_CREATE)));
    TRY_OUT(H5_DO(H5Pset_userblock(fcpl, SEAL_SIZE)));
    TRY_OUT(H5_DO(file = H5Fcreate("cell", H5F_ACC_TRUNC, fcpl, fapl)));
    TRY_OUT(H5_DO(root = H5Gopen2(file, "/", H5P_DEFAULT)));
    TRY_OUT(cell_group_write(root, r));
    TRY_OUT(H5_DO(H5Fflush(file, H5F_SCOPE_GLOBAL)));
    TRY_OUT(H5_DO(length = H5Fget_file_image(file, NULL, 0)));
    bytes = calloc(1, SEAL_SIZE + (size_t)length);
    if (!bytes) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zd bytes", h5_label(), length);
        goto out;
    }
    TRY_OUT(H5_DO(H5Fget_file_image(file, bytes + SEAL_SIZE, (size_t)length)));
    if (memcmp(bytes + SEAL_SIZE, "\x89HDF\r\n\x1a\n", 8) != 0) {
        st = FAIL(ST_EINTERNAL, "%s: this HDF5 library places the user block differently", h5_label());
        goto out;
    }
    *image = bytes;
    *size = SEAL_SIZE + (size_t)length;
    bytes = NULL;
out:
    free(bytes);
    h5_close(root);
    h5_close(file);
    h5_close(fcpl);
    h5_close(fapl);
    return st;
}

status_t cell_file_write(const char *path, const struct result *r)
{
    char  *image = NULL, head[256];
    size_t size = 0;
    h5_begin(path, ST_EIO);
    TRY(atomic_make_folder(path));
    TRY(build_image(r, &image, &size));
    snprintf(head, sizeof head, "%s %s\nid %s\nstatus %s\nstarted %" PRId64 "\n", SCHEMA_NAME, SCHEMA_VERSION,
             r->cell.id, cell_status_name(r->status), r->started_ns);
    struct piece whole = {image, size};
    status_t     st = seal_image(image, size, head);
    if (st == ST_OK)
        st = atomic_write(path, &whole, 1);
    free(image);
    return st;
}

status_t cell_file_equal(const struct result *a, const struct result *b, bool *equal)
{
    char  *image_a = NULL, *image_b = NULL;
    size_t size_a = 0, size_b = 0;
    h5_begin("compare", ST_EINTERNAL);
    status_t st = build_image(a, &image_a, &size_a);
    if (st == ST_OK)
        st = build_image(b, &image_b, &size_b);
    *equal = st == ST_OK && size_a == size_b && memcmp(image_a, image_b, size_a) == 0;
    free(image_a);
    free(image_b);
    return st;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

status_t cell_file_stamp(const char *path, struct cell_stamp *out)
{
    struct seal       seal;
    struct cell_stamp stamp = {0};
    char              version[32] = "", status[16] = "";
    int               end = 0, major = (int)strcspn(SCHEMA_VERSION, ".");
    TRY(seal_check(path, SCHEMA_NAME, false, &seal));
    int n = sscanf(seal.head, SCHEMA_NAME " %31[0-9.]\nid %32[0-9a-f]\nstatus %15[a-z]\nstarted %" SCNd64 "%n", version,
                   stamp.id, status, &stamp.started_ns, &end);
    if (n >= 1 && strncmp(version, SCHEMA_VERSION, (size_t)major + 1) != 0)
        return FAIL(ST_EINPUT, "%s: schema version %s, this qsweep reads %.*s.x", path, version, major, SCHEMA_VERSION);
    int code = n == 4 && end ? cell_status_parse(status) : -1;
    if (code < 0)
        return FAIL(ST_EINPUT, "%s: its first lines make no sense", path);
    stamp.status = (enum cell_status)code;
    stamp.size = seal.size;
    stamp.sum = seal.sum;
    *out = stamp;
    return ST_OK;
}

status_t cell_file_status(const char *path, enum cell_status *status, char id[33])
{
    struct cell_stamp stamp;
    TRY(cell_file_stamp(path, &stamp));
    *status = stamp.status;
    memcpy(id, stamp.id, sizeof stamp.id);
    return ST_OK;
}

status_t cell_file_verify(const char *path, enum cell_status *status, char id[33])
{
    struct seal seal;
    TRY(seal_check(path, SCHEMA_NAME, true, &seal));
    return cell_file_status(path, status, id);
}

status_t cell_file_open(const char *path, hid_t *file)
{
    struct cell_stamp stamp;
    struct seal       seal;
    h5_begin(path, ST_EINPUT);
    TRY(cell_file_stamp(path, &stamp)); /* first: of another version, the version is the news */
    TRY(seal_check(path, SCHEMA_NAME, true, &seal));
    return h5_open_read(path, file);
}

status_t cell_file_read(const char *path, struct result *out)
{
    hid_t    file = H5I_INVALID_HID, root = H5I_INVALID_HID;
    status_t st = ST_OK;
    result_init(out);
    TRY_OUT(cell_file_open(path, &file));
    TRY_OUT(H5_DO(root = H5Gopen2(file, "/", H5P_DEFAULT)));
    st = cell_group_read(root, CELL_ALL, out);
out:
    h5_close(root);
    h5_close(file);
    return st;
}

void cell_file_library(char *out, size_t size)
{
    unsigned major = 0, minor = 0, release = 0;
    h5_begin("HDF5", ST_EIO); /* it must come before any other call into the library */
    H5get_libversion(&major, &minor, &release);
    snprintf(out, size, "%u.%u.%u", major, minor, release);
}
