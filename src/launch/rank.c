#include "launch/rank.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "bench/facts.h"
#include "bench/work.h"
#include "bench/worker.h"
#include "launch/gpu_seat.h"
#include "launch/outcome.h"
#include "launch/turn.h"
#include "store/atomic_file.h"
#include "store/cell_file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double DEFAULT_DEADLINE_S = 3600;
/* From SIGTERM to SIGKILL: a worker notices within a quarter of a second and then writes what it has. */
static const double WORKER_GRACE_S = 5;
static const int    STEP_MS = 20;
static const int    TURN_MS = 4;

enum { WORK_PATH_MAX = JOB_PATH_MAX + 128 };

/* The parts of a cell that are in. */
struct assembly {
    size_t           cell;
    int              n_parts, n_in;
    int              n_unrun; /* of them, results of processes that were never started */
    struct result   *parts; /* [n_parts] */
    double           seconds;
    struct assembly *next;
};

/* A worker, from its task to its end. */
struct running {
    int         job; /* 0 = none */
    int         pid;
    struct run  run;
    struct work work;
    char        task_path[WORK_PATH_MAX], part_path[WORK_PATH_MAX];
    struct gpu_visit visit; /* of a cell on the GPU */
};

/* A worker that has ended, while its GPU's memory is not back yet. */
struct leaving {
    bool                waits;
    struct running      worker;
    struct spawn_result end;
    int64_t             until_ns;
};

struct rank {
    const struct launch   *launch;
    const struct prepared *prepared;
    const struct seat     *seat;
    const struct staging  *staging; /* NULL: cells read the shared files themselves */
    struct spawner        *spawner;
    rank_tell              tell;
    void                  *ctx;
    char                   program[4200]; /* the qsweep that is every worker */
    struct result          facts;         /* only its facts: what every worker's provenance gets */
    struct turn            turn;
    struct run            *runs;
    size_t                 n_runs, next, started;
    bool                  *settled; /* [plan->n] its outcome is decided: further processes are not started */
    struct assembly       *assemblies;
    struct running         now;
    struct gpu_seat        gpu;
    struct leaving         leaving;
    bool                   stopping, dropped, broken;
    int64_t                drop_ns;
    const char            *why;
};

/* ---- opening ---- */

status_t rank_program(char *out, size_t size)
{
    char    self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return FAIL(ST_EIO, "/proc/self/exe: %s", strerror(errno));
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    snprintf(out, size, "%.*s/qsweep", (int)(slash - self), self);
    if (access(out, X_OK) != 0)
        return FAIL(ST_EIO, "%s: %s; workers are started from it, it has to stand beside this program", out,
                    strerror(errno));
    return ST_OK;
}

static status_t add_int(struct result *r, const char *key, long long value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", value);
    return result_add_fact(r, key, text);
}

static void run_text(const struct rank *r, char *out, size_t size)
{
    snprintf(out, size, "%016llx", (unsigned long long)r->prepared->run_id);
}

static status_t collect_facts(struct rank *r)
{
    char                      text[512];
    const struct fabric_info *me = &r->seat->me;
    TRY(facts_job(&r->facts));
    TRY(result_add_fact(&r->facts, "command", r->launch->command));
    TRY(result_add_fact(&r->facts, "fabric", fabric_name()));
    if (fabric_version()[0])
        TRY(result_add_fact(&r->facts, "mpi", fabric_version()));
    TRY(add_int(&r->facts, "ranks", me->size));
    TRY(add_int(&r->facts, "local_rank", me->local_rank));
    TRY(add_int(&r->facts, "local_ranks", me->local_size));
    TRY(add_int(&r->facts, "workers_side_by_side", r->seat->together));
    TRY(result_add_fact(&r->facts, "cores_disjoint", r->seat->disjoint ? "yes" : "no"));
    cell_file_library(text, sizeof text);
    TRY(result_add_fact(&r->facts, "hdf5", text));
    cores_text(&r->seat->host, text, sizeof text);
    TRY(result_add_fact(&r->facts, "host_cores", text));
    run_text(r, text, sizeof text);
    return result_add_fact(&r->facts, "run_id", text);
}

