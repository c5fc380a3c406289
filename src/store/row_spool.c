#include "store/row_spool.h"

#include "store/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

status_t row_spool_open(const char *beside, struct row_spool *out)
{
    char name[ATOMIC_PATH_MAX];
    *out = (struct row_spool){.fd = -1};
    TRY(atomic_name(beside, name));
    out->fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (out->fd < 0)
        return FAIL(ST_EIO, "%s: %s", name, strerror(errno));
    unlink(name);
    return ST_OK;
}

status_t row_spool_add(struct row_spool *s, const struct summary_row *row)
{
    if (s->n == s->room) {
        size_t              room = s->room ? 2 * s->room : 64;
        struct summary_key *grown = realloc(s->keys, room * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no memory for %zu summary rows", room);
        s->keys = grown;
        s->room = room;
    }
    ssize_t n = pwrite(s->fd, row, sizeof *row, (off_t)(s->n * sizeof *row));
    if (n != (ssize_t)sizeof *row)
        return FAIL(ST_EIO, "summary rows beside the output: %s", n < 0 ? strerror(errno) : "no space");
    summary_key(row, (uint32_t)s->n, &s->keys[s->n]);
    s->n++;
    return ST_OK;
}

void row_spool_sort(struct row_spool *s)
{
    if (s->n)
        qsort(s->keys, s->n, sizeof *s->keys, summary_key_order);
    s->next = 0;
}

status_t row_spool_next(struct row_spool *s, struct summary_row *rows, size_t n, size_t *got)
{
    size_t done = 0;
    for (; done < n && s->next < s->n; done++, s->next++) {
        off_t at = (off_t)(s->keys[s->next].index * sizeof *rows);
        if (pread(s->fd, &rows[done], sizeof *rows, at) != (ssize_t)sizeof *rows)
            return FAIL(ST_EIO, "summary rows beside the output: %s", strerror(errno));
    }
    *got = done;
    return ST_OK;
}

void row_spool_close(struct row_spool *s)
{
    if (s->fd >= 0)
        close(s->fd);
    free(s->keys);
    *s = (struct row_spool){.fd = -1};
}
