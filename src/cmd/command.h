/* command.h — one subcommand of qsweep: its name, its help text, its entry. One small file per command in this folder.
 *
 * A new command: define `const struct command command_NAME` in src/cmd/NAME.c and add one line to COMMANDS below. */
#ifndef QSWEEP_CMD_COMMAND_H
#define QSWEEP_CMD_COMMAND_H

#include "base/status.h"

#include <stdbool.h>

struct command {
    const char *name;
    const char *summary; /* one line for the table in `qsweep help`                                          */
    const char *help;    /* the whole text of `qsweep help NAME` and `qsweep NAME --help`: usage, options, examples */
    status_t (*more_help)(char **text); /* malloc'ed text printed after help, or NULL: what is made from tables         */
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns the exit status              */
    bool internal;       /* not listed in `qsweep help`                                                      */
};

/* The order here is the order in `qsweep help`. */
#define COMMANDS(X) \
    X(synth) \
    X(inspect) \
    X(quantize) \
    X(codec) \
    X(generate) \
    X(run) \
    X(watch) \
    X(simulate) \
    X(merge) \
    X(show) \
    X(compare) \
    X(export) \
    X(devices) \
    X(doctor) \
    X(bench) \
    X(stage) \
    X(cell)

#define X(name) extern const struct command command_##name;
COMMANDS(X)
#undef X

#endif