static status_t open_gpu(struct rank *r)
{
    char run[32];
    run_text(r, run, sizeof run);
    return gpu_seat_open(r->prepared, r->seat, run, &r->gpu);
}

status_t rank_open(const struct launch *launch, const struct prepared *prepared, const struct seat *seat,
                   const struct staging *staging, struct spawner *spawner, rank_tell tell, void *ctx, struct rank **out)
{
    struct rank *r = calloc(1, sizeof *r);
    if (!r)
        return FAIL(ST_ENOMEM, "no memory for a rank");
    *r = (struct rank){
        .launch   = launch,
        .prepared = prepared,
        .seat     = seat,
        .staging  = staging,
        .spawner  = spawner,
        .tell     = tell,
        .ctx      = ctx,
    };
    result_init(&r->facts);
    turn_init(&r->turn, prepared->run_id, 0);
    r->gpu.turn.socket = -1;
    status_t st = rank_program(r->program, sizeof r->program);
    if (st == ST_OK)
        st = collect_facts(r);
    if (st == ST_OK)
        st = open_gpu(r);
    if (st == ST_OK && !(r->settled = calloc(prepared->plan->n + 1, sizeof *r->settled)))
        st = FAIL(ST_ENOMEM, "no memory for %zu cells", prepared->plan->n);
    if (st == ST_OK)
        *out = r;
    else
        rank_close(r);
    return st;
}

static void assembly_free(struct assembly *a)
{
    for (int i = 0; i < a->n_in; i++)
        result_free(&a->parts[i]);
    free(a->parts);
    free(a);
}

void rank_close(struct rank *r)
{
    if (!r)
        return;
    turn_end(&r->turn);
    gpu_seat_close(&r->gpu);
    if (r->leaving.waits) {
        work_free(&r->leaving.worker.work);
        spawn_result_free(&r->leaving.end);
    }
    while (r->assemblies) {
        struct assembly *a = r->assemblies;
        r->assemblies = a->next;
        assembly_free(a);
    }
    if (r->now.job)
        work_free(&r->now.work);
    result_free(&r->facts);
    free(r->settled);
    free(r->runs);
    free(r);
}

status_t rank_add(struct rank *r, const size_t *cells, size_t n)
{
    const struct plan *plan = r->prepared->plan;
    size_t             more = plan_run_count(plan, cells, n);
    struct run        *runs = realloc(r->runs, (r->n_runs + more + 1) * sizeof *runs);
    if (!runs)
        return FAIL(ST_ENOMEM, "no memory for %zu workers", r->n_runs + more);
    r->runs = runs;
    plan_runs(plan, cells, n, runs + r->n_runs);
    r->n_runs += more;
    return ST_OK;
}

/* ---- writing results ---- */

static void tell(struct rank *r, enum progress_kind kind, const struct run *run, int pid, enum cell_status status,
                 double seconds, const char *reason)
{
    struct progress_event e = {
        .kind = kind,
        .rank = r->seat->me.rank,
        .cell = run->cell,
        .process = run->process,
        .pid = pid,
        .status = status,
        .seconds = seconds,
    };
    memcpy(e.host, r->seat->me.host, sizeof e.host);
    snprintf(e.reason, sizeof e.reason, "%s", reason ? reason : "");
    r->tell(r->ctx, &e);
}

static void break_down(struct rank *r)
{
    r->broken = r->stopping = true;
    if (!r->why)
        r->why = "the launcher broke down";
}

static void cannot_write(struct rank *r)
{
    log_line(LOG_ERROR,
             "results cannot be written, so no further cell is started; when that is mended, --resume goes on");
    break_down(r);
}

/* skipped: processes of the cell that were planned and will not be started. */
static void write_result(struct rank *r, size_t cell, const struct result *result, double seconds, int skipped)
{
    char path[WORK_PATH_MAX];
    r->settled[cell] = true;
    cell_file_path(r->prepared->output, result->cell.id, path, sizeof path);
    if (cell_file_write(path, result) != ST_OK) {
        cannot_write(r);
        return;
    }
    tell(r, PROGRESS_CELL, &(struct run){cell, skipped}, 0, result->status, seconds, result->reason);
}

