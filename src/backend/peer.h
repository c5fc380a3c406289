/* peer.h — a group of processes, each with one GPU, that carry host memory to each other through NCCL. Only short-lived
 * `qsweep stage` processes use it: its buffers are gone before anything is measured.
 *
 * NCCL is opened at run time. NVLink multicast (NVLS) stays off unless NCCL_NVLS_ENABLE is set. Not measured yet on more
 * than one GPU. */
#ifndef QSWEEP_BACKEND_PEER_H
#define QSWEEP_BACKEND_PEER_H

#include "base/status.h"

#include <stddef.h>

enum { PEER_ID_BYTES = 128 };

struct peer;

struct peer_times {
    double copy_s;     /* host memory to and from pinned buffers, and these to and from the device */
    double transfer_s; /* NCCL's kernels, by the device's own clock                                 */
};

struct peer_ops {
    /* Made by one process, which must live until all have opened; handed to the others as bytes. */
    status_t (*make_id)(unsigned char id[PEER_ID_BYTES]);
    /* Collective; device: CUDA's index. ST_EUNSUPPORTED without NCCL or GPU. */
    status_t (*open)(const unsigned char id[PEER_ID_BYTES], int rank, int size, int device, struct peer **out);
    void (*close)(struct peer *p); /* NULL is accepted */
    /* Collective. Chunks pass pinned memory, the device and the wire at the same time: 32 MiB each, two under way.
     * times are added to. */
    status_t (*broadcast)(struct peer *p, void *data, size_t bytes, int root, struct peer_times *times);
    /* recv [size·bytes]; bytes must not grow from call to call. */
    status_t (*all_gather)(struct peer *p, const void *send, size_t bytes, void *recv, struct peer_times *times);
};

/* NULL in a program without CUDA. */
const struct peer_ops *peer_ops(void);

#endif
