/* compare.c — `qsweep compare`: the cells of two sweeps, or two values of one axis, with verdicts and an exit status. */
#include "bench/comparison_print.h"
#include "base/log.h"
#include "cmd/command.h"
#include "cmd/guard.h"
#include "store/sweep_file.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { METRICS_MAX = 32, RULES_MAX = 32, EXIT_REGRESSION = 4 };

static const char help_text[] =
    "usage: qsweep compare A B [options]\n"
    "       qsweep compare SWEEP --axis AXIS --from VALUE [--to VALUE] [options]\n"
    "\n"
    "A, B and SWEEP are merged files or results folders that hold sweep.h5. Cells of two sweeps are paired by id: the same\n"
    "model, axes and workload on any machine. Along an axis, cells are paired that differ in it alone.\n"
    "\n"
    "Every verdict is faster, slower, same, unclear or too few. Samples of the same text and repeat are compared as ratios;\n"
    "how sure that is comes from the spread between processes (workload.processes), not between samples, which repeat each\n"
    "other's error. With one process a cell only large differences can be told; three to eight are better. p-values are\n"
    "corrected for the number of rows (Holm). Outliers are kept and named in the notes; so are drift and throttling.\n"
    "\n"
    "      --axis AXIS         compare along an axis (precision, kv, batch, engine, codec, ..., or model)\n"
    "      --from V, --to V    its values; without --to every other value\n"
    "      --metric LIST       latency, frames, step, prefill, codec, first-audio, rtf, energy (of every sample);\n"
    "                          vram, vram-baseline, process, device (counted, exact); default latency,vram\n"
    "      --margin PERCENT    differences up to this do not matter (default 1)\n"
    "      --process-noise P   offset of a process believed before measuring, in percent (default 0.3)\n"
    "      --fail-on WHAT:P%   exit with 4 when WHAT is worse by P % or more, and certainly so: slower (any metric of\n"
    "                          samples compared) or a metric, e.g. slower:2% or vram:1%; a candidate that failed where\n"
    "                          the baseline did not counts as well; repeatable\n"
    "  -o, --output FORMAT     md (default), csv, json, jsonl\n"
    "      --force             read files that were changed since they were merged\n"
    "\n"
    "Where the candidates have quality figures (workload.quality: on), a second table shows them with their gates.\n"
    "Exit status: 0 compared; 4 a --fail-on rule was broken; 1 nothing could be compared or a file is no sweep; 2 usage.\n"
    "\n"
    "examples\n"
    "  qsweep compare results/main results/branch --fail-on slower:2% --fail-on vram:1%\n"
    "  qsweep compare results/compare --axis precision --from bf16 --to int8\n"
    "  qsweep compare sweep.h5 --axis batch --from 1 --metric step,frames -o csv\n";

struct request {
    const char               *paths[2];
    int                       n_paths;
    const char               *axis, *from, *to;
    const struct metric      *metrics[METRICS_MAX];
    struct fail_rule          rules[RULES_MAX];
    size_t                    n_rules;
    struct comparison_options options;
    enum summary_format       format;
    bool                      force;
};

/* ---- arguments --------------------------------------------------------------------------------------------------- */

static status_t add_metric(struct request *r, const struct metric *m)
{
    for (size_t i = 0; i < r->options.n_metrics; i++)
        if (r->metrics[i] == m)
            return ST_OK;
    if (r->options.n_metrics == METRICS_MAX)
        return FAIL(ST_EUSAGE, "more than %d metrics", METRICS_MAX);
    r->metrics[r->options.n_metrics++] = m;
    return ST_OK;
}

static status_t parse_metrics(const char *list, struct request *r)
{
    const char *names[METRICS_MAX];
    for (size_t i = 0; i < metric_count(); i++)
        names[i] = metric_at(i)->name;
    for (const char *at = list; *at;) {
        char   name[40];
        size_t n = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)(n < 39 ? n : 39), at);
        const struct metric *m = metric_find(name);
        if (!m) {
            const char *near = nearest_name(name, names, (int)metric_count());
            return FAIL(ST_EUSAGE, "--metric %s: \"%s\" is no metric%s%s%s; `qsweep help compare` lists them", list, name,
                        near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
        }
        TRY(add_metric(r, m));
        at += n + (at[n] == ',');
    }
    return r->options.n_metrics ? ST_OK : FAIL(ST_EUSAGE, "--metric: want a list such as latency,vram");
}

