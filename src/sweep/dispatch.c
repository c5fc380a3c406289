/* dispatch.c — the dynamic half of schedule.h: rank 0's state machine. */
#include "sweep/schedule.h"

#include "sweep/task.h"

#include <stdlib.h>
#include <string.h>

enum { OWNER_WAITING = -1, OWNER_DONE = -2 }; /* else the rank that runs the cell */

struct dispatcher {
    struct task_list tasks;    /* the queue; a task that was handed out has count 0        */
    size_t           returned; /* tasks from here on came back from lost ranks: few        */
    size_t           cursor[KINDS_MAX]; /* first queued task that ranks of a kind may take */
    int32_t         *owner;    /* [tasks.n_cells]                                          */
    size_t          *slot;     /* [plan->n] index into tasks.cells, SIZE_MAX = needs no run */
    const struct plan *plan;
    int             *kind;     /* [n_ranks]                                                */
    bool            *lost;     /* [n_ranks]                                                */
    int              n_ranks, n_alive, alive_of_kind[KINDS_MAX];
    size_t           waiting_tasks, waiting, running, done;
    bool             split, drained;
};

static status_t fill(const struct schedule_input *in, struct dispatcher *d)
{
    TRY(tasks_build(in, &d->tasks));
    struct task *grown = realloc(d->tasks.tasks, (2 * d->tasks.n_cells + 1) * sizeof *grown);
    if (!grown)
        return FAIL(ST_ENOMEM, "no memory to hand out %zu cells", d->tasks.n_cells);
    d->tasks.tasks = grown;
    if (in->cost) /* without known costs the plan's seeded order is as good, and easier to follow */
        tasks_sort_by_cost(&d->tasks);
    size_t n_cells = d->tasks.n_cells;
    d->plan        = in->plan;
    d->n_ranks = d->n_alive = in->n_ranks;
    d->split                = in->split;
    d->returned = d->waiting_tasks = d->tasks.n;
    d->waiting                     = n_cells;
    d->owner                       = malloc((n_cells + 1) * sizeof *d->owner);
    d->slot                        = malloc((d->plan->n + 1) * sizeof *d->slot);
    d->kind                        = calloc((size_t)d->n_ranks, sizeof *d->kind);
    d->lost                        = calloc((size_t)d->n_ranks, sizeof *d->lost);
    if (!d->owner || !d->slot || !d->kind || !d->lost)
        return FAIL(ST_ENOMEM, "no memory to hand out %zu cells", n_cells);
    for (size_t i = 0; i < d->plan->n; i++)
        d->slot[i] = SIZE_MAX;
    for (size_t i = 0; i < n_cells; i++) {
        d->slot[d->tasks.cells[i]] = i;
        d->owner[i]                = OWNER_WAITING;
    }
    for (int r = 0; r < d->n_ranks; r++) {
        d->kind[r] = in->kind ? in->kind[r] : 0;
        d->alive_of_kind[d->kind[r]]++;
    }
    return ST_OK;
}

status_t dispatcher_open(const struct schedule_input *in, struct dispatcher **out)
{
    struct dispatcher *d = calloc(1, sizeof *d);
    if (!d)
        return FAIL(ST_ENOMEM, "no memory for a schedule");
    status_t st = fill(in, d);
    if (st == ST_OK)
        *out = d;
    else
        dispatcher_close(d);
    return st;
}

void dispatcher_close(struct dispatcher *d)
{
    if (!d)
        return;
    tasks_free(&d->tasks);
    free(d->owner);
    free(d->slot);
    free(d->kind);
    free(d->lost);
    free(d);
}

/* The next task for ranks of a kind: what came back first, then the queue. NULL = none waits. */
static struct task *find_task(struct dispatcher *d, int kind)
{
    for (size_t i = d->returned; i < d->tasks.n; i++)
        if (d->tasks.tasks[i].count && (d->tasks.tasks[i].kinds >> kind & 1))
            return &d->tasks.tasks[i];
    /* A task that is skipped here is empty or not for this kind, and stays so: the cursor never goes back. */
    for (size_t *i = &d->cursor[kind]; *i < d->returned; ++*i)
        if (d->tasks.tasks[*i].count && (d->tasks.tasks[*i].kinds >> kind & 1))
            return &d->tasks.tasks[*i];
    return NULL;
}

/* Does a cell wait that this kind could run if its group fell apart? It does when the last rank of another kind dies. */
static bool may_come(const struct dispatcher *d, int kind)
{
    for (size_t i = 0; i < d->tasks.n; i++)
        for (size_t k = 0; k < d->tasks.tasks[i].count; k++)
            if (d->tasks.kinds[d->tasks.tasks[i].first + k] >> kind & 1)
                return true;
    return false;
}

