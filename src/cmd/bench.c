/* bench.c — `qsweep bench`: how near decoding comes to what the memory of this machine can deliver.
 *
 * One process, one team of threads: in every round each precision first reads a large buffer once and then decodes a few
 * frames, so that both see the same neighbours, clocks and temperature; a share is taken within its round. */
#include "backend/cpu.h"
#include "backend/cpu_topology.h"
#include "bench/stats.h"
#include "checkpoint/checkpoint.h"
#include "cmd/command.h"
#include "model/decode.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const char help_text[] =
    "usage: qsweep bench --checkpoint DIR [options]\n"
    "\n"
    "Decode with each precision and measure, in the same process and in turns, how fast the same threads\n"
    "read memory: prints bytes a frame must move, frames/s, GB/s, the share of the measured bandwidth that\n"
    "is, the limit that this bandwidth sets, and the multiple of real time (21.533 frames/s).\n"
    "\n"
    "  --checkpoint DIR       the model; `make bench` synthesizes one of the published S1-mini's shape\n"
    "  --precision LIST       of fp32, bf16, int8; default bf16,int8\n"
    "  --frames N             frames measured for each precision, default 96\n"
    "  --prompt N             prompt columns before them, default 32\n"
    "  --batch N              sequences decoded together, default 1\n"
    "  --head full|semantic   rows of the output head, default semantic\n"
    "  --kv fp32|bf16|int8    format of the cache, default bf16 (fp32 with precision fp32)\n"
    "  --recipe R             how INT8 weights are made: torchao, torchao-v2, legacy\n"
    "  --threads N            default: all allowed cores\n"
    "  --read-mb N            size of the buffer read each round, default 1024\n"
    "  --device cpu           other devices have their own limits and are not measured here\n"
    "  -o, --output md|json   default md\n"
    "\n"
    "A share may pass 100 % where the last-level cache keeps part of the fast stack between its nine passes.\n"
    "\n"
    "examples\n"
    "  make bench\n"
    "  qsweep bench --checkpoint build/checkpoints/s1-mini --precision int8 --frames 200\n"
    "  QSWEEP_CPU=avx2 qsweep bench --checkpoint CKPT -o json\n";

enum { FRAMES_A_ROUND = 8, WARM_UP_FRAMES = 2 };

static const double FRAMES_PER_S_REAL_TIME = 44100.0 / 2048.0;

struct request {
    const char    *checkpoint;
    enum precision precisions[PRECISION_COUNT];
    int            n_precisions, frames, prompt, batch, threads, read_mb, kv; /* kv -1: follows the precision */
    enum head_mode head;
    enum recipe    recipe;
    bool           json;
};

/* One precision's engine and what it has measured. */
struct lane {
    enum precision  precision;
    struct backend *be;
    struct weights *weights;
    struct decoder *decoder;
    int32_t        *frames; /* scratch [batch][FRAMES_A_ROUND][width] */
    double         *step_ms, *read_gbps, *share; /* [frames], [rounds], [rounds] */
    int             n_steps, n_rounds;
    double          bytes; /* summed over steps */
};

/* ---- the command line -------------------------------------------------------------------------------------------- */

static status_t parse_number(const char *option, const char *text, int min, int max, int *out)
{
    char *end;
    errno = 0;
    const long v = strtol(text, &end, 10);
    if (errno || end == text || *end || v < min || v > max)
        return FAIL(ST_EUSAGE, "--%s = \"%.40s\", want a whole number from %d to %d", option, text, min, max);
    *out = (int)v;
    return ST_OK;
}

static status_t parse_precisions(const char *text, struct request *r)
{
    char copy[64], *rest = copy;
    snprintf(copy, sizeof copy, "%s", text);
    r->n_precisions = 0;
    for (char *name; (name = strsep(&rest, ",")) != NULL;) {
        const int p = precision_parse(name);
        if (p < 0 || strlen(text) >= sizeof copy)
            return FAIL(ST_EUSAGE, "--precision: \"%.40s\", want a list of fp32, bf16, int8", name);
        for (int i = 0; i < r->n_precisions; i++)
            if (r->precisions[i] == (enum precision)p)
                return FAIL(ST_EUSAGE, "--precision: %s is named twice", name);
        r->precisions[r->n_precisions++] = (enum precision)p;
    }
    return ST_OK;
}

static status_t parse_choice(const char *option, int (*parse)(const char *), const char *text, const char *wanted, int *out)
{
    *out = parse(text);
    return *out < 0 ? FAIL(ST_EUSAGE, "--%s = \"%.40s\", want %s", option, text, wanted) : ST_OK;
}

static int recipe_parse(const char *name)
{
    for (int r = RECIPE_TORCHAO; r <= RECIPE_LEGACY; r++)
        if (strcmp(name, recipe_name((enum recipe)r)) == 0)
            return r;
    return -1;
}

