/* simulate.c — `qsweep simulate`: how long a sweep takes on a fleet, on paper. */
#include "base/clock.h"
#include "base/log.h"
#include "cmd/command.h"
#include "cmd/guard.h"
#include "launch/cost_model.h"
#include "launch/progress.h"
#include "launch/simulation.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help_text[] =
    "usage: qsweep simulate --cost-model FILE [--ranks N] [--cells N] [options]\n"
    "\n"
    "Plans that many cells, lets the real scheduler hand them to that many ranks on paper, and prints makespan, idle share\n"
    "and the load on rank 0, static against dynamic. Costs of single cells are drawn from the model; what rank 0 needs\n"
    "for a message is measured here, on this machine, with the code that does it.\n"
    "\n"
    "  --cost-model FILE  JSON, or a merged sweep (*.h5) whose cells' lives are drawn from\n"
    "  --ranks N          1 to 1048576 (default 64)\n"
    "  --cells N          2 to 1000000, in pairs of two precisions (default 10000)\n"
    "  --unknown-costs    the scheduler does not know the precisions' mean times and counts frames instead\n"
    "  --seed N           of the draw (default 1)\n"
    "  -o md|json         default md\n"
    "\n"
    "A cost model:\n"
    "  { \"seconds\": {\"bf16\": 40, \"int8\": 25},       mean life of a worker, by precision; the only key that must be there\n"
    "    \"spread\": 0.3,                             sigma of a log-normal factor of mean 1\n"
    "    \"straggler\": {\"share\": 0.01, \"factor\": 5}, some cells take that much longer\n"
    "    \"kinds\": [{\"share\": 1, \"speed\": 1}, {\"share\": 1, \"speed\": 0.6}],   GPU models among the ranks\n"
    "    \"launch_s\": 0.02, \"message_us\": 20 }       between two workers; between two ranks\n"
    "\n"
    "examples:\n"
    "  qsweep simulate --ranks 4096 --cells 100000 --cost-model costs.json\n"
    "  qsweep simulate --ranks 256 --cells 20000 --cost-model results/precision/sweep.h5 -o json\n";

struct request {
    const char *model;
    int         ranks;
    long        cells;
    uint64_t    seed;
    bool        json, unknown;
};

static status_t parse(int argc, char **argv, struct request *out)
{
    enum { OPT_MODEL = 1000, OPT_RANKS, OPT_CELLS, OPT_SEED, OPT_UNKNOWN };
    static const struct option options[] = {
        {"cost-model", required_argument, NULL, OPT_MODEL}, {"ranks", required_argument, NULL, OPT_RANKS},
        {"cells", required_argument, NULL, OPT_CELLS},      {"seed", required_argument, NULL, OPT_SEED},
        {"unknown-costs", no_argument, NULL, OPT_UNKNOWN},  {"format", required_argument, NULL, 'o'},
        {0},
    };
    struct request r = {.ranks = 64, .cells = 10000, .seed = 1};
    char          *end;
    for (int c; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;) {
        long long n = optarg ? strtoll(optarg, &end, 10) : 0;
        bool      number = optarg && *optarg && !*end;
        switch (c) {
        case OPT_MODEL:
            r.model = optarg;
            break;
        case OPT_RANKS:
            if (!number || n < 1 || n > RANKS_MAX)
                return FAIL(ST_EUSAGE, "--ranks %s: want a whole number from 1 to %d", optarg, (int)RANKS_MAX);
            r.ranks = (int)n;
            break;
        case OPT_CELLS:
            if (!number || n < 2 || n > PLAN_CELLS_MAX)
                return FAIL(ST_EUSAGE, "--cells %s: want a whole number from 2 to %d", optarg, (int)PLAN_CELLS_MAX);
            r.cells = (long)n;
            break;
        case OPT_SEED:
            if (!number || n < 0)
                return FAIL(ST_EUSAGE, "--seed %s: want a whole number from 0", optarg);
            r.seed = (uint64_t)n;
            break;
        case OPT_UNKNOWN:
            r.unknown = true;
            break;
        case 'o':
            r.json = strcmp(optarg, "json") == 0;
            if (!r.json && strcmp(optarg, "md") != 0)
                return FAIL(ST_EUSAGE, "-o %s: want md or json", optarg);
            break;
        default:
            return FAIL(ST_EUSAGE, "`qsweep help simulate` explains the options");
        }
    }
    if (optind != argc || !r.model)
        return FAIL(ST_EUSAGE, "want --cost-model FILE and no other argument; `qsweep help simulate` explains");
    *out = r;
    return ST_OK;
}