enum dispatch dispatcher_next(struct dispatcher *d, int rank, size_t *cells, size_t capacity, size_t *n)
{
    *n = 0;
    if (rank < 0 || rank >= d->n_ranks || d->lost[rank] || d->drained)
        return DISPATCH_END;
    struct task *t = capacity ? find_task(d, d->kind[rank]) : NULL;
    if (!t)
        return d->running || may_come(d, d->kind[rank]) ? DISPATCH_WAIT : DISPATCH_END;
    size_t take = t->count < capacity ? t->count : capacity;
    if (d->split && d->waiting_tasks < (size_t)d->n_alive)
        take = 1; /* the last ones: leave something for the ranks that ask next */
    for (; *n < take; ++*n) {
        cells[*n]           = d->tasks.cells[t->first];
        d->owner[t->first++] = rank;
    }
    t->count -= take;
    d->waiting_tasks -= t->count == 0;
    d->waiting -= take;
    d->running += take;
    return DISPATCH_TASK;
}

bool dispatcher_done(struct dispatcher *d, int rank, size_t cell)
{
    size_t slot = cell < d->plan->n ? d->slot[cell] : SIZE_MAX;
    if (rank < 0 || slot == SIZE_MAX || d->owner[slot] != rank)
        return false;
    d->owner[slot] = OWNER_DONE;
    d->running--;
    d->done++;
    return true;
}

/* A free place for a task that comes back: an emptied one, else the next. Tasks that wait hold distinct cells, so the
 * queue and what came back never need more than 2 · n_cells places. */
static struct task *free_place(struct dispatcher *d)
{
    for (size_t i = d->returned; i < d->tasks.n; i++)
        if (d->tasks.tasks[i].count == 0)
            return &d->tasks.tasks[i];
    return &d->tasks.tasks[d->tasks.n++];
}

static uint64_t alive_kinds(const struct dispatcher *d)
{
    uint64_t alive = 0;
    for (int k = 0; k < KINDS_MAX; k++)
        alive |= (uint64_t)(d->alive_of_kind[k] > 0) << k;
    return alive;
}

/* Cells [first, end) of one group wait again: together when some kind can run all of them, else one by one. */
static void put_back(struct dispatcher *d, size_t first, size_t end)
{
    uint64_t kinds = alive_kinds(d);
    for (size_t i = first; i < end; i++)
        kinds &= d->tasks.kinds[i];
    size_t step = kinds ? end - first : 1;
    for (size_t i = first; i < end; i += step) {
        *free_place(d) = (struct task){i, step, kinds ? kinds : d->tasks.kinds[i], 0};
        d->waiting_tasks++;
    }
}

/* The last rank of a kind is gone: groups that only its kind could run whole may still have cells for others. */
static void break_stranded_groups(struct dispatcher *d)
{
    uint64_t alive = alive_kinds(d);
    size_t   n     = d->tasks.n; /* what is put back is not looked at again */
    for (size_t i = 0; i < n; i++) {
        struct task t = d->tasks.tasks[i];
        if (t.count < 2 || (t.kinds & alive))
            continue;
        d->tasks.tasks[i].count = 0;
        d->waiting_tasks--;
        put_back(d, t.first, t.first + t.count);
    }
}

void dispatcher_lost(struct dispatcher *d, int rank)
{
    if (rank < 0 || rank >= d->n_ranks || d->lost[rank])
        return;
    d->lost[rank] = true;
    d->n_alive--;
    d->alive_of_kind[d->kind[rank]]--;
    for (size_t first = 0, end; first < d->tasks.n_cells; first = end) {
        end = first + 1;
        if (d->owner[first] != rank)
            continue;
        uint32_t group = d->plan->group[d->tasks.cells[first]];
        while (end < d->tasks.n_cells && d->owner[end] == rank && d->plan->group[d->tasks.cells[end]] == group)
            end++;
        for (size_t i = first; i < end; i++)
            d->owner[i] = OWNER_WAITING;
        put_back(d, first, end);
        d->waiting += end - first;
        d->running -= end - first;
    }
    if (d->alive_of_kind[d->kind[rank]] == 0)
        break_stranded_groups(d);
}

void dispatcher_drain(struct dispatcher *d)
{
    d->drained = true;
}

struct dispatch_count dispatcher_count(const struct dispatcher *d)
{
    struct dispatch_count count = {d->waiting, d->running, d->done, 0};
    uint64_t              alive = alive_kinds(d);
    for (size_t i = 0; i < d->tasks.n; i++)
        if (!(d->tasks.tasks[i].kinds & alive))
            count.unrunnable += d->tasks.tasks[i].count;
    count.waiting -= count.unrunnable;
    return count;
}
