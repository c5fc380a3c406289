#include "backend/memory.h"

const char *memory_class_name(enum memory_class c)
{
    static const char *const names[MEM_CLASS_COUNT] = {"weights", "scales", "kv", "workspace", "graph", "codec", "staging"};
    return (int)c >= 0 && c < MEM_CLASS_COUNT ? names[c] : "?";
}

void memory_ledger_init(struct memory_ledger *m, size_t limit_bytes)
{
    for (int c = 0; c < MEM_CLASS_COUNT; c++) {
        atomic_init(&m->now[c], 0);
        atomic_init(&m->peak[c], 0);
    }
    atomic_init(&m->total, 0);
    atomic_init(&m->total_peak, 0);
    m->limit = limit_bytes;
}

static void raise_peak(atomic_size_t *peak, size_t value)
{
    size_t seen = atomic_load(peak);
    while (value > seen && !atomic_compare_exchange_weak(peak, &seen, value))
        ;
}

status_t memory_take(struct memory_ledger *m, enum memory_class c, size_t bytes)
{
    size_t total = atomic_fetch_add(&m->total, bytes) + bytes;
    if (m->limit && total > m->limit) {
        atomic_fetch_sub(&m->total, bytes);
        return FAIL(ST_EOOM, "out of memory: %zu bytes of %s wanted, %zu in use, limit %zu: %zu bytes missing", bytes,
                    memory_class_name(c), total - bytes, m->limit, total - m->limit);
    }
    raise_peak(&m->total_peak, total);
    raise_peak(&m->peak[c], atomic_fetch_add(&m->now[c], bytes) + bytes);
    return ST_OK;
}

void memory_give(struct memory_ledger *m, enum memory_class c, size_t bytes)
{
    atomic_fetch_sub(&m->now[c], bytes);
    atomic_fetch_sub(&m->total, bytes);
}

void memory_reset_peak(struct memory_ledger *m)
{
    for (int c = 0; c < MEM_CLASS_COUNT; c++)
        atomic_store(&m->peak[c], atomic_load(&m->now[c]));
    atomic_store(&m->total_peak, atomic_load(&m->total));
}
