/* cell.c — `qsweep cell`: one measurement in this fresh process; started by `run`, or by hand to repeat one. */
#include "bench/work.h"
#include "bench/worker.h"
#include "base/file.h"
#include "base/log.h"
#include "cmd/command.h"
#include "store/cell_file.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORK_BYTES_MAX = 64 << 20 };

static volatile sig_atomic_t stop_signal;

static void note_signal(int sig)
{
    stop_signal = sig;
}

static status_t read_work(const char *path, struct work *out)
{
    char  *json;
    size_t size;
    TRY(file_read(path, WORK_BYTES_MAX, &json, &size));
    status_t st = work_from_json(json, size, path, out);
    free(json);
    return st;
}

static int run(int argc, char **argv)
{
    static const struct option options[] = {{"output", required_argument, NULL, 'o'}, {0}};
    const char                *output = NULL;
    int64_t                    exec_ns = worker_exec_ns();
    for (int c; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;) {
        if (c != 'o')
            return 2;
        output = optarg;
    }
    if (optind + 1 != argc || !output) {
        fputs("usage: qsweep cell WORK.json --output FILE\n", stderr);
        return 2;
    }
    struct work work;
    status_t    st = read_work(argv[optind], &work);
    if (st != ST_OK)
        return status_exit(st);

    struct sigaction note = {.sa_handler = note_signal};
    sigaction(SIGTERM, &note, NULL);
    sigaction(SIGINT, &note, NULL);
    struct result result;
    worker_run(&work, exec_ns, &stop_signal, &result);
    st = cell_file_write(output, &result);
    int exit_status = st != ST_OK ? WORKER_CANNOT_WRITE : result.status == CELL_OK ? 0 : 3;
    result_free(&result);
    work_free(&work);
    return exit_status;
}

const struct command command_cell = {
    .name = "cell",
    .summary = "one measurement in this fresh process (internal)",
    .help = "usage: qsweep cell WORK.json --output FILE\n"
            "\n"
            "Measure one cell of a sweep and write its cell file. `qsweep run` starts it; by hand it repeats one\n"
            "measurement, with the task that a run leaves below <output>/work/ for cells that were not ok:\n"
            "\n"
            "  qsweep cell results/sweep/work/4f/4f…-0.json --output /tmp/cell.h5\n"
            "\n"
            "Exit status: 0 ok; 3 the file was written, but its status is not ok; 1 the task could not be read; 4 "
            "measured,\n"
            "but FILE could not be written.\n",
    .run = run,
    .internal = true,
};