static struct assembly *find_assembly(struct rank *r, size_t cell, int n_parts)
{
    for (struct assembly *a = r->assemblies; a; a = a->next)
        if (a->cell == cell)
            return a;
    struct assembly *a = calloc(1, sizeof *a);
    if (a)
        a->parts = calloc((size_t)n_parts, sizeof *a->parts);
    if (!a || !a->parts) {
        free(a);
        return NULL;
    }
    a->cell = cell;
    a->n_parts = n_parts;
    a->next = r->assemblies;
    r->assemblies = a;
    return a;
}

/* Join what is in, write it, forget it. */
static void complete(struct rank *r, struct assembly *a)
{
    struct result     whole;
    struct assembly **at = &r->assemblies;
    while (*at != a)
        at = &(*at)->next;
    *at = a->next;
    int n = a->n_in, started = n - a->n_unrun;
    a->n_in = 0;
    if (outcome_join(a->parts, n, &whole) == ST_OK) {
        if (whole.status == CELL_OK && n < a->n_parts) {
            char text[600];
            snprintf(text, sizeof text, "%s; %d of %d processes had run", r->why ? r->why : "stopped", n, a->n_parts);
            whole.status = CELL_INTERRUPTED;
            result_set_reason(&whole, text);
        }
        write_result(r, a->cell, &whole, a->seconds, a->n_parts - started);
        result_free(&whole);
    } else {
        break_down(r);
    }
    assembly_free(a);
}

/* What was begun and will not be finished is recorded as interrupted; where nothing can be written, it stays pending.
 */
static void flush(struct rank *r)
{
    while (r->assemblies && !r->broken)
        complete(r, r->assemblies);
}

status_t rank_record(struct rank *r, size_t cell, enum cell_status status, const char *reason)
{
    struct work   work = {.cell = r->prepared->plan->cells[cell],
                          .rank = r->seat->me.rank,
                          .facts = r->facts.facts,
                          .n_facts = r->facts.n_facts};
    struct result result;
    TRY(outcome_without_run(&work, status, reason, &result));
    write_result(r, cell, &result, 0, 0);
    result_free(&result);
    return r->broken ? ST_EIO : ST_OK;
}

/* ---- one worker ---- */

static void drop_files(const struct running *w, bool task_too)
{
    unlink(w->part_path);
    if (task_too)
        unlink(w->task_path);
}

/* A part of a cell is in: keep it, and write the cell if it is complete or lost. Contaminated parts are measurements:
 * the cell's other processes run as well. part is emptied. */
static void take_part(struct rank *r, const struct running *w, struct result *part, double seconds, bool unrun)
{
    struct assembly *a = find_assembly(r, w->run.cell, w->work.n_parts);
    if (!a) {
        result_free(part);
        break_down(r);
        return;
    }
    bool measured = part->status == CELL_OK || (part->status == CELL_CONTAMINATED && part->n_samples > 0);
    a->parts[a->n_in++] = *part;
    a->n_unrun += unrun;
    a->seconds += seconds;
    if (!measured || a->n_in == a->n_parts)
        complete(r, a);
}

static bool on_gpu(const struct rank *r, size_t cell)
{
    return r->prepared->plan->cells[cell].device_class == DEVICE_CUDA && r->gpu.here;
}

/* The worker's end: its result, its cell's if that is complete. */
static void finish(struct rank *r, struct running *w, struct spawn_result *end)
{
    struct result part;
    double        seconds = (double)(end->end_ns - end->exec_ns) * 1e-9;
    if (end->end == SPAWN_EXITED && end->exit_code == WORKER_CANNOT_WRITE) {
        char words[600];
        outcome_last_words(end->log, words, sizeof words);
        log_line(LOG_ERROR, "%s", words);
        tell(r, PROGRESS_END, &w->run, w->pid, CELL_PENDING, seconds, "its result could not be written");
        drop_files(w, true);
        cannot_write(r);
    } else if (outcome_of(&w->work, end, w->part_path, r->why ? r->why : "", &part) != ST_OK) {
        break_down(r);
    } else {
        if (on_gpu(r, w->run.cell) && gpu_seat_note(&r->gpu, &w->visit, &part) != ST_OK)
            break_down(r);
        tell(r, PROGRESS_END, &w->run, w->pid, part.status, seconds, part.reason);
        drop_files(w, part.status == CELL_OK);
        take_part(r, w, &part, seconds, false);
    }
    spawn_result_free(end);
    work_free(&w->work);
    w->job = 0;
}

