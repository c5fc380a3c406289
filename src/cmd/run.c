/* run.c — `qsweep run`: the sweep of a job file. */
#include "bench/facts.h"
#include "cmd/command.h"
#include "launch/fabric.h"
#include "launch/launcher.h"
#include "sweep/job.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOCAL_RANKS_MAX = 65536, SETS_MAX = 256 };

struct arguments {
    struct launch launch;
    const char   *set[SETS_MAX];
    int           ranks; /* 0 = as we are */
};

static status_t parse_count(const char *option, const char *text, long least, long most, long *out)
{
    char *end;
    long  n = strtol(text, &end, 10);
    if (!*text || *end || n < least || n > most)
        return FAIL(ST_EUSAGE, "%s %s: want a whole number from %ld to %ld", option, text, least, most);
    *out = n;
    return ST_OK;
}

/* "oom,invalid" → bits. */
static status_t parse_keep(const char *text, unsigned *out)
{
    for (const char *at = text; *at;) {
        char   name[32];
        size_t n = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)(n < 31 ? n : 31), at);
        int status = cell_status_parse(name);
        if (status < 0 || status == CELL_PENDING)
            return FAIL(ST_EUSAGE,
                        "--keep %s: \"%s\" is no status; want oom, crashed, timeout, invalid, interrupted or "
                        "contaminated, separated by commas",
                        text, name);
        *out |= 1u << status;
        at += n + (at[n] == ',');
    }
    return ST_OK;
}

/* "2/8". */
static status_t parse_shard(const char *text, int *shard, int *n_shards)
{
    int  i, n, used = 0;
    bool good = sscanf(text, "%7d/%7d%n", &i, &n, &used) == 2 && !text[used] && text[0] != '+' && text[0] != ' ';
    if (!good || n < 1 || n > LOCAL_RANKS_MAX || i < 0 || i >= n)
        return FAIL(ST_EUSAGE, "--shard %s: want I/N, parts are numbered from 0: --shard 0/4 … --shard 3/4", text);
    *shard = i;
    *n_shards = n;
    return ST_OK;
}

static status_t parse(int argc, char **argv, struct arguments *out)
{
    enum { OPT_DRY = 1000, OPT_RESUME, OPT_KEEP, OPT_RANKS, OPT_LOCK, OPT_GRACE, OPT_OUTPUT, OPT_SHARD };
    static const struct option options[] = {
        {"set", required_argument, NULL, 's'},
        {"output", required_argument, NULL, OPT_OUTPUT},
        {"format", required_argument, NULL, 'o'},
        {"dry-run", no_argument, NULL, OPT_DRY},
        {"resume", no_argument, NULL, OPT_RESUME},
        {"keep", required_argument, NULL, OPT_KEEP},
        {"ranks", required_argument, NULL, OPT_RANKS},
        {"quiet", no_argument, NULL, 'q'},
        {"verbose", no_argument, NULL, 'v'},
        {"take-lock", no_argument, NULL, OPT_LOCK},
        {"grace", required_argument, NULL, OPT_GRACE},
        {"shard", required_argument, NULL, OPT_SHARD},
        {0},
    };
    struct launch *l = &out->launch;
    long           n;
    bool           format = false;
    l->grace_s = 30;
    for (int c; (c = getopt_long(argc, argv, "s:o:qv", options, NULL)) != -1;)
        switch (c) {
        case 's':
            if (l->n_set == SETS_MAX)
                return FAIL(ST_EUSAGE, "more than %d --set", SETS_MAX);
            out->set[l->n_set++] = optarg;
            break;
        case 'o':
            l->dry_run_ids = strcmp(optarg, "ids") == 0;
            if (!l->dry_run_ids && strcmp(optarg, "md") != 0)
                return FAIL(ST_EUSAGE, "-o %s: the plan is printed as md or ids; --output DIR says where results go",
                            optarg);
            format = true;
            break;
        case OPT_OUTPUT:
            l->output = optarg;
            break;
        case 'q':
            l->quiet = true;
            break;
        case 'v':
            l->forward = true;
            break;
        case OPT_DRY:
            l->dry_run = true;
            break;
        case OPT_RESUME:
            l->resume = true;
            break;
        case OPT_LOCK:
            l->take_lock = true;
            break;
        case OPT_KEEP:
            TRY(parse_keep(optarg, &l->keep));
            break;
        case OPT_SHARD:
            TRY(parse_shard(optarg, &l->shard, &l->n_shards));
            break;
        case OPT_RANKS:
            TRY(parse_count("--ranks", optarg, 1, LOCAL_RANKS_MAX, &n));
            out->ranks = (int)n;
            break;
        case OPT_GRACE:
            TRY(parse_count("--grace", optarg, 0, 86400, &n));
            l->grace_s = (double)n;
            break;
        default:
            return FAIL(ST_EUSAGE, "`qsweep help run` explains the options");
        }
    if (optind + 1 != argc)
        return FAIL(ST_EUSAGE, "want one job file: qsweep run JOB.yaml; `qsweep help run` explains");
    if (format && !l->dry_run)
        return FAIL(ST_EUSAGE, "-o goes with --dry-run; --output DIR says where results go");
    if (l->output && (!l->output[0] || strlen(l->output) >= JOB_PATH_MAX))
        return FAIL(ST_EUSAGE, "--output: want a folder");
    l->set = out->set;
    l->job_path = argv[optind];
    return ST_OK;
}

