#include "launch/launcher.h"

#include "base/clock.h"
#include "base/log.h"
#include "bench/work.h"
#include "launch/mail.h"
#include "launch/rank.h"
#include "launch/spawn.h"
#include "store/sweep_file.h"
#include "sweep/schedule.h"

#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static const int     IDLE_MS = 20;
/* mpirun kills about a second after SIGTERM: by then a dropped worker's end is awaited no longer. */
static const int64_t LEAVE_NS = 600000000;

static volatile sig_atomic_t got_usr1, got_term;

static void note_signal(int sig)
{
    if (sig == SIGUSR1)
        got_usr1 = 1;
    else
        got_term = sig;
}

struct launcher {
    const struct launch *launch;
    struct fabric_info   me;
    struct seat          seat;
    struct prepared      prepared;
    struct fit_context   fit; /* the dispatcher asks it until the end */
    struct spawner      *spawner;
    struct staging      *staging;    /* NULL: cells read the shared files themselves */
    struct rank         *rank;
    struct progress     *progress;   /* rank 0 */
    struct dispatcher   *dispatcher; /* rank 0, dynamic */
    bool                 dynamic, stopping, finished, no_more, asked_work, released, group_broken;
    bool                 any_broken; /* rank 0: some rank could not do its work */
    int64_t              ask_again_ns;
    int                  refused;    /* times in a row that there was no work for us now */
    int                  n_finished; /* rank 0: ranks that are through */
};

/* ---- events ---- */

static void on_event(void *ctx, const struct progress_event *e);

/* Rank 0: events of other ranks that have come. */
static void take_events(struct launcher *l)
{
    struct progress_event e;
    for (int from = 0; from >= 0;) {
        if (mail_poll_event(&e, 0, &from) != ST_OK) {
            l->group_broken = true;
            return;
        }
        if (from >= 0)
            on_event(l, &e);
    }
}

static void on_event(void *ctx, const struct progress_event *e)
{
    struct launcher *l = ctx;
    /* Our worker starts when it is our turn: the end of the one before it, on another rank, is on its way. */
    if (l->me.rank == 0 && e->rank == 0 && e->kind == PROGRESS_START)
        take_events(l);
    if (l->me.rank != 0) {
        if (mail_event(e) != ST_OK)
            l->group_broken = true;
        return;
    }
    progress_event(l->progress, e);
    if (l->dispatcher && e->kind == PROGRESS_CELL)
        dispatcher_done(l->dispatcher, e->rank, e->cell);
}

static void tell_all(struct launcher *l, enum order_kind kind)
{
    struct order o = {.kind = kind};
    for (int r = 1; r < l->me.size; r++)
        if (mail_order(&o, r) != ST_OK)
            l->group_broken = true;
}

/* No new cell anywhere; what runs may go on for the grace. Rank 0 tells everybody, another rank tells rank 0. */
static void stop_sweep(struct launcher *l, const char *why)
{
    if (l->stopping)
        return;
    l->stopping = true;
    rank_stop(l->rank, l->launch->grace_s, why);
    if (l->me.rank == 0) {
        log_info("%s: no new cell is started, running ones have %g s", why, l->launch->grace_s);
        progress_note(l->progress, "stop", why);
        if (l->dispatcher)
            dispatcher_drain(l->dispatcher);
        tell_all(l, TELL_STOP);
    } else if (mail_report(&(struct report){.kind = REPORT_STOP_ASKED}) != ST_OK) {
        l->group_broken = true;
    }
}

/* ---- dynamic hand-out ---- */

static status_t add_cells(struct launcher *l, const uint64_t *cells, int n)
{
    size_t own[MAIL_CELLS_MAX];
    if (n < 0 || n > MAIL_CELLS_MAX)
        return FAIL(ST_EINTERNAL, "an order of %d cells", n);
    for (int i = 0; i < n; i++) {
        own[i] = (size_t)cells[i];
        if (own[i] >= l->prepared.plan->n)
            return FAIL(ST_EINTERNAL, "an order for cell %zu of %zu", own[i], l->prepared.plan->n);
    }
    return rank_add(l->rank, own, (size_t)n);
}

