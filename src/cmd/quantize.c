/* quantize.c — `qsweep quantize`: a checkpoint's linear weights to INT8, as a directory of its own. */
#include "model/quantize.h"

#include "base/clock.h"
#include "base/log.h"
#include "cmd/command.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t stop_requested;

static void request_stop(int sig)
{
    stop_requested = 1;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = request_stop};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is then an error of write(2), and the folder is cleaned up */
}

struct request {
    const char *checkpoint, *mode, *recipe, *output, *device, *format;
    int         threads;
};

/* ---- progress, on stderr ---- */

struct progress {
    bool    terminal;
    int64_t start_ns, last_ns;
};

/* On a terminal ten times a second in place; elsewhere a line every ten seconds. */
static void show_progress(void *ctx, size_t done, size_t total)
{
    struct progress *p      = ctx;
    double           wait_s = p->terminal ? 0.1 : 10;
    if (clock_ms_since(p->last_ns) < wait_s * 1e3 || total == 0)
        return;
    p->last_ns     = clock_ns();
    double seconds = clock_ms_since(p->start_ns) * 1e-3, share = (double)done / (double)total;
    fprintf(stderr, "%squantize  %3.0f %%  %.0f of %.0f MB  %.1f GB/s  %.0f s left%s", p->terminal ? "\r" : "", 100 * share,
            (double)done / 1e6, (double)total / 1e6, (double)done / 1e9 / seconds,
            share > 0 ? ceil(seconds * (1 - share) / share) : 0, p->terminal ? "\033[K" : "\n");
}

static void clear_progress(const struct progress *p)
{
    if (p->terminal && p->last_ns != p->start_ns)
        fputs("\r\033[K", stderr);
}

/* ---- the summary, on stdout ---- */

static double gigabytes_per_second(const struct quantize_report *r)
{
    return r->weights_s > 0 ? (double)(r->bytes_before + r->bytes_after) / r->weights_s / 1e9 : 0;
}

static void print_summary(const struct checkpoint *c, enum recipe recipe, const struct quantize_report *r)
{
    printf("checkpoint   %s\n", c->dir);
    printf("mode         int8, recipe %s (%s), one scale a row\n", recipe_name(recipe), recipe_scheme(recipe, DT_BF16));
    printf("tensors      %d of %zu quantized\n", r->n_quantized, c->tensors.count);
    printf("weights      %.1f MB -> %.1f MB, ratio %.3f\n", (double)r->bytes_before / 1e6, (double)r->bytes_after / 1e6,
           r->bytes_before ? (double)r->bytes_after / (double)r->bytes_before : 0);
    printf("other files  %.1f MB copied\n", (double)r->bytes_copied / 1e6);
    printf("output       %s\n", r->output);
    printf("time         %.2f s; the weights %.2f s = %.2f GB/s read and written (%d threads)\n", r->seconds, r->weights_s,
           gigabytes_per_second(r), r->n_threads);
}

static void print_json(const struct checkpoint *c, enum recipe recipe, const struct quantize_report *r)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:f, s:I, s:i, s:i, s:i, s:f, s:f, s:f}", "checkpoint", c->dir,
                          "output", r->output, "mode", "int8", "recipe", recipe_name(recipe), "scheme",
                          recipe_scheme(recipe, DT_BF16), "bytes_before", (json_int_t)r->bytes_before, "bytes_after",
                          (json_int_t)r->bytes_after, "ratio",
                          r->bytes_before ? (double)r->bytes_after / (double)r->bytes_before : 0.0, "bytes_copied",
                          (json_int_t)r->bytes_copied, "tensors", (int)c->tensors.count, "tensors_quantized", r->n_quantized,
                          "threads", r->n_threads, "seconds", r->seconds, "weights_s", r->weights_s, "gbps",
                          gigabytes_per_second(r));
    if (o)
        json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(o);
}

/* ---- the command ---- */

/* "<checkpoint>-int8-<recipe>-YYYYMMDD_HHMMSS"; "." and ".." get their real name first. */
static status_t default_output(const char *checkpoint, enum recipe recipe, char *out, size_t size)
{
    char   real[PATH_MAX], stamp[32];
    size_t n = strlen(checkpoint);
    while (n > 1 && checkpoint[n - 1] == '/')
        n--;
    if (n >= 1 && checkpoint[n - 1] == '.' && (n == 1 || checkpoint[n - 2] == '/' || checkpoint[n - 2] == '.')) {
        if (!realpath(checkpoint, real))
            return FAIL(ST_EIO, "%s: %s", checkpoint, strerror(errno));
        checkpoint = real;
        n          = strlen(real);
    }
    clock_stamp(stamp, sizeof stamp);
    if ((size_t)snprintf(out, size, "%.*s-int8-%s-%s", (int)n, checkpoint, recipe_name(recipe), stamp) >= size)
        return FAIL(ST_EUSAGE, "%.80s…: the path is too long; give --output DIR", checkpoint);
    return ST_OK;
}

static status_t find_recipe(const char *name, enum recipe *out)
{
    static const enum recipe all[] = {RECIPE_TORCHAO, RECIPE_TORCHAO_V2, RECIPE_LEGACY};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(name, recipe_name(all[i])) == 0) {
            *out = all[i];
            return ST_OK;
        }
    return FAIL(ST_EUSAGE, "--recipe %s: want torchao, torchao-v2 or legacy", name);
}

