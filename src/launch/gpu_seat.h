/* gpu_seat.h — a rank's GPU: which one, the cores near it, whose turn it is on it, and whether it is free. */
#ifndef QSWEEP_LAUNCH_GPU_SEAT_H
#define QSWEEP_LAUNCH_GPU_SEAT_H

#include "bench/work.h"
#include "launch/gpu_guard.h"
#include "launch/prepare.h"
#include "launch/seat.h"
#include "launch/turn.h"

struct gpu_seat {
    bool              here; /* false: this rank has no GPU, and nothing below is set */
    struct nvml_gpu   gpu;
    int               sharers; /* ranks that use it                                      */
    bool              beside;  /* and whose workers may run on it at the same time       */
    struct cores      near;    /* what its workers run on                                */
    struct turn       turn;
    struct gpu_guard *guard;
    enum foreign_mode foreign;
    double            wait_s;
    int64_t           until_ns, next_ns; /* while a cell waits for it */
};

/* What the guard saw of one worker. */
struct gpu_visit {
    uint64_t used;         /* bytes before it started, UINT64_MAX = unknown */
    bool     back;         /* they were so again after its end              */
    char     foreign[400]; /* who else was there, before or after; "" = nobody */
};

/* run: id of this run as text. */
status_t gpu_seat_open(const struct prepared *prepared, const struct seat *seat, const char *run, struct gpu_seat *out);
void     gpu_seat_close(struct gpu_seat *s);

enum gpu_ready { GPU_READY, GPU_LATER, GPU_REFUSED };
/* May a worker start now? READY: yes; visit->foreign names those who are there all the same. LATER: ask again. REFUSED: they
 * did not go within the job's bound. */
enum gpu_ready gpu_seat_ready(struct gpu_seat *s, struct gpu_visit *visit);
/* Is nobody there at this moment, without any waiting? */
bool gpu_seat_is_free(struct gpu_seat *s);
/* Is the memory of a worker that has ended back? */
bool gpu_seat_is_back(struct gpu_seat *s, const struct gpu_visit *visit);
/* The worker has ended: see who is there and whether its memory came back. */
void gpu_seat_leave(struct gpu_seat *s, struct gpu_visit *visit);
/* The visit's facts in a worker's result, and status contaminated for an ok one that was not alone. */
status_t gpu_seat_note(const struct gpu_seat *s, const struct gpu_visit *visit, struct result *r);
/* The GPU's own facts, for the worker's task. */
status_t gpu_seat_facts(const struct gpu_seat *s, struct work *work);

#endif
