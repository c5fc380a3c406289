#include "launch/gpu_seat.h"

#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>

static const int64_t LOOK_NS = 100000000; /* between two looks at an occupied GPU */

/* The turn for a GPU that several ranks of a host use: a number that its UUID gives, the same for all of them. */
static int turn_slot(const char *uuid)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *c = uuid; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    return (int)(hash >> 2) + 1; /* 0 is the host's cores */
}

status_t gpu_seat_open(const struct prepared *prepared, const struct seat *seat, const char *run, struct gpu_seat *out)
{
    const struct job_options *o = &prepared->plan->options;
    double                    standard = o->foreign == FOREIGN_WAIT ? GUARD_WAIT_S : GUARD_MARK_WAIT_S;
    memset(out, 0, sizeof *out);
    out->turn.socket = -1;
    if (!prepared->gpu.uuid[0])
        return ST_OK;
    out->gpu = prepared->gpu;
    out->sharers = prepared->placement.places[seat->me.rank].sharers;
    out->beside = out->sharers > 1 && o->parallel;
    out->foreign = o->foreign;
    out->wait_s = o->foreign_wait_s >= 0 ? o->foreign_wait_s : standard;
    turn_init(&out->turn, prepared->run_id, turn_slot(out->gpu.uuid));
    if (!placement_near("/sys", out->gpu.bus_id, &seat->own, &out->near))
        out->near = seat->own;
    TRY(gpu_guard_open(out->gpu.uuid, run, &out->guard));
    out->here = true;
    return ST_OK;
}

void gpu_seat_close(struct gpu_seat *s)
{
    turn_end(&s->turn);
    gpu_guard_close(s->guard);
    s->guard = NULL;
    s->here = false;
}

enum gpu_ready gpu_seat_ready(struct gpu_seat *s, struct gpu_visit *visit)
{
    int64_t now = clock_ns();
    if (now < s->next_ns)
        return GPU_LATER;
    bool clear = gpu_guard_is_clear(s->guard, s->beside, visit->foreign, sizeof visit->foreign);
    if (!clear && s->foreign != FOREIGN_IGNORE) {
        if (!s->until_ns) {
            s->until_ns = now + (int64_t)(s->wait_s * 1e9);
            log_warn("%s is in use by others: %s", s->gpu.uuid, visit->foreign);
        }
        if (now < s->until_ns) {
            s->next_ns = now + LOOK_NS;
            return GPU_LATER;
        }
    }
    s->until_ns = s->next_ns = 0;
    if (!clear && s->foreign == FOREIGN_WAIT)
        return GPU_REFUSED;
    visit->used = gpu_guard_used(s->guard);
    return GPU_READY;
}

bool gpu_seat_is_free(struct gpu_seat *s)
{
    char who[64];
    return !s->until_ns && gpu_guard_is_clear(s->guard, s->beside, who, sizeof who);
}

bool gpu_seat_is_back(struct gpu_seat *s, const struct gpu_visit *visit)
{
    return s->beside || gpu_guard_is_back(visit->used, gpu_guard_used(s->guard));
}

void gpu_seat_leave(struct gpu_seat *s, struct gpu_visit *visit)
{
    char who[sizeof visit->foreign];
    visit->back = gpu_seat_is_back(s, visit);
    /* Memory that did not come back is our own worker's, until a process says otherwise. */
    if (!gpu_guard_is_clear(s->guard, s->beside || !visit->back, who, sizeof who) && !visit->foreign[0])
        memcpy(visit->foreign, who, sizeof who);
}

status_t gpu_seat_note(const struct gpu_seat *s, const struct gpu_visit *visit, struct result *r)
{
    char text[sizeof visit->foreign + 64];
    TRY(result_add_fact(r, "gpu_memory_returned", s->beside ? "not looked at: shared" : visit->back ? "yes" : "no"));
    if (!visit->foreign[0])
        return ST_OK;
    TRY(result_add_fact(r, "gpu_foreign", visit->foreign));
    if (r->status != CELL_OK || s->foreign == FOREIGN_IGNORE)
        return ST_OK;
    snprintf(text, sizeof text, "measured while the GPU was in use by others: %s", visit->foreign);
    r->status = CELL_CONTAMINATED;
    return result_set_reason(r, text);
}

status_t gpu_seat_facts(const struct gpu_seat *s, struct work *work)
{
    char text[512];
    TRY(work_add_fact(work, "gpu_uuid", s->gpu.uuid));
    TRY(work_add_fact(work, "gpu_name", s->gpu.name));
    TRY(work_add_fact(work, "gpu_bus_id", s->gpu.bus_id));
    snprintf(text, sizeof text, "%d", s->sharers);
    TRY(work_add_fact(work, "gpu_ranks", text));
    cores_text(&s->near, text, sizeof text);
    return work_add_fact(work, "gpu_near_cores", text);
}