/* "2" or "2%" → 0.02. */
static status_t parse_percent(const char *option, const char *text, double least, double most, double *out)
{
    char  *end;
    double value = strtod(text, &end);
    if (end == text || (*end && strcmp(end, "%") != 0) || !(value >= least && value <= most))
        return FAIL(ST_EUSAGE, "%s %s: want a percentage from %g to %g", option, text, least, most);
    *out = value / 100;
    return ST_OK;
}

static status_t parse_value(int axis, const char *option, const char *text, union field_value *out)
{
    char why[512];
    return field_parse(&cell_fields[axis], text, out, why, sizeof why) ? ST_OK : FAIL(ST_EUSAGE, "%s: %s", option, why);
}

static status_t parse_axis(struct request *r)
{
    struct comparison_options *o = &r->options;
    o->axis = -1;
    if (!r->axis)
        return r->from || r->to       ? FAIL(ST_EUSAGE, "--from and --to go with --axis")
               : r->n_paths == 2 ? ST_OK
                                      : FAIL(ST_EUSAGE, "want two sweeps, or one and an --axis: qsweep compare SWEEP --axis precision "
                                                        "--from bf16 --to int8");
    if (strcmp(r->axis, "model") == 0) {
        o->axis = COMPARISON_MODEL;
        if (r->from || r->to || r->n_paths != 2)
            return FAIL(ST_EUSAGE, "--axis model compares two sweeps of different models, without --from and --to");
        return ST_OK;
    }
    o->axis = field_find(r->axis);
    if (o->axis < 0) {
        const char *names[FIELD_COUNT], *near;
        for (int i = 0; i < FIELD_COUNT; i++)
            names[i] = cell_fields[i].name;
        near = nearest_name(r->axis, names, FIELD_COUNT);
        return FAIL(ST_EUSAGE, "--axis %s: no such axis%s%s%s; `qsweep help run` lists them", r->axis, near ? " (did you mean " : "",
                    near ? near : "", near ? "?)" : "");
    }
    if (!r->from && (r->n_paths == 1 || r->to))
        return FAIL(ST_EUSAGE, "--axis %s: --from says which value is the baseline", r->axis);
    o->has_from = r->from;
    o->has_to = r->to;
    if (r->from)
        TRY(parse_value(o->axis, "--from", r->from, &o->from));
    if (r->to)
        TRY(parse_value(o->axis, "--to", r->to, &o->to));
    if (r->n_paths == 1 && r->from && r->to && strcmp(r->from, r->to) == 0)
        return FAIL(ST_EUSAGE, "--from %s --to %s: the same value", r->from, r->to);
    return ST_OK;
}

static status_t add_rule(struct request *r, const char *text)
{
    if (r->n_rules == RULES_MAX)
        return FAIL(ST_EUSAGE, "more than %d --fail-on", RULES_MAX);
    return fail_rule_parse(text, &r->rules[r->n_rules++]);
}

static status_t parse(int argc, char **argv, struct request *r)
{
    enum { OPT_AXIS = 256, OPT_FROM, OPT_TO, OPT_METRIC, OPT_MARGIN, OPT_NOISE, OPT_FAIL, OPT_FORCE };
    static const struct option options[] = {{"axis", required_argument, NULL, OPT_AXIS},
                                            {"from", required_argument, NULL, OPT_FROM},
                                            {"to", required_argument, NULL, OPT_TO},
                                            {"metric", required_argument, NULL, OPT_METRIC},
                                            {"margin", required_argument, NULL, OPT_MARGIN},
                                            {"process-noise", required_argument, NULL, OPT_NOISE},
                                            {"fail-on", required_argument, NULL, OPT_FAIL},
                                            {"output", required_argument, NULL, 'o'},
                                            {"force", no_argument, NULL, OPT_FORCE},
                                            {0}};
    verdict_options_init(&r->options.verdict);
    r->options.metrics = r->metrics;
    for (int c, format; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;)
        switch (c) {
        case OPT_AXIS:
            r->axis = optarg;
            break;
        case OPT_FROM:
            r->from = optarg;
            break;
        case OPT_TO:
            r->to = optarg;
            break;
        case OPT_METRIC:
            TRY(parse_metrics(optarg, r));
            break;
        case OPT_MARGIN:
            TRY(parse_percent("--margin", optarg, 0, 50, &r->options.verdict.margin));
            break;
        case OPT_NOISE:
            TRY(parse_percent("--process-noise", optarg, 0, 50, &r->options.verdict.process_noise));
            break;
        case OPT_FAIL:
            TRY(add_rule(r, optarg));
            break;
        case 'o':
            if ((format = summary_format_parse(optarg)) < 0)
                return FAIL(ST_EUSAGE, "-o %s: want md, csv, json or jsonl", optarg);
            r->format = (enum summary_format)format;
            break;
        case OPT_FORCE:
            r->force = true;
            break;
        default:
            return FAIL(ST_EUSAGE, "`qsweep help compare` explains the options");
        }
    r->n_paths = argc - optind;
    if (r->n_paths < 1 || r->n_paths > 2)
        return FAIL(ST_EUSAGE, "want one or two sweeps; `qsweep help compare` explains");
    r->paths[0] = argv[optind];
    r->paths[1] = argv[optind + r->n_paths - 1];
    TRY(parse_axis(r));
    if (!r->options.n_metrics)
        TRY(parse_metrics("latency,vram", r));
    for (size_t i = 0; i < r->n_rules; i++)
        if (r->rules[i].metric)
            TRY(add_metric(r, r->rules[i].metric));
    return ST_OK;
}

