#include "store/cell_file.h"

#include "store/atomic_file.h"
#include "store/cell_group.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { BLOCK_SIZE = 512 };

/* The text at the start of a cell file. The sum covers every byte of the file but its own line and the zeros after it.
 */
struct block {
    char              version[32], status[16];
    struct cell_stamp stamp;
};

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
    TRY_OUT(H5_DO(H5Pset_userblock(fcpl, BLOCK_SIZE)));
    TRY_OUT(H5_DO(file = H5Fcreate("cell", H5F_ACC_TRUNC, fcpl, fapl)));
    TRY_OUT(H5_DO(root = H5Gopen2(file, "/", H5P_DEFAULT)));
    TRY_OUT(cell_group_write(root, r));
    TRY_OUT(H5_DO(H5Fflush(file, H5F_SCOPE_GLOBAL)));
    TRY_OUT(H5_DO(length = H5Fget_file_image(file, NULL, 0)));
    bytes = calloc(1, BLOCK_SIZE + (size_t)length);
    if (!bytes) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zd bytes", h5_label(), length);
        goto out;
    }
    TRY_OUT(H5_DO(H5Fget_file_image(file, bytes + BLOCK_SIZE, (size_t)length)));
    if (memcmp(bytes + BLOCK_SIZE, "\x89HDF\r\n\x1a\n", 8) != 0) {
        st = FAIL(ST_EINTERNAL, "%s: this HDF5 library places the user block differently", h5_label());
        goto out;
    }
    *image = bytes;
    *size = BLOCK_SIZE + (size_t)length;
    bytes = NULL;
out:
    free(bytes);
    h5_close(root);
    h5_close(file);
    h5_close(fcpl);
    h5_close(fapl);
    return st;
}

/* The lines that the sum covers; returns their length. */
static int block_text(const struct block *b, char out[BLOCK_SIZE])
{
    return snprintf(out, BLOCK_SIZE, "%s %s\nid %s\nstatus %s\nstarted %" PRId64 "\nsize %" PRIu64 "\n", SCHEMA_NAME,
                    b->version, b->stamp.id, b->status, b->stamp.started_ns, b->stamp.size);
}

/* All BLOCK_SIZE bytes. */
static void block_format(const struct block *b, char out[BLOCK_SIZE])
{
    memset(out, 0, BLOCK_SIZE);
    int n = block_text(b, out);
    snprintf(out + n, (size_t)(BLOCK_SIZE - n), "xxh3 %016" PRIx64 "\n", b->stamp.sum);
}

