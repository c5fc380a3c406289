/* cell_group.h — the schema of one cell: a result as an HDF5 group, alike in cell-<id>.h5 and below /cells of sweep.h5.
 *
 * Private to store/. results/README.md describes the groups and columns for people. */
#ifndef QSWEEP_STORE_CELL_GROUP_H
#define QSWEEP_STORE_CELL_GROUP_H

#include "bench/result.h"
#include "store/h5.h"

/* What to read beside attributes: columns cost a read each. Without CELL_STEPS step_ms is NULL and n_steps 0. */
enum cell_part {
    CELL_SAMPLES = 1,
    CELL_STEPS = 2,
    CELL_TRACE = 4,
    CELL_QUALITY = 8,
    CELL_LOG = 16,
    CELL_FACTS = 32,
    CELL_ALL = 63,
    CELL_SUMMARY = 64 /* alone: just what summary_from_result looks at; other columns are unknown */
};

/* Write r below `group` (an empty group or the root of a new file). */
status_t cell_group_write(hid_t group, const struct result *r);

/* Give the trace of cells/<id> its dimension scale t_ns, which netCDF readers follow. Scales hold object references,
 * which a copy breaks: to be called on the last copy, and again after each. */
status_t cell_group_attach_scales(hid_t cells, const char *id);

/* Read the wanted parts; *out is initialised here and empty on failure. ST_EINPUT for another schema or anything that
 * does not fit together. Columns unknown to this version are ignored, columns missing from an older one are unknown. */
status_t cell_group_read(hid_t group, unsigned parts, struct result *out);

/* cell_file.c: what the first 512 bytes of a cell file say. sum tells contents apart: equal sums, equal files. */
struct cell_stamp {
    char             id[33];
    enum cell_status status;
    int64_t          started_ns;
    uint64_t         size, sum;
};
status_t cell_file_stamp(const char *path, struct cell_stamp *out);
/* cell_file.c: check the file at path (size, checksum), then open it with HDF5. */
status_t cell_file_open(const char *path, hid_t *file);

/* cell_file.c: would both be written as the same bytes? */
status_t cell_file_equal(const struct result *a, const struct result *b, bool *equal);

/* Check `schema` and `schema_version` of an object of ours: another schema or another major version is refused. */
status_t schema_check(hid_t where, const char *schema, const char *version, bool *newer);

#endif