/* ---- the comparison ---------------------------------------------------------------------------------------------- */

static status_t read_cell(void *ctx, const char *id, struct result *out)
{
    return sweep_file_cell(ctx, id, out);
}

static status_t open_view(const struct request *r, const char *path, struct sweep_file **file, struct sweep_view *out)
{
    TRY(r->force ? sweep_file_open_changed(path, file) : sweep_file_open(path, file));
    *out = (struct sweep_view){.rows = sweep_file_row(*file, 0), .n = sweep_file_rows(*file), .read = read_cell, .ctx = *file};
    return ST_OK;
}

/* Say what broke a rule; how much did. Without rules nothing can. */
static size_t count_regressions(const struct request *r, const struct comparison *c)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n_rows; i++)
        for (size_t k = 0; k < r->n_rules; k++)
            if (fail_rule_hits(&r->rules[k], &c->rows[i])) {
                const struct comparison_row *row = &c->rows[i];
                log_line(LOG_ERROR, "regression: %s: %s changed by %+.2f %% (limit %g %%)", c->pairs[row->pair].candidate.label,
                         row->metric->title, 100 * row->verdict.effect, 100 * r->rules[k].limit);
                n++;
                break;
            }
    for (size_t i = 0; r->n_rules && i < c->n_pairs; i++)
        if (c->pairs[i].baseline.status == CELL_OK && c->pairs[i].candidate.status != CELL_OK) {
            log_line(LOG_ERROR, "regression: %s: %s, the baseline was ok", c->pairs[i].candidate.label,
                     cell_status_name(c->pairs[i].candidate.status));
            n++;
        }
    return n;
}

static status_t print_all(const struct request *r, const struct comparison *c)
{
    char axis[200] = "";
    if (r->axis)
        snprintf(axis, sizeof axis, "%s: %s -> %s", r->axis, r->from ? r->from : "any", r->to ? r->to : "any other");
    const struct comparison_caption caption = {.baseline = r->paths[0], .candidate = r->paths[1], .axis = axis,
                                               .margin = r->options.verdict.margin, .rules = r->rules, .n_rules = r->n_rules};
    return comparison_print(c, &caption, r->format, stdout);
}

static int compare_files(void *context)
{
    const struct request *r = context;
    struct sweep_file    *a = NULL, *b = NULL;
    struct sweep_view     va, vb;
    struct comparison     c = {0};
    status_t              st = ST_OK;
    int                   exit_status = 0;
    TRY_OUT(open_view(r, r->paths[0], &a, &va));
    if (r->n_paths == 2)
        TRY_OUT(open_view(r, r->paths[1], &b, &vb));
    TRY_OUT(comparison_build(&va, r->n_paths == 2 ? &vb : &va, &r->options, &c));
    TRY_OUT(print_all(r, &c));
    if (count_regressions(r, &c))
        exit_status = EXIT_REGRESSION;
    else if (!c.n_rows)
        st = FAIL(ST_EINPUT, "nothing could be compared: %zu pairs, %zu cells without a partner", c.n_pairs, c.n_unmatched);
out:
    comparison_free(&c);
    sweep_file_close(b);
    sweep_file_close(a);
    return st != ST_OK ? status_exit(st) : exit_status;
}

static int compare(int argc, char **argv)
{
    struct request *r = calloc(1, sizeof *r);
    status_t        st = r ? parse(argc, argv, r) : FAIL(ST_ENOMEM, "no memory for a command line");
    int             exit_status = st != ST_OK ? status_exit(st) : guarded(r->paths, (size_t)r->n_paths, compare_files, r);
    free(r);
    return exit_status;
}

const struct command command_compare = {
    .name = "compare",
    .summary = "verdicts on two sweeps, or on two values of an axis",
    .help = help_text,
    .run = compare,
};
