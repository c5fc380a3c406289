/* stage.c — `qsweep stage`: read one part of a model's weights, quantize it, write it into a node's shared file. */
#include "backend/peer.h"
#include "base/clock.h"
#include "base/file.h"
#include "bench/worker.h"
#include "cmd/command.h"
#include "launch/staging.h"
#include "model/stage_file.h"
#include "store/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct request {
    const char *model, *hash, *file, *report, *id, *host_of;
    enum recipe recipe;
    int         part, n_parts, n_threads;
    int         peer, n_peers, device; /* n_peers > 0: carry the file between n_peers processes with a GPU each */
    bool        create;
};

static status_t parse(int argc, char **argv, struct request *out)
{
    static const struct option options[] = {{"recipe", required_argument, NULL, 'r'},  {"part", required_argument, NULL, 'p'},
                                            {"threads", required_argument, NULL, 't'}, {"file", required_argument, NULL, 'f'},
                                            {"report", required_argument, NULL, 'o'},  {"hash", required_argument, NULL, 'h'},
                                            {"peer", required_argument, NULL, 'P'},   {"parts", required_argument, NULL, 'n'},
                                            {"id", required_argument, NULL, 'i'},     {"host-of", required_argument, NULL, 'H'},
                                            {"device", required_argument, NULL, 'd'}, {"create", no_argument, NULL, 'c'},
                                            {0}};
    struct request r = {.n_parts = 1, .hash = ""};
    int            used = 0;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (c) {
        case 'r':
            for (r.recipe = RECIPE_NONE; r.recipe <= RECIPE_LEGACY && strcmp(optarg, recipe_name(r.recipe)) != 0;)
                r.recipe = (enum recipe)(r.recipe + 1);
            if (r.recipe > RECIPE_LEGACY)
                return FAIL(ST_EUSAGE, "--recipe %s: want none, torchao, torchao-v2 or legacy", optarg);
            break;
        case 'p':
            if (sscanf(optarg, "%7d/%7d%n", &r.part, &r.n_parts, &used) != 2 || optarg[used] || r.n_parts < 1 || r.part < 0 ||
                r.part >= r.n_parts)
                return FAIL(ST_EUSAGE, "--part %s: want I/N, parts are numbered from 0", optarg);
            break;
        case 't':
            r.n_threads = atoi(optarg);
            break;
        case 'P':
            if (sscanf(optarg, "%7d/%7d%n", &r.peer, &r.n_peers, &used) != 2 || optarg[used] || r.n_peers < 1 || r.peer < 0 ||
                r.peer >= r.n_peers)
                return FAIL(ST_EUSAGE, "--peer %s: want I/N, processes are numbered from 0", optarg);
            break;
        case 'n':
            r.n_parts = atoi(optarg);
            if (r.n_parts < 1 || r.n_parts > 1 << 20)
                return FAIL(ST_EUSAGE, "--parts %s: want a number from 1 to %d", optarg, 1 << 20);
            break;
        case 'i':
            r.id = optarg;
            break;
        case 'H':
            r.host_of = optarg;
            break;
        case 'd':
            r.device = atoi(optarg);
            break;
        case 'c':
            r.create = true;
            break;
        case 'h':
            r.hash = optarg;
            break;
        case 'f':
            r.file = optarg;
            break;
        case 'o':
            r.report = optarg;
            break;
        default:
            return FAIL(ST_EUSAGE, "`qsweep help stage` explains the options");
        }
    if (optind + 1 != argc || !r.file || !r.report)
        return FAIL(ST_EUSAGE, "want qsweep stage MODEL --file FILE --report FILE [--recipe R] [--part I/N]");
    if (r.n_peers && !r.id)
        return FAIL(ST_EUSAGE, "--peer needs --id FILE, where process 0 leaves the group's id");
    r.model = argv[optind];
    *out = r;
    return ST_OK;
}

