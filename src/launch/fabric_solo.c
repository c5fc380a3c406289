/* fabric_solo.c — a group of one: collectives are copies, a message to oneself is a queue. */
#include "launch/fabric.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct letter {
    struct letter *next;
    int            tag;
    size_t         bytes;
    char           data[FABRIC_MESSAGE_MAX];
};
static struct letter *letters;

status_t fabric_open(int *argc, char ***argv, struct fabric_info *out)
{
    (void)argc;
    (void)argv;
    *out = (struct fabric_info){.size = 1, .local_size = 1, .n_hosts = 1};
    gethostname(out->host, sizeof out->host - 1);
    return ST_OK;
}

void fabric_close(void)
{
    for (struct letter *l = letters, *next; l; l = next) {
        next = l->next;
        free(l);
    }
    letters = NULL;
}

const char *fabric_name(void)
{
    return "solo";
}

const char *fabric_version(void)
{
    return "";
}

status_t fabric_barrier(void)
{
    return ST_OK;
}

status_t fabric_broadcast(void *data, size_t bytes, int root)
{
    (void)data;
    (void)bytes;
    (void)root;
    return ST_OK;
}

status_t fabric_gather(const void *send, size_t bytes, void *recv, int root)
{
    (void)root;
    if (bytes)
        memcpy(recv, send, bytes);
    return ST_OK;
}

status_t fabric_all_gather(const void *send, size_t bytes, void *recv)
{
    if (bytes)
        memcpy(recv, send, bytes);
    return ST_OK;
}

status_t fabric_hosts_broadcast(void *data, size_t bytes, int root_host)
{
    return fabric_broadcast(data, bytes, root_host);
}

status_t fabric_hosts_all_gather(const void *send, size_t bytes, void *recv)
{
    return fabric_all_gather(send, bytes, recv);
}

status_t fabric_send(const void *data, size_t bytes, int to, int tag)
{
    if (to != 0 || bytes > FABRIC_MESSAGE_MAX)
        return FAIL(ST_EINTERNAL, "a message of %zu bytes to rank %d of a group of one", bytes, to);
    struct letter *l = malloc(sizeof *l);
    if (!l)
        return FAIL(ST_ENOMEM, "no memory for a message");
    *l = (struct letter){.tag = tag, .bytes = bytes};
    if (bytes)
        memcpy(l->data, data, bytes);
    struct letter **end = &letters;
    while (*end)
        end = &(*end)->next;
    *end = l;
    return ST_OK;
}

status_t fabric_poll(void *data, size_t capacity, int tag, int timeout_ms, int *from, size_t *bytes)
{
    *from = -1;
    *bytes = 0;
    for (struct letter **at = &letters; *at; at = &(*at)->next) {
        struct letter *l = *at;
        if (l->tag != tag)
            continue;
        if (l->bytes > capacity)
            return FAIL(ST_EINTERNAL, "a message of %zu bytes for a buffer of %zu", l->bytes, capacity);
        if (l->bytes)
            memcpy(data, l->data, l->bytes);
        *from = 0;
        *bytes = l->bytes;
        *at = l->next;
        free(l);
        return ST_OK;
    }
    if (timeout_ms > 0)
        usleep((useconds_t)timeout_ms * 1000); /* nobody else can write while we sleep */
    return ST_OK;
}

_Noreturn void fabric_leave(int exit_status)
{
    _exit(exit_status);
}