/* The arguments without --ranks, for the program that mpirun starts. */
static status_t hand_over(int ranks, int argc, char **argv)
{
    char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int    n = 0;
    if (!rest)
        return FAIL(ST_ENOMEM, "no memory for a command line");
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--ranks") == 0)
            i++;
        else if (strncmp(argv[i], "--ranks=", 8) != 0)
            rest[n++] = argv[i];
    }
    status_t st = launcher_exec_mpirun(ranks, rest);
    free(rest);
    return st;
}

static int run(int argc, char **argv)
{
    struct arguments *a = calloc(1, sizeof *a);
    if (!a)
        return 1;
    char   **original = malloc((size_t)(argc + 1) * sizeof *original); /* getopt reorders argv */
    status_t st = original ? ST_OK : FAIL(ST_ENOMEM, "no memory for a command line");
    if (st == ST_OK) {
        memcpy(original, argv, (size_t)(argc + 1) * sizeof *original);
        st = parse(argc, argv, a);
    }
    if (st == ST_OK && a->ranks && getenv("OMPI_COMM_WORLD_SIZE"))
        st = FAIL(ST_EUSAGE, "--ranks starts mpirun itself; under mpirun leave it out");
    if (st == ST_OK && a->ranks)
        st = hand_over(a->ranks, argc, original);
    int exit_status = status_exit(st);
    if (st == ST_OK) {
        char *typed = facts_command(argc, original), *command = malloc((typed ? strlen(typed) : 0) + 32);
        if (command)
            sprintf(command, "%s %s", strcmp(fabric_name(), "mpi") == 0 ? "qsweep-mpi" : "qsweep",
                    typed ? typed : "run");
        a->launch.command = command ? command : "";
        exit_status = launcher_run(&a->launch, &argc, &argv);
        free(command);
        free(typed);
    }
    free(original);
    free(a);
    return exit_status;
}

const struct command command_run = {
    .name = "run",
    .summary = "measure every cell of a job file's sweep",
    .help =
        "usage: qsweep run JOB.yaml [options]\n"
        "       mpirun -n N qsweep-mpi run JOB.yaml [options]\n"
        "\n"
        "Every combination of the job's sweep is a cell; every cell is measured in a fresh process of its own. "
        "Results\n"
        "are one file a cell below OUTPUT/cells and, at the end, OUTPUT/sweep.h5. A cell that fails (out of memory, "
        "crash,\n"
        "deadline) is a row with its status and reason, and stops no other.\n"
        "\n"
        "  --set KEY=VALUE    change the job, e.g. --set workload.samples=3 --set sweep.batch='[1, 4]'; repeatable\n"
        "  --output DIR       where results go (default: the job's `output`)\n"
        "  --dry-run          print the plan, measure nothing; -o ids prints the cells' ids alone, in order\n"
        "  --resume           go on in an existing OUTPUT: cells that are ok stay, all others run again\n"
        "  --keep LIST        with --resume: cells of these statuses stay as well, e.g. --keep oom,invalid\n"
        "  --shard I/N        only part I (0 to N-1) of N disjoint parts of the sweep, each to an OUTPUT of its own, "
        "for job\n"
        "                     arrays; `qsweep merge` joins the folders. Cells that differ in precision alone stay "
        "together\n"
        "  --ranks N          start N ranks on this machine through mpirun (needs qsweep-mpi beside qsweep)\n"
        "  --grace SECONDS    after SIGUSR1: how long running cells may go on (default 30)\n"
        "  --take-lock        take over an OUTPUT that a launcher on another, certainly dead, host holds\n"
        "  -q, --quiet        no progress, only problems\n"
        "  -v, --verbose      show what workers say while they run\n"
        "\n"
        "SIGUSR1: no new cell, finish or drop the running one, merge, exit. SIGTERM, SIGINT: drop it, exit at once. "
        "Either\n"
        "way --resume goes on. OUTPUT/progress.jsonl has every event; OUTPUT/lock says who is at work.\n"
        "Exit status: 0 every cell is ok, 1 failed, 2 usage, 3 finished but some cells are not ok.\n"
        "\n"
        "examples:\n"
        "  qsweep run jobs/precision.yaml --dry-run\n"
        "  qsweep run jobs/precision.yaml --output results/mine --set device=cpu\n"
        "  qsweep run jobs/precision.yaml --output results/mine --resume\n"
        "  qsweep run jobs/precision.yaml --ranks 4\n",
    .more_help = job_help,
    .run = run,
};
