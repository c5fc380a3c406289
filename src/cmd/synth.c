/* qsweep synth — make a seeded random checkpoint in the real formats. */
#include "base/clock.h"
#include "base/log.h"
#include "checkpoint/synth.h"
#include "cmd/command.h"
#include "model/nucleus.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t stop_asked;

static void on_signal(int signal_number)
{
    (void)signal_number;
    stop_asked = 1;
}

/* A line that is rewritten on a terminal, else one line every ten seconds. */
static void show_progress(uint64_t done, uint64_t total)
{
    static int64_t t0_ns, last_ns;
    int64_t        now      = clock_ns();
    bool           terminal = isatty(STDERR_FILENO), finished = done == total;
    if (t0_ns == 0)
        t0_ns = last_ns = now;
    double seconds = (double)(now - t0_ns) * 1e-9, since = (double)(now - last_ns) * 1e-9;
    if (!(terminal ? since >= 0.2 || (finished && seconds > 0.5) : since >= 10))
        return;
    last_ns = now;
    fprintf(stderr, "%s%3d %%  %" PRIu64 " of %" PRIu64 " MB  %.0f MB/s%s", terminal ? "\r" : "",
            (int)(done * 100 / (total ? total : 1)), done / 1000000, total / 1000000,
            (double)done / 1e6 / (seconds > 0 ? seconds : 1), terminal && !finished ? " " : "\n");
}

/* Enough for a median; a model of billions of parameters reads 9 GB a frame. */
enum { MEASURED_FRAMES = 32, MEASURED_FRAMES_LARGE = 8 };

static int frames_to_measure = MEASURED_FRAMES;

static void measure(const char *dir, char *json, size_t size)
{
    struct nucleus n = {0};
    if (stop_asked)
        return;
    if (nucleus_measure(dir, frames_to_measure, &n) != ST_OK) {
        log_warn("the nucleus could not be measured; synth.json holds the prediction alone");
        return;
    }
    snprintf(json, size,
             "{\"frames\": %d, \"temperature\": 0.7, \"top_p\": 0.8, \"precision\": \"bf16\",\n"
             "    \"nucleus\": {\"median\": %d, \"least\": %d, \"most\": %d}, \"logit_sigma\": %.2f,\n"
             "    \"fast_nucleus\": {\"median\": %d, \"least\": %d, \"most\": %d}, \"fast_logit_sigma\": %.2f,\n"
             "    \"semantic_mass\": %.4f, \"im_end_mass\": %.4f}",
             n.n_frames, n.slow, n.slow_least, n.slow_most, n.slow_sigma, n.fast, n.fast_least, n.fast_most,
             n.fast_sigma, n.semantic_mass, n.im_end_mass);
}

static int list_shapes(FILE *to)
{
    for (int i = 0; shapes[i]; i++)
        fprintf(to, "  %-9s %s\n", shapes[i]->name, shapes[i]->summary);
    return to == stderr ? 2 : 0;
}

static int parse(int argc, char **argv, struct synth_options *o)
{
    static const struct option options[] = {{"shape", required_argument, NULL, 's'},
                                            {"seed", required_argument, NULL, 'r'},
                                            {"codec", no_argument, NULL, 'c'},
                                            {"no-measure", no_argument, NULL, 'm'},
                                            {"list", no_argument, NULL, 'l'},
                                            {NULL, 0, NULL, 0}};
    const char                *shape     = "s1-nano";
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        char *end;
        switch (c) {
        case 's':
            shape = optarg;
            break;
        case 'r':
            errno   = 0;
            o->seed = strtoull(optarg, &end, 10);
            if (errno || end == optarg || *end || *optarg == '-') {
                fprintf(stderr, "qsweep synth: --seed \"%s\" is not a number from 0 to 2^64-1\n", optarg);
                return 2;
            }
            break;
        case 'c':
            o->codec = true;
            break;
        case 'm':
            o->measure = NULL;
            break;
        case 'l':
            list_shapes(stdout);
            return 0;
        default:
            fputs("`qsweep help synth` shows the options\n", stderr);
            return 2;
        }
    }
    o->shape = shape_find(shape);
    if (!o->shape) {
        fprintf(stderr, "qsweep synth: no shape \"%s\"; there are:\n", shape);
        return list_shapes(stderr);
    }
    if (optind + 1 != argc) {
        fputs("qsweep synth: want one folder, for example `qsweep synth build/checkpoints/nano`\n", stderr);
        return 2;
    }
    o->dir = argv[optind];
    return -1;
}

static int run(int argc, char **argv)
{
    struct synth_options o      = {.stop = &stop_asked, .progress = show_progress, .measure = measure};
    int                  status = parse(argc, argv, &o);
    if (status >= 0)
        return status;
    if (config_parameters(&o.shape->config) > 1000000000)
        frames_to_measure = MEASURED_FRAMES_LARGE;
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is then an error of write(2), and the folder is cleaned up */

    int64_t  t0 = clock_ns();
    status_t st = synth_run(&o);
    if (st != ST_OK)
        return status_exit(st);
    log_info("%s: %s, seed %" PRIu64 ", %lld parameters%s, %.1f s", o.dir, o.shape->name, o.seed,
             config_parameters(&o.shape->config), o.codec ? " and a codec" : "", clock_ms_since(t0) / 1000);
    puts(o.dir);
    return 0;
}

const struct command command_synth = {
    .name    = "synth",
    .summary = "make a checkpoint with random weights in the real formats",
    .help    = "usage: qsweep synth DIR [--shape NAME] [--seed N] [--codec]\n"
               "\n"
               "Makes the folder DIR with config.json, the weights, the tokenizer files (S1) and synth.json, which\n"
               "records shape, seed and the width of the sampling nucleus, predicted and measured by decoding a few\n"
               "frames. The same shape and seed give the same weights on every machine. DIR must not exist; free disk is\n"
               "checked first; nothing half-written is left.\n"
               "\n"
               "  --shape NAME   s1-nano (default), s1-micro, s1-mini, s2-nano or s2-pro\n"
               "  --seed N       0 to 2^64-1 (default 0)\n"
               "  --codec        write codec.pth too (s1-mini and s2-pro: 1.87 GB, as published)\n"
               "  --no-measure   do not decode; synth.json then holds the prediction alone\n"
               "  --list         print the shapes and what they are\n"
               "\n"
               "examples\n"
               "  qsweep synth build/checkpoints/nano --seed 1 --codec\n"
               "  qsweep synth /scratch/s1-mini --shape s1-mini\n",
    .run = run,
};
