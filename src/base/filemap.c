#include "base/filemap.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

status_t filemap_open(const char *path, size_t limit, struct filemap *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return FAIL(ST_EIO, "%s: %s", path, strerror(errno));

    status_t    st = ST_OK;
    struct stat info;
    void       *data = MAP_FAILED;
    if (fstat(fd, &info) != 0) {
        st = FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        st = FAIL(ST_EINPUT, "%s: not a regular file", path);
    } else if (info.st_size <= 0) {
        st = FAIL(ST_EINPUT, "%s: the file is empty", path);
    } else if (limit && (unsigned long long)info.st_size > limit) {
        st = FAIL(ST_EINPUT, "%s: %lld bytes, more than the %zu that such a file may have", path,
                  (long long)info.st_size, limit);
    } else {
        data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            st = FAIL(ST_EIO, "%s: cannot map %lld bytes: %s", path, (long long)info.st_size, strerror(errno));
    }
    close(fd);
    if (st == ST_OK) {
        out->data = data;
        out->size = (size_t)info.st_size;
    }
    return st;
}

void filemap_close(struct filemap *map)
{
    if (map->data)
        munmap((void *)map->data, map->size);
    map->data = NULL;
    map->size = 0;
}

void filemap_will_need(const struct filemap *map)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (map->data && pages > 0 && page > 0 && map->size / (size_t)page < (size_t)pages / 2)
        madvise((void *)map->data, map->size, MADV_WILLNEED);
}
