/* main.c — finds the subcommand and hands over; nothing else. */
#include "cmd/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define X(name) &command_##name,
static const struct command *const commands[] = {COMMANDS(X) NULL};
#undef X

static const struct command *find(const char *name)
{
    for (int i = 0; commands[i]; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

static void print_overview(FILE *to)
{
    fputs("qsweep — what does a lower precision buy: memory, speed, quality\n\nusage: qsweep COMMAND [options]\n\n", to);
    for (int i = 0; commands[i]; i++)
        if (!commands[i]->internal)
            fprintf(to, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\n`qsweep help COMMAND` explains one command with examples.\n", to);
}

static int print_help(const struct command *command)
{
    char *more = NULL;
    fputs(command->help, stdout);
    if (command->more_help && command->more_help(&more) != ST_OK)
        return 1;
    if (more)
        printf("\n%s", more);
    free(more);
    return 0;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!name) {
        print_overview(stderr);
        return 2;
    }
    bool asks_help = strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;
    if (asks_help && argc < 3) {
        print_overview(stdout);
        return 0;
    }
    if (strcmp(name, "--version") == 0) {
        puts("qsweep " QSWEEP_VERSION);
        return 0;
    }
    const struct command *command = find(asks_help ? argv[2] : name);
    if (!command) {
        fprintf(stderr, "qsweep: no command \"%s\"; `qsweep help` lists them\n", asks_help ? argv[2] : name);
        return 2;
    }
    for (int i = 2; !asks_help && i < argc && strcmp(argv[i], "--"); i++)
        if (strcmp(argv[i], "--help") == 0)
            asks_help = true;
    if (asks_help) {
        return print_help(command);
    }
    return command->run(argc - 1, argv + 1);
}
