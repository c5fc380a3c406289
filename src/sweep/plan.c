#include "sweep/plan.h"

#include "sweep/plan_pool.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* ---- pool -------------------------------------------------------------------------------------------------------- */

struct plan *plan_new(size_t n, int n_models, int n_text_sets)
{
    struct plan      *p    = calloc(1, sizeof *p);
    struct plan_pool *pool = calloc(1, sizeof *pool);
    if (!p || !pool) {
        free(p);
        free(pool);
        return NULL;
    }
    p->pool            = pool;
    p->n               = n;
    p->cells           = calloc(n + 1, sizeof *p->cells);
    p->group           = calloc(n + 1, sizeof *p->group);
    p->invalid         = calloc(n + 1, sizeof *p->invalid);
    pool->model_of     = calloc(n + 1, sizeof *pool->model_of);
    pool->texts_of     = calloc(n + 1, sizeof *pool->texts_of);
    pool->by_id        = calloc(n + 1, sizeof *pool->by_id);
    pool->models       = calloc((size_t)n_models + 1, sizeof *pool->models);
    pool->fingerprints = calloc((size_t)n_models + 1, sizeof *pool->fingerprints);
    pool->text_sets    = calloc((size_t)n_text_sets + 1, sizeof *pool->text_sets);
    pool->n_models     = n_models;
    pool->n_text_sets  = n_text_sets;
    if (p->cells && p->group && p->invalid && pool->model_of && pool->texts_of && pool->by_id && pool->models &&
        pool->fingerprints && pool->text_sets)
        return p;
    plan_close(p);
    return NULL;
}

void plan_close(struct plan *p)
{
    if (!p)
        return;
    struct plan_pool *pool = p->pool;
    for (int i = 0; pool->models && i < pool->n_models; i++)
        free(pool->models[i]);
    for (int i = 0; pool->text_sets && i < pool->n_text_sets; i++)
        text_set_free(&pool->text_sets[i]);
    free(pool->models);
    free(pool->fingerprints);
    free(pool->text_sets);
    free(pool->model_of);
    free(pool->texts_of);
    free(pool->by_id);
    free(pool);
    free(p->cells);
    free(p->group);
    free(p->invalid);
    free(p->job_text);
    free(p);
}

void plan_attach(struct plan *p, size_t i)
{
    const struct plan_pool *pool = p->pool;
    const struct text_set  *set  = &pool->text_sets[pool->texts_of[i]];
    p->cells[i].model            = pool->models[pool->model_of[i]];
    p->cells[i].workload.texts   = set->texts;
    p->cells[i].workload.n_texts = set->n;
}

static int compare_ids(const void *a, const void *b, void *cells)
{
    return memcmp(((struct cell *)cells)[*(const size_t *)a].id, ((struct cell *)cells)[*(const size_t *)b].id, 32);
}

/* Why no machine can run this cell, or NULL. What only a backend knows is its to refuse. */
static const char *invalid_reason(const struct cell *c)
{
    bool cuda = c->device_class == DEVICE_CUDA;
    if (cuda && c->precision == PRECISION_FP32)
        return "precision fp32 decodes on the CPU only";
    if (!cuda && (c->engine == ENGINE_GRAPH || c->engine == ENGINE_PERSISTENT))
        return "this engine needs a GPU";
    if (c->workload.processes > c->workload.samples)
        return "more processes than samples per text";
    return NULL;
}

status_t plan_finish(struct plan *p)
{
    for (size_t i = 0; i < p->n; i++) {
        p->invalid[i]     = invalid_reason(&p->cells[i]);
        p->pool->by_id[i] = i;
    }
    qsort_r(p->pool->by_id, p->n, sizeof *p->pool->by_id, compare_ids, p->cells);
    return ST_OK;
}

