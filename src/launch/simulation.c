#include "launch/simulation.h"

#include "base/clock.h"
#include "launch/mail.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- mail on its way, by time of arrival ---- */

enum letter_kind { LETTER_EVENT, LETTER_DONE, LETTER_REQUEST };

struct letter {
    double   at;
    uint64_t number; /* order of posting, among letters of one moment */
    int32_t  rank, kind;
    size_t   cell;   /* DONE */
};

struct post {
    struct letter *heap;
    size_t         n, room;
    uint64_t       posted;
};

static bool earlier(const struct letter *a, const struct letter *b)
{
    return a->at != b->at ? a->at < b->at : a->number < b->number;
}

static status_t post_letter(struct post *p, double at, int rank, enum letter_kind kind, size_t cell)
{
    if (p->n == p->room) {
        size_t         room = p->room ? 2 * p->room : 1024;
        struct letter *grown = realloc(p->heap, room * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no memory for %zu messages", room);
        p->heap = grown;
        p->room = room;
    }
    struct letter l = {.at = at, .number = p->posted++, .rank = rank, .kind = kind, .cell = cell};
    size_t        i = p->n++;
    for (; i && earlier(&l, &p->heap[(i - 1) / 2]); i = (i - 1) / 2)
        p->heap[i] = p->heap[(i - 1) / 2];
    p->heap[i] = l;
    return ST_OK;
}

static struct letter take_letter(struct post *p)
{
    struct letter first = p->heap[0], last = p->heap[--p->n];
    size_t        i = 0;
    for (size_t child; (child = 2 * i + 1) < p->n; i = child) {
        if (child + 1 < p->n && earlier(&p->heap[child + 1], &p->heap[child]))
            child++;
        if (!earlier(&p->heap[child], &last))
            break;
        p->heap[i] = p->heap[child];
    }
    p->heap[i] = last;
    return first;
}

/* ---- rank 0 at its mail ---- */

struct collector {
    double  free_at, busy_s, peak_per_s;
    size_t  messages;
    double  second;  /* the one that is being counted */
    size_t  in_second;
};

/* When rank 0 is through with a message that arrives at `at`. */
static double collect(struct collector *c, double at, double work_s)
{
    double begin = at > c->free_at ? ceil(at / SIMULATION_LOOK_S) * SIMULATION_LOOK_S : c->free_at;
    if (floor(at) != c->second) {
        c->second = floor(at);
        c->in_second = 0;
    }
    if ((double)++c->in_second > c->peak_per_s)
        c->peak_per_s = (double)c->in_second;
    c->messages++;
    c->busy_s += work_s;
    c->free_at = begin + work_s;
    return c->free_at;
}

/* ---- a rank at its cells ---- */

struct world {
    const struct simulation_input *in;
    struct post                    post;
    struct collector               collector;
    struct simulation_result       result;
};

/* A rank runs cells [n] one after another from `now` on; *end: the last one's end. Messages go their way. */
static status_t run_cells(struct world *w, int rank, const size_t *cells, size_t n, double now, double *end)
{
    for (size_t i = 0; i < n; i++) {
        double life = w->in->seconds[cells[i]] / w->in->speed[rank];
        now += w->in->launch_s;
        TRY(post_letter(&w->post, now + w->in->message_s, rank, LETTER_EVENT, 0));
        now += life;
        TRY(post_letter(&w->post, now + w->in->message_s, rank, LETTER_EVENT, 0));
        TRY(post_letter(&w->post, now + w->in->message_s, rank, LETTER_DONE, cells[i]));
        w->result.busy_s += life;
        w->result.cells++;
    }
    if (n && now > w->result.makespan_s)
        w->result.makespan_s = now;
    *end = now;
    return ST_OK;
}

static void finish(struct world *w, struct simulation_result *out)
{
    int n_ranks = w->in->schedule->n_ranks;
    w->result.messages = w->collector.messages;
    w->result.collector_busy_s = w->collector.busy_s;
    w->result.peak_per_s = w->collector.peak_per_s;
    w->result.idle_share = w->result.makespan_s > 0 ? 1 - w->result.busy_s / (n_ranks * w->result.makespan_s) : 0;
    if (w->result.requests)
        w->result.wait_mean_s /= (double)w->result.requests;
    free(w->post.heap);
    *out = w->result;
}

status_t simulate_static(const struct simulation_input *in, struct simulation_result *out)
{
    const struct plan *plan = in->schedule->plan;
    struct world       w = {.in = in, .collector = {.second = -1}};
    status_t           st = ST_OK;
    int32_t           *rank_of = malloc((plan->n + 1) * sizeof *rank_of);
    double            *now = calloc((size_t)in->schedule->n_ranks, sizeof *now);
    if (!rank_of || !now) {
        st = FAIL(ST_ENOMEM, "no memory to simulate %zu cells", plan->n);
        goto out;
    }
    int64_t t0 = clock_ns();
    TRY_OUT(schedule_static(in->schedule, rank_of));
    w.result.decide_s = clock_ms_since(t0) * 1e-3;
    for (size_t i = 0; i < plan->n; i++)
        if (rank_of[i] >= 0)
            TRY_OUT(run_cells(&w, rank_of[i], &i, 1, now[rank_of[i]], &now[rank_of[i]]));
    while (w.post.n) {
        struct letter l = take_letter(&w.post);
        collect(&w.collector, l.at, in->event_s);
    }
    finish(&w, out);
    w.post.heap = NULL;
out:
    free(w.post.heap);
    free(rank_of);
    free(now);
    return st;
}

/* Rank 0 answers a request; the rank goes on, asks again later, or is through. */
static status_t answer(struct world *w, struct dispatcher *d, const struct letter *l, double *asked_at, int *refused)
{
    size_t        cells[MAIL_CELLS_MAX], n;
    int64_t       t0 = clock_ns();
    enum dispatch what = dispatcher_next(d, l->rank, cells, MAIL_CELLS_MAX, &n);
    double        took = clock_ms_since(t0) * 1e-3, now = collect(&w->collector, l->at, took), wait, end;
    w->result.decide_s += took;
    w->result.requests++;
    now += w->in->message_s;
    wait = now - asked_at[l->rank];
    w->result.wait_mean_s += wait;
    w->result.wait_max_s = wait > w->result.wait_max_s ? wait : w->result.wait_max_s;
    if (what == DISPATCH_END)
        return ST_OK;
    if (what == DISPATCH_TASK) {
        refused[l->rank] = 0;
        TRY(run_cells(w, l->rank, cells, n, now, &end));
    } else {
        w->result.unanswered++;
        end = now + (double)mail_ask_again_ns(refused[l->rank]++) * 1e-9;
    }
    asked_at[l->rank] = end;
    return post_letter(&w->post, end + w->in->message_s, l->rank, LETTER_REQUEST, 0);
}

status_t simulate_dynamic(const struct simulation_input *in, struct simulation_result *out)
{
    struct world       w = {.in = in, .collector = {.second = -1}};
    struct dispatcher *d = NULL;
    status_t           st = ST_OK;
    double            *asked_at = calloc((size_t)in->schedule->n_ranks, sizeof *asked_at);
    int               *refused = calloc((size_t)in->schedule->n_ranks, sizeof *refused);
    if (!asked_at || !refused) {
        st = FAIL(ST_ENOMEM, "no memory to simulate %d ranks", in->schedule->n_ranks);
        goto out;
    }
    int64_t t0 = clock_ns();
    TRY_OUT(dispatcher_open(in->schedule, &d));
    w.result.decide_s = clock_ms_since(t0) * 1e-3;
    for (int r = 0; r < in->schedule->n_ranks; r++)
        TRY_OUT(post_letter(&w.post, in->message_s, r, LETTER_REQUEST, 0));
    while (w.post.n) {
        struct letter l = take_letter(&w.post);
        if (l.kind == LETTER_REQUEST) {
            TRY_OUT(answer(&w, d, &l, asked_at, refused));
            continue;
        }
        collect(&w.collector, l.at, in->event_s);
        if (l.kind == LETTER_DONE && !dispatcher_done(d, l.rank, l.cell)) {
            st = FAIL(ST_EINTERNAL, "rank %d finished cell %zu, which it was not given", (int)l.rank, l.cell);
            goto out;
        }
    }
    finish(&w, out);
    w.post.heap = NULL;
out:
    dispatcher_close(d);
    free(w.post.heap);
    free(asked_at);
    free(refused);
    return st;
}
