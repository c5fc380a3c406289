/* NCCL's few declarations are ours, after its documentation (NCCL 2.x, API reference), so that no header is needed. */
#include "backend/peer.h"

#include "backend/cuda.h"
#include "base/clock.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SLOTS = 2, CHUNK = 32 << 20, NCCL_UINT8 = 1 };

struct nccl_id {
    char bytes[PEER_ID_BYTES];
};
typedef struct nccl_comm *nccl_comm;

struct nccl {
    void *library;
    int (*get_unique_id)(struct nccl_id *);
    int (*comm_init_rank)(nccl_comm *, int size, struct nccl_id, int rank);
    int (*broadcast)(const void *send, void *recv, size_t count, int type, int root, nccl_comm, cudaStream_t);
    int (*all_gather)(const void *send, void *recv, size_t count, int type, nccl_comm, cudaStream_t);
    int (*comm_destroy)(nccl_comm);
    int (*comm_abort)(nccl_comm);
    int (*get_async_error)(nccl_comm, int *);
    const char *(*get_error_string)(int);
    const char *(*get_last_error)(nccl_comm);
};

/* A chunk on its way; the events bracket its copy and its transfer. */
struct slot {
    void       *pinned, *d_buffer;
    cudaEvent_t copy_begin, copy_end, move_begin, move_end;
    size_t      offset, bytes; /* 0 bytes: nothing under way */
};

struct peer {
    struct nccl  nccl;
    nccl_comm    comm;
    int          rank, size;
    bool         broken; /* a collective failed: the communicator is aborted, not destroyed */
    cudaStream_t copies, moves;
    struct slot  slots[SLOTS];
    /* of all_gather, made at its first call */
    void  *pinned_send, *pinned_recv, *d_send, *d_recv;
    size_t gather_bytes;
};

/* ---- NCCL ---- */

static status_t load(struct nccl *n)
{
    static const char *const names[] = {"libnccl.so.2", "libnccl.so"};
    for (size_t i = 0; !n->library && i < sizeof names / sizeof *names; i++)
        n->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!n->library)
        return FAIL(ST_EUNSUPPORTED, "NCCL (libnccl.so.2) is not installed: %s", dlerror());
    const struct {
        void      **place;
        const char *name;
    } functions[] = {
        {(void **)&n->get_unique_id, "ncclGetUniqueId"},       {(void **)&n->comm_init_rank, "ncclCommInitRank"},
        {(void **)&n->broadcast, "ncclBroadcast"},             {(void **)&n->all_gather, "ncclAllGather"},
        {(void **)&n->comm_destroy, "ncclCommDestroy"},        {(void **)&n->comm_abort, "ncclCommAbort"},
        {(void **)&n->get_async_error, "ncclCommGetAsyncError"}, {(void **)&n->get_error_string, "ncclGetErrorString"},
        {(void **)&n->get_last_error, "ncclGetLastError"},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!(*functions[i].place = dlsym(n->library, functions[i].name)))
            return FAIL(ST_EUNSUPPORTED, "libnccl has no %s: want NCCL 2.13 or newer", functions[i].name);
    return ST_OK;
}

static status_t nccl_check(const struct nccl *n, nccl_comm comm, int code, const char *call, const char *file, int line)
{
    if (code == 0)
        return ST_OK;
    return status_raise(ST_EDEVICE, file, line, "%s: %s; %s", call, n->get_error_string(code), n->get_last_error(comm));
}
#define NCCL_DO(p, call) nccl_check(&(p)->nccl, (p)->comm, (p)->nccl.call, #call, __FILE__, __LINE__)

static status_t make_id(unsigned char id[PEER_ID_BYTES])
{
    struct peer    p = {0}; /* stays loaded: its thread answers the others */
    struct nccl_id made;
    TRY(load(&p.nccl));
    TRY(NCCL_DO(&p, get_unique_id(&made)));
    memcpy(id, made.bytes, PEER_ID_BYTES);
    return ST_OK;
}

/* ---- opening ---- */

static void peer_close(struct peer *p)
{
    if (!p)
        return;
    if (p->comm)
        p->broken ? p->nccl.comm_abort(p->comm) : p->nccl.comm_destroy(p->comm);
    for (int i = 0; i < SLOTS; i++) {
        struct slot       *s = &p->slots[i];
        const cudaEvent_t events[] = {s->copy_begin, s->copy_end, s->move_begin, s->move_end};
        for (size_t k = 0; k < sizeof events / sizeof *events; k++)
            if (events[k])
                cudaEventDestroy(events[k]);
        cudaFreeHost(s->pinned);
        cudaFree(s->d_buffer);
    }
    cudaFreeHost(p->pinned_send);
    cudaFreeHost(p->pinned_recv);
    cudaFree(p->d_send);
    cudaFree(p->d_recv);
    if (p->copies)
        cudaStreamDestroy(p->copies);
    if (p->moves)
        cudaStreamDestroy(p->moves);
    free(p);
}