static status_t write_report(const char *path, double init_s, const struct stage_times *t, const unsigned char digest[16])
{
    FILE *f = fopen(path, "wxe");
    bool  good = f && fprintf(f, "%.9f %.9f %.9f %zu %zu ", init_s, t->read_s, t->quantize_s, t->bytes_read, t->bytes_written) > 0;
    for (int i = 0; good && i < 16; i++)
        good = fprintf(f, "%02x", digest[i]) == 2;
    int error = errno;
    if (f && fclose(f) != 0)
        good = false;
    return good ? ST_OK : FAIL(ST_EIO, "cannot write %s: %s", path, strerror(error));
}

/* A file of the right size with its header, for a run by hand; the launcher makes its own. */
static status_t create_file(const struct stage_file *f, const char *path)
{
    int  fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool good = fd >= 0 && pwrite(fd, f->head, f->head_bytes, 0) == (ssize_t)f->head_bytes;
    int  error = good ? posix_fallocate(fd, 0, (off_t)f->bytes) : errno;
    if (fd >= 0)
        close(fd);
    return error ? FAIL(ST_EIO, "cannot make %s of %zu bytes: %s", path, f->bytes, strerror(error)) : ST_OK;
}

/* The file must be there in the size that the plan says: its maker and this process mean the same model. */
static status_t open_file(const struct stage_file *f, const char *path, int *out)
{
    struct stat info;
    int         fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return FAIL(ST_EIO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || (size_t)info.st_size != f->bytes) {
        close(fd);
        return FAIL(ST_EINPUT, "%s: want a file of %zu bytes for this model", path, f->bytes);
    }
    *out = fd;
    return ST_OK;
}

/* ---- between GPUs ---- */

struct gpu_carrier {
    const struct peer_ops *ops;
    struct peer           *peer;
};

static status_t gpu_broadcast(void *ctx, void *data, size_t bytes, int root, struct exchange_times *times)
{
    const struct gpu_carrier *c = ctx;
    struct peer_times         t = {0};
    TRY(c->ops->broadcast(c->peer, data, bytes, root, &t));
    times->copy_s += t.copy_s;
    times->transfer_s += t.transfer_s;
    return ST_OK;
}

static status_t gpu_all_gather(void *ctx, const void *send, size_t bytes, void *recv, struct exchange_times *times)
{
    const struct gpu_carrier *c = ctx;
    struct peer_times         t = {0};
    TRY(c->ops->all_gather(c->peer, send, bytes, recv, &t));
    times->copy_s += t.copy_s;
    times->transfer_s += t.transfer_s;
    return ST_OK;
}

/* Process 0 makes the id and leaves it in a file, the others wait for that. */
static status_t meet(const struct request *r, const struct peer_ops *ops, struct peer **out)
{
    unsigned char id[PEER_ID_BYTES];
    if (r->peer == 0) {
        TRY(ops->make_id(id));
        TRY(atomic_write(r->id, &(struct piece){id, sizeof id}, 1));
    } else {
        char   *bytes;
        size_t  size;
        int64_t until = clock_ns() + 60 * (int64_t)1000000000;
        while (!file_exists(r->id) && clock_ns() < until)
            usleep(10000);
        TRY(file_read(r->id, sizeof id, &bytes, &size));
        if (size == sizeof id)
            memcpy(id, bytes, size);
        free(bytes);
        if (size != sizeof id)
            return FAIL(ST_EINPUT, "%s: no id of a group", r->id);
    }
    return ops->open(id, r->peer, r->n_peers, r->device, out);
}

/* Which process has which part: by default each its own, or process 0 the only one. */
static status_t read_hosts(const struct request *r, int **out)
{
    int  *host_of = calloc((size_t)r->n_parts, sizeof *host_of);
    char *bytes = NULL;
    size_t size = 0;
    if (!host_of)
        return FAIL(ST_ENOMEM, "no memory for %d parts", r->n_parts);
    for (int p = 0; p < r->n_parts; p++)
        host_of[p] = p % r->n_peers;
    status_t st = r->host_of ? file_read(r->host_of, (size_t)r->n_parts * sizeof *host_of, &bytes, &size) : ST_OK;
    if (st == ST_OK && r->host_of && size != (size_t)r->n_parts * sizeof *host_of)
        st = FAIL(ST_EINPUT, "%s: want %d numbers of processes", r->host_of, r->n_parts);
    if (st == ST_OK && r->host_of)
        memcpy(host_of, bytes, size);
    for (int p = 0; st == ST_OK && p < r->n_parts; p++)
        if (host_of[p] < 0 || host_of[p] >= r->n_peers)
            st = FAIL(ST_EINPUT, "%s: part %d is with process %d of %d", r->host_of, p, host_of[p], r->n_peers);
    free(bytes);
    if (st == ST_OK)
        *out = host_of;
    else
        free(host_of);
    return st;
}