/* A plan of at least n cells in groups of the model's precisions, the rest of the last block marked as needing no run. */
static status_t make_plan(const struct cost_model *m, long n, struct plan **out)
{
    static const char prints[1][33] = {"00000000000000000000000000000000"};
    struct plan_input in = {prints, 1, false, NULL, NULL, 0};
    char              yaml[512], names[128] = "";
    int               n_precisions = 0;
    for (int p = 0; p < PRECISION_COUNT; p++)
        if (m->mean_s[p] > 0 && strlen(names) + 16 < sizeof names) {
            if (n_precisions++)
                strcat(names, ", ");
            strcat(names, precision_name((enum precision)p));
        }
    long groups = (n + n_precisions - 1) / n_precisions, batches = 1 + (groups - 1) / 50000, contexts = (groups + batches - 1) / batches;
    snprintf(yaml, sizeof yaml, "model: m\nsweep: {precision: [%s], batch: 1..%ld, context: 0..%ld}\nworkload: {texts: [a]}\ndevice: cpu\n",
             names, batches, contexts - 1);
    struct job *job;
    TRY(job_parse(yaml, strlen(yaml), "simulated job", NULL, 0, NULL, &job));
    status_t st = plan_build(job, &in, out);
    job_close(job);
    return st;
}

/* Seconds that rank 0 needs for one event: taking it in and writing its line, measured on a file that is gone at once. */
static status_t measure_event(const struct plan *plan, double *out)
{
    enum { EVENTS = 4000 };
    char dir[] = "/tmp/qsweep-simulate-XXXXXX", path[64];
    if (!mkdtemp(dir))
        return FAIL(ST_EIO, "cannot make a folder in /tmp");
    struct progress *p;
    status_t         st = progress_open(dir, plan, 0, 3 * plan->n, true, &p);
    if (st == ST_OK) {
        struct progress_event e = {.host = "node0001", .rank = 7, .seconds = 1.5};
        int64_t               t0 = clock_ns();
        for (int i = 0; i < EVENTS; i++) {
            e.kind = i % 3;
            e.status = e.kind == PROGRESS_START ? CELL_PENDING : CELL_OK;
            e.cell = (uint64_t)i % plan->n;
            e.process = 0;
            progress_event(p, &e);
        }
        *out = (double)(clock_ns() - t0) * 1e-9 / EVENTS;
        progress_close(p);
    }
    snprintf(path, sizeof path, "%s/progress.jsonl", dir);
    unlink(path);
    rmdir(dir);
    return st;
}

/* ---- the report ---- */

struct report {
    const struct request    *request;
    size_t                   cells;
    double                   plan_s, event_s, ideal_s, work_s;
    struct simulation_result by[2]; /* static, dynamic */
    double                   wall_s[2];
};

static void print_json(const struct report *r)
{
    static const char *const names[] = {"static", "dynamic"};
    printf("{\"ranks\": %d, \"cells\": %zu, \"seed\": %llu, \"plan_s\": %.6f, \"event_s\": %.9f, \"ideal_s\": %.6f, \"work_s\": %.6f",
           r->request->ranks, r->cells, (unsigned long long)r->request->seed, r->plan_s, r->event_s, r->ideal_s, r->work_s);
    for (int i = 0; i < 2; i++) {
        const struct simulation_result *s = &r->by[i];
        printf(",\n \"%s\": {\"makespan_s\": %.6f, \"idle_share\": %.6f, \"cells\": %zu, \"messages\": %zu, \"requests\": %zu, "
               "\"told_to_wait\": %zu, \"collector_busy_s\": %.6f, \"peak_messages_per_s\": %.0f, \"wait_mean_s\": %.6f, "
               "\"wait_max_s\": %.6f, \"decide_s\": %.6f, \"simulated_in_s\": %.6f}",
               names[i], s->makespan_s, s->idle_share, s->cells, s->messages, s->requests, s->unanswered, s->collector_busy_s,
               s->peak_per_s, s->wait_mean_s, s->wait_max_s, s->decide_s, r->wall_s[i]);
    }
    puts("}");
}

static void row(const char *name, const char *format, double a, double b)
{
    char left[32], right[32];
    snprintf(left, sizeof left, format, a);
    snprintf(right, sizeof right, format, b);
    printf("| %-44s | %12s | %12s |\n", name, left, right);
}

