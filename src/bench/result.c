#include "bench/result.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *phase_name(enum phase p)
{
    static const char *const names[PHASE_COUNT] = {"context", "load", "ready", "warmup", "measure", "done"};
    return (unsigned)p < PHASE_COUNT ? names[p] : "unknown";
}

const char *stop_reason_name(enum stop_reason s)
{
    static const char *const names[STOP_COUNT] = {"length", "im_end", "cache_full"};
    return (unsigned)s < STOP_COUNT ? names[s] : "unknown";
}

void result_init(struct result *r)
{
    memset(r, 0, sizeof *r);
    r->status = CELL_PENDING;
    r->baseline_bytes = r->peak_bytes = UINT64_MAX;
    r->process_ready = r->process_peak = r->device_ready = r->device_peak = UINT64_MAX;
    r->load_s = r->warmup_s = r->total_s = r->first_frame_s = r->step_bytes = r->nucleus = NAN;
}

void result_free(struct result *r)
{
    cell_free(&r->cell);
    for (size_t i = 0; i < r->n_facts; i++) {
        free(r->facts[i].key);
        free(r->facts[i].value);
    }
    free(r->facts);
    free(r->reason);
    free(r->samples);
    free(r->step_ms);
    free(r->trace);
    free(r->quality);
    free(r->quality_texts);
    free(r->quality_linears);
    free(r->log);
    result_init(r);
}

static status_t replace_text(char **where, const char *text)
{
    char *copy = strdup(text ? text : "");
    if (!copy)
        return FAIL(ST_ENOMEM, "a result's text: no memory for %zu bytes", strlen(text ? text : ""));
    free(*where);
    *where = copy;
    return ST_OK;
}

status_t result_set_reason(struct result *r, const char *text)
{
    return replace_text(&r->reason, text);
}

status_t result_set_log(struct result *r, const char *text)
{
    return replace_text(&r->log, text);
}

/* An array of n elements has room for the next power of two: appending costs O(1), and no capacity is stored. */
size_t result_room(size_t n)
{
    size_t room = n ? 16 : 0;
    while (room < n)
        room *= 2;
    return room;
}

static status_t make_room(void **array, size_t n, size_t more, size_t element)
{
    if (more > SIZE_MAX / 4 / element - n)
        return FAIL(ST_ENOMEM, "a result of %zu + %zu rows does not fit in memory", n, more);
    size_t room = result_room(n + more);
    if (room == result_room(n))
        return ST_OK;
    void *grown = realloc(*array, room * element);
    if (!grown)
        return FAIL(ST_ENOMEM, "a result's rows: no memory for %zu bytes", room * element);
    *array = grown;
    return ST_OK;
}

static struct fact *find_fact(const struct result *r, const char *key)
{
    for (size_t i = 0; i < r->n_facts; i++)
        if (strcmp(r->facts[i].key, key) == 0)
            return &r->facts[i];
    return NULL;
}

const char *result_fact(const struct result *r, const char *key)
{
    const struct fact *fact = find_fact(r, key);
    return fact ? fact->value : NULL;
}

status_t result_add_fact(struct result *r, const char *key, const char *value)
{
    struct fact *known = find_fact(r, key);
    if (known)
        return replace_text(&known->value, value);
    if (!key[0] || strlen(key) > 200)
        return FAIL(ST_EINTERNAL, "fact key \"%.40s\": want 1 to 200 bytes", key);

    void *facts = r->facts;
    TRY(make_room(&facts, r->n_facts, 1, sizeof *r->facts));
    r->facts = facts;
    struct fact made = {0};
    TRY(replace_text(&made.key, key));
    status_t st = replace_text(&made.value, value);
    if (st != ST_OK) {
        free(made.key);
        return st;
    }
    r->facts[r->n_facts++] = made;
    return ST_OK;
}

status_t result_add_sample(struct result *r, const struct sample *s, const double *step_ms)
{
    size_t steps = s->steps > 0 ? (size_t)s->steps : 0;
    void  *samples = r->samples, *all_steps = r->step_ms;
    TRY(make_room(&samples, r->n_samples, 1, sizeof *r->samples));
    r->samples = samples;
    TRY(make_room(&all_steps, r->n_steps, steps, sizeof *r->step_ms));
    r->step_ms = all_steps;

    struct sample *row = &r->samples[r->n_samples++];
    *row = *s;
    row->step_offset = r->n_steps;
    row->steps = (int)steps;
    if (steps)
        memcpy(r->step_ms + r->n_steps, step_ms, steps * sizeof *step_ms);
    r->n_steps += steps;
    return ST_OK;
}

status_t result_add_trace(struct result *r, const struct trace_point *points, size_t n)
{
    if (n == 0)
        return ST_OK;
    void *trace = r->trace;
    TRY(make_room(&trace, r->n_trace, n, sizeof *r->trace));
    r->trace = trace;
    memcpy(r->trace + r->n_trace, points, n * sizeof *points);
    r->n_trace += n;
    return ST_OK;
}