static struct order next_order(struct launcher *l, int rank)
{
    struct order o = {.kind = TELL_NO_MORE};
    size_t       cells[MAIL_CELLS_MAX], n = 0;
    switch (dispatcher_next(l->dispatcher, rank, cells, MAIL_CELLS_MAX, &n)) {
    case DISPATCH_TASK:
        o.kind = TELL_WORK;
        o.n = (int32_t)n;
        for (size_t i = 0; i < n; i++)
            o.cells[i] = cells[i];
        break;
    case DISPATCH_WAIT:
        o.kind = TELL_WAIT;
        break;
    case DISPATCH_END:
        break;
    }
    return o;
}

static void obey(struct launcher *l, const struct order *o)
{
    switch (o->kind) {
    case TELL_STOP:
        l->stopping = true;
        rank_stop(l->rank, l->launch->grace_s, "the sweep was stopped");
        break;
    case TELL_RELEASE:
        l->released = true;
        break;
    case TELL_WORK:
        l->asked_work = false;
        l->refused = 0;
        if (add_cells(l, o->cells, o->n) != ST_OK)
            l->group_broken = true;
        break;
    case TELL_WAIT:
        l->asked_work = false;
        l->ask_again_ns = clock_ns() + mail_ask_again_ns(l->refused++);
        break;
    default:
        l->no_more = true;
    }
}

static void want_work(struct launcher *l)
{
    if (l->asked_work || clock_ns() < l->ask_again_ns)
        return;
    if (l->me.rank == 0) {
        struct order o = next_order(l, 0);
        obey(l, &o);
        return;
    }
    l->asked_work = true;
    if (mail_report(&(struct report){.kind = REPORT_WANT_WORK}) != ST_OK)
        l->group_broken = true;
}

/* ---- mail ---- */

static void on_report(struct launcher *l, const struct report *report, int from)
{
    struct order o;
    switch (report->kind) {
    case REPORT_WANT_WORK:
        o = next_order(l, from);
        if (mail_order(&o, from) != ST_OK)
            l->group_broken = true;
        break;
    case REPORT_STOP_ASKED:
        stop_sweep(l, "a rank was asked to stop (SIGUSR1)");
        break;
    default:
        l->n_finished++;
        if (report->broken) {
            l->any_broken = true;
            if (l->dispatcher)
                dispatcher_lost(l->dispatcher, from);
        }
    }
}

/* Rank 0: take in everything that has come; wait at most timeout_ms for the first report. */
static void collect(struct launcher *l, int timeout_ms)
{
    struct report report;
    int           from;
    for (;;) {
        if (mail_poll_report(&report, timeout_ms, &from) != ST_OK) {
            l->group_broken = true;
            return;
        }
        timeout_ms = 0;
        /* Events first: a rank's last cell must be known before its "finished". */
        take_events(l);
        if (from < 0 || l->group_broken)
            return;
        on_report(l, &report, from);
    }
}

static void listen(struct launcher *l, int timeout_ms)
{
    struct order o;
    int          from = 0;
    while (from >= 0 && !l->group_broken) {
        if (mail_poll_order(&o, timeout_ms, &from) != ST_OK)
            l->group_broken = true;
        else if (from >= 0)
            obey(l, &o);
        timeout_ms = 0;
    }
}

/* ---- the run ---- */

/* Cells that need a run: which rank they belong to (static), or the dispatcher for them (dynamic, rank 0). */
static status_t hand_out(struct launcher *l, int32_t **rank_of)
{
    struct prepared *p = &l->prepared;
    int             *kinds = calloc((size_t)l->me.size, sizeof *kinds);
    *rank_of = calloc(p->plan->n, sizeof **rank_of);
    status_t st = kinds && *rank_of ? ST_OK : FAIL(ST_ENOMEM, "no memory for %zu cells", p->plan->n);
    for (int r = 0; st == ST_OK && r < l->me.size; r++)
        kinds[r] = p->placement.places[r].kind;
    l->fit = (struct fit_context){&p->placement, &p->plan->options};
    struct schedule_input in = {
        .plan = p->plan,
        .skip = p->done,
        .n_ranks = l->me.size,
        .kind = kinds,
        .n_kinds = p->placement.n_kinds,
        .fits = placement_fits,
        .ctx = &l->fit,
        .split = true,
    };
    if (st == ST_OK)
        st = schedule_static(&in, *rank_of);
    l->dynamic = p->plan->options.schedule == SCHEDULE_DYNAMIC && l->me.size > 1;
    if (st == ST_OK && l->dynamic && l->me.rank == 0)
        st = dispatcher_open(&in, &l->dispatcher);
    free(kinds);
    return st;
}