static status_t take_option(struct request *r, int c)
{
    int value;
    switch (c) {
    case 'c': r->checkpoint = optarg; return ST_OK;
    case 'p': return parse_precisions(optarg, r);
    case 'f': return parse_number("frames", optarg, FRAMES_A_ROUND, 1 << 20, &r->frames);
    case 'n': return parse_number("prompt", optarg, 1, 1 << 20, &r->prompt);
    case 'b': return parse_number("batch", optarg, 1, 1 << 10, &r->batch);
    case 't': return parse_number("threads", optarg, 1, CPU_MAX_CORES, &r->threads);
    case 'm': return parse_number("read-mb", optarg, 1, 1 << 20, &r->read_mb);
    case 'k': return parse_choice("kv", kv_format_parse, optarg, "fp32, bf16 or int8", &r->kv);
    case 'h':
        TRY(parse_choice("head", head_mode_parse, optarg, "full or semantic", &value));
        r->head = (enum head_mode)value;
        return ST_OK;
    case 'r':
        TRY(parse_choice("recipe", recipe_parse, optarg, "torchao, torchao-v2 or legacy", &value));
        r->recipe = (enum recipe)value;
        return ST_OK;
    case 'd':
        return strcmp(optarg, "cpu") == 0
                   ? ST_OK
                   : FAIL(ST_EUSAGE, "--device %.40s: this bench measures the cpu; sweep other devices with `qsweep run`", optarg);
    case 'o':
        r->json = strcmp(optarg, "json") == 0;
        return r->json || strcmp(optarg, "md") == 0 ? ST_OK : FAIL(ST_EUSAGE, "-o %.40s: want md or json", optarg);
    default: return FAIL(ST_EUSAGE, "`qsweep help bench` lists the options");
    }
}

static status_t parse(int argc, char **argv, struct request *r)
{
    static const struct option options[] = {
        {"checkpoint", required_argument, NULL, 'c'}, {"precision", required_argument, NULL, 'p'},
        {"frames", required_argument, NULL, 'f'},     {"prompt", required_argument, NULL, 'n'},
        {"batch", required_argument, NULL, 'b'},      {"threads", required_argument, NULL, 't'},
        {"read-mb", required_argument, NULL, 'm'},    {"kv", required_argument, NULL, 'k'},
        {"head", required_argument, NULL, 'h'},       {"recipe", required_argument, NULL, 'r'},
        {"device", required_argument, NULL, 'd'},     {"output", required_argument, NULL, 'o'},
        {0}};
    *r = (struct request){.precisions = {PRECISION_BF16, PRECISION_INT8}, .n_precisions = 2, .frames = 96, .prompt = 32,
                          .batch = 1, .read_mb = 1024, .kv = -1, .head = HEAD_SEMANTIC};
    for (int c; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;)
        TRY(take_option(r, c));
    if (optind != argc)
        return FAIL(ST_EUSAGE, "\"%.100s\" is no option; usage: qsweep bench --checkpoint DIR", argv[optind]);
    if (!r->checkpoint)
        return FAIL(ST_EUSAGE, "which checkpoint? usage: qsweep bench --checkpoint DIR; `make bench` makes one");
    return ST_OK;
}

/* ---- lanes ------------------------------------------------------------------------------------------------------- */

static status_t prefill(const struct request *r, const struct lane *l)
{
    const struct model_config *config = &l->weights->config;
    const int                  rows = 1 + config->num_codebooks;
    struct prompt             *prompts = calloc((size_t)r->batch, sizeof *prompts);
    int32_t                   *values = calloc((size_t)rows * (size_t)r->prompt, sizeof *values);
    status_t                   st = prompts && values ? ST_OK : FAIL(ST_ENOMEM, "no host memory for a prompt");
    /* Ordinary text ids, no two neighbours alike; what they say does not matter here. */
    for (int t = 0; st == ST_OK && t < r->prompt; t++)
        values[t] = (t * 37 + 11) % (config->semantic_begin_id > 0 ? config->semantic_begin_id : config->vocab_size);
    for (int b = 0; st == ST_OK && b < r->batch; b++)
        prompts[b] = (struct prompt){rows, r->prompt, values};
    if (st == ST_OK)
        st = decoder_prefill(l->decoder, prompts, NULL);
    free(prompts);
    free(values);
    return st;
}

