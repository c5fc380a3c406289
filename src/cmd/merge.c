/* merge.c — `qsweep merge`: cell files and merged files into one sweep.h5. */
#include "base/log.h"
#include "cmd/command.h"
#include "cmd/guard.h"
#include "store/sweep_file.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char help_text[] =
    "usage: qsweep merge INPUT... [-o FILE] [--verify] [--fresh]\n"
    "\n"
    "Copies the cells of results folders (DIR/cells/ab/cell-ID.h5, with plan.json and progress.jsonl where\n"
    "they are) and of merged files into one HDF5 file with a summary row per cell. The inputs are left as\n"
    "they are. A cell that was planned but has no file becomes a row with status pending, a file that cannot\n"
    "be read a row with status invalid and the reason. Where several inputs have the same cell, ok wins over\n"
    "failed, then the later one. Merging again changes nothing; late cells are added to the existing file.\n"
    "\n"
    "  -o, --output FILE   default: sweep.h5 in the folder, when there is one input\n"
    "      --verify        afterwards read every cell of the file and of the inputs again and compare them\n"
    "      --fresh         build the file anew instead of extending an existing one\n"
    "\n"
    "Exit status: 0 when the file is complete (whatever became of its cells), 1 when it is not, 2 for usage.\n"
    "\n"
    "examples\n"
    "  qsweep merge results/precision\n"
    "  qsweep merge --verify results/precision\n"
    "  qsweep merge shard-0 shard-1 shard-2/sweep.h5 -o all.h5\n";

static void tell(const struct merge_report *report, const char *output)
{
    char   line[512];
    size_t at = (size_t)snprintf(line, sizeof line, "%s: %zu cells", output, report->rows);
    for (int i = 0, first = 1; i < CELL_STATUS_COUNT; i++)
        if (report->by_status[i]) {
            at += (size_t)snprintf(line + at, sizeof line - at, "%s%zu %s", first ? ": " : ", ", report->by_status[i],
                                   cell_status_name((enum cell_status)i));
            first = 0;
        }
    if (report->damaged)
        at += (size_t)snprintf(line + at, sizeof line - at, "; %zu damaged files, `qsweep show` lists them", report->damaged);
    if (report->unchanged)
        snprintf(line + at, sizeof line - at, "; nothing had changed");
    else if (report->reused)
        snprintf(line + at, sizeof line - at, "; %zu were there already", report->reused);
    log_info("%s", line);
}

struct work {
    struct merge_request request;
    bool                 verify;
};

static int merge_all(void *context)
{
    const struct work          *w = context;
    const struct merge_request *r = &w->request;
    struct merge_report         report;
    size_t                      compared = 0;
    status_t                    st = sweep_file_merge_all(r, &report);
    if (st != ST_OK)
        return status_exit(st);
    tell(&report, r->output);
    if (w->verify) {
        st = sweep_file_verify(r->output, r->inputs, r->n_inputs, &compared);
        if (st == ST_OK)
            log_info("%s: %zu cells equal their sources", r->output, compared);
    }
    return status_exit(st);
}

/* Cell files are checked before HDF5 sees them; merged files from elsewhere are not, and get a process of their own. */
static bool has_merged_file(const struct merge_request *r)
{
    struct stat info;
    for (size_t i = 0; i < r->n_inputs; i++)
        if (stat(r->inputs[i], &info) == 0 && !S_ISDIR(info.st_mode))
            return true;
    return false;
}

static int merge(int argc, char **argv)
{
    enum { OPT_VERIFY = 256, OPT_FRESH };
    static const struct option options[] = {{"output", required_argument, NULL, 'o'},
                                            {"verify", no_argument, NULL, OPT_VERIFY},
                                            {"fresh", no_argument, NULL, OPT_FRESH},
                                            {0}};
    struct work           w = {0};
    struct merge_request *request = &w.request;
    char                  path[4400];
    for (int c; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;)
        switch (c) {
        case 'o':
            request->output = optarg;
            break;
        case OPT_VERIFY:
            w.verify = true;
            break;
        case OPT_FRESH:
            request->fresh = true;
            break;
        default:
            return 2;
        }
    request->inputs = (const char *const *)argv + optind;
    request->n_inputs = (size_t)(argc - optind);
    if (request->n_inputs == 0) {
        fputs("usage: qsweep merge INPUT... [-o FILE]; `qsweep help merge` explains\n", stderr);
        return 2;
    }
    if (!request->output) {
        if (request->n_inputs > 1 || has_merged_file(request)) {
            fputs("qsweep merge: several inputs, or a file as input, need -o FILE\n", stderr);
            return 2;
        }
        snprintf(path, sizeof path, "%s/sweep.h5", argv[optind]);
        request->output = path;
    }
    return has_merged_file(request) ? guarded(request->inputs, request->n_inputs, merge_all, &w) : merge_all(&w);
}

const struct command command_merge = {
    .name = "merge",
    .summary = "cell files into one sweep.h5",
    .help = help_text,
    .run = merge,
};
