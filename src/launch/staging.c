#include "launch/staging.h"

#include "backend/peer.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/outfile.h"
#include "checkpoint/companions.h"
#include "launch/rank.h"
#include "model/quantize.h"
#include "model/stage_file.h"
#include "store/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MODELS_MAX = 64, REPORT_BYTES_MAX = 4096 };
static const double STAGE_DEADLINE_S = 3600;
static const double PEER_DEADLINE_S = 600; /* a group of which one process never came would wait for ever */
static const int64_t PEER_WAIT_NS = 60 * (int64_t)1000000000;
/* Left free in the memory file system: cells need memory too. */
static const uint64_t ROOM_LEFT = 64 << 20;

struct staging {
    struct stage_folder folder; /* first rank of a host only; "" elsewhere */
    enum share_mode     mode;
    struct staged       models[MODELS_MAX];
    int                 n;
};

/* What one part's process told; travels between ranks as it is. */
struct part_report {
    int32_t       made;
    double        init_s, read_s, quantize_s;
    uint64_t      bytes_read, bytes_written;
    unsigned char digest[16];
};

/* One host's figures of one model. */
struct host_report {
    char     host[64];
    double   init_s, read_s, quantize_s, copy_s, transfer_s, verify_s, total_s;
    uint64_t bytes, bytes_read, bytes_received;
};

struct stager {
    const struct prepared       *prepared;
    const struct seat           *seat;
    const struct fabric_info    *me;
    struct spawner              *spawner;
    const volatile sig_atomic_t *stop;
    struct staging              *s;
    /* of the model that is being staged */
    struct staged       *model;
    struct checkpoint   *checkpoint;
    struct stage_file    file;
    unsigned char       *map; /* of the node's file, first rank of a host only */
    int                  n_parts;
    struct part_report  *parts;   /* [me->size] by rank; the first n_parts count */
    int                 *host_of; /* [me->size]                                  */
    struct host_report   report;
};

/* The worst of all ranks' codes, on every rank. Collective. */
static status_t agree(const struct stager *g, status_t own)
{
    int32_t  mine = (int32_t)own, *all = calloc((size_t)g->me->size, sizeof *all);
    status_t st = all ? fabric_all_gather(&mine, sizeof mine, all) : FAIL(ST_ENOMEM, "no memory for %d ranks", g->me->size);
    for (int r = 0; st == ST_OK && r < g->me->size; r++)
        st = (status_t)all[r];
    free(all);
    return st;
}

static bool is_leader(const struct stager *g)
{
    return g->me->local_rank == 0;
}

/* ---- which models ---- */

static enum recipe recipe_of(const struct cell *c)
{
    return c->precision == PRECISION_INT8 ? c->recipe : RECIPE_NONE;
}

/* Cells to run name them in the plan's order, so every rank finds the same list. */
static status_t list_models(const struct prepared *p, struct staging *s, const char **fingerprints)
{
    for (size_t i = 0; i < p->plan->n; i++) {
        const struct cell *c = &p->plan->cells[i];
        int                k = 0;
        if (p->done[i] || p->plan->invalid[i])
            continue;
        while (k < s->n && (strcmp(s->models[k].model, c->model) != 0 || s->models[k].recipe != recipe_of(c)))
            k++;
        if (k < s->n)
            continue;
        if (s->n == MODELS_MAX)
            return FAIL(ST_EUNSUPPORTED, "weights.share: this job reads more than %d models; use none", (int)MODELS_MAX);
        s->models[k] = (struct staged){.model = c->model, .recipe = recipe_of(c)};
        fingerprints[s->n++] = c->fingerprint;
    }
    return ST_OK;
}

const struct staged *staging_find(const struct staging *s, const struct cell *c)
{
    for (int k = 0; s && k < s->n; k++)
        if (strcmp(s->models[k].model, c->model) == 0 && s->models[k].recipe == recipe_of(c))
            return &s->models[k];
    return NULL;
}

const char *staging_mode_name(const struct staging *s)
{
    return share_mode_name(s->mode);
}

/* ---- one model ---- */

static void weights_path(const struct stager *g, char *out, size_t size)
{
    snprintf(out, size, "%s/model.safetensors", g->model->folder);
}