status_t cell_file_write(const char *path, const struct result *r)
{
    char  *image = NULL;
    size_t size = 0;
    h5_begin(path, ST_EIO);
    TRY(atomic_make_folder(path));
    TRY(build_image(r, &image, &size));

    struct block block = {.version = SCHEMA_VERSION, .stamp = {.started_ns = r->started_ns, .size = size}};
    memcpy(block.stamp.id, r->cell.id, sizeof block.stamp.id);
    snprintf(block.status, sizeof block.status, "%s", cell_status_name(r->status));
    int           n = block_text(&block, image);
    XXH3_state_t *sum = XXH3_createState();
    if (!sum) {
        free(image);
        return FAIL(ST_ENOMEM, "%s: no memory for a checksum", path);
    }
    XXH3_64bits_reset(sum);
    XXH3_64bits_update(sum, image, (size_t)n);
    XXH3_64bits_update(sum, image + BLOCK_SIZE, size - BLOCK_SIZE);
    block.stamp.sum = XXH3_64bits_digest(sum);
    block_format(&block, image);
    XXH3_freeState(sum);

    struct piece whole = {image, size};
    status_t     st = atomic_write(path, &whole, 1);
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

/* Read exactly the bytes at `at`; false with errno (0 = the file ends before). */
static bool read_at(int fd, void *out, size_t size, off_t at)
{
    char *p = out;
    while (size) {
        ssize_t n = pread(fd, p, size, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n == 0 ? 0 : errno;
            return false;
        }
        p += n;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

/* A block is valid when writing it again gives the same bytes: nothing in it goes unchecked. */
static status_t parse_block(const char *path, const char *text, struct block *out)
{
    struct block b = {0};
    char         again[BLOCK_SIZE];
    int          major = (int)strcspn(SCHEMA_VERSION, "."), status = -1;
    if (strncmp(text, SCHEMA_NAME " ", strlen(SCHEMA_NAME) + 1) != 0)
        return FAIL(ST_EINPUT, "%s: not a %s file", path, SCHEMA_NAME);
    int n = sscanf(text,
                   SCHEMA_NAME " %31[0-9.] id %32[0-9a-f] status %15[a-z] started %" SCNd64 " size %" SCNu64
                               " xxh3 %" SCNx64,
                   b.version, b.stamp.id, b.status, &b.stamp.started_ns, &b.stamp.size, &b.stamp.sum);
    if (n >= 1 && strncmp(b.version, SCHEMA_VERSION, (size_t)major + 1) != 0)
        return FAIL(ST_EINPUT, "%s: schema version %s, this qsweep reads %.*s.x", path, b.version, major,
                    SCHEMA_VERSION);
    if (n == 6) {
        block_format(&b, again);
        status = cell_status_parse(b.status);
    }
    if (status < 0 || memcmp(text, again, BLOCK_SIZE) != 0)
        return FAIL(ST_EINPUT, "%s: damaged in its first %d bytes", path, BLOCK_SIZE);
    b.stamp.status = (enum cell_status)status;
    *out = b;
    return ST_OK;
}

/* Read the block of an open file and compare the file's size with what it says. */
static status_t read_block(int fd, const char *path, struct block *out)
{
    char        text[BLOCK_SIZE + 1] = "";
    struct stat info;
    if (fstat(fd, &info) != 0 || (!S_ISREG(info.st_mode) && (errno = EINVAL)))
        return FAIL(ST_EIO, "%s: not a plain file: %s", path, strerror(errno));
    if (!read_at(fd, text, BLOCK_SIZE, 0))
        return errno ? FAIL(ST_EIO, "%s: %s", path, strerror(errno))
                     : FAIL(ST_EINPUT, "%s: cut short: %lld bytes", path, (long long)info.st_size);
    TRY(parse_block(path, text, out));
    if (out->stamp.size != (uint64_t)info.st_size)
        return FAIL(ST_EINPUT, "%s: %s: %lld bytes, it was written with %" PRIu64, path,
                    (uint64_t)info.st_size < out->stamp.size ? "cut short" : "too long", (long long)info.st_size,
                    out->stamp.size);
    return ST_OK;
}

static status_t check_sum(int fd, const char *path, const struct block *block)
{
    enum { BUFFER = 256 << 10 };
    char          text[BLOCK_SIZE];
    char         *buffer = malloc(BUFFER);
    XXH3_state_t *sum = XXH3_createState();
    status_t      st = ST_OK;
    if (!buffer || !sum) {
        st = FAIL(ST_ENOMEM, "%s: no memory for a checksum", path);
        goto out;
    }
    XXH3_64bits_reset(sum);
    XXH3_64bits_update(sum, text, (size_t)block_text(block, text));
    for (uint64_t at = BLOCK_SIZE; at < block->stamp.size;) {
        size_t n = block->stamp.size - at < BUFFER ? (size_t)(block->stamp.size - at) : BUFFER;
        if (!read_at(fd, buffer, n, (off_t)at)) {
            st = FAIL(ST_EIO, "%s: %s", path, errno ? strerror(errno) : "changed while it was read");
            goto out;
        }
        XXH3_64bits_update(sum, buffer, n);
        at += n;
    }
    if (XXH3_64bits_digest(sum) != block->stamp.sum)
        st = FAIL(ST_EINPUT, "%s: damaged: its checksum does not match", path);
out:
    XXH3_freeState(sum);
    free(buffer);
    return st;
}

static status_t open_checked(const char *path, bool with_sum, struct block *block)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    status_t st = read_block(fd, path, block);
    if (st == ST_OK && with_sum)
        st = check_sum(fd, path, block);
    close(fd);
    return st;
}

status_t cell_file_stamp(const char *path, struct cell_stamp *out)
{
    struct block block;
    TRY(open_checked(path, false, &block));
    *out = block.stamp;
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

status_t cell_file_open(const char *path, hid_t *file)
{
    struct block block;
    h5_begin(path, ST_EINPUT);
    TRY(open_checked(path, true, &block));
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