static void print_table(const struct report *r)
{
    const struct simulation_result *s = &r->by[0], *d = &r->by[1];
    printf("%zu cells on %d ranks: %.0f s of work, at best %.1f s. Planned in %.3f s; an event costs rank 0 %.1f us.\n\n", r->cells,
           r->request->ranks, r->work_s, r->ideal_s, r->plan_s, r->event_s * 1e6);
    printf("| %-44s | %12s | %12s |\n|%.46s|%.14s|%.14s|\n", "", "static", "dynamic",
           "----------------------------------------------", "-------------:", "-------------:");
    row("makespan, s", "%.1f", s->makespan_s, d->makespan_s);
    row("idle share of the ranks, %", "%.2f", 100 * s->idle_share, 100 * d->idle_share);
    row("messages to rank 0", "%.0f", (double)s->messages, (double)d->messages);
    row("most of them in one second", "%.0f", s->peak_per_s, d->peak_per_s);
    row("rank 0 at its mail, % of the makespan", "%.3f", 100 * s->collector_busy_s / s->makespan_s,
        100 * d->collector_busy_s / d->makespan_s);
    row("requests told to wait", "%.0f", (double)s->unanswered, (double)d->unanswered);
    row("request to order, mean ms", "%.2f", 1e3 * s->wait_mean_s, 1e3 * d->wait_mean_s);
    row("request to order, most ms", "%.2f", 1e3 * s->wait_max_s, 1e3 * d->wait_max_s);
    row("scheduler's own time here, ms", "%.2f", 1e3 * s->decide_s, 1e3 * d->decide_s);
    row("simulated in, s", "%.2f", r->wall_s[0], r->wall_s[1]);
}

/* ---- the whole ---- */

static status_t simulate(const struct request *request, const struct cost_model *m)
{
    struct report r = {.request = request};
    struct plan  *plan = NULL;
    double       *seconds = NULL, *known = NULL, *speed = calloc((size_t)request->ranks, sizeof *speed), speeds = 0;
    bool         *skip = NULL;
    status_t      st = ST_OK;
    int64_t       t0 = clock_ns();
    TRY_OUT(make_plan(m, request->cells, &plan));
    r.plan_s = clock_ms_since(t0) * 1e-3;
    r.cells = (size_t)request->cells;
    seconds = calloc(plan->n, sizeof *seconds);
    known = calloc(plan->n, sizeof *known);
    skip = calloc(plan->n, sizeof *skip);
    if (!seconds || !known || !skip || !speed) {
        st = FAIL(ST_ENOMEM, "no memory to simulate %zu cells", plan->n);
        goto out;
    }
    for (size_t i = 0; i < plan->n; i++) {
        skip[i] = i >= r.cells;
        known[i] = m->mean_s[plan->cells[i].precision];
        seconds[i] = cost_model_seconds(m, plan->cells[i].precision, request->seed, i);
        r.work_s += skip[i] ? 0 : seconds[i];
    }
    for (int k = 0; k < request->ranks; k++)
        speeds += speed[k] = cost_model_speed(m, k, request->ranks);
    r.ideal_s = r.work_s / speeds;
    TRY_OUT(measure_event(plan, &r.event_s));
    struct schedule_input schedule = {
        .plan = plan,
        .skip = skip,
        .n_ranks = request->ranks,
        .n_kinds = 1,
        .cost = request->unknown ? NULL : known,
        .split = true,
    };
    struct simulation_input in = {&schedule, seconds, speed, m->launch_s, m->message_us * 1e-6, r.event_s};
    for (int i = 0; i < 2; i++) {
        t0 = clock_ns();
        TRY_OUT(i ? simulate_dynamic(&in, &r.by[1]) : simulate_static(&in, &r.by[0]));
        r.wall_s[i] = clock_ms_since(t0) * 1e-3;
    }
    request->json ? print_json(&r) : print_table(&r);
out:
    plan_close(plan);
    free(seconds);
    free(known);
    free(skip);
    free(speed);
    return st;
}

static int work(void *context)
{
    const struct request *r = context;
    struct cost_model     m;
    status_t              st = cost_model_load(r->model, &m);
    if (st == ST_OK) {
        st = simulate(r, &m);
        cost_model_free(&m);
    }
    if (st == ST_OK && fflush(stdout) != 0)
        st = FAIL(ST_EIO, "standard output cannot be written");
    return status_exit(st);
}

static int run(int argc, char **argv)
{
    struct request r;
    status_t       st = parse(argc, argv, &r);
    if (st != ST_OK)
        return status_exit(st);
    size_t n = strlen(r.model);
    return n > 3 && strcmp(r.model + n - 3, ".h5") == 0 ? guarded(&r.model, 1, work, &r) : work(&r);
}

const struct command command_simulate = {
    .name = "simulate", .summary = "a sweep on a fleet, on paper: makespan, idle share, rank 0's load", .help = help_text, .run = run};
