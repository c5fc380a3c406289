/* plan_shard.c — one of n disjoint parts of a plan, for launchers that know nothing of each other (a job array). */
#include "sweep/plan.h"

#include "sweep/plan_pool.h"

#include <stdlib.h>
#include <string.h>

struct first_id {
    uint32_t    group;
    const char *id; /* the smallest of the group */
};

static int compare_first_ids(const void *a, const void *b)
{
    return memcmp(((const struct first_id *)a)->id, ((const struct first_id *)b)->id, 32);
}

/* Groups [*n] with their smallest ids, sorted by these. Cells of a group stand together. */
static status_t list_groups(const struct plan *p, struct first_id **out, size_t *n)
{
    struct first_id *list = malloc((p->n + 1) * sizeof *list);
    if (!list)
        return FAIL(ST_ENOMEM, "no memory to divide a plan of %zu cells", p->n);
    *n = 0;
    for (size_t i = 0; i < p->n; i++)
        if (i == 0 || p->group[i] != p->group[i - 1])
            list[(*n)++] = (struct first_id){p->group[i], p->cells[i].id};
        else if (memcmp(p->cells[i].id, list[*n - 1].id, 32) < 0)
            list[*n - 1].id = p->cells[i].id;
    qsort(list, *n, sizeof *list, compare_first_ids);
    *out = list;
    return ST_OK;
}

status_t plan_shard(struct plan *p, int shard, int n_shards)
{
    struct first_id *list = NULL;
    size_t           n_groups = 0, kept = 0;
    if (n_shards < 1 || shard < 0 || shard >= n_shards)
        return FAIL(ST_EUSAGE, "shard %d of %d: want I/N with 0 <= I < N", shard, n_shards);
    TRY(list_groups(p, &list, &n_groups));
    bool *ours = calloc(p->n + 1, sizeof *ours); /* by group number, which is below the number of cells */
    if (!ours) {
        free(list);
        return FAIL(ST_ENOMEM, "no memory to divide a plan of %zu cells", p->n);
    }
    for (size_t k = (size_t)shard; k < n_groups; k += (size_t)n_shards)
        ours[list[k].group] = true;
    for (size_t i = 0; i < p->n; i++) {
        if (!ours[p->group[i]])
            continue;
        p->cells[kept] = p->cells[i];
        p->group[kept] = p->group[i];
        p->pool->model_of[kept] = p->pool->model_of[i];
        p->pool->texts_of[kept] = p->pool->texts_of[i];
        kept++;
    }
    /* Group numbers without gaps, as plan_build() gives them. */
    for (size_t i = 0, was = 0; i < kept; i++) {
        size_t now = p->group[i];
        p->group[i] = i == 0 ? 0 : p->group[i - 1] + (now != was);
        was = now;
    }
    p->n = kept;
    free(ours);
    free(list);
    return plan_finish(p);
}
