#include "sweep/schedule.h"

#include "sweep/task.h"

#include <stdlib.h>
#include <string.h>

/* ---- tasks ------------------------------------------------------------------------------------------------------- */

static double cell_cost(const struct schedule_input *in, size_t i)
{
    const struct cell *c = &in->plan->cells[i];
    if (in->cost)
        return in->cost[i] > 0 ? in->cost[i] : 0;
    return ((double)c->workload.n_texts * c->workload.samples + (double)c->workload.warmup * c->workload.processes) *
           c->workload.max_new_tokens;
}

static uint64_t kinds_of(const struct schedule_input *in, uint64_t present, size_t cell)
{
    uint64_t kinds = 0;
    for (int k = 0; k < in->n_kinds; k++)
        if ((present >> k & 1) && (!in->fits || in->fits(in->ctx, k, &in->plan->cells[cell])))
            kinds |= (uint64_t)1 << k;
    return kinds;
}

/* Cells [first, end) of t->cells are of one group. */
static void add_group(struct task_list *t, size_t first, size_t end)
{
    struct task whole = {.first = first, .count = end - first, .kinds = ~(uint64_t)0};
    for (size_t i = first; i < end; i++) {
        whole.kinds &= t->kinds[i];
        whole.cost += t->cost[i];
    }
    if (whole.kinds || whole.count == 1) {
        t->tasks[t->n++] = whole;
        return;
    }
    for (size_t i = first; i < end; i++)
        t->tasks[t->n++] = (struct task){i, 1, t->kinds[i], t->cost[i]};
}

status_t tasks_build(const struct schedule_input *in, struct task_list *out)
{
    const struct plan *p = in->plan;
    if (in->n_ranks < 1 || in->n_ranks > RANKS_MAX || in->n_kinds < 1 || in->n_kinds > KINDS_MAX)
        return FAIL(ST_EINTERNAL, "a schedule for %d ranks of %d kinds", in->n_ranks, in->n_kinds);
    uint64_t present = in->kind ? 0 : 1;
    for (int r = 0; in->kind && r < in->n_ranks; r++) {
        if (in->kind[r] < 0 || in->kind[r] >= in->n_kinds)
            return FAIL(ST_EINTERNAL, "rank %d is of kind %d of %d", r, in->kind[r], in->n_kinds);
        present |= (uint64_t)1 << in->kind[r];
    }
    struct task_list t = {
        .cells = malloc((p->n + 1) * sizeof *t.cells),
        .cost  = malloc((p->n + 1) * sizeof *t.cost),
        .kinds = malloc((p->n + 1) * sizeof *t.kinds),
        .tasks = malloc((p->n + 1) * sizeof *t.tasks),
    };
    if (!t.cells || !t.cost || !t.kinds || !t.tasks) {
        tasks_free(&t);
        return FAIL(ST_ENOMEM, "no memory to schedule %zu cells", p->n);
    }
    for (size_t i = 0; i < p->n; i++) {
        if (p->invalid[i] || (in->skip && in->skip[i]))
            continue;
        t.cells[t.n_cells]   = i;
        t.cost[t.n_cells]    = cell_cost(in, i);
        t.kinds[t.n_cells++] = kinds_of(in, present, i);
    }
    for (size_t first = 0, end; first < t.n_cells; first = end) {
        for (end = first + 1; end < t.n_cells && p->group[t.cells[end]] == p->group[t.cells[first]];)
            end++;
        add_group(&t, first, end);
    }
    *out = t;
    return ST_OK;
}

void tasks_free(struct task_list *t)
{
    free(t->cells);
    free(t->cost);
    free(t->kinds);
    free(t->tasks);
    *t = (struct task_list){0};
}