static status_t plan_file(struct stager *g, const char *fingerprint)
{
    TRY(checkpoint_open(g->model->model, &g->checkpoint));
    /* A checkpoint that is quantized already travels as it is. */
    enum recipe recipe = g->checkpoint->config.quantization.recipe == RECIPE_NONE ? g->model->recipe : RECIPE_NONE;
    return stage_file_plan(g->checkpoint, recipe, fingerprint, &g->file);
}

/* The node's file in its full size, with its header, mapped. */
static status_t make_file(struct stager *g)
{
    char path[4200];
    weights_path(g, path, sizeof path);
    if (mkdir(g->model->folder, 0700) != 0)
        return FAIL(ST_EIO, "%s: %s", g->model->folder, strerror(errno));
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    status_t st = ST_OK;
    /* Reserved at once: a memory file system that runs full later would kill whoever writes through the map. */
    int error = posix_fallocate(fd, 0, (off_t)g->file.bytes);
    if (error)
        st = FAIL(ST_EIO, "%s: cannot reserve %.1f MB: %s", path, (double)g->file.bytes * 1e-6, strerror(error));
    else if ((g->map = mmap(NULL, g->file.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
        g->map = NULL;
        st = FAIL(ST_EIO, "%s: cannot map it: %s", path, strerror(errno));
    } else {
        memcpy(g->map, g->file.head, g->file.head_bytes);
    }
    close(fd);
    return st;
}

static status_t read_report(const char *path, struct part_report *out)
{
    char              *text;
    size_t             size;
    unsigned long long bytes_read, bytes_written;
    TRY(file_read(path, REPORT_BYTES_MAX, &text, &size));
    int at = 0, n = sscanf(text, "%lf %lf %lf %llu %llu %n", &out->init_s, &out->read_s, &out->quantize_s, &bytes_read,
                           &bytes_written, &at);
    bool good = n == 5 && strlen(text + at) >= 32;
    for (int i = 0; good && i < 16; i++) {
        unsigned byte;
        good = sscanf(text + at + 2 * i, "%2x", &byte) == 1;
        out->digest[i] = (unsigned char)byte;
    }
    free(text);
    if (!good)
        return FAIL(ST_EINTERNAL, "%s: not what a staging process writes", path);
    out->bytes_read = bytes_read;
    out->bytes_written = bytes_written;
    out->made = 1;
    return ST_OK;
}

/* Wait for the staging process; say why it failed. */
static status_t await(struct stager *g, int job)
{
    struct spawn_result end;
    bool                dropped = false;
    for (;;) {
        TRY(spawner_wait(g->spawner, 50, &end));
        if (end.job == job)
            break;
        spawn_result_free(&end);
        if (*g->stop && !dropped) {
            dropped = true;
            TRY(spawner_drop(g->spawner, job, 0.3));
        }
    }
    status_t st = ST_OK;
    if (*g->stop || dropped)
        st = FAIL(ST_EINTERRUPTED, "staging of %s was stopped", g->model->model);
    else if (end.exit_code != 0)
        st = FAIL(ST_EIO, "staging of %s: its process %s %d; %s", g->model->model,
                  end.end == SPAWN_DEADLINE ? "hung and was ended with signal" : end.signal ? "died of signal" : "ended with status",
                  end.signal ? end.signal : end.exit_code, end.log && end.log[0] ? end.log : "it said nothing");
    spawn_result_free(&end);
    return st;
}

/* This rank's part, by a process of its own. */
static status_t make_part(struct stager *g, const char *fingerprint, struct part_report *out)
{
    char program[4200], path[4200], report[4300], part[48], threads[16];
    int  job, n_threads = g->seat->host.n / g->me->local_size;
    weights_path(g, path, sizeof path);
    snprintf(report, sizeof report, "%s/part-%d", g->model->folder, g->me->rank);
    snprintf(part, sizeof part, "%d/%d", g->me->rank, g->n_parts);
    snprintf(threads, sizeof threads, "%d", n_threads > 0 ? n_threads : 1);
    TRY(rank_program(program, sizeof program));
    char *const argv[] = {program, "stage", (char *)g->model->model, "--recipe", (char *)recipe_name(g->file.recipe), "--hash",
                          (char *)fingerprint, "--part", part,
                          "--threads", threads, "--file", path, "--report", report, NULL};
    struct spawn_request request = {.argv = argv, .cores = &g->seat->host, .deadline_s = STAGE_DEADLINE_S, .grace_s = 2};
    TRY(spawner_start(g->spawner, &request, &job, NULL));
    TRY(await(g, job));
    status_t st = read_report(report, out);
    unlink(report);
    return st;
}

/* ---- between hosts ---- */

/* The id of the group of GPUs: made by host 0's process, in a file; carried to the other hosts' files. Hosts' first ranks. */
static status_t carry_id(struct stager *g, const char *path)
{
    struct {
        int32_t       made;
        unsigned char bytes[PEER_ID_BYTES];
    } id = {0};
    if (g->me->host_index == 0) {
        char  *bytes;
        size_t size;
        for (int64_t until = clock_ns() + PEER_WAIT_NS; !file_exists(path) && clock_ns() < until && !*g->stop;)
            usleep(10000);
        if (file_exists(path) && file_read(path, sizeof id.bytes, &bytes, &size) == ST_OK) {
            id.made = size == sizeof id.bytes;
            memcpy(id.bytes, bytes, id.made ? size : 0);
            free(bytes);
        }
    }
    TRY(fabric_hosts_broadcast(&id, sizeof id, 0));
    if (!id.made)
        return FAIL(ST_EDEVICE, "staging of %s: host 0's process made no NCCL id", g->model->model);
    if (g->me->host_index == 0)
        return ST_OK;
    return atomic_write(path, &(struct piece){id.bytes, sizeof id.bytes}, 1);
}

/* `qsweep stage --peer` on every host carries the bytes through NCCL. Ranks hold no GPU. */
static status_t exchange_by_gpus(struct stager *g, const char *fingerprint, struct exchange_times *moved)
{
    char                program[4200], path[4200], report[4300], id[4300], host_of[4300], peer[48], parts[16];
    int                 job = 0;
    struct part_report  told = {0};
    struct spawn_request request = {.cores = &g->seat->host, .deadline_s = PEER_DEADLINE_S, .grace_s = 2};
    weights_path(g, path, sizeof path);
    snprintf(report, sizeof report, "%s/peer-report", g->model->folder);
    snprintf(id, sizeof id, "%s/peer-id", g->model->folder);
    snprintf(host_of, sizeof host_of, "%s/peer-hosts", g->model->folder);
    snprintf(peer, sizeof peer, "%d/%d", g->me->host_index, g->me->n_hosts);
    snprintf(parts, sizeof parts, "%d", g->n_parts);
    char *const argv[] = {program, "stage", (char *)g->model->model, "--recipe", (char *)recipe_name(g->file.recipe), "--hash",
                          (char *)fingerprint, "--peer", peer, "--parts", parts, "--id", id, "--host-of", host_of, "--file", path,
                          "--report", report, NULL};
    request.argv = argv;
    status_t st = rank_program(program, sizeof program);
    if (st == ST_OK)
        st = atomic_write(host_of, &(struct piece){g->host_of, (size_t)g->n_parts * sizeof *g->host_of}, 1);
    if (st == ST_OK && g->me->host_index == 0)
        st = spawner_start(g->spawner, &request, &job, NULL);
    TRY(carry_id(g, id)); /* also with a failure here: the other hosts wait for the word */
    if (st == ST_OK && g->me->host_index != 0)
        st = spawner_start(g->spawner, &request, &job, NULL);
    if (st == ST_OK)
        st = await(g, job);
    if (st == ST_OK)
        st = read_report(report, &told);
    unlink(report);
    unlink(id);
    unlink(host_of);
    *moved = (struct exchange_times){told.read_s, told.quantize_s, told.bytes_read}; /* a peer's report has these in their places */
    g->report.init_s = told.init_s;
    return st;
}

/* Hosts' first ranks only. */
static status_t exchange(struct stager *g, const char *fingerprint, struct exchange_times *moved)
{
    int32_t  own = g->me->host_index ? access("/dev/nvidiactl", F_OK) == 0 : 0, *all = NULL;
    const char *wanted = getenv("QSWEEP_STAGE_NCCL");
    status_t st = ST_OK;
    bool     by_gpus = true;
    if (g->me->n_hosts == 1)
        return ST_OK;
    if (g->me->host_index == 0)
        own = wanted && strcmp(wanted, "1") == 0 && access("/dev/nvidiactl", F_OK) == 0;
    all = calloc((size_t)g->me->n_hosts, sizeof *all);
    st = all ? fabric_hosts_all_gather(&own, sizeof own, all) : FAIL(ST_ENOMEM, "no memory for %d hosts", g->me->n_hosts);
    for (int h = 0; st == ST_OK && h < g->me->n_hosts; h++)
        by_gpus = by_gpus && all[h];
    free(all);
    TRY(st);
    return by_gpus ? exchange_by_gpus(g, fingerprint, moved)
                   : staging_exchange(&fabric_carrier, g->me->host_index, g->me->n_hosts, &g->file, g->n_parts, g->host_of, g->map, moved);
}

/* ---- checking and completing ---- */

static void hex(const unsigned char *bytes, int n, char *out)
{
    for (int i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

/* Every part of the file in this node's memory is the one that its maker made. */
static status_t verify(struct stager *g)
{
    int64_t t0 = clock_ns();
    for (int p = 0; p < g->n_parts; p++) {
        unsigned char found[16];
        char          made[33], here[33];
        TRY(stage_file_digest(&g->file, p, g->n_parts, g->map, found));
        if (memcmp(found, g->parts[p].digest, 16) == 0)
            continue;
        hex(g->parts[p].digest, 16, made);
        hex(found, 16, here);
        return FAIL(ST_EIO, "staging of %s: part %d of %d was made with checksum %s but has %s on %s", g->model->model, p, g->n_parts,
                    made, here, g->me->host);
    }
    g->report.verify_s = clock_ms_since(t0) * 1e-3;
    return ST_OK;
}

static status_t copy_config(const struct stager *g)
{
    char            path[4200], *text;
    size_t          size;
    struct outfile *file;
    snprintf(path, sizeof path, "%s/config.json", g->model->model);
    TRY(file_read(path, 1 << 20, &text, &size));
    snprintf(path, sizeof path, "%s/config.json", g->model->folder);
    status_t st = outfile_open(path, &file);
    if (st == ST_OK) {
        st = outfile_write(file, text, size);
        if (st == ST_OK)
            st = outfile_commit(file);
        else
            outfile_abort(file);
    }
    free(text);
    return st;
}

/* From a file to a checkpoint: configuration, links to the rest, nothing writable; the checksum of what cells will read. */
static status_t complete(struct stager *g, const char *fingerprint)
{
    char               path[4200];
    struct checkpoint *staged;
    weights_path(g, path, sizeof path);
    munmap(g->map, g->file.bytes);
    g->map = NULL;
    if (chmod(path, 0400) != 0)
        return FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    TRY(g->file.recipe == RECIPE_NONE ? copy_config(g)
                                      : quantize_write_config(g->checkpoint, g->file.recipe, fingerprint, g->model->folder));
    TRY(companions_link(g->model->model, g->model->folder));
    TRY(checkpoint_open(g->model->folder, &staged));
    status_t st = checkpoint_fingerprint(staged, g->model->checksum);
    bool     as_is = g->file.recipe == RECIPE_NONE && staged->config.quantization.recipe == RECIPE_NONE;
    checkpoint_close(staged);
    if (st == ST_OK && as_is && strcmp(g->model->checksum, fingerprint) != 0)
        st = FAIL(ST_EIO, "staging of %s: its copy on %s has fingerprint %s, not %s", g->model->model, g->me->host,
                  g->model->checksum, fingerprint);
    return st;
}

static status_t stage_model(struct stager *g, const char *fingerprint)
{
    int64_t             t0 = clock_ns();
    struct part_report  own = {0};
    char                here[33];
    struct exchange_times moved = {0};
    status_t            st = plan_file(g, fingerprint);
    TRY(agree(g, st));
    TRY(agree(g, is_leader(g) ? make_file(g) : ST_OK));
    st = g->me->rank < g->n_parts ? make_part(g, fingerprint, &own) : ST_OK;
    TRY(agree(g, st));
    TRY(fabric_all_gather(&own, sizeof own, g->parts));
    st = is_leader(g) ? exchange(g, fingerprint, &moved) : ST_OK;
    TRY(agree(g, st));
    st = is_leader(g) ? verify(g) : ST_OK;
    if (st == ST_OK && is_leader(g))
        st = complete(g, fingerprint);
    TRY(agree(g, st));
    /* All nodes hold the same. */
    memcpy(here, g->model->checksum, sizeof here);
    TRY(fabric_broadcast(g->model->checksum, sizeof g->model->checksum, 0));
    if (is_leader(g) && strcmp(here, g->model->checksum) != 0)
        st = FAIL(ST_EIO, "staging of %s: %s has checksum %s, rank 0's host %s", g->model->model, g->me->host, here,
                  g->model->checksum);
    TRY(agree(g, st));

    struct host_report *r = &g->report;
    memcpy(r->host, g->me->host, sizeof r->host);
    r->bytes = g->file.bytes;
    r->bytes_received = moved.bytes;
    r->copy_s = moved.copy_s;
    r->transfer_s = moved.transfer_s;
    r->total_s = clock_ms_since(t0) * 1e-3;
    for (int p = 0; p < g->n_parts; p++) {
        const struct part_report *part = &g->parts[p];
        if (g->host_of[p] != g->me->host_index)
            continue;
        r->init_s = fmax(r->init_s, part->init_s); /* side by side on one host: the slowest counts */
        r->read_s = fmax(r->read_s, part->read_s);
        r->quantize_s = fmax(r->quantize_s, part->quantize_s);
        r->bytes_read += part->bytes_read;
    }
    return ST_OK;
}

static void forget_model(struct stager *g)
{
    if (g->map)
        munmap(g->map, g->file.bytes);
    g->map = NULL;
    stage_file_free(&g->file);
    checkpoint_close(g->checkpoint);
    g->checkpoint = NULL;
    g->report = (struct host_report){0};
}

/* ---- the record ---- */

/* One line a host and model in <output>/staging.jsonl, which the merge turns into /staging. Collective. */
static status_t record(struct stager *g)
{
    struct host_report *all = g->me->rank == 0 ? calloc((size_t)g->me->size, sizeof *all) : NULL;
    status_t            st = fabric_gather(&g->report, sizeof g->report, all, 0);
    char                path[JOB_PATH_MAX + 32];
    FILE               *f = NULL;
    snprintf(path, sizeof path, "%s/staging.jsonl", g->prepared->output);
    if (g->me->rank == 0 && st == ST_OK && (!all || !(f = fopen(path, "ae"))))
        st = FAIL(ST_EIO, "cannot write %s: %s", path, strerror(errno));
    for (int r = 0, host = -1; f && r < g->me->size; r++) {
        if (g->host_of[r] <= host) /* the first rank of every host speaks */
            continue;
        host = g->host_of[r];
        json_t *line = json_pack(
            "{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "host", all[r].host, "model", g->model->model,
            "form", g->model->recipe == RECIPE_NONE ? "as it is" : recipe_name(g->model->recipe), "mode", staging_mode_name(g->s),
            "checksum", g->model->checksum, "bytes", (json_int_t)all[r].bytes, "bytes_read", (json_int_t)all[r].bytes_read,
            "bytes_received", (json_int_t)all[r].bytes_received, "init_s", all[r].init_s, "read_s", all[r].read_s, "quantize_s",
            all[r].quantize_s, "copy_s", all[r].copy_s, "transfer_s", all[r].transfer_s, "verify_s", all[r].verify_s, "total_s",
            all[r].total_s);
        char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
        if (text)
            fprintf(f, "%s\n", text);
        free(text);
        json_decref(line);
    }
    if (f && fclose(f) != 0)
        st = FAIL(ST_EIO, "cannot write %s: %s", path, strerror(errno));
    free(all);
    return agree(g, st);
}

/* ---- all of them ---- */

/* Bytes that the models need on a node; those of one already staged are counted as the plan says. */
static status_t needed(struct stager *g, const char *const *fingerprints, uint64_t *bytes)
{
    *bytes = 0;
    for (int k = 0; k < g->s->n; k++) {
        g->model = &g->s->models[k];
        status_t st = plan_file(g, fingerprints[k]);
        *bytes += g->file.bytes;
        forget_model(g);
        TRY(st);
    }
    return ST_OK;
}

/* Is there room on every node? Collective; *room is the same everywhere. */
static status_t check_room(struct stager *g, const char *const *fingerprints, bool quiet, bool *room)
{
    uint64_t bytes = 0;
    *room = false;
    TRY(agree(g, needed(g, fingerprints, &bytes)));
    uint64_t free_bytes = stage_folder_free();
    int32_t  fits = free_bytes >= bytes + ROOM_LEFT, *all = calloc((size_t)g->me->size, sizeof *all);
    status_t st = all ? fabric_all_gather(&fits, sizeof fits, all) : FAIL(ST_ENOMEM, "no memory for %d ranks", g->me->size);
    *room = st == ST_OK;
    for (int r = 0; st == ST_OK && r < g->me->size; r++)
        *room = *room && all[r];
    free(all);
    if (st == ST_OK && !fits && is_leader(g) && !quiet)
        st = FAIL(ST_EIO, "weights.share: %s on %s has %.1f MB free, the weights need %.1f MB: set weights.share=none, or name a larger "
                  "place in QSWEEP_STAGE_DIR", stage_folder_base(), g->me->host, (double)free_bytes * 1e-6, (double)bytes * 1e-6);
    return agree(g, st);
}

static status_t open_folder(struct stager *g)
{
    if (!is_leader(g))
        return ST_OK;
    stage_folder_sweep();
    TRY(stage_folder_make(g->prepared->run_id, &g->s->folder));
    return spawner_remove_at_end(g->spawner, g->s->folder.path);
}

static status_t stage_all(struct stager *g, const char *const *fingerprints)
{
    char base[2048];
    int  own = g->me->host_index;
    TRY(agree(g, open_folder(g)));
    TRY(fabric_all_gather(&own, sizeof own, g->host_of));
    stage_folder_name(g->prepared->run_id, base, sizeof base);
    for (int k = 0; k < g->s->n; k++) {
        g->model = &g->s->models[k];
        g->n_parts = g->s->mode == SHARE_SHARED ? 1 : g->me->size;
        snprintf(g->model->folder, sizeof g->model->folder, "%s/%d", base, k);
        status_t st = stage_model(g, fingerprints[k]);
        if (st == ST_OK)
            st = record(g);
        if (st == ST_OK && g->me->rank == 0)
            log_info("%s: %.1f MB staged on %d host%s in %.2f s (%s)", g->model->model, (double)g->file.bytes * 1e-6, g->me->n_hosts,
                     g->me->n_hosts > 1 ? "s" : "", g->report.total_s, staging_mode_name(g->s));
        forget_model(g);
        TRY(st);
    }
    return ST_OK;
}

status_t staging_open(const struct prepared *prepared, const struct seat *seat, struct spawner *spawner,
                      const volatile sig_atomic_t *stop, struct staging **out)
{
    enum share_mode mode = prepared->plan->options.share;
    const char     *fingerprints[MODELS_MAX];
    bool            automatic = mode == SHARE_AUTO, room;
    *out = NULL;
    if (mode == SHARE_NONE || (automatic && seat->me.n_hosts == 1))
        return ST_OK;
    struct staging *s = calloc(1, sizeof *s);
    struct stager   g = {.prepared = prepared, .seat = seat, .me = &seat->me, .spawner = spawner, .stop = stop, .s = s};
    g.parts = calloc((size_t)seat->me.size, sizeof *g.parts);
    g.host_of = calloc((size_t)seat->me.size, sizeof *g.host_of);
    status_t st = s && g.parts && g.host_of ? ST_OK : FAIL(ST_ENOMEM, "no memory to stage weights");
    st = agree(&g, st);
    if (st == ST_OK) {
        s->folder.lock_fd = -1;
        s->mode = automatic ? SHARE_SHARD : mode;
        st = list_models(prepared, s, fingerprints);
        st = agree(&g, st);
    }
    if (st == ST_OK && s->n)
        st = check_room(&g, fingerprints, automatic, &room);
    bool stages = st == ST_OK && s->n && room;
    if (stages)
        st = stage_all(&g, fingerprints);
    else if (st == ST_OK && s->n && seat->me.rank == 0)
        log_warn("weights.share: auto: a node has no room for the weights in %s: every cell reads them itself", stage_folder_base());
    free(g.parts);
    free(g.host_of);
    if (st == ST_OK && stages)
        *out = s;
    else
        staging_close(s);
    return st;
}

void staging_close(struct staging *s)
{
    if (!s)
        return;
    stage_folder_remove(&s->folder);
    free(s);
}