static status_t lane_open(const struct request *r, const struct checkpoint *c, enum precision precision, struct lane *l)
{
    const int                    rounds = r->frames / FRAMES_A_ROUND;
    const struct backend_options bo = {.n_threads = r->threads, .pin = true,
                                       .rounding = precision == PRECISION_FP32 ? ROUND_NONE : ROUND_BF16};
    struct decode_options        o = {.batch = r->batch, .max_seq_len = r->prompt + r->frames + 2 * FRAMES_A_ROUND,
                                      .kv = r->kv >= 0 ? (enum kv_format)r->kv : precision == PRECISION_FP32 ? KV_FP32 : KV_BF16,
                                      .head = r->head, .fixed_length = true};
    sampling_defaults(c->config.family == FAMILY_S2 ? SAMPLING_S2 : SAMPLING_S1, &o.sampling);
    l->precision = precision;
    TRY(weights_open(c, precision, r->recipe, r->threads, &l->weights));
    TRY(cpu_ops.open(&bo, &l->be));
    TRY(decoder_open(l->be, l->weights, &o, &l->decoder));
    l->frames = malloc((size_t)r->batch * FRAMES_A_ROUND * (size_t)(1 + c->config.num_codebooks) * sizeof *l->frames);
    l->step_ms = malloc((size_t)rounds * FRAMES_A_ROUND * sizeof *l->step_ms);
    l->read_gbps = malloc((size_t)rounds * sizeof *l->read_gbps);
    l->share = malloc((size_t)rounds * sizeof *l->share);
    if (!l->frames || !l->step_ms || !l->read_gbps || !l->share)
        return FAIL(ST_ENOMEM, "no host memory for %d rounds", rounds);
    return ST_OK;
}

static void lane_close(struct lane *l)
{
    decoder_close(l->decoder);
    cpu_ops.close(l->be);
    weights_close(l->weights);
    free(l->frames);
    free(l->step_ms);
    free(l->read_gbps);
    free(l->share);
}

static status_t run_frames(const struct request *r, struct lane *l, int n, double *step_ms)
{
    int done = 0;
    TRY(decoder_run(l->decoder, n, l->frames, step_ms, &done));
    return done == n ? ST_OK : FAIL(ST_EINTERNAL, "decoding stopped after %d of %d frames", done, n);
}

static status_t lane_round(const struct request *r, struct lane *l, const void *buffer, size_t size)
{
    double *steps = l->step_ms + l->n_steps, scratch[FRAMES_A_ROUND];
    l->read_gbps[l->n_rounds] = (double)size * 1e-9 / cpu_read(l->be, buffer, size);
    const double before = (double)decoder_step_bytes(l->decoder);
    TRY(run_frames(r, l, FRAMES_A_ROUND, steps));
    const double bytes = (before + (double)decoder_step_bytes(l->decoder)) / 2; /* grows by one position a step */
    l->bytes += bytes * FRAMES_A_ROUND;
    l->share[l->n_rounds] =
        bytes * 1e-6 / stats_quantile(steps, FRAMES_A_ROUND, 0.5, scratch) / l->read_gbps[l->n_rounds];
    l->n_steps += FRAMES_A_ROUND;
    l->n_rounds++;
    return ST_OK;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

struct figures {
    double bytes, fps, fps_p5, fps_p95, gbps, read_gbps, share, limit_fps, real_time;
};

static status_t figures_of(const struct request *r, const struct lane *l, struct figures *f)
{
    const size_t n = (size_t)l->n_steps, rounds = (size_t)l->n_rounds;
    double      *scratch = malloc(n * sizeof *scratch);
    if (!scratch)
        return FAIL(ST_ENOMEM, "no host memory for %zu figures", n);
    const double per_step = 1e3 * r->batch; /* frames/s of a step of 1 ms */
    f->bytes = l->bytes / (double)n;
    f->fps = per_step / stats_quantile(l->step_ms, n, 0.5, scratch);
    f->fps_p5 = per_step / stats_quantile_supported(l->step_ms, n, 0.95, scratch);
    f->fps_p95 = per_step / stats_quantile_supported(l->step_ms, n, 0.05, scratch);
    f->gbps = f->bytes * f->fps / r->batch * 1e-9;
    f->read_gbps = stats_quantile(l->read_gbps, rounds, 0.5, scratch);
    f->share = stats_quantile(l->share, rounds, 0.5, scratch);
    f->limit_fps = f->read_gbps * 1e9 / f->bytes * r->batch;
    f->real_time = f->fps / FRAMES_PER_S_REAL_TIME;
    free(scratch);
    return ST_OK;
}

static void print_markdown(const struct request *r, const struct lane *lanes, const struct figures *f)
{
    printf("cpu %s, %d threads, kernels %s; head %s, batch %d, prompt %d, %d frames each in turns of %d; reads of %d MB\n\n",
           cpu_topology_get()->model, cpu_threads(lanes[0].be), cpu_isa(lanes[0].be), head_mode_name(r->head), r->batch, r->prompt,
           lanes[0].n_steps, FRAMES_A_ROUND, r->read_mb);
    puts("| precision | MB/frame | frames/s | p5 | p95 | GB/s | read GB/s | share | limit frames/s | x real time |");
    puts("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (int i = 0; i < r->n_precisions; i++)
        printf("| %s | %.1f | %.2f | %.2f | %.2f | %.2f | %.2f | %.1f %% | %.2f | %.2f |\n", precision_name(lanes[i].precision),
               f[i].bytes * 1e-6 / r->batch, f[i].fps, f[i].fps_p5, f[i].fps_p95, f[i].gbps, f[i].read_gbps, f[i].share * 100,
               f[i].limit_fps, f[i].real_time);
}

/* JSON has no NaN: a quantile that n does not support is null. */
static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static status_t print_json(const struct request *r, const struct lane *lanes, const struct figures *f)
{
    json_t *rows = json_array();
    for (int i = 0; i < r->n_precisions; i++)
        json_array_append_new(
            rows, json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:i}", "precision",
                            precision_name(lanes[i].precision), "bytes_per_frame", number(f[i].bytes / r->batch), "frames_per_s",
                            number(f[i].fps), "frames_per_s_p5", number(f[i].fps_p5), "frames_per_s_p95", number(f[i].fps_p95),
                            "gb_per_s", number(f[i].gbps), "read_gb_per_s", number(f[i].read_gbps), "share", number(f[i].share),
                            "limit_frames_per_s", number(f[i].limit_fps), "real_time", number(f[i].real_time), "frames",
                            lanes[i].n_steps));
    json_t *root = json_pack("{s:s%, s:i, s:s, s:s, s:i, s:i, s:i, s:o}", "cpu", cpu_topology_get()->model,
                             strlen(cpu_topology_get()->model), "threads", cpu_threads(lanes[0].be), "kernels",
                             cpu_isa(lanes[0].be), "head", head_mode_name(r->head), "batch", r->batch, "prompt", r->prompt,
                             "read_mb", r->read_mb, "rows", rows);
    status_t st = root && json_dumpf(root, stdout, JSON_INDENT(2)) == 0 && putchar('\n') != EOF
                      ? ST_OK
                      : FAIL(ST_EIO, "standard output: the JSON could not be written");
    json_decref(root);
    return st;
}