static int compare_tasks(const void *a, const void *b)
{
    const struct task *x = a, *y = b;
    if (x->cost != y->cost)
        return x->cost > y->cost ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

void tasks_sort_by_cost(struct task_list *t)
{
    qsort(t->tasks, t->n, sizeof *t->tasks, compare_tasks);
}

/* ---- static ------------------------------------------------------------------------------------------------------ */

/* The ranks of one kind as a binary heap: the least loaded on top, the lowest number among equals. */
struct heap {
    int *ranks;
    int  n;
};

struct placement {
    const struct schedule_input *in;
    struct task_list             tasks;
    struct heap                  heaps[KINDS_MAX];
    int                         *heap_store;
    double                      *load;      /* [n_ranks]                                                   */
    long                        *last_task; /* [n_ranks] its latest task with more than one cell, −1 = none */
    long                        *previous;  /* [n tasks] the one of the same rank before it                 */
    int32_t                     *rank_of;
};

static bool lighter(const struct placement *pl, int a, int b)
{
    return pl->load[a] != pl->load[b] ? pl->load[a] < pl->load[b] : a < b;
}

static void sift_down(struct placement *pl, struct heap *h)
{
    for (int i = 0;;) {
        int child = 2 * i + 1, least = i;
        for (int c = child; c < child + 2 && c < h->n; c++)
            if (lighter(pl, h->ranks[c], h->ranks[least]))
                least = c;
        if (least == i)
            return;
        int swap        = h->ranks[i];
        h->ranks[i]     = h->ranks[least];
        h->ranks[least] = swap;
        i               = least;
    }
}

static int kind_of(const struct schedule_input *in, int rank)
{
    return in->kind ? in->kind[rank] : 0;
}

static void fill_heaps(struct placement *pl)
{
    int at = 0;
    for (int k = 0; k < pl->in->n_kinds; k++) {
        pl->heaps[k].ranks = pl->heap_store + at;
        for (int r = 0; r < pl->in->n_ranks; r++)
            if (kind_of(pl->in, r) == k)
                pl->heaps[k].ranks[pl->heaps[k].n++] = r;
        at += pl->heaps[k].n; /* all loads are 0 and numbers ascend: already a heap */
    }
}

static void place_task(struct placement *pl, size_t index)
{
    const struct task *t    = &pl->tasks.tasks[index];
    struct heap       *best = NULL;
    for (int k = 0; k < pl->in->n_kinds; k++) {
        struct heap *h = &pl->heaps[k];
        if (h->n && (t->kinds >> k & 1) && (!best || lighter(pl, h->ranks[0], best->ranks[0])))
            best = h;
    }
    int rank = best ? best->ranks[0] : RANK_NONE;
    for (size_t i = 0; i < t->count; i++)
        pl->rank_of[pl->tasks.cells[t->first + i]] = rank;
    if (!best)
        return;
    pl->load[rank] += t->cost;
    if (t->count > 1) {
        pl->previous[index] = pl->last_task[rank];
        pl->last_task[rank] = (long)index;
    }
    sift_down(pl, best);
}

/* The rank of this kind with the greatest (sign > 0) or smallest load. */
static int extreme_rank(const struct placement *pl, int kind, bool greatest)
{
    int best = -1;
    for (int r = 0; r < pl->in->n_ranks; r++)
        if (kind_of(pl->in, r) == kind && (best < 0 || lighter(pl, greatest ? best : r, greatest ? r : best)))
            best = r;
    return best;
}

/* Move single cells of groups from the most to the least loaded rank of a kind while that ends the sweep earlier. */
static void split_groups(struct placement *pl, int kind)
{
    for (;;) {
        int from = extreme_rank(pl, kind, true), to = extreme_rank(pl, kind, false);
        if (from < 0 || from == to || pl->last_task[from] < 0)
            return;
        struct task *t    = &pl->tasks.tasks[pl->last_task[from]];
        size_t       last = t->first + t->count - 1;
        double       cost = pl->tasks.cost[last];
        if (!(pl->load[to] + cost < pl->load[from]))
            return;
        pl->rank_of[pl->tasks.cells[last]] = to;
        pl->load[from] -= cost;
        pl->load[to] += cost;
        if (--t->count == 1)
            pl->last_task[from] = pl->previous[pl->last_task[from]];
    }
}

status_t schedule_static(const struct schedule_input *in, int32_t *rank_of)
{
    struct placement pl = {.in = in, .rank_of = rank_of};
    TRY(tasks_build(in, &pl.tasks));
    status_t st   = ST_OK;
    size_t   n    = (size_t)in->n_ranks;
    pl.heap_store = malloc(n * sizeof *pl.heap_store);
    pl.load       = calloc(n, sizeof *pl.load);
    pl.last_task  = malloc(n * sizeof *pl.last_task);
    pl.previous   = malloc((pl.tasks.n + 1) * sizeof *pl.previous);
    if (!pl.heap_store || !pl.load || !pl.last_task || !pl.previous) {
        st = FAIL(ST_ENOMEM, "no memory to schedule %zu cells", in->plan->n);
        goto out;
    }
    for (size_t r = 0; r < n; r++)
        pl.last_task[r] = -1;
    for (size_t i = 0; i < in->plan->n; i++)
        rank_of[i] = RANK_SKIP;
    fill_heaps(&pl);
    tasks_sort_by_cost(&pl.tasks);
    for (size_t i = 0; i < pl.tasks.n; i++)
        place_task(&pl, i);
    for (int k = 0; in->split && k < in->n_kinds; k++)
        split_groups(&pl, k);
out:
    free(pl.heap_store);
    free(pl.load);
    free(pl.last_task);
    free(pl.previous);
    tasks_free(&pl.tasks);
    return st;
}