static status_t make_slot(struct slot *s)
{
    TRY(CUDA_DO(cudaMallocHost(&s->pinned, CHUNK)));
    TRY(CUDA_DO(cudaMalloc(&s->d_buffer, CHUNK)));
    TRY(CUDA_DO(cudaEventCreate(&s->copy_begin)));
    TRY(CUDA_DO(cudaEventCreate(&s->copy_end)));
    TRY(CUDA_DO(cudaEventCreate(&s->move_begin)));
    return CUDA_DO(cudaEventCreate(&s->move_end));
}

static status_t prepare(struct peer *p, const unsigned char *id, int device)
{
    struct nccl_id given;
    int            count = 0;
    TRY(load(&p->nccl));
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0)
        return FAIL(ST_EUNSUPPORTED, "no usable NVIDIA GPU here (%s)", e == cudaSuccess ? "no device" : cudaGetErrorString(e));
    if (device < 0 || device >= count)
        return FAIL(ST_EUSAGE, "device %d: this process sees %d (0..%d)", device, count, count - 1);
    TRY(CUDA_DO(cudaSetDevice(device)));
    TRY(CUDA_DO(cudaStreamCreateWithFlags(&p->copies, cudaStreamNonBlocking)));
    TRY(CUDA_DO(cudaStreamCreateWithFlags(&p->moves, cudaStreamNonBlocking)));
    for (int i = 0; i < SLOTS; i++)
        TRY(make_slot(&p->slots[i]));
    memcpy(given.bytes, id, PEER_ID_BYTES);
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    return NCCL_DO(p, comm_init_rank(&p->comm, p->size, given, p->rank));
}

static status_t peer_open(const unsigned char id[PEER_ID_BYTES], int rank, int size, int device, struct peer **out)
{
    struct peer *p = calloc(1, sizeof *p);
    if (!p)
        return FAIL(ST_ENOMEM, "no memory for a group of GPUs");
    p->rank = rank;
    p->size = size;
    status_t st = prepare(p, id, device);
    if (st == ST_OK)
        *out = p;
    else
        peer_close(p);
    return st;
}

/* ---- moving ---- */

/* Wait for an event without spinning; a peer that died shows as an error of the communicator, not as an event. */
static status_t await(struct peer *p, cudaEvent_t event)
{
    for (;;) {
        cudaError_t e = cudaEventQuery(event);
        int         code = 0;
        if (e == cudaSuccess)
            return ST_OK;
        status_t st = e == cudaErrorNotReady ? ST_OK : CUDA_DO(e);
        if (st == ST_OK)
            st = NCCL_DO(p, get_async_error(p->comm, &code));
        if (st == ST_OK && code > 0 && code != 7) /* 7: still at work (ncclInProgress) */
            st = FAIL(ST_EDEVICE, "NCCL: %s", p->nccl.get_error_string(code));
        if (st != ST_OK) {
            p->broken = true;
            return st;
        }
        nanosleep(&(struct timespec){0, 20000}, NULL);
    }
}

static status_t add_elapsed(cudaEvent_t begin, cudaEvent_t end, double *seconds)
{
    float ms;
    TRY(CUDA_DO(cudaEventElapsedTime(&ms, begin, end)));
    *seconds += (double)ms * 1e-3;
    return ST_OK;
}

/* The end of a slot's chunk: on all but the root it is now in pinned memory. */
static status_t drain(struct peer *p, struct slot *s, unsigned char *data, bool root, struct peer_times *times)
{
    if (!s->bytes)
        return ST_OK;
    TRY(await(p, root ? s->move_end : s->copy_end));
    TRY(add_elapsed(s->copy_begin, s->copy_end, &times->copy_s));
    TRY(add_elapsed(s->move_begin, s->move_end, &times->transfer_s));
    int64_t t0 = clock_ns();
    if (!root)
        memcpy(data + s->offset, s->pinned, s->bytes);
    times->copy_s += root ? 0 : clock_ms_since(t0) * 1e-3;
    s->bytes = 0;
    return ST_OK;
}

static status_t copy(struct peer *p, struct slot *s, void *to, const void *from, enum cudaMemcpyKind kind)
{
    TRY(CUDA_DO(cudaEventRecord(s->copy_begin, p->copies)));
    TRY(CUDA_DO(cudaMemcpyAsync(to, from, s->bytes, kind, p->copies)));
    return CUDA_DO(cudaEventRecord(s->copy_end, p->copies));
}