long plan_find(const struct plan *p, const char *id)
{
    size_t low = 0, high = p->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        size_t i      = p->pool->by_id[middle];
        int    order  = strcmp(id, p->cells[i].id);
        if (order == 0)
            return (long)i;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

/* ---- enumeration ------------------------------------------------------------------------------------------------- */

struct entry {
    struct cell   cell;
    int           model, texts;
    XXH128_hash_t group_key;
    uint32_t      group; /* in order of appearance */
};

struct entries {
    struct entry *list;
    size_t        n, room;
    uint32_t     *by_id, *by_group; /* hash tables of index + 1, open addressing; room is twice the entries' */
    size_t        table;            /* their size, a power of two                                            */
    uint32_t      n_groups;
};

static void resolve_autos(struct cell *c, bool have_cuda, bool synthetic)
{
    if ((int)c->device_class == VALUE_AUTO)
        c->device_class = have_cuda ? DEVICE_CUDA : DEVICE_CPU;
    if ((int)c->workload.length == VALUE_AUTO)
        c->workload.length = synthetic ? LENGTH_FIXED : LENGTH_NATURAL;
    if ((int)c->kv == VALUE_AUTO)
        c->kv = c->precision == PRECISION_FP32 ? KV_FP32 : KV_BF16;
    if (c->precision != PRECISION_INT8)
        c->recipe = RECIPE_NONE;
    else if ((int)c->recipe == VALUE_AUTO || c->recipe == RECIPE_NONE)
        c->recipe = RECIPE_TORCHAO;
    if (c->sampling.top_k == VALUE_AUTO)
        c->sampling.top_k = c->sampling.rules == SAMPLING_S2 ? 30 : 0;
    if (c->sampling.rules == SAMPLING_S2) /* ignored there, so it must not make two cells of one */
        c->sampling.repetition_penalty = 1;
}

/* What cells of one group have in common: everything but precision, what follows it, and what is zipped with it. */
static XXH128_hash_t group_key(const struct block *b, const struct cell *unresolved, int model, int texts)
{
    union field_value key[AXIS_COUNT];
    int               linked_dim = -2, precision = field_find("precision");
    memset(key, 0, sizeof key);
    for (int i = 0; i < FIELD_COUNT; i++)
        key[i] = field_get(&cell_fields[i], unresolved);
    key[AXIS_MODEL].i = model;
    key[AXIS_TEXTS].i = texts;
    for (int i = 0; i < b->n_axes; i++)
        if (b->axes[i].field == precision)
            linked_dim = b->axes[i].dim;
    for (int i = 0; i < b->n_axes; i++)
        if (b->axes[i].dim == linked_dim)
            key[b->axes[i].field].i = 0;
    key[precision].i = key[field_find("recipe")].i = 0;
    return XXH3_128bits(key, sizeof key);
}

static status_t grow(struct entries *e)
{
    size_t        room = e->room ? 2 * e->room : 256;
    struct entry *list = realloc(e->list, room * sizeof *list);
    if (!list)
        return FAIL(ST_ENOMEM, "no memory for %zu cells", room);
    e->list = list;
    free(e->by_id);
    free(e->by_group);
    e->room     = room;
    e->table    = 2 * room;
    e->by_id    = calloc(e->table, sizeof *e->by_id);
    e->by_group = calloc(e->table, sizeof *e->by_group);
    if (!e->by_id || !e->by_group)
        return FAIL(ST_ENOMEM, "no memory for %zu cells", room);
    return ST_OK;
}

/* Slot of the entry with this id, or the free one where it belongs. */
static uint32_t *id_slot(const struct entries *e, const char *id)
{
    size_t at = XXH3_64bits(id, 32) & (e->table - 1);
    while (e->by_id[at] && memcmp(e->list[e->by_id[at] - 1].cell.id, id, 32) != 0)
        at = (at + 1) & (e->table - 1);
    return &e->by_id[at];
}

static uint32_t *group_slot(const struct entries *e, XXH128_hash_t key)
{
    size_t at = key.low64 & (e->table - 1);
    while (e->by_group[at] && !XXH128_isEqual(e->list[e->by_group[at] - 1].group_key, key))
        at = (at + 1) & (e->table - 1);
    return &e->by_group[at];
}

static status_t add_entry(struct entries *e, const struct entry *new)
{
    if (e->n == e->room) {
        TRY(grow(e));
        for (size_t i = 0; i < e->n; i++) {
            uint32_t *group                       = group_slot(e, e->list[i].group_key);
            *id_slot(e, e->list[i].cell.id)       = (uint32_t)i + 1;
            if (!*group)
                *group = (uint32_t)i + 1;
        }
    }
    uint32_t *slot = id_slot(e, new->cell.id);
    if (*slot)
        return ST_OK; /* asked for twice, measured once */
    *slot           = (uint32_t)e->n + 1;
    e->list[e->n]   = *new;
    uint32_t *group = group_slot(e, new->group_key);
    if (!*group)
        *group = (uint32_t)e->n + 1;
    const struct entry *first = &e->list[*group - 1];
    e->list[e->n].group       = first == &e->list[e->n] ? e->n_groups++ : first->group;
    e->n++;
    return ST_OK;
}

static bool passes(const struct block *b, const struct cell *c)
{
    for (int i = 0; i < b->n_where; i++)
        if (!where_holds(b->where[i], c))
            return false;
    return true;
}

/* The cell once for each model of GPU that the job wants, if it asked for that; else once. */
static status_t add_for_gpus(const struct job_options *o, const struct plan_input *in, struct entries *e, struct entry *new)
{
    XXH128_hash_t key  = new->group_key;
    int           n    = o->each_model && new->cell.device_class == DEVICE_CUDA ? in->n_gpus : 0;
    bool          some = false;
    for (int i = 0; i < n; i++) {
        if (!strcasestr(in->gpus[i], o->gpu_name))
            continue;
        some = true;
        snprintf(new->cell.gpu, sizeof new->cell.gpu, "%s", in->gpus[i]);
        new->group_key = XXH3_128bits_withSeed(new->cell.gpu, strlen(new->cell.gpu), key.low64 ^ key.high64);
        TRY(cell_identify(&new->cell));
        TRY(add_entry(e, new));
    }
    if (some)
        return ST_OK;
    TRY(cell_identify(&new->cell));
    return add_entry(e, new);
}

static status_t enumerate(const struct job *job, const struct plan_input *in, struct entries *e)
{
    const struct sweep *s = job_sweep(job);
    size_t filtered = 0;
    for (int k = 0; k < s->n_blocks; k++) {
        const struct block *b = &s->blocks[k];
        size_t              n = block_size(b);
        for (size_t i = 0; i < n; i++) {
            struct entry new;
            block_cell(s, b, i, &new.cell, &new.model, &new.texts);
            new.group_key = group_key(b, &new.cell, new.model, new.texts);
            resolve_autos(&new.cell, in->have_cuda, in->synthetic && in->synthetic[new.model]);
            new.cell.model            = s->models[new.model];
            new.cell.workload.texts   = s->text_sets[new.texts].texts;
            new.cell.workload.n_texts = s->text_sets[new.texts].n;
            memcpy(new.cell.fingerprint, in->fingerprints[new.model], sizeof new.cell.fingerprint);
            if (s->prequantized[new.cell.precision])
                new.model = s->n_models + (int)new.cell.precision;
            if (!passes(b, &new.cell)) {
                filtered++;
                continue;
            }
            if (e->n == PLAN_CELLS_MAX)
                return FAIL(ST_EINPUT, "%s: the sweep has more than %d cells; filter it with where:",
                            job_label(job), PLAN_CELLS_MAX);
            if (job_options(job)->each_model && e->n + (size_t)in->n_gpus > PLAN_CELLS_MAX)
                return FAIL(ST_EINPUT, "%s: the sweep has more than %d cells on %d models of GPU; filter it with where:",
                            job_label(job), PLAN_CELLS_MAX, in->n_gpus);
            TRY(add_for_gpus(job_options(job), in, e, &new));
        }
    }
    if (e->n == 0)
        return FAIL(ST_EINPUT, "%s: the sweep has no cells: where: leaves none of %zu combinations", job_label(job),
                    filtered);
    return ST_OK;
}

/* ---- order ------------------------------------------------------------------------------------------------------- */

/* SplitMix64 (Steele, Lea, Flood 2014): the same order on every machine. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z          = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z          = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint32_t random_below(uint64_t *state, uint32_t n)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, v;
    do
        v = next_random(state);
    while (v >= limit);
    return (uint32_t)(v % n);
}

static void shuffle(uint32_t *list, uint32_t n, uint64_t *state)
{
    for (uint32_t i = n; i > 1; i--) {
        uint32_t k = random_below(state, i), swap = list[i - 1];
        list[i - 1] = list[k];
        list[k]     = swap;
    }
}

/* order [n]: which entry stands where. Groups are shuffled; inside a group entries stand as the file has them, forwards
 * and backwards in turn, beginning with either. start [n_groups + 1] is scratch. */
static void interleave(const struct entries *e, uint64_t seed, uint32_t *order, uint32_t *groups, uint32_t *start)
{
    uint64_t state = seed;
    bool     back  = next_random(&state) >> 63;
    uint32_t at    = 0;
    memset(start, 0, (e->n_groups + 1) * sizeof *start);
    for (size_t i = 0; i < e->n; i++)
        start[e->list[i].group + 1]++;
    for (uint32_t g = 0; g < e->n_groups; g++) {
        start[g + 1] += start[g];
        groups[g] = g;
    }
    /* Members of group g, in their order, at members[start[g] … start[g + 1] − 1]. */
    uint32_t *members = groups + e->n_groups;
    for (size_t i = 0; i < e->n; i++)
        members[start[e->list[i].group]++] = (uint32_t)i;
    shuffle(groups, e->n_groups, &state);
    for (uint32_t k = 0; k < e->n_groups; k++, back = !back) {
        /* start[g] was moved to the group's end, which is where the next group began. */
        uint32_t g = groups[k], end = start[g], begin = g ? start[g - 1] : 0;
        for (uint32_t i = begin; i < end; i++)
            order[at++] = back ? members[end - 1 - (i - begin)] : members[i];
    }
}

static status_t choose_order(const struct entries *e, const struct job_options *o, uint32_t *order)
{
    uint64_t state = o->seed;
    for (size_t i = 0; i < e->n; i++)
        order[i] = (uint32_t)i;
    if (o->order == ORDER_RANDOM)
        shuffle(order, (uint32_t)e->n, &state);
    if (o->order != ORDER_INTERLEAVED)
        return ST_OK;
    uint32_t *scratch = malloc((2 * (size_t)e->n_groups + e->n + 1) * sizeof *scratch);
    if (!scratch)
        return FAIL(ST_ENOMEM, "no memory to order %zu cells", e->n);
    interleave(e, o->seed, order, scratch, scratch + e->n_groups + e->n);
    free(scratch);
    return ST_OK;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static status_t copy_pool(const struct sweep *s, const struct plan_input *in, struct plan_pool *pool)
{
    for (int i = 0; i < s->n_models; i++) {
        if (!(pool->models[i] = strdup(s->models[i])))
            return FAIL(ST_ENOMEM, "no memory for a plan");
        memcpy(pool->fingerprints[i], in->fingerprints[i], 33);
    }
    for (int i = 0; i < PRECISION_COUNT; i++) { /* with prequantized copies there is one model, whose place they take */
        const char *dir = s->prequantized[i] ? s->prequantized[i] : s->models[0];
        if (!(pool->models[s->n_models + i] = strdup(dir)))
            return FAIL(ST_ENOMEM, "no memory for a plan");
        memcpy(pool->fingerprints[s->n_models + i], in->fingerprints[0], 33);
    }
    for (int i = 0; i < s->n_text_sets; i++) {
        struct workload w = {0};
        TRY(workload_set_texts(&w, (const char *const *)s->text_sets[i].texts, s->text_sets[i].n));
        pool->text_sets[i] = (struct text_set){w.texts, w.n_texts};
    }
    return ST_OK;
}

/* Renumber of [n] so that only indices in use remain, in their order; place [n_pool] becomes the new number or −1. */
static int renumber(int *of, size_t n, int *place, int n_pool)
{
    int used = 0;
    for (int i = 0; i < n_pool; i++)
        place[i] = -1;
    for (size_t i = 0; i < n; i++)
        place[of[i]] = 0;
    for (int i = 0; i < n_pool; i++)
        place[i] = place[i] < 0 ? -1 : used++;
    for (size_t i = 0; i < n; i++)
        of[i] = place[of[i]];
    return used;
}

/* Drop models and texts that no cell uses, such as the default texts beside an axis of them. */
static status_t prune_pool(struct plan *p)
{
    struct plan_pool *pool = p->pool;
    int               most = pool->n_models > pool->n_text_sets ? pool->n_models : pool->n_text_sets;
    int              *place = malloc(((size_t)most + 1) * sizeof *place);
    if (!place)
        return FAIL(ST_ENOMEM, "no memory for a plan");
    int n_models = pool->n_models, n_sets = pool->n_text_sets;
    pool->n_models = renumber(pool->model_of, p->n, place, n_models);
    for (int i = 0; i < n_models; i++) {
        if (place[i] < 0) {
            free(pool->models[i]);
            continue;
        }
        pool->models[place[i]] = pool->models[i];
        memmove(pool->fingerprints[place[i]], pool->fingerprints[i], 33);
    }
    pool->n_text_sets = renumber(pool->texts_of, p->n, place, n_sets);
    for (int i = 0; i < n_sets; i++) {
        if (place[i] < 0)
            text_set_free(&pool->text_sets[i]);
        else
            pool->text_sets[place[i]] = pool->text_sets[i];
    }
    free(place);
    return ST_OK;
}

static status_t assemble(const struct job *job, const struct plan_input *in, const struct entries *e,
                         const uint32_t *order, struct plan *p)
{
    TRY(copy_pool(job_sweep(job), in, p->pool));
    p->options = *job_options(job);
    if (!(p->job_text = strdup(job_text(job))))
        return FAIL(ST_ENOMEM, "no memory for a plan");
    bool     paired = p->options.order == ORDER_INTERLEAVED;
    uint32_t group  = 0;
    for (size_t i = 0; i < e->n; i++) {
        const struct entry *from = &e->list[order[i]];
        if (i && (!paired || from->group != e->list[order[i - 1]].group))
            group++;
        p->cells[i]          = from->cell;
        p->group[i]          = group;
        p->pool->model_of[i] = from->model;
        p->pool->texts_of[i] = from->texts;
    }
    TRY(prune_pool(p));
    for (size_t i = 0; i < p->n; i++)
        plan_attach(p, i);
    return plan_finish(p);
}

status_t plan_build(const struct job *job, const struct plan_input *in, struct plan **out)
{
    const struct sweep *s     = job_sweep(job);
    struct entries      e     = {0};
    struct plan        *p     = NULL;
    uint32_t           *order = NULL;
    status_t            st    = ST_OK;
    if (in->n_fingerprints != s->n_models)
        return FAIL(ST_EINTERNAL, "%d fingerprints for %d models", in->n_fingerprints, s->n_models);
    TRY_OUT(enumerate(job, in, &e));
    if (!(order = malloc(e.n * sizeof *order)) || !(p = plan_new(e.n, s->n_models + PRECISION_COUNT, s->n_text_sets))) {
        st = FAIL(ST_ENOMEM, "no memory for a plan of %zu cells", e.n);
        goto out;
    }
    TRY_OUT(choose_order(&e, job_options(job), order));
    TRY_OUT(assemble(job, in, &e, order, p));
    *out = p;
    p    = NULL;
out:
    plan_close(p);
    free(order);
    free(e.list);
    free(e.by_id);
    free(e.by_group);
    return st;
}

/* ---- runs -------------------------------------------------------------------------------------------------------- */

size_t plan_run_count(const struct plan *p, const size_t *cells, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += (size_t)p->cells[cells[i]].workload.processes;
    return count;
}

void plan_runs(const struct plan *p, const size_t *cells, size_t n, struct run *out)
{
    for (size_t first = 0, end; first < n; first = end) {
        int most = 0;
        for (end = first; end < n && p->group[cells[end]] == p->group[cells[first]]; end++)
            if (p->cells[cells[end]].workload.processes > most)
                most = p->cells[cells[end]].workload.processes;
        for (int process = 0; process < most; process++)
            for (size_t i = 0; i < end - first; i++) {
                size_t cell = cells[process % 2 ? end - 1 - i : first + i];
                if (process < p->cells[cell].workload.processes)
                    *out++ = (struct run){cell, process};
            }
    }
}
