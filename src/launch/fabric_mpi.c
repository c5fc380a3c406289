/* fabric_mpi.c — the group over MPI; the only file that sees mpi.h.
 *
 * Collectives are the non-blocking ones, tested with sleeps between: Open MPI's blocking calls spin at full load. */
#include "launch/fabric.h"

#include "base/clock.h"

#include <mpi.h>

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static status_t mpi_check(int code, const char *call, const char *file, int line)
{
    if (code == MPI_SUCCESS)
        return ST_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int  n = 0;
    MPI_Error_string(code, text, &n);
    return status_raise(ST_EIO, file, line, "%s: %s", call, text);
}
#define MPI_DO(call) mpi_check((call), #call, __FILE__, __LINE__)

struct outgoing {
    struct outgoing *next;
    MPI_Request      request;
    char             data[FABRIC_MESSAGE_MAX];
};
static struct outgoing *outgoing;
static bool             is_open;
static MPI_Comm         hosts = MPI_COMM_NULL; /* the first rank of every host; null on the others */
static char             version[MPI_MAX_LIBRARY_VERSION_STRING];

/* Sleeps grow from 50 µs to 2 ms: a reply that is nearly there comes at once, a long wait costs nothing. */
static void nap(int *naps)
{
    long us = *naps < 20 ? 50 : *naps < 60 ? 500 : 2000;
    (*naps)++;
    nanosleep(&(struct timespec){0, us * 1000}, NULL);
}

static status_t finish(MPI_Request *request)
{
    for (int done = 0, naps = 0; !done;) {
        TRY(MPI_DO(MPI_Test(request, &done, MPI_STATUS_IGNORE)));
        if (!done)
            nap(&naps);
    }
    return ST_OK;
}

status_t fabric_open(int *argc, char ***argv, struct fabric_info *out)
{
    struct fabric_info info = {0};
    int                provided;
    TRY(MPI_DO(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided)));
    is_open = true;
    TRY(MPI_DO(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN)));
    TRY(MPI_DO(MPI_Comm_rank(MPI_COMM_WORLD, &info.rank)));
    TRY(MPI_DO(MPI_Comm_size(MPI_COMM_WORLD, &info.size)));
    MPI_Comm host;
    TRY(MPI_DO(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, info.rank, MPI_INFO_NULL, &host)));
    TRY(MPI_DO(MPI_Comm_rank(host, &info.local_rank)));
    TRY(MPI_DO(MPI_Comm_size(host, &info.local_size)));
    TRY(MPI_DO(MPI_Comm_split(MPI_COMM_WORLD, info.local_rank == 0 ? 0 : MPI_UNDEFINED, info.rank, &hosts)));
    int place[2] = {0, 0};
    if (hosts != MPI_COMM_NULL) {
        TRY(MPI_DO(MPI_Comm_set_errhandler(hosts, MPI_ERRORS_RETURN)));
        TRY(MPI_DO(MPI_Comm_rank(hosts, &place[0])));
        TRY(MPI_DO(MPI_Comm_size(hosts, &place[1])));
    }
    TRY(MPI_DO(MPI_Bcast(place, 2, MPI_INT, 0, host)));
    info.host_index = place[0];
    info.n_hosts = place[1];
    TRY(MPI_DO(MPI_Comm_free(&host)));
    gethostname(info.host, sizeof info.host - 1);
    int n = 0;
    MPI_Get_library_version(version, &n);
    version[strcspn(version, "\n")] = '\0';
    *out = info;
    return ST_OK;
}