/* Rows for cells that no rank will run. */
static status_t record_unrunnable(struct launcher *l, const int32_t *rank_of)
{
    const struct plan *plan = l->prepared.plan;
    for (size_t i = 0; i < plan->n; i++) {
        if (l->prepared.done[i])
            continue;
        if (plan->invalid[i])
            TRY(rank_record(l->rank, i, CELL_INVALID, plan->invalid[i]));
        else if (rank_of[i] == RANK_NONE) {
            char why[600];
            placement_explain(&l->prepared.placement, &plan->options, &plan->cells[i], why, sizeof why);
            TRY(rank_record(l->rank, i, CELL_INVALID, why));
        }
    }
    return ST_OK;
}

static status_t take_share(struct launcher *l, const int32_t *rank_of)
{
    const struct plan *plan = l->prepared.plan;
    size_t            *own = calloc(plan->n + 1, sizeof *own), n = 0, runs = 0;
    if (!own)
        return FAIL(ST_ENOMEM, "no memory for %zu cells", plan->n);
    for (size_t i = 0; i < plan->n; i++) {
        if (rank_of[i] >= 0)
            runs += (size_t)work_parts(&plan->cells[i].workload);
        if (rank_of[i] == l->me.rank)
            own[n++] = i;
    }
    status_t st = ST_OK;
    if (l->me.rank == 0)
        st = progress_open(l->prepared.output, plan, l->prepared.n_done, runs, l->launch->quiet, &l->progress);
    if (st == ST_OK && l->me.rank == 0)
        st = record_unrunnable(l, rank_of);
    if (st == ST_OK && !l->dynamic)
        st = rank_add(l->rank, own, n);
    free(own);
    return st;
}

static status_t begin(struct launcher *l)
{
    int32_t *rank_of = NULL;
    TRY(seat_find(&l->me, l->prepared.plan->options.parallel, &l->seat));
    TRY(staging_open(&l->prepared, &l->seat, l->spawner, &got_term, &l->staging));
    TRY(rank_open(l->launch, &l->prepared, &l->seat, l->staging, l->spawner, on_event, l, &l->rank));
    status_t st = hand_out(l, &rank_of);
    if (st == ST_OK)
        st = take_share(l, rank_of);
    free(rank_of);
    return st;
}

/* This rank has nothing left to do. */
static void report_finished(struct launcher *l)
{
    l->finished = true;
    bool broken = rank_is_broken(l->rank);
    if (l->me.rank == 0) {
        l->n_finished++;
        l->any_broken |= broken;
    } else if (mail_report(&(struct report){.kind = REPORT_FINISHED, .broken = broken}) != ST_OK) {
        l->group_broken = true;
    }
}

static bool is_through(const struct launcher *l)
{
    return l->group_broken || got_term || (l->me.rank == 0 ? l->n_finished == l->me.size : l->released);
}

static void loop(struct launcher *l)
{
    while (!is_through(l)) {
        enum rank_state state = rank_step(l->rank);
        if (got_usr1)
            stop_sweep(l, "SIGUSR1");
        if (state == RANK_IDLE && !l->finished) {
            bool over = !l->dynamic || l->no_more || l->stopping || rank_is_broken(l->rank);
            if (over)
                report_finished(l);
            else
                want_work(l);
        }
        int wait = state == RANK_IDLE ? IDLE_MS : 0;
        if (l->me.rank == 0) {
            collect(l, l->finished && l->n_finished == l->me.size ? 0 : wait);
            progress_tick(l->progress);
        } else {
            listen(l, wait);
        }
    }
}

/* SIGTERM, SIGINT, SIGHUP: drop the running worker, record it, go. */
static void leave(struct launcher *l)
{
    int64_t until = clock_ns() + LEAVE_NS;
    rank_stop(l->rank, 0, got_term == SIGINT ? "interrupted (SIGINT)" : got_term == SIGHUP ? "SIGHUP" : "SIGTERM");
    while (rank_step(l->rank) == RANK_BUSY && clock_ns() < until)
        ;
    if (l->me.rank == 0)
        collect(l, 0);
}

static int remove_if_empty(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)at;
    if (type == FTW_DP)
        rmdir(path);
    return 0;
}