static status_t report(const struct request *r, const struct lane *lanes)
{
    struct figures f[PRECISION_COUNT];
    for (int i = 0; i < r->n_precisions; i++)
        TRY(figures_of(r, &lanes[i], &f[i]));
    if (r->json)
        return print_json(r, lanes, f);
    print_markdown(r, lanes, f);
    return ST_OK;
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

/* Never zeros: a page that was only read may be the shared zero page, which lives in the cache. */
static status_t buffer_open(size_t size, void **out)
{
    uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED)
        return FAIL(ST_ENOMEM, "no host memory for %zu MB to read", size >> 20);
    madvise(words, size, MADV_HUGEPAGE);
    for (size_t i = 0; i < size / sizeof *words; i++)
        words[i] = (i + 1) * 0x9e3779b97f4a7c15u;
    *out = words;
    return ST_OK;
}

static status_t bench(const struct request *r)
{
    struct lane        lanes[PRECISION_COUNT] = {{0}};
    struct checkpoint *c = NULL;
    void              *buffer = NULL;
    const size_t       size = (size_t)r->read_mb << 20;
    const int          rounds = r->frames / FRAMES_A_ROUND;
    double             unused[WARM_UP_FRAMES];
    status_t           st = ST_OK;
    TRY_OUT(checkpoint_open(r->checkpoint, &c));
    for (int i = 0; i < r->n_precisions; i++)
        TRY_OUT(lane_open(r, c, r->precisions[i], &lanes[i]));
    TRY_OUT(buffer_open(size, &buffer));
    /* Only now: the first run pins this thread, and threads that load weights would inherit that. */
    for (int i = 0; i < r->n_precisions; i++) {
        TRY_OUT(prefill(r, &lanes[i]));
        TRY_OUT(run_frames(r, &lanes[i], WARM_UP_FRAMES, unused));
    }
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < r->n_precisions; i++) /* A B, B A, … : a drift favours neither */
            TRY_OUT(lane_round(r, &lanes[round % 2 ? r->n_precisions - 1 - i : i], buffer, size));
    st = report(r, lanes);
out:
    if (buffer)
        munmap(buffer, size);
    for (int i = r->n_precisions - 1; i >= 0; i--)
        lane_close(&lanes[i]);
    checkpoint_close(c);
    return st;
}

static int run(int argc, char **argv)
{
    struct request r;
    status_t       st = parse(argc, argv, &r);
    if (st == ST_OK)
        st = bench(&r);
    if (st == ST_OK && fflush(stdout) != 0)
        st = FAIL(ST_EIO, "standard output: %s", strerror(errno));
    return status_exit(st);
}

const struct command command_bench = {
    .name = "bench", .summary = "share of the memory bandwidth that decoding reaches", .help = help_text, .run = run};
