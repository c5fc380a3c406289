#include "launch/prepare.h"

#include "backend/backend.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "store/atomic_file.h"
#include "store/cell_file.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PLAN_BYTES_MAX = 1 << 30 };

/* What rank 0 tells the others; the plan's JSON and the done flags follow. */
struct announcement {
    status_t status;
    bool     stop;
    uint64_t run_id;
    size_t   plan_bytes;
    char     output[JOB_PATH_MAX];
};

/* ---- the plan ---- */

/* `device: auto` means cuda where some rank sees a GPU and this program has the code for it. */
static bool have_cuda(const struct rank_view *views, int n)
{
    bool seen = false;
    for (int r = 0; r < n; r++)
        seen |= views[r].n > 0;
    return seen && backend_has_cuda();
}

static status_t fingerprint(const char *dir, char out[33])
{
    struct checkpoint *c;
    TRY(checkpoint_open(dir, &c));
    int64_t  t0 = clock_ns();
    status_t st = checkpoint_fingerprint(c, out);
    if (clock_ms_since(t0) > 2000)
        log_info("%s: fingerprint %s, %.1f GB read in %.1f s", dir, out, (double)c->weight_bytes * 1e-9,
                 clock_ms_since(t0) * 1e-3);
    checkpoint_close(c);
    return st;
}

/* A copy that is already quantized stands in for the model only if it was made from it. */
static status_t check_prequantized(const struct job *job, const char model[33])
{
    for (int p = 0; p < PRECISION_COUNT; p++) {
        const char        *dir = job_prequantized(job, (enum precision)p);
        struct checkpoint *c;
        if (!dir)
            continue;
        TRY(checkpoint_open(dir, &c));
        bool same = strcmp(c->config.quantization.source_hash, model) == 0;
        char source[65];
        memcpy(source, c->config.quantization.source_hash, sizeof source);
        checkpoint_close(c);
        if (!same)
            return FAIL(ST_EINPUT,
                        "%s: made from the checkpoint with fingerprint \"%s\", but the job's model has %s: quantize "
                        "that one",
                        dir, source, model);
    }
    return ST_OK;
}

static status_t build_plan(const struct launch *launch, const struct rank_view *views, int n_ranks, struct prepared *out)
{
    struct job *job;
    TRY(job_load(launch->job_path, launch->set, launch->n_set, &job));
    int                n;
    const char *const *models = job_models(job, &n);
    char(*prints)[33] = calloc((size_t)n + 1, sizeof *prints);
    bool    *synthetic = calloc((size_t)n + 1, sizeof *synthetic);
    status_t st = prints && synthetic ? ST_OK : FAIL(ST_ENOMEM, "no memory for %d fingerprints", n);
    for (int i = 0; st == ST_OK && i < n; i++) {
        char mark[JOB_PATH_MAX + 32];
        snprintf(mark, sizeof mark, "%s/synth.json", models[i]); /* `qsweep synth` leaves it beside random weights */
        synthetic[i] = file_exists(mark);
        st = fingerprint(models[i], prints[i]);
    }
    if (st == ST_OK && n > 0)
        st = check_prequantized(job, prints[0]);
    char             models_of_gpus[KINDS_MAX][NVML_TEXT];
    struct plan_input in = {.fingerprints = (const char(*)[33])prints,
                            .n_fingerprints = n,
                            .have_cuda = have_cuda(views, n_ranks),
                            .synthetic = synthetic,
                            .gpus = (const char(*)[NVML_TEXT])models_of_gpus,
                            .n_gpus = placement_models(views, n_ranks, models_of_gpus, KINDS_MAX)};
    if (st == ST_OK)
        st = plan_build(job, &in, &out->plan);
    if (st == ST_OK)
        snprintf(out->output, sizeof out->output, "%s", launch->output ? launch->output : job_options(job)->output);
    free(synthetic);
    free(prints);
    job_close(job);
    return st;
}

/* ---- the folder ---- */

/* Does the folder hold anything that a sweep (or somebody) left there? A lock and what stands
 * below hidden names (a plan.json whose writer died) do not count. */
static status_t is_used(const char *dir, bool *used)
{
    DIR *d = opendir(dir);
    if (!d)
        return FAIL(ST_EIO, "cannot read the folder %s: %s", dir, strerror(errno));
    *used = false;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.' && strcmp(e->d_name, "lock"))
            *used = true;
    closedir(d);
    return ST_OK;
}