/* Free what has gone out. */
static void sweep_outgoing(void)
{
    for (struct outgoing **at = &outgoing; *at;) {
        struct outgoing *o = *at;
        int              done = 0;
        if (MPI_Test(&o->request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done) {
            at = &o->next;
            continue;
        }
        *at = o->next;
        free(o);
    }
}

void fabric_close(void)
{
    if (!is_open)
        return;
    is_open = false;
    int64_t until = clock_ns() + 2 * (int64_t)1000000000;
    int     naps = 0;
    for (sweep_outgoing(); outgoing && clock_ns() < until; sweep_outgoing())
        nap(&naps);
    MPI_Finalize();
}

const char *fabric_name(void)
{
    return "mpi";
}

const char *fabric_version(void)
{
    return version;
}

status_t fabric_barrier(void)
{
    MPI_Request request;
    TRY(MPI_DO(MPI_Ibarrier(MPI_COMM_WORLD, &request)));
    return finish(&request);
}

/* MPI counts are int: large data go in pieces of 1 GiB. */
static status_t broadcast(void *data, size_t bytes, int root, MPI_Comm comm)
{
    const size_t piece = (size_t)1 << 30;
    for (size_t at = 0; at < bytes; at += piece) {
        size_t      n = bytes - at < piece ? bytes - at : piece;
        MPI_Request request;
        TRY(MPI_DO(MPI_Ibcast((char *)data + at, (int)n, MPI_BYTE, root, comm, &request)));
        TRY(finish(&request));
    }
    return ST_OK;
}

status_t fabric_broadcast(void *data, size_t bytes, int root)
{
    return broadcast(data, bytes, root, MPI_COMM_WORLD);
}

static status_t check_count(size_t bytes)
{
    return bytes <= INT_MAX ? ST_OK : FAIL(ST_EINTERNAL, "%zu bytes a rank are too many for one gather", bytes);
}

static status_t check_leader(void)
{
    return hosts != MPI_COMM_NULL ? ST_OK : FAIL(ST_EINTERNAL, "a rank that is not its host's first talks for it");
}

status_t fabric_hosts_broadcast(void *data, size_t bytes, int root_host)
{
    TRY(check_leader());
    return broadcast(data, bytes, root_host, hosts);
}

status_t fabric_hosts_all_gather(const void *send, size_t bytes, void *recv)
{
    TRY(check_leader());
    TRY(check_count(bytes));
    MPI_Request request;
    TRY(MPI_DO(MPI_Iallgather(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, hosts, &request)));
    return finish(&request);
}

status_t fabric_gather(const void *send, size_t bytes, void *recv, int root)
{
    TRY(check_count(bytes));
    MPI_Request request;
    TRY(MPI_DO(MPI_Igather(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, root, MPI_COMM_WORLD, &request)));
    return finish(&request);
}

status_t fabric_all_gather(const void *send, size_t bytes, void *recv)
{
    TRY(check_count(bytes));
    MPI_Request request;
    TRY(MPI_DO(MPI_Iallgather(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, MPI_COMM_WORLD, &request)));
    return finish(&request);
}

status_t fabric_send(const void *data, size_t bytes, int to, int tag)
{
    if (bytes > FABRIC_MESSAGE_MAX)
        return FAIL(ST_EINTERNAL, "a message of %zu bytes, at most %d are carried", bytes, (int)FABRIC_MESSAGE_MAX);
    sweep_outgoing();
    struct outgoing *o = malloc(sizeof *o);
    if (!o)
        return FAIL(ST_ENOMEM, "no memory for a message");
    if (bytes)
        memcpy(o->data, data, bytes);
    status_t st = MPI_DO(MPI_Isend(o->data, (int)bytes, MPI_BYTE, to, tag, MPI_COMM_WORLD, &o->request));
    if (st != ST_OK) {
        free(o);
        return st;
    }
    o->next = outgoing;
    outgoing = o;
    return ST_OK;
}

status_t fabric_poll(void *data, size_t capacity, int tag, int timeout_ms, int *from, size_t *bytes)
{
    *from = -1;
    *bytes = 0;
    int64_t until = clock_ns() + (int64_t)timeout_ms * 1000000;
    for (int naps = 0;;) {
        int        there = 0, n = 0;
        MPI_Status status;
        TRY(MPI_DO(MPI_Iprobe(MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &there, &status)));
        if (there) {
            TRY(MPI_DO(MPI_Get_count(&status, MPI_BYTE, &n)));
            if ((size_t)n > capacity)
                return FAIL(ST_EINTERNAL, "a message of %d bytes for a buffer of %zu", n, capacity);
            TRY(MPI_DO(MPI_Recv(data, n, MPI_BYTE, status.MPI_SOURCE, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE)));
            *from = status.MPI_SOURCE;
            *bytes = (size_t)n;
            return ST_OK;
        }
        sweep_outgoing();
        if (clock_ns() >= until)
            return ST_OK;
        nap(&naps);
    }
}

_Noreturn void fabric_leave(int exit_status)
{
    _exit(exit_status);
}