/* How often this cell was tried in this folder before. */
static int former_attempts(const char *path)
{
    struct result r;
    if (!file_exists(path) || cell_file_read(path, &r) != ST_OK)
        return 0;
    int n = r.attempt;
    result_free(&r);
    return n;
}

static status_t write_task(const struct running *w)
{
    char *json;
    TRY(atomic_make_folder(w->task_path));
    TRY(work_to_json(&w->work, &json));
    FILE *f = fopen(w->task_path, "we");
    bool  good = f && fputs(json, f) >= 0;
    int   error = errno;
    if (f && fclose(f) != 0) {
        good = false;
        error = errno;
    }
    free(json);
    return good ? ST_OK : FAIL(ST_EIO, "cannot write %s: %s", w->task_path, strerror(error));
}

/* Folder in which the plan has this cell's model at another precision, for cells that read a quantized copy; else "".
 */
static void find_reference(const struct plan *plan, const struct cell *cell, char *out, size_t size)
{
    out[0] = '\0';
    for (size_t i = 0; cell->workload.quality && i < plan->n && !out[0]; i++)
        if (plan->cells[i].precision != PRECISION_INT8 && strcmp(plan->cells[i].fingerprint, cell->fingerprint) == 0)
            snprintf(out, size, "%s", plan->cells[i].model);
}

static status_t make_work(struct rank *r, struct run run, struct running *w)
{
    const struct cell *cell = &r->prepared->plan->cells[run.cell];
    char               path[WORK_PATH_MAX];
    memset(w, 0, sizeof *w);
    w->run = run;
    TRY(cell_copy(cell, &w->work.cell));
    const struct staged *staged = staging_find(r->staging, cell);
    if (staged)
        TRY(cell_set_model(&w->work.cell, staged->folder));
    if (on_gpu(r, run.cell))
        snprintf(w->work.cell.device, sizeof w->work.cell.device, "cuda:%.58s", r->gpu.gpu.uuid);
    if (!w->work.cell.device[0])
        snprintf(w->work.cell.device, sizeof w->work.cell.device, "%s", device_class_name(cell->device_class));
    if (w->work.cell.deadline_s <= 0)
        w->work.cell.deadline_s = DEFAULT_DEADLINE_S;
    find_reference(r->prepared->plan, cell, w->work.reference, sizeof w->work.reference);
    if (cell->keep_audio && cell->codec != CODEC_OFF) {
        int n = snprintf(w->work.audio, sizeof w->work.audio, "%s/audio/%s", r->prepared->output, cell->id);
        if (n < 0 || (size_t)n >= sizeof w->work.audio)
            return FAIL(ST_EINPUT, "%s: the path is too long to keep audio below it", r->prepared->output);
        TRY(atomic_make_folder(w->work.audio));
    }
    w->work.part = run.process;
    w->work.n_parts = work_parts(&cell->workload);
    w->work.rank = r->seat->me.rank;
    cell_file_path(r->prepared->output, cell->id, path, sizeof path);
    w->work.attempt = former_attempts(path) + 1;
    w->work.pin = r->seat->disjoint && (!on_gpu(r, run.cell) || r->seat->me.local_size == 1);
    for (size_t i = 0; i < r->facts.n_facts; i++)
        TRY(work_add_fact(&w->work, r->facts.facts[i].key, r->facts.facts[i].value));
    if (staged) {
        TRY(work_add_fact(&w->work, "weights_share", staging_mode_name(r->staging)));
        TRY(work_add_fact(&w->work, "weights_source", cell->model));
        TRY(work_add_fact(&w->work, "weights_checksum", staged->checksum));
    }
    char text[32];
    snprintf(text, sizeof text, "%zu", r->started);
    TRY(work_add_fact(&w->work, "rank_order", text));
    if (on_gpu(r, run.cell))
        TRY(gpu_seat_facts(&r->gpu, &w->work));
    snprintf(w->task_path, sizeof w->task_path, "%s/work/%.2s/%s-%d.json", r->prepared->output, cell->id, cell->id,
             run.process);
    snprintf(w->part_path, sizeof w->part_path, "%s/work/%.2s/%s-%d.h5", r->prepared->output, cell->id, cell->id,
             run.process);
    return ST_OK;
}

