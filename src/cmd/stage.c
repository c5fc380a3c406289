/* stage.c — `qsweep stage`: read one part of a model's weights, quantize it, write it into a node's shared file. */
#include "base/clock.h"
#include "bench/worker.h"
#include "cmd/command.h"
#include "model/stage_file.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct request {
    const char *model, *hash, *file, *report;
    enum recipe recipe;
    int         part, n_parts, n_threads;
};

static status_t parse(int argc, char **argv, struct request *out)
{
    static const struct option options[] = {{"recipe", required_argument, NULL, 'r'},  {"part", required_argument, NULL, 'p'},
                                            {"threads", required_argument, NULL, 't'}, {"file", required_argument, NULL, 'f'},
                                            {"report", required_argument, NULL, 'o'},  {"hash", required_argument, NULL, 'h'},
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
    TRY_OUT(open_file(&f, r->file, &fd));
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
            "written, and the part's checksum. Started by `run` with weights.share: shard or shared.\n",
    .run = run,
    .internal = true,
};