static status_t move(struct peer *p, struct slot *s, int root)
{
    TRY(CUDA_DO(cudaEventRecord(s->move_begin, p->moves)));
    TRY(NCCL_DO(p, broadcast(s->d_buffer, s->d_buffer, s->bytes, NCCL_UINT8, root, p->comm, p->moves)));
    return CUDA_DO(cudaEventRecord(s->move_end, p->moves));
}

static status_t send_chunk(struct peer *p, struct slot *s, const unsigned char *data, int root, struct peer_times *times)
{
    int64_t t0 = clock_ns();
    memcpy(s->pinned, data + s->offset, s->bytes); /* reads the file when the map is of one */
    times->copy_s += clock_ms_since(t0) * 1e-3;
    TRY(copy(p, s, s->d_buffer, s->pinned, cudaMemcpyHostToDevice));
    TRY(CUDA_DO(cudaStreamWaitEvent(p->moves, s->copy_end, 0)));
    return move(p, s, root);
}

static status_t receive_chunk(struct peer *p, struct slot *s, int root)
{
    TRY(move(p, s, root));
    TRY(CUDA_DO(cudaStreamWaitEvent(p->copies, s->move_end, 0)));
    return copy(p, s, s->pinned, s->d_buffer, cudaMemcpyDeviceToHost);
}

static status_t broadcast(struct peer *p, void *data, size_t bytes, int root, struct peer_times *times)
{
    bool   is_root = p->rank == root;
    size_t k = 0;
    for (size_t at = 0; at < bytes; at += CHUNK, k++) {
        struct slot *s = &p->slots[k % SLOTS];
        TRY(drain(p, s, data, is_root, times));
        s->offset = at;
        s->bytes = bytes - at < CHUNK ? bytes - at : CHUNK;
        TRY(is_root ? send_chunk(p, s, data, root, times) : receive_chunk(p, s, root));
    }
    for (size_t i = 0; i < SLOTS; i++, k++)
        TRY(drain(p, &p->slots[k % SLOTS], data, is_root, times));
    return ST_OK;
}

static status_t make_gather_buffers(struct peer *p, size_t bytes)
{
    size_t all;
    if (p->gather_bytes)
        return bytes <= p->gather_bytes ? ST_OK : FAIL(ST_EINTERNAL, "a gather of %zu bytes after one of %zu", bytes, p->gather_bytes);
    if (__builtin_mul_overflow(bytes, (size_t)p->size, &all))
        return FAIL(ST_EINTERNAL, "a gather of %zu bytes from %d GPUs", bytes, p->size);
    TRY(CUDA_DO(cudaMallocHost(&p->pinned_send, bytes)));
    TRY(CUDA_DO(cudaMallocHost(&p->pinned_recv, all)));
    TRY(CUDA_DO(cudaMalloc(&p->d_send, bytes)));
    TRY(CUDA_DO(cudaMalloc(&p->d_recv, all)));
    p->gather_bytes = bytes;
    return ST_OK;
}

static status_t all_gather(struct peer *p, const void *send, size_t bytes, void *recv, struct peer_times *times)
{
    struct slot *s = &p->slots[0]; /* its events */
    if (!bytes)
        return ST_OK;
    TRY(make_gather_buffers(p, bytes));
    int64_t t0 = clock_ns();
    memcpy(p->pinned_send, send, bytes);
    times->copy_s += clock_ms_since(t0) * 1e-3;
    TRY(CUDA_DO(cudaEventRecord(s->copy_begin, p->moves)));
    TRY(CUDA_DO(cudaMemcpyAsync(p->d_send, p->pinned_send, bytes, cudaMemcpyHostToDevice, p->moves)));
    TRY(CUDA_DO(cudaEventRecord(s->move_begin, p->moves)));
    TRY(NCCL_DO(p, all_gather(p->d_send, p->d_recv, bytes, NCCL_UINT8, p->comm, p->moves)));
    TRY(CUDA_DO(cudaEventRecord(s->move_end, p->moves)));
    TRY(CUDA_DO(cudaMemcpyAsync(p->pinned_recv, p->d_recv, bytes * (size_t)p->size, cudaMemcpyDeviceToHost, p->moves)));
    TRY(CUDA_DO(cudaEventRecord(s->copy_end, p->moves)));
    TRY(await(p, s->copy_end));
    double moved = 0, whole = 0;
    TRY(add_elapsed(s->move_begin, s->move_end, &moved));
    TRY(add_elapsed(s->copy_begin, s->copy_end, &whole));
    t0 = clock_ns();
    memcpy(recv, p->pinned_recv, bytes * (size_t)p->size);
    times->transfer_s += moved;
    times->copy_s += whole - moved + clock_ms_since(t0) * 1e-3;
    return ST_OK;
}

const struct peer_ops peer_nccl = {make_id, peer_open, peer_close, broadcast, all_gather};