static status_t check_request(const struct request *r)
{
    if (strcmp(r->mode, "int8") != 0)
        return FAIL(ST_EUSAGE, "--mode %s: want int8", r->mode);
    if (strcmp(r->format, "text") != 0 && strcmp(r->format, "json") != 0)
        return FAIL(ST_EUSAGE, "-o %s: want text or json (the folder is --output DIR)", r->format);
    if (strcmp(r->device, "cuda") == 0)
        return FAIL(ST_EUNSUPPORTED, "--device cuda: checkpoints on disk are quantized by the CPU, with the same bits; leave "
                                     "--device out");
    if (strcmp(r->device, "cpu") != 0)
        return FAIL(ST_EUSAGE, "--device %s: want cpu", r->device);
    return ST_OK;
}

static status_t quantize(const struct request *r)
{
    status_t                st = ST_OK;
    struct checkpoint      *c  = NULL;
    struct quantize_report  report;
    struct progress         progress = {.terminal = isatty(STDERR_FILENO) == 1};
    struct quantize_options options  = {.n_threads = r->threads, .stop = &stop_requested, .progress = show_progress, .ctx = &progress};
    char                    output[PATH_MAX];

    TRY(check_request(r));
    TRY(find_recipe(r->recipe, &options.recipe));
    if (!r->output)
        TRY(default_output(r->checkpoint, options.recipe, output, sizeof output));
    catch_signals();
    TRY_OUT(checkpoint_open(r->checkpoint, &c));
    progress.start_ns = progress.last_ns = clock_ns();
    st = quantize_checkpoint(c, r->output ? r->output : output, &options, &report);
    clear_progress(&progress);
    TRY_OUT(st);
    (strcmp(r->format, "json") == 0 ? print_json : print_summary)(c, options.recipe, &report);
    if (fflush(stdout) != 0)
        st = FAIL(ST_EIO, "stdout: %s", strerror(errno));
out:
    checkpoint_close(c);
    return st;
}

static status_t parse_threads(const char *text, int *out)
{
    char *end;
    long  n = strtol(text, &end, 10);
    if (end == text || *end || n < 1 || n > 1024)
        return FAIL(ST_EUSAGE, "--threads %s: want 1 to 1024", text);
    *out = (int)n;
    return ST_OK;
}

static int run(int argc, char **argv)
{
    static const struct option options[] = {
        {"mode", required_argument, NULL, 'm'},   {"recipe", required_argument, NULL, 'r'},
        {"output", required_argument, NULL, 'O'}, {"device", required_argument, NULL, 'd'},
        {"threads", required_argument, NULL, 't'}, {"format", required_argument, NULL, 'o'}, {0}};
    struct request r = {.mode = "int8", .recipe = "torchao", .device = "cpu", .format = "text"};
    for (int c; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;)
        switch (c) {
        case 'm': r.mode = optarg; break;
        case 'r': r.recipe = optarg; break;
        case 'O': r.output = optarg; break;
        case 'd': r.device = optarg; break;
        case 'o': r.format = optarg; break;
        case 't':
            if (parse_threads(optarg, &r.threads) != ST_OK)
                return 2;
            break;
        default: return 2;
        }
    if (optind + 1 != argc) {
        fputs("usage: qsweep quantize CKPT [--mode int8] [--recipe R] [--output DIR]; `qsweep help quantize` explains\n", stderr);
        return 2;
    }
    r.checkpoint = argv[optind];
    return status_exit(quantize(&r));
}

const struct command command_quantize = {
    .name    = "quantize",
    .summary = "make an INT8 copy of a checkpoint",
    .help =
        "usage: qsweep quantize CKPT [--mode int8] [--recipe torchao|torchao-v2|legacy] [--output DIR]\n"
        "                       [--threads N] [-o text|json]\n"
        "\n"
        "Writes a new directory with model.safetensors, in which every linear layer X has X.weight (int8, one row an\n"
        "output) and X.scales, a config.json that says how it was made, and copies of the other files (tokenizer,\n"
        "codec). Embeddings and norms stay as they are. The output is never overwritten, and it appears only when it\n"
        "is complete. Memory stays at a few MB a thread, whatever the size of the model.\n"
        "\n"
        "  --recipe R     whose arithmetic to follow, bit for bit (default torchao):\n"
        "                 torchao     Int8WeightOnlyConfig of TorchAO 0.15 to 0.17: BF16 scale, BF16 reciprocal\n"
        "                 torchao-v2  TorchAO 0.18 and later: the scale is stored and applied in FP32\n"
        "                 legacy      tools/llama/quantize.py of fish-speech: FP32 division, scale stored as BF16\n"
        "  --output DIR   the new directory (default CKPT-int8-RECIPE-YYYYMMDD_HHMMSS)\n"
        "  --device cpu   the CPU does it; its bits are the GPU's\n"
        "  --threads N    threads that quantize (default: all cores this process may use)\n"
        "  -o FORMAT      of the summary on stdout: text (default) or json; MB are 10^6 bytes\n"
        "\n"
        "examples:\n"
        "  qsweep quantize checkpoints/openaudio-s1-mini\n"
        "  qsweep quantize checkpoints/openaudio-s1-mini --recipe legacy --output /scratch/s1-mini-int8\n"
        "  DIR=$(qsweep quantize checkpoints/openaudio-s1-mini -o json | jq -r .output)\n",
    .run = run,
};