/* The report of a peer has copy, transfer and received bytes where that of a part has reading, quantizing, bytes read. */
static status_t carry(const struct request *r, const struct stage_file *f, int fd, int64_t began)
{
    struct gpu_carrier      gpus = {.ops = peer_ops()};
    struct exchange_carrier by = {gpu_broadcast, gpu_all_gather, &gpus, SIZE_MAX / 2};
    struct exchange_times   moved = {0};
    static const unsigned char none[16];
    unsigned char          *map = MAP_FAILED;
    int                    *host_of = NULL;
    double                  init_s = 0;
    status_t                st = gpus.ops ? ST_OK : FAIL(ST_EUNSUPPORTED, "this qsweep was built without CUDA");
    TRY_OUT(st);
    TRY_OUT(read_hosts(r, &host_of));
    map = mmap(NULL, f->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        st = FAIL(ST_EIO, "%s: cannot map it: %s", r->file, strerror(errno));
        goto out;
    }
    TRY_OUT(meet(r, gpus.ops, &gpus.peer));
    init_s = (double)(clock_ns() - began) * 1e-9;
    TRY_OUT(staging_exchange(&by, r->peer, r->n_peers, f, r->n_parts, host_of, map, &moved));
    st = write_report(r->report, init_s, &(struct stage_times){moved.copy_s, moved.transfer_s, moved.bytes, f->bytes}, none);
out:
    if (gpus.ops)
        gpus.ops->close(gpus.peer);
    if (map != MAP_FAILED)
        munmap(map, f->bytes);
    free(host_of);
    return st;
}

static status_t stage(const struct request *r)
{
    struct checkpoint *c = NULL;
    struct stage_file  f = {0};
    struct stage_times times;
    unsigned char      digest[16];
    int                fd = -1;
    int64_t            began = worker_exec_ns();
    status_t           st = ST_OK;
    TRY_OUT(checkpoint_open(r->model, &c));
    TRY_OUT(stage_file_plan(c, r->recipe, r->hash, &f));
    if (r->create)
        TRY_OUT(create_file(&f, r->file));
    TRY_OUT(open_file(&f, r->file, &fd));
    if (r->n_peers) {
        st = carry(r, &f, fd, began);
        goto out;
    }
    double init_s = (double)(clock_ns() - began) * 1e-9;
    TRY_OUT(stage_file_fill(&f, r->part, r->n_parts, r->n_threads, fd, &times, digest));
    st = write_report(r->report, init_s, &times, digest);
out:
    if (fd >= 0)
        close(fd);
    stage_file_free(&f);
    checkpoint_close(c);
    return st;
}

static int run(int argc, char **argv)
{
    struct request r = {0};
    status_t       st = parse(argc, argv, &r);
    return status_exit(st == ST_OK ? stage(&r) : st);
}

const struct command command_stage = {
    .name = "stage",
    .summary = "one part of a model's weights into a node's shared file (internal)",
    .help = "usage: qsweep stage MODEL --file FILE --report FILE [--recipe R --hash FINGERPRINT] [--part I/N] [--threads N]\n"
            "\n"
            "Reads part I of N of the weights, quantizes them by the recipe (torchao, torchao-v2, legacy; none) and writes them into FILE, which `qsweep run` has\n"
            "made in its full size; the report has the seconds of start, reading and quantizing, the bytes read and\n"
            "written, and the part's checksum. --create makes FILE first.\n"
            "\n"
            "With --peer I/N --parts P --id FILE [--device GPU] it carries the parts between N such processes instead, through\n"
            "NCCL: part p is with process p modulo N, or as the numbers in --host-of FILE say. Started by `run` with weights.share: shard or shared.\n",
    .run = run,
    .internal = true,
};