/* Every cell of the plan that was recorded here must be in the new one: a resume may widen a sweep, not replace it. */
static status_t check_former_plan(const char *path, const struct plan *plan)
{
    char  *json;
    size_t size, lost = 0;
    TRY(file_read(path, PLAN_BYTES_MAX, &json, &size));
    struct plan *former;
    status_t     st = plan_from_json(json, size, path, &former);
    free(json);
    TRY(st);
    for (size_t i = 0; i < former->n; i++)
        lost += plan_find(plan, former->cells[i].id) < 0;
    size_t n = former->n;
    plan_close(former);
    if (lost)
        return FAIL(ST_EINPUT,
                    "%s: %zu of its %zu cells are not in this job (another model, workload or sweep): choose "
                    "another --output",
                    path, lost, n);
    return ST_OK;
}

static status_t enter_folder(const struct launch *launch, struct prepared *p)
{
    char plan_path[JOB_PATH_MAX + 32];
    bool used = false;
    snprintf(plan_path, sizeof plan_path, "%s/plan.json", p->output);
    TRY(atomic_make_folder(plan_path));
    TRY(lock_take(p->output, launch->take_lock, &p->lock));
    TRY(is_used(p->output, &used));
    if (used && !launch->resume)
        return FAIL(ST_EINPUT,
                    "%s exists and is not empty: --resume continues what is there, --output DIR starts another",
                    p->output);
    if (used && !file_exists(plan_path))
        return FAIL(ST_EINPUT, "%s is not empty and holds no sweep (there is no plan.json): choose another --output",
                    p->output);
    return used ? check_former_plan(plan_path, p->plan) : ST_OK;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)at;
    if (type == FTW_DP || type == FTW_D)
        rmdir(path);
    else
        unlink(path);
    return 0;
}

/* A temporary file that a killed process left: ".name.host.pid.n.tmp". */
static int remove_temporary(const char *path, const struct stat *st, int type, struct FTW *at)
{
    const char *name = path + at->base;
    size_t      n = strlen(name);
    (void)st;
    if (type == FTW_F && name[0] == '.' && n > 4 && strcmp(name + n - 4, ".tmp") == 0)
        unlink(path);
    return 0;
}