static status_t start(struct rank *r, struct run run, const struct gpu_visit *visit)
{
    struct running *w = &r->now;
    bool            gpu = on_gpu(r, run.cell);
    char            run_id[32], mark[64], visible[128];
    TRY(make_work(r, run, w));
    w->visit = *visit;
    TRY(write_task(w));
    run_text(r, run_id, sizeof run_id);
    snprintf(mark, sizeof mark, "QSWEEP_RUN=%s", run_id);
    snprintf(visible, sizeof visible, "CUDA_VISIBLE_DEVICES=%s", r->gpu.gpu.uuid);
    char *const          environment[] = {mark, gpu ? visible : NULL, NULL};
    char *const          argv[] = {r->program, "cell", w->task_path, "--output", w->part_path, NULL};
    struct spawn_request request = {
        .argv = argv,
        .environment = environment,
        .cores = gpu ? &r->gpu.near : &r->seat->own,
        .deadline_s = w->work.cell.deadline_s,
        .grace_s = WORKER_GRACE_S,
        .forward = r->launch->forward,
    };
    TRY(spawner_start(r->spawner, &request, &w->job, &w->pid));
    r->started++;
    tell(r, PROGRESS_START, &w->run, w->pid, CELL_PENDING, 0, "");
    return ST_OK;
}

/* ---- the loop ---- */

static bool peek(struct rank *r, struct run *out)
{
    const struct plan *plan = r->prepared->plan;
    for (; r->next < r->n_runs; r->next++) {
        *out = r->runs[r->next];
        /* A cell of few samples needs fewer processes than the job allows. */
        if (!r->settled[out->cell] && out->process < work_parts(&plan->cells[out->cell].workload))
            return true;
    }
    return false;
}

static bool shares_host(const struct rank *r, const struct run *run)
{
    return r->prepared->plan->cells[run->cell].device_class == DEVICE_CPU && r->seat->together < r->seat->me.local_size;
}

static void end_turns(struct rank *r)
{
    turn_end(&r->turn);
    turn_end(&r->gpu.turn);
}

static void start_next(struct rank *r, struct run run, const struct gpu_visit *visit)
{
    r->next++;
    if (start(r, run, visit) != ST_OK) {
        work_free(&r->now.work);
        r->now.job = 0;
        end_turns(r);
        break_down(r);
    }
}

/* The GPU did not become free: the process is not started, and the cell says who is there. */
static void give_up(struct rank *r, struct run run, const char *who)
{
    struct running w;
    struct result  part;
    char           reason[600];
    r->next++;
    snprintf(reason, sizeof reason, "not measured: the GPU stayed in use by others: %s", who);
    if (make_work(r, run, &w) != ST_OK || outcome_without_run(&w.work, CELL_CONTAMINATED, reason, &part) != ST_OK)
        break_down(r);
    else
        take_part(r, &w, &part, 0, true);
    work_free(&w.work);
    end_turns(r);
}

/* May this process start now, as far as its GPU is concerned? A cell whose GPU did not become free is given up. */
static bool gpu_is_ready(struct rank *r, struct run run, struct gpu_visit *visit)
{
    *visit = (struct gpu_visit){.used = UINT64_MAX};
    if (!on_gpu(r, run.cell))
        return true;
    enum gpu_ready ready = gpu_seat_ready(&r->gpu, visit);
    if (ready == GPU_REFUSED)
        give_up(r, run, visit->foreign);
    return ready == GPU_READY;
}

/* A device's worker is followed at once by the next, and its result is written while that one loads; CPU cells would
 * disturb each other, so there the writing comes first; so it does where ranks take turns on a GPU. */
static void conclude(struct rank *r, struct running *ended, struct spawn_result *end)
{
    struct run       next;
    struct gpu_visit visit;
    bool             clean = end->end == SPAWN_EXITED && end->exit_code == 0 && !end->signal;
    if (on_gpu(r, ended->run.cell))
        gpu_seat_leave(&r->gpu, &ended->visit);
    if (clean && !r->stopping && r->gpu.here && r->gpu.sharers == 1 && peek(r, &next) && on_gpu(r, next.cell) &&
        gpu_seat_is_free(&r->gpu) && gpu_is_ready(r, next, &visit))
        start_next(r, next, &visit);
    finish(r, ended, end);
    if (!r->now.job)
        end_turns(r);
}

