/* memory.h — a ledger of our own bytes by class, readable from the trace thread while the engine allocates. */
#ifndef QSWEEP_BACKEND_MEMORY_H
#define QSWEEP_BACKEND_MEMORY_H

#include "base/status.h"

#include <stdatomic.h>
#include <stddef.h>

enum memory_class { MEM_WEIGHTS, MEM_SCALES, MEM_KV, MEM_WORKSPACE, MEM_GRAPH, MEM_CODEC, MEM_STAGING, MEM_CLASS_COUNT };

const char *memory_class_name(enum memory_class c); /* "weights", "scales", "kv", … */

struct memory_ledger {
    atomic_size_t now[MEM_CLASS_COUNT];  /* bytes held, per class      */
    atomic_size_t peak[MEM_CLASS_COUNT]; /* their maxima, per class    */
    atomic_size_t total, total_peak;     /* over all classes           */
    size_t        limit;                 /* 0 = none; fixed before use */
};

void memory_ledger_init(struct memory_ledger *m, size_t limit_bytes);
/* Account for bytes before they are allocated; ST_EOOM with the number of missing bytes when the limit forbids it. */
status_t memory_take(struct memory_ledger *m, enum memory_class c, size_t bytes);
void     memory_give(struct memory_ledger *m, enum memory_class c, size_t bytes);
/* Start a new peak from what is held now. */
void memory_reset_peak(struct memory_ledger *m);

#endif