/* Nobody else works here (the lock is ours): what former launchers left unfinished goes away. */
static void clean_up(const char *output)
{
    char path[JOB_PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/work", output);
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    nftw(output, remove_temporary, 16, FTW_PHYS);
}

static status_t write_text(const char *output, const char *name, const char *text)
{
    char path[JOB_PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", output, name);
    return atomic_write(path, &(struct piece){text, strlen(text)}, 1);
}

/* Which cells need no run: ok, or of a status that the user keeps. Files are read whole (memory speed when cached): one
 * whose middle never reached the disk would be kept here and refused by every merge. */
static status_t find_done(const struct launch *launch, struct prepared *p)
{
    p->done = calloc(p->plan->n, sizeof *p->done);
    if (!p->done)
        return FAIL(ST_ENOMEM, "no memory for %zu cells", p->plan->n);
    for (size_t i = 0; launch->resume && i < p->plan->n; i++) {
        char             path[JOB_PATH_MAX + 128], id[33];
        enum cell_status status;
        cell_file_path(p->output, p->plan->cells[i].id, path, sizeof path);
        if (!file_exists(path))
            continue;
        if (cell_file_verify(path, &status, id) != ST_OK || strcmp(id, p->plan->cells[i].id) != 0) {
            log_warn("%s will be measured again", path);
            continue;
        }
        p->done[i] = status == CELL_OK || (launch->keep >> status & 1);
        p->n_done += p->done[i];
    }
    return ST_OK;
}

/* ---- rank 0, and telling the others ---- */

/* A rank without a GPU of its own is a mistake where cells want one. */
static status_t place_ranks(const struct rank_view *views, int n, struct prepared *p)
{
    bool needed = false;
    for (size_t i = 0; i < p->plan->n; i++)
        needed |= p->plan->cells[i].device_class == DEVICE_CUDA && !p->plan->invalid[i];
    return placement_assign(views, n, p->plan->options.share_gpus, needed, &p->placement);
}

static status_t prepare_here(const struct launch *launch, const struct rank_view *views, int n, struct prepared *p, char **json)
{
    TRY(build_plan(launch, views, n, p));
    if (launch->n_shards)
        TRY(plan_shard(p->plan, launch->shard, launch->n_shards));
    if (p->plan->n == 0) {
        log_info("shard %d/%d has no cells: the sweep has fewer groups than shards", launch->shard, launch->n_shards);
        p->stop = true;
        return ST_OK;
    }
    if (launch->dry_run) {
        for (size_t i = 0; launch->dry_run_ids && i < p->plan->n; i++)
            puts(p->plan->cells[i].id);
        if (!launch->dry_run_ids)
            plan_print(p->plan, NULL, NULL, stdout);
        p->stop = true;
        return ST_OK;
    }
    TRY(place_ranks(views, n, p));
    TRY(enter_folder(launch, p));
    clean_up(p->output);
    TRY(plan_to_json(p->plan, json));
    TRY(write_text(p->output, "plan.json", *json));
    TRY(write_text(p->output, "job.yaml", p->plan->job_text ? p->plan->job_text : ""));
    p->run_id = (uint64_t)clock_ns() * 0x9E3779B97F4A7C15u ^ (uint64_t)getpid();
    return find_done(launch, p);
}

static status_t share_placement(const struct fabric_info *me, struct prepared *p)
{
    struct placement all = p->placement;
    TRY(fabric_broadcast(&all, sizeof all, 0));
    /* Rank 0's pointer came along with its bytes. */
    all.places = me->rank == 0 ? p->placement.places : calloc((size_t)me->size, sizeof *all.places);
    if (!all.places)
        return FAIL(ST_ENOMEM, "no memory for the places of %d ranks", me->size);
    p->placement = all;
    return fabric_broadcast(all.places, (size_t)me->size * sizeof *all.places, 0);
}

static status_t share(const struct fabric_info *me, struct prepared *p, status_t status, char *json)
{
    struct announcement a = {
        .status = status, .stop = p->stop, .run_id = p->run_id, .plan_bytes = json ? strlen(json) : 0};
    memcpy(a.output, p->output, sizeof a.output);
    TRY(fabric_broadcast(&a, sizeof a, 0));
    if (a.status != ST_OK || a.stop || me->size == 1) {
        p->stop = a.stop;
        return a.status;
    }
    char *text = json;
    if (me->rank != 0 && !(text = malloc(a.plan_bytes + 1)))
        return FAIL(ST_ENOMEM, "no memory for a plan of %zu bytes", a.plan_bytes);
    status_t st = fabric_broadcast(text, a.plan_bytes, 0);
    if (me->rank != 0) {
        if (st == ST_OK)
            st = plan_from_json(text, a.plan_bytes, "plan from rank 0", &p->plan);
        free(text);
        p->run_id = a.run_id;
        memcpy(p->output, a.output, sizeof p->output);
        if (st == ST_OK && !(p->done = calloc(p->plan->n, sizeof *p->done)))
            st = FAIL(ST_ENOMEM, "no memory for %zu cells", p->plan->n);
    }
    TRY(st);
    TRY(fabric_broadcast(p->done, p->plan->n * sizeof *p->done, 0));
    for (size_t i = 0; me->rank != 0 && i < p->plan->n; i++)
        p->n_done += p->done[i];
    return share_placement(me, p);
}

status_t prepare(const struct launch *launch, const struct fabric_info *me, struct prepared *out)
{
    memset(out, 0, sizeof *out);
    char             *json = NULL;
    struct rank_view *own = malloc(sizeof *own), *views = NULL;
    status_t          st = ST_OK;
    if (own)
        placement_look(me, own);
    if (me->rank == 0 && !(views = calloc((size_t)me->size, sizeof *views)))
        st = FAIL(ST_ENOMEM, "no memory for what %d ranks see", me->size);
    if (st == ST_OK && !own)
        st = FAIL(ST_ENOMEM, "no memory for a list of GPUs");
    if (st == ST_OK)
        st = fabric_gather(own, sizeof *own, views, 0);
    if (st == ST_OK && me->rank == 0)
        st = prepare_here(launch, views, me->size, out, &json);
    st = share(me, out, st, json);
    if (st == ST_OK && !out->stop && out->placement.places[me->rank].gpu >= 0)
        out->gpu = own->gpus[out->placement.places[me->rank].gpu];
    free(json);
    free(views);
    free(own);
    if (st != ST_OK)
        prepared_free(out);
    return st;
}

void prepared_free(struct prepared *p)
{
    lock_release(p->lock);
    plan_close(p->plan);
    free(p->done);
    placement_free(&p->placement);
    memset(p, 0, sizeof *p);
}
