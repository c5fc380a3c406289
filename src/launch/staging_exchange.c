/* staging_exchange.c — parts of a staged file between hosts, over the fabric, in chunks of bounded memory. */
#include "launch/staging.h"

#include "base/clock.h"
#include "model/stage_file.h"

#include <stdlib.h>
#include <string.h>

/* A broadcast's chunk; and what all hosts' chunks of an all-gather may take together, and one of them at least. */
enum { CHUNK = 16 << 20, GATHER_MOST = 256 << 20, GATHER_LEAST = 64 << 10 };

/* The bytes of all parts of one host, one after another. */
struct cursor {
    const struct stage_file *f;
    const int               *host_of;
    int                      host, n_parts, part;
    size_t                   k, done; /* segment of the part; bytes of it behind us */
};

/* The next run of at most n bytes in the file; false at the end. */
static bool cursor_next(struct cursor *c, size_t n, size_t *offset, size_t *bytes)
{
    for (; c->part < c->n_parts; c->part++, c->k = c->done = 0) {
        if (c->host_of[c->part] != c->host)
            continue;
        for (; c->k < c->f->plan.n; c->k++, c->done = 0) {
            struct stage_segment s = stage_file_segment(c->f, c->part, c->n_parts, c->k);
            if (c->done == s.bytes)
                continue;
            *offset = s.offset + c->done;
            *bytes = s.bytes - c->done < n ? s.bytes - c->done : n;
            c->done += *bytes;
            return true;
        }
    }
    return false;
}

/* Up to n bytes between the file and a buffer; returns how many there were. */
static size_t cursor_copy(struct cursor *c, unsigned char *file, unsigned char *buffer, size_t n, bool to_file)
{
    size_t at = 0, offset, bytes;
    while (at < n && cursor_next(c, n - at, &offset, &bytes)) {
        if (to_file)
            memcpy(file + offset, buffer + at, bytes);
        else
            memcpy(buffer + at, file + offset, bytes);
        at += bytes;
    }
    return at;
}

static size_t host_bytes(const struct stage_file *f, int n_parts, const int *host_of, int host)
{
    size_t bytes = 0;
    for (int p = 0; p < n_parts; p++)
        if (host_of[p] == host)
            bytes += stage_file_part_bytes(f, p, n_parts);
    return bytes;
}

/* One host has everything: the data lie in the file as they are sent, so they need no buffer. */
static status_t broadcast(const struct exchange_carrier *by, int host_index, const struct stage_file *f, int root,
                          unsigned char *file, struct exchange_times *times)
{
    for (size_t at = f->head_bytes; at < f->bytes; at += by->chunk) {
        size_t n = f->bytes - at < by->chunk ? f->bytes - at : by->chunk;
        TRY(by->broadcast(by->ctx, file + at, n, root, times));
        times->bytes += host_index == root ? 0 : n;
    }
    return ST_OK;
}

static status_t all_gather(const struct exchange_carrier *by, int host_index, size_t n_hosts, const struct stage_file *f, int n_parts,
                           const int *host_of, unsigned char *file, struct exchange_times *times)
{
    size_t chunk = GATHER_MOST / (n_hosts + 1), most = 0;
    chunk = chunk > CHUNK ? CHUNK : chunk < GATHER_LEAST ? GATHER_LEAST : chunk;
    unsigned char *send = calloc(1, chunk), *recv = malloc(chunk * n_hosts);
    struct cursor *from = calloc(n_hosts, sizeof *from), own;
    status_t       st = send && recv && from ? ST_OK : FAIL(ST_ENOMEM, "no memory to exchange weights among %zu hosts", n_hosts);
    for (size_t h = 0; st == ST_OK && h < n_hosts; h++) {
        size_t bytes = host_bytes(f, n_parts, host_of, (int)h);
        from[h] = (struct cursor){.f = f, .host_of = host_of, .host = (int)h, .n_parts = n_parts};
        most = bytes > most ? bytes : most;
    }
    own = (struct cursor){.f = f, .host_of = host_of, .host = host_index, .n_parts = n_parts};
    for (size_t at = 0; st == ST_OK && at < most; at += chunk) {
        int64_t t0 = clock_ns();
        cursor_copy(&own, file, send, chunk, false);
        times->copy_s += clock_ms_since(t0) * 1e-3;
        st = by->all_gather(by->ctx, send, chunk, recv, times);
        t0 = clock_ns();
        for (size_t h = 0; st == ST_OK && h < n_hosts; h++)
            if ((int)h != host_index)
                times->bytes += cursor_copy(&from[h], file, recv + h * chunk, chunk, true);
        times->copy_s += clock_ms_since(t0) * 1e-3;
    }
    free(from);
    free(send);
    free(recv);
    return st;
}

status_t staging_exchange(const struct exchange_carrier *by, int host_index, int n_hosts, const struct stage_file *f, int n_parts,
                          const int *host_of, unsigned char *file, struct exchange_times *times)
{
    if (n_hosts == 1)
        return ST_OK;
    return n_parts == 1 ? broadcast(by, host_index, f, host_of[0], file, times)
                        : all_gather(by, host_index, (size_t)n_hosts, f, n_parts, host_of, file, times);
}

/* ---- over the fabric ---- */

static status_t fabric_carry(void *ctx, void *data, size_t bytes, int root_host, struct exchange_times *times)
{
    (void)ctx;
    int64_t  t0 = clock_ns();
    status_t st = fabric_hosts_broadcast(data, bytes, root_host);
    times->transfer_s += clock_ms_since(t0) * 1e-3;
    return st;
}

static status_t fabric_gather_all(void *ctx, const void *send, size_t bytes, void *recv, struct exchange_times *times)
{
    (void)ctx;
    int64_t  t0 = clock_ns();
    status_t st = fabric_hosts_all_gather(send, bytes, recv);
    times->transfer_s += clock_ms_since(t0) * 1e-3;
    return st;
}

const struct exchange_carrier fabric_carrier = {fabric_carry, fabric_gather_all, NULL, CHUNK};
