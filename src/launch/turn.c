#include "launch/turn.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void turn_init(struct turn *t, uint64_t job, int slot)
{
    *t = (struct turn){.job = job, .slot = slot, .socket = -1};
}

bool turn_try(struct turn *t, status_t *st)
{
    *st = ST_OK;
    if (t->socket >= 0)
        return true;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int n = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "qsweep-turn-%016llx-%d", (unsigned long long)t->job,
                     t->slot);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        *st = FAIL(ST_EIO, "cannot make a socket: %s", strerror(errno));
        return false;
    }
    if (bind(fd, (struct sockaddr *)&name, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n)) == 0) {
        t->socket = fd;
        return true;
    }
    if (errno != EADDRINUSE)
        *st = FAIL(ST_EIO, "cannot take turns among this host's ranks: %s", strerror(errno));
    close(fd);
    return false;
}

void turn_end(struct turn *t)
{
    if (t->socket >= 0)
        close(t->socket);
    t->socket = -1;
}