/* A worker's memory has to come back before its result is settled; that is so at once, but for a driver's trouble. */
static bool memory_is_back(struct rank *r, const struct running *ended)
{
    return !on_gpu(r, ended->run.cell) || gpu_seat_is_back(&r->gpu, &ended->visit);
}

static void end_worker(struct rank *r, struct spawn_result *end)
{
    struct running ended = r->now;
    r->now.job = 0;
    if (memory_is_back(r, &ended) || r->stopping)
        conclude(r, &ended, end);
    else
        r->leaving = (struct leaving){true, ended, *end, clock_ns() + (int64_t)(GUARD_RETURN_S * 1e9)};
}

static void watch_memory(struct rank *r)
{
    struct leaving *l = &r->leaving;
    bool            back = memory_is_back(r, &l->worker);
    if (!back && !r->stopping && clock_ns() < l->until_ns) {
        usleep((useconds_t)STEP_MS * 1000);
        return;
    }
    if (!back)
        log_warn("%s: %.0f MB are in use although the cell's worker has ended, before it there were %.0f MB",
                 r->gpu.gpu.uuid, (double)gpu_guard_used(r->gpu.guard) * 1e-6, (double)l->worker.visit.used * 1e-6);
    struct leaving last = *l;
    l->waits = false;
    conclude(r, &last.worker, &last.end);
}

/* The spawner is gone, and the worker with it. */
static void lose_worker(struct rank *r)
{
    struct spawn_result end = {.end = SPAWN_DROPPED, .exit_code = -1, .exec_ns = clock_ns(), .end_ns = clock_ns()};
    end.log = strdup("");
    break_down(r);
    r->why = "the launcher's spawner died";
    end_worker(r, &end);
}

static void watch(struct rank *r)
{
    struct spawn_result end;
    if (spawner_wait(r->spawner, STEP_MS, &end) != ST_OK) {
        lose_worker(r);
        return;
    }
    if (end.job == r->now.job)
        end_worker(r, &end);
    else if (end.job)
        spawn_result_free(&end);
    else if (r->stopping && !r->dropped && clock_ns() >= r->drop_ns) {
        r->dropped = true;
        if (spawner_drop(r->spawner, r->now.job, r->drop_ns ? 2 : 0) != ST_OK)
            lose_worker(r);
    }
}

/* Cells of one CPU take turns on the host's cores, those of ranks that share a GPU on that. */
static struct turn *turn_for(struct rank *r, const struct run *run)
{
    if (shares_host(r, run))
        return &r->turn;
    return on_gpu(r, run->cell) && r->gpu.sharers > 1 && !r->gpu.beside ? &r->gpu.turn : NULL;
}

enum rank_state rank_step(struct rank *r)
{
    struct run       next;
    struct gpu_visit visit;
    status_t         st = ST_OK;
    if (r->now.job) {
        watch(r);
        return RANK_BUSY;
    }
    if (r->leaving.waits) {
        watch_memory(r);
        return RANK_BUSY;
    }
    if (r->stopping) {
        flush(r);
        return RANK_IDLE;
    }
    if (!peek(r, &next))
        return RANK_IDLE;
    struct turn *turn = turn_for(r, &next);
    bool         ours = !turn || turn_try(turn, &st);
    if (st != ST_OK)
        break_down(r);
    else if (ours && gpu_is_ready(r, next, &visit))
        start_next(r, next, &visit);
    else
        usleep((useconds_t)TURN_MS * 1000);
    return RANK_BUSY;
}

void rank_stop(struct rank *r, double grace_s, const char *why)
{
    int64_t at = grace_s > 0 ? clock_ns() + (int64_t)(grace_s * 1e9) : 0;
    if (!r->stopping || at < r->drop_ns) {
        r->drop_ns = at;
        r->dropped = r->dropped && at != 0; /* a worker that was asked politely is now killed */
    }
    r->stopping = true;
    r->why = why;
}

bool rank_is_broken(const struct rank *r)
{
    return r->broken;
}
