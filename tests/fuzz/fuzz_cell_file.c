/* The seal of cell files and merged files: bytes that it does not cover never reach HDF5. What a stranger sealed himself is
 * not fuzzed here: HDF5 1.10.8 crashes on some of it, which is why commands read such files in a child process. */
#include "store/cell_file.h"
#include "store/seal.h"
#include "store/sweep_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    char       path[64], id[33];
    if (fd < 0)
        fd = memfd_create("cell", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    struct result    r;
    struct seal      seal;
    enum cell_status status;
    if (cell_file_read(path, &r) == ST_OK)
        abort(); /* no 4 KiB of fuzz are a whole cell with its checksum */
    if (cell_file_status(path, &status, id) == ST_OK && (id[32] || status >= CELL_STATUS_COUNT))
        abort();
    if (seal_look(path, SWEEP_SCHEMA_NAME, UINT64_MAX) == SEAL_INTACT &&
        seal_check(path, SWEEP_SCHEMA_NAME, true, &seal) != ST_OK)
        abort();
    return 0;
}