/* Tasks of cells that were not ok stay for a repetition by hand; folders without any go. */
static void tidy(const char *output)
{
    char path[JOB_PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/work", output);
    nftw(path, remove_if_empty, 16, FTW_DEPTH | FTW_PHYS);
}

static int merge(struct launcher *l)
{
    char   path[JOB_PATH_MAX + 16];
    size_t n_ok = 0, n_rows = 0;
    snprintf(path, sizeof path, "%s/sweep.h5", l->prepared.output);
    struct sweep_meta meta = {
        .job_text = l->prepared.plan->job_text,
        .command = l->launch->command,
        .plan = l->prepared.plan->cells,
        .n_plan = l->prepared.plan->n,
    };
    tidy(l->prepared.output);
    int64_t  t0 = clock_ns();
    status_t st = sweep_file_merge(l->prepared.output, path, &meta, &n_ok, &n_rows);
    char     text[64];
    snprintf(text, sizeof text, "%zu of %zu ok, %.3f s", n_ok, n_rows, clock_ms_since(t0) * 1e-3);
    progress_note(l->progress, "merge", st == ST_OK ? text : status_last());
    progress_close(l->progress);
    l->progress = NULL;
    if (st != ST_OK)
        return 1;
    log_info("%s: %zu of %zu cells ok; `qsweep show %s` prints the table%s", path, n_ok, n_rows, path,
             n_ok < n_rows ? ", the same command with --resume runs the others again" : "");
    return l->any_broken || l->group_broken || got_term ? 1 : n_ok == l->prepared.plan->n ? 0 : 3;
}

/* Until workers run (a fingerprint may read for minutes), SIGTERM and SIGINT simply end this process. */
static void catch_termination(void)
{
    struct sigaction note = {.sa_handler = note_signal};
    sigaction(SIGTERM, &note, NULL);
    sigaction(SIGINT, &note, NULL);
    sigaction(SIGHUP, &note, NULL);
}

static void catch_early_warning(void)
{
    struct sigaction note = {.sa_handler = note_signal};
    sigaction(SIGUSR1, &note, NULL);
    signal(SIGPIPE, SIG_IGN);
    /* When mpirun is killed, its ranks must not go on measuring beside a later launcher. */
    if (getenv("OMPI_COMM_WORLD_LOCAL_RANK"))
        prctl(PR_SET_PDEATHSIG, SIGTERM);
}

static void close_all(struct launcher *l)
{
    progress_close(l->progress);
    dispatcher_close(l->dispatcher);
    rank_close(l->rank);
    staging_close(l->staging);
    prepared_free(&l->prepared);
}

/* Everything between the fabric's opening and its closing. */
static int run_group(struct launcher *l)
{
    status_t st = prepare(l->launch, &l->me, &l->prepared);
    if (st != ST_OK || l->prepared.stop)
        return l->me.rank == 0 ? status_exit(st) : 0;
    catch_termination();
    st = begin(l);
    l->group_broken = st != ST_OK;
    loop(l);
    if (got_term)
        leave(l);
    int exit_status = l->me.rank == 0 && st == ST_OK ? merge(l) : l->group_broken;
    /* A broken group cannot finalize together: the others wait for this rank, and only its end ends them. */
    if (got_term || (l->group_broken && l->me.size > 1)) {
        close_all(l);
        spawner_close(l->spawner);
        fabric_leave(exit_status);
    }
    if (l->me.rank == 0)
        tell_all(l, TELL_RELEASE);
    return exit_status;
}

int launcher_run(const struct launch *launch, int *argc, char ***argv)
{
    struct launcher *l = calloc(1, sizeof *l);
    if (!l)
        return status_exit(FAIL(ST_ENOMEM, "no memory for the launcher"));
    l->launch = launch;
    catch_early_warning();
    status_t st = spawner_open(&l->spawner);
    if (st == ST_OK)
        st = fabric_open(argc, argv, &l->me);
    int exit_status = status_exit(st);
    if (st == ST_OK) {
        char who[96];
        snprintf(who, sizeof who, "rank %d %s", l->me.rank, l->me.host);
        log_set_who(l->me.size > 1 ? who : NULL);
        exit_status = run_group(l);
        close_all(l);
        fabric_close();
    }
    spawner_close(l->spawner);
    free(l);
    return exit_status;
}
