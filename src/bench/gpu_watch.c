#include "bench/gpu_watch.h"

#include "backend/nvml.h"

#include <stdlib.h>

struct gpu_watch {
    struct nvml *nvml;
};

struct gpu_watch *gpu_watch_open(const char *uuid)
{
    struct gpu_watch *w = calloc(1, sizeof *w);
    if (w && nvml_open(uuid, 0, &w->nvml) == ST_OK)
        return w;
    free(w);
    return NULL;
}

void gpu_watch_close(struct gpu_watch *w)
{
    if (w)
        nvml_close(w->nvml);
    free(w);
}

static void read_device(void *ctx, bool slow, struct trace_point *point)
{
    struct gpu_watch  *w = ctx;
    struct nvml_memory memory;
    nvml_memory(w->nvml, &memory);
    /* v2 leaves the driver's own reservation out; v1 counts it as used. */
    point->device_used = memory.v2_used != NVML_UNKNOWN ? memory.v2_used : memory.v1_used;
    if (memory.process != NVML_UNKNOWN)
        point->process_used = memory.process;
    if (!slow)
        return;
    struct nvml_state state;
    nvml_state(w->nvml, &state);
    point->sm_clock_mhz  = state.sm_clock_mhz;
    point->mem_clock_mhz = state.mem_clock_mhz;
    point->power_mw      = state.power_mw;
    point->temperature_c = state.temperature_c;
    point->throttle      = state.throttle;
}

struct trace_source gpu_watch_source(struct gpu_watch *w)
{
    return (struct trace_source){.ctx = w, .read = w ? read_device : NULL};
}
