#include "bench/gpu_watch.h"

#include "backend/nvml.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct gpu_watch {
    struct nvml      *nvml;
    pthread_mutex_t   lock; /* guards what follows: the trace's thread adds, the worker's reads */
    double            clock_sum, hottest_c;
    size_t            n_clocks;
    uint64_t          throttle, all_throttle;
    struct nvml_state first;
};

/* Take one reading into the sums of the running sample. */
static void add(struct gpu_watch *w, const struct nvml_state *state)
{
    if (!isnan(state->sm_clock_mhz)) {
        w->clock_sum += state->sm_clock_mhz;
        w->n_clocks++;
    }
    if (!isnan(state->temperature_c) && !(w->hottest_c >= state->temperature_c))
        w->hottest_c = state->temperature_c;
    w->throttle |= state->throttle;
    w->all_throttle |= state->throttle;
}

struct gpu_watch *gpu_watch_open(const char *uuid)
{
    struct gpu_watch *w = calloc(1, sizeof *w);
    if (!w || nvml_open(uuid, 0, &w->nvml) != ST_OK) {
        free(w);
        return NULL;
    }
    pthread_mutex_init(&w->lock, NULL);
    w->hottest_c = NAN;
    nvml_state(w->nvml, &w->first);
    return w;
}

void gpu_watch_close(struct gpu_watch *w)
{
    if (!w)
        return;
    nvml_close(w->nvml);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

static void read_device(void *ctx, bool slow, struct trace_point *point)
{
    struct gpu_watch  *w = ctx;
    struct nvml_memory memory;
    nvml_memory(w->nvml, &memory);
    /* v2 leaves the driver's own reservation out; v1 counts it as used. */
    point->device_used = memory.v2_used != NVML_UNKNOWN ? memory.v2_used : memory.v1_used;
    /* Unknown stays unknown: the host's resident set is no answer to how much of the card is ours. */
    point->process_used = memory.process;
    if (!slow)
        return;
    struct nvml_state state;
    nvml_state(w->nvml, &state);
    point->sm_clock_mhz = state.sm_clock_mhz;
    point->mem_clock_mhz = state.mem_clock_mhz;
    point->power_mw = state.power_mw;
    point->temperature_c = state.temperature_c;
    point->throttle = state.throttle;
    pthread_mutex_lock(&w->lock);
    add(w, &state);
    pthread_mutex_unlock(&w->lock);
}

struct trace_source gpu_watch_source(struct gpu_watch *w)
{
    return (struct trace_source){.ctx = w, .read = w ? read_device : NULL};
}

void gpu_watch_begin(struct gpu_watch *w)
{
    struct nvml_state state;
    if (!w)
        return;
    nvml_state(w->nvml, &state);
    pthread_mutex_lock(&w->lock);
    w->clock_sum = 0;
    w->n_clocks = 0;
    w->throttle = 0;
    w->first.energy_mj = state.energy_mj;
    add(w, &state);
    pthread_mutex_unlock(&w->lock);
}

void gpu_watch_end(struct gpu_watch *w, struct sample *sample)
{
    struct nvml_state state;
    if (!w)
        return;
    nvml_state(w->nvml, &state);
    pthread_mutex_lock(&w->lock);
    add(w, &state);
    sample->sm_clock_mhz = w->n_clocks ? w->clock_sum / (double)w->n_clocks : NAN;
    sample->throttle = w->throttle;
    bool ticked = state.energy_mj != NVML_UNKNOWN && w->first.energy_mj != NVML_UNKNOWN && state.energy_mj > w->first.energy_mj;
    sample->energy_j = ticked ? (double)(state.energy_mj - w->first.energy_mj) * 1e-3 : NAN;
    pthread_mutex_unlock(&w->lock);
}

static status_t add_bytes(struct result *r, const char *key, uint64_t bytes)
{
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)bytes);
    return bytes == NVML_UNKNOWN ? ST_OK : result_add_fact(r, key, text);
}

static status_t add_real(struct result *r, const char *key, double value)
{
    char text[32];
    snprintf(text, sizeof text, "%g", value);
    return isnan(value) ? ST_OK : result_add_fact(r, key, text);
}

status_t gpu_watch_facts(struct gpu_watch *w, struct result *r)
{
    struct nvml_identity id;
    struct nvml_memory   memory;
    struct nvml_state    state;
    char                 text[32];
    if (!w)
        return ST_OK;
    nvml_identity(w->nvml, &id);
    nvml_memory(w->nvml, &memory);
    nvml_state(w->nvml, &state);
    TRY(result_add_fact(r, "gpu_driver", id.driver));
    if (id.ecc >= 0)
        TRY(result_add_fact(r, "gpu_ecc", id.ecc ? "on" : "off"));
    TRY(result_add_fact(r, "gpu_memory_call",
                        memory.v2_used != NVML_UNKNOWN ? "nvmlDeviceGetMemoryInfo_v2, reserved left out"
                                                       : "nvmlDeviceGetMemoryInfo, reserved counted as used"));
    TRY(add_bytes(r, "gpu_memory_v1_total_bytes", memory.v1_total));
    TRY(add_bytes(r, "gpu_memory_v1_used_bytes", memory.v1_used));
    TRY(add_bytes(r, "gpu_memory_v2_used_bytes", memory.v2_used));
    TRY(add_bytes(r, "gpu_memory_v2_reserved_bytes", memory.v2_reserved));
    TRY(result_add_fact(r, "gpu_process_bytes", memory.process != NVML_UNKNOWN ? "known" : "not told here"));
    TRY(add_real(r, "gpu_sm_clock_mhz", state.sm_clock_mhz));
    TRY(add_real(r, "gpu_mem_clock_mhz", state.mem_clock_mhz));
    if (state.ecc_uncorrected != NVML_UNKNOWN && w->first.ecc_uncorrected != NVML_UNKNOWN)
        TRY(add_bytes(r, "gpu_ecc_errors_during_cell", state.ecc_uncorrected - w->first.ecc_uncorrected));
    pthread_mutex_lock(&w->lock);
    double   hottest_c = w->hottest_c;
    uint64_t throttle = w->all_throttle;
    pthread_mutex_unlock(&w->lock);
    TRY(add_real(r, "gpu_temperature_max_c", hottest_c));
    snprintf(text, sizeof text, "0x%llx", (unsigned long long)throttle);
    return result_add_fact(r, "gpu_throttle_reasons", text);
}
