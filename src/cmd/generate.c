/* generate.c — `qsweep generate`: one utterance from text (or ready ids) to codebook codes. */
#include "backend/backend.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "bench/speech.h"
#include "checkpoint/checkpoint.h"
#include "cmd/command.h"
#include "model/audio.h"
#include "model/codec.h"
#include "model/decode.h"
#include "sweep/field.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    VOICES_MAX  = 8,
    TEXT_MAX    = 16 << 20, /* bytes of a text file; no context holds that much */
    CHUNK       = 16        /* frames between two looks at the progress line    */
};

static const double SAMPLES_PER_FRAME = 2048, SAMPLE_RATE = 44100;

/* The command line. Everything a sweep's cell also knows (precision, sampling, …) is in `cell`, read by its table. */
struct request {
    struct cell cell;
    bool        given[FIELD_COUNT]; /* which of the cell's fields the command line names */
    const char *checkpoint, *text, *text_file, *prompt_ids, *codes, *wav, *device;
    const char *voice_codes[VOICES_MAX], *voice_texts[VOICES_MAX];
    int         n_voice_codes, n_voice_texts, threads;
};

enum { OPT_TEXT = 256, OPT_TEXT_FILE, OPT_PROMPT_IDS, OPT_CODES, OPT_VOICE, OPT_VOICE_TEXT, OPT_DEVICE, OPT_THREADS, OPT_FRAMES,
       OPT_WAV, OPT_FIELD };

#define VALUE(name) {name, required_argument, NULL, OPT_FIELD}
static const struct option options[] = {
    {"text", required_argument, NULL, OPT_TEXT},
    {"text-file", required_argument, NULL, OPT_TEXT_FILE},
    {"prompt-ids", required_argument, NULL, OPT_PROMPT_IDS},
    {"codes", required_argument, NULL, OPT_CODES},
    {"wav", required_argument, NULL, OPT_WAV},
    {"voice", required_argument, NULL, OPT_VOICE},
    {"voice-text", required_argument, NULL, OPT_VOICE_TEXT},
    {"device", required_argument, NULL, OPT_DEVICE},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"frames", required_argument, NULL, OPT_FRAMES},
    {"greedy", no_argument, NULL, OPT_FIELD},
    {"control-tokens", no_argument, NULL, OPT_FIELD},
    VALUE("repetition-penalty"), VALUE("temperature"), VALUE("top-p"), VALUE("top-k"), VALUE("seed"), VALUE("precision"),
    VALUE("recipe"), VALUE("sampling"), VALUE("head"), VALUE("kv"), VALUE("engine"), VALUE("history"), VALUE("max-seq-len"),
    VALUE("memory-limit"), VALUE("codec"),
    {0},
};

static const char help_text[] =
    "usage: qsweep generate CHECKPOINT (--text TEXT | --text-file FILE | --prompt-ids FILE) [options]\n"
    "\n"
    "Decode one utterance and print what it took. CHECKPOINT is a folder with config.json, the weights\n"
    "(model.pth or model.safetensors) and the tokenizer's files.\n"
    "\n"
    "what to say\n"
    "  --text TEXT              the text\n"
    "  --text-file FILE         the text from a file (UTF-8)\n"
    "  --prompt-ids FILE        a ready prompt matrix [1 + codebooks][columns], JSON or .npy\n"
    "  --voice FILE             a reference voice: a sound file (.wav, .flac, .ogg, .mp3, .aiff), or its codes\n"
    "                           [codebooks][frames], .npy or JSON; may be repeated,\n"
    "  --voice-text TEXT        each with the words spoken in it\n"
    "  --control-tokens         literal tokens such as <|im_end|> in the text become control tokens\n"
    "\n"
    "what comes out\n"
    "  --codes FILE             write {\"prompt\": [[row 0 ...], ...], \"frames\": [[token, c0, ...], ...], ...};\n"
    "                           - is standard output\n"
    "  --wav FILE               the speech itself, by the checkpoint's codec.pth (16-bit WAV)\n"
    "  --codec fp32|bf16|int8   precision of the codec, default fp32\n"
    "  --frames N               at most N frames (default 1024); decoding ends earlier after im_end\n"
    "\n"
    "how to draw\n"
    "  --greedy                 the best candidate instead of a draw\n"
    "  --temperature X          default 0.8 (s2: 1.0)\n"
    "  --top-p X                default 0.8 (s2: 0.9)\n"
    "  --top-k N                default off (s2: 30)\n"
    "  --repetition-penalty X   default 1.1; s2 ignores it\n"
    "  --seed N                 default 42; the same seed draws the same noise in every precision and on every device\n"
    "  --sampling s1|s2         rules of the S1-era or the S2 engine; default: the checkpoint's family\n"
    "  --history faithful|fixed which tokens are penalized: as the S1-era engine does, or as was meant\n"
    "  --head full|semantic     rows of the output head that compete; s1's default is full\n"
    "\n"
    "how to compute\n"
    "  --precision fp32|bf16|int8  default: int8 for an INT8 checkpoint, else bf16\n"
    "  --recipe torchao|torchao-v2|legacy  how INT8 weights are made at load; default torchao\n"
    "  --kv fp32|bf16|int8      format of the cache; default fp32 with --precision fp32, else bf16\n"
    "  --device cpu|cpu_ref|cuda[:INDEX]  default cpu; cpu_ref is the slow scalar twin\n"
    "  --engine auto|ops|graph|persistent  default auto, the fastest the device has\n"
    "  --max-seq-len N          cache positions; default: prompt + frames, at most the model's limit\n"
    "  --threads N              CPU threads; default: all allowed cores\n"
    "  --memory-limit SIZE      fail when the model needs more, e.g. 8GB\n"
    "\n"
    "examples\n"
    "  qsweep generate checkpoints/openaudio-s1-mini --text \"Hello.\" --codes hello.json\n"
    "  qsweep generate CKPT --text-file story.txt --precision int8 --head semantic --frames 200\n"
    "  qsweep generate CKPT --text \"Same voice.\" --voice hello.json --voice-text \"Hello.\" --codes - | head -c 300\n";

/* ---- the command line ------------------------------------------------------------------------------------------- */

static status_t set_field(struct request *r, const char *option, const char *value)
{
    char name[64], why[512];
    snprintf(name, sizeof name, "%s", option);
    for (char *p = name; *p; p++)
        *p = *p == '-' ? '_' : *p;
    const int         at = field_find(name);
    union field_value v;
    if (!field_parse(&cell_fields[at], value ? value : "true", &v, why, sizeof why))
        return FAIL(ST_EUSAGE, "--%s: %s", option, why);
    field_set(&cell_fields[at], &r->cell, v);
    r->given[at] = true;
    return ST_OK;
}

static status_t set_threads(struct request *r, const char *value)
{
    char *end;
    long  n    = strtol(value, &end, 10);
    r->threads = (int)n;
    return *end || end == value || n < 1 || n > 4096 ? FAIL(ST_EUSAGE, "--threads = \"%.40s\", want a whole number from 1 to 4096",
                                                            value)
                                                     : ST_OK;
}

static status_t take_option(struct request *r, int c, const char *name)
{
    switch (c) {
    case OPT_TEXT: r->text = optarg; return ST_OK;
    case OPT_TEXT_FILE: r->text_file = optarg; return ST_OK;
    case OPT_PROMPT_IDS: r->prompt_ids = optarg; return ST_OK;
    case OPT_CODES: r->codes = optarg; return ST_OK;
    case OPT_WAV: r->wav = optarg; return ST_OK;
    case OPT_DEVICE: r->device = optarg; return ST_OK;
    case OPT_THREADS: return set_threads(r, optarg);
    case OPT_FRAMES: {
        union field_value v;
        char              why[512];
        if (!field_parse(&cell_fields[field_find("max_new_tokens")], optarg, &v, why, sizeof why))
            return FAIL(ST_EUSAGE, "--frames = \"%.40s\", want a whole number from 1 to 1048576", optarg);
        field_set(&cell_fields[field_find("max_new_tokens")], &r->cell, v);
        return ST_OK;
    }
    case OPT_VOICE:
    case OPT_VOICE_TEXT: {
        int *n = c == OPT_VOICE ? &r->n_voice_codes : &r->n_voice_texts;
        if (*n == VOICES_MAX)
            return FAIL(ST_EUSAGE, "at most %d reference voices", VOICES_MAX);
        (c == OPT_VOICE ? r->voice_codes : r->voice_texts)[(*n)++] = optarg;
        return ST_OK;
    }
    case OPT_FIELD: return set_field(r, name, optarg);
    default: return FAIL(ST_EUSAGE, "`qsweep help generate` lists the options");
    }
}

static status_t parse(int argc, char **argv, struct request *r)
{
    *r = (struct request){.device = "cpu"};
    cell_defaults(&r->cell);
    int index = -1;
    for (int c; (c = getopt_long(argc, argv, "", options, &index)) != -1;)
        TRY(take_option(r, c, index >= 0 ? options[index].name : ""));
    if (optind + 1 != argc)
        return FAIL(ST_EUSAGE, "%s; usage: qsweep generate CHECKPOINT --text TEXT [options]",
                    optind == argc ? "which checkpoint?" : "more than one checkpoint is named");
    r->checkpoint = argv[optind];
    if (r->cell.codec != CODEC_OFF && !r->wav)
        return FAIL(ST_EUSAGE, "--codec says how to make the sound of --wav FILE: which file?");
    if (r->wav && r->cell.codec == CODEC_OFF)
        r->cell.codec = CODEC_FP32;
    if (!!r->text + !!r->text_file + !!r->prompt_ids != 1)
        return FAIL(ST_EUSAGE, "give exactly one of --text, --text-file and --prompt-ids");
    if (r->n_voice_codes != r->n_voice_texts)
        return FAIL(ST_EUSAGE, "every --voice needs its --voice-text: %d and %d are given", r->n_voice_codes, r->n_voice_texts);
    if (r->prompt_ids && r->n_voice_codes)
        return FAIL(ST_EUSAGE, "--prompt-ids is a whole prompt already: --voice does not go with it");
    return ST_OK;
}

static bool given(const struct request *r, const char *field)
{
    return r->given[field_find(field)];
}

/* What was not given follows from the checkpoint and from what was. */
static status_t fill_defaults(struct request *r, const struct model_config *config)
{
    struct cell          *c   = &r->cell;
    const struct sampling own = c->sampling;
    if (!given(r, "precision"))
        c->precision = config->quantization.recipe != RECIPE_NONE ? PRECISION_INT8 : PRECISION_BF16;
    if (!given(r, "kv"))
        c->kv = c->precision == PRECISION_FP32 ? KV_FP32 : KV_BF16;
    if (given(r, "recipe") && c->precision != PRECISION_INT8)
        return FAIL(ST_EUSAGE, "--recipe is how INT8 weights are made: it needs --precision int8");
    sampling_defaults(given(r, "sampling") ? own.rules : config->family == FAMILY_S2 ? SAMPLING_S2 : SAMPLING_S1, &c->sampling);
    c->sampling.greedy = own.greedy;
    if (given(r, "temperature"))
        c->sampling.temperature = own.temperature;
    if (given(r, "top_p"))
        c->sampling.top_p = own.top_p;
    if (given(r, "top_k"))
        c->sampling.top_k = own.top_k;
    if (given(r, "repetition_penalty"))
        c->sampling.repetition_penalty = own.repetition_penalty;
    if (given(r, "seed"))
        c->sampling.seed = own.seed;
    if (given(r, "history"))
        c->sampling.history = own.history;
    return sampling_check(&c->sampling);
}

/* ---- one utterance ---------------------------------------------------------------------------------------------- */

struct utterance {
    struct prompt prompt;
    int32_t      *frames; /* [n][width] */
    int           n, width;
    bool          im_end; /* the last frame is im_end's     */
    const char   *stop;   /* "im_end", "length", "cache full" */
    const char   *engine;
    double        prefill_ms, decode_ms, codec_ms, audio_s;
    size_t        peak_bytes;
};

static bool is_sound(const char *path)
{
    static const char *const endings[] = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"};
    const char              *dot       = strrchr(path, '.');
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcasecmp(dot, endings[i]) == 0)
            return true;
    return false;
}

/* A voice given as sound: the codec's encoder in FP32, on the device that decodes. */
static status_t encode_voice(const struct request *r, const char *path, struct codes *out)
{
    const struct backend_options bo      = {.n_threads = r->threads, .rounding = ROUND_NONE, .memory_limit = r->cell.memory_limit};
    const struct codec_options   how     = {.mode = CODEC_FP32, .encoder = true};
    struct backend              *be      = NULL;
    struct codec                *codec   = NULL;
    float                       *samples = NULL;
    size_t                       n;
    status_t                     st = ST_OK;
    TRY_OUT(backend_open(r->device, &bo, &be));
    TRY_OUT(codec_open(be, r->checkpoint, &how, &codec));
    TRY_OUT(audio_read(path, codec_config_of(codec)->sample_rate, &samples, &n));
    TRY_OUT(codec_encode(codec, samples, n, out));
out:
    free(samples);
    codec_close(codec);
    backend_close(be);
    return st;
}

static status_t build_prompt(const struct request *r, const struct model_config *config, struct prompt *out)
{
    if (r->prompt_ids)
        return prompt_ids_open(r->prompt_ids, config, out);
    if (config->family == FAMILY_S2)
        return FAIL(ST_EUNSUPPORTED, "%s: text prompts of S2 checkpoints need a tokenizer.json, which is not read; give the ids "
                    "with --prompt-ids", r->checkpoint);
    struct voice      voices[VOICES_MAX] = {{0}};
    struct tokenizer *tokenizer          = NULL;
    char             *text               = NULL;
    size_t            size;
    status_t          st = ST_OK;
    if (r->text_file)
        TRY_OUT(file_read(r->text_file, TEXT_MAX, &text, &size));
    if (text && strlen(text) != size) {
        st = FAIL(ST_EINPUT, "%s: a NUL byte stands in the text", r->text_file);
        goto out;
    }
    for (int i = 0; i < r->n_voice_codes; i++) {
        voices[i].text = r->voice_texts[i];
        TRY_OUT(is_sound(r->voice_codes[i])
                    ? encode_voice(r, r->voice_codes[i], &voices[i].codes)
                    : codes_open(r->voice_codes[i], config->codebook_size, config->im_end_id, &voices[i].codes));
    }
    TRY_OUT(tokenizer_open(r->checkpoint, &tokenizer));
    st = prompt_build(tokenizer, config, text ? text : r->text, voices, r->n_voice_codes, r->cell.workload.control_tokens, out);
out:
    tokenizer_close(tokenizer);
    for (int i = 0; i < r->n_voice_codes; i++)
        codes_free(&voices[i].codes);
    free(text);
    return st;
}

static status_t decode(const struct request *r, struct decoder *d, struct utterance *u)
{
    const int     most     = r->cell.workload.max_new_tokens;
    const bool    terminal = isatty(STDERR_FILENO);
    const int64_t t0       = clock_ns();
    double        step_ms[CHUNK];
    TRY(decoder_prefill(d, &u->prompt, NULL));
    u->prefill_ms = clock_ms_since(t0);
    u->frames     = malloc((size_t)most * (size_t)u->width * sizeof *u->frames);
    if (!u->frames)
        return FAIL(ST_ENOMEM, "no host memory for %d frames", most);
    const int64_t t1 = clock_ns();
    for (int done = 1; u->n < most && done > 0; u->n += done) {
        int n = most - u->n < CHUNK ? most - u->n : CHUNK;
        TRY(decoder_run(d, n, u->frames + (size_t)u->n * (size_t)u->width, step_ms, &done));
        if (terminal)
            fprintf(stderr, "\r%d of at most %d frames ", u->n + done, most);
    }
    u->decode_ms = clock_ms_since(t1);
    if (terminal)
        fputs("\r\033[K", stderr);
    return ST_OK;
}

static void describe_stop(const struct request *r, const struct model_config *config, struct utterance *u)
{
    /* The first frame never stops, so an im_end there is not how it ended. */
    u->im_end  = u->n > 1 && u->frames[(size_t)(u->n - 1) * (size_t)u->width] == config->im_end_id;
    u->stop    = u->im_end ? "im_end" : u->n == r->cell.workload.max_new_tokens ? "length" : "cache full";
    u->audio_s = (u->n - u->im_end) * SAMPLES_PER_FRAME / SAMPLE_RATE;
}

/* The frames as sound; the decoder is closed by now, so the codec has the device's memory to itself. */
static status_t speak(const struct request *r, struct backend *be, const struct model_config *config, struct utterance *u)
{
    struct speech      *speech = NULL;
    struct speech_times times;
    status_t            st     = ST_OK;
    int                 frames = u->n - u->im_end;
    TRY_OUT(speech_open(be, r->checkpoint, r->cell.codec, config->num_codebooks, frames > 0 ? frames : 1, &speech));
    TRY_OUT(speech_run(speech, u->frames, frames, &times));
    u->codec_ms = times.codec_ms;
    TRY_OUT(speech_keep(speech, r->wav));
out:
    speech_close(speech);
    return st;
}

static status_t generate(struct request *r, struct utterance *u)
{
    struct checkpoint *c       = NULL;
    struct weights    *w       = NULL;
    struct backend    *be      = NULL;
    struct decoder    *d       = NULL;
    status_t           st      = ST_OK;
    const struct cell *cell    = &r->cell;
    TRY_OUT(checkpoint_open(r->checkpoint, &c));
    TRY_OUT(fill_defaults(r, &c->config));
    TRY_OUT(build_prompt(r, &c->config, &u->prompt));
    u->width             = u->prompt.rows;
    const int64_t wanted = (int64_t)u->prompt.columns + cell->workload.max_new_tokens;
    const struct backend_options bo = {.n_threads = r->threads, .pin = false, .memory_limit = cell->memory_limit,
                                       .rounding = cell->precision == PRECISION_FP32 ? ROUND_NONE : ROUND_BF16};
    const struct decode_options  o  = {.batch = 1, .kv = cell->kv, .head = cell->head, .engine = cell->engine,
                                       .max_seq_len = cell->max_seq_len                   ? cell->max_seq_len
                                                      : wanted < c->config.max_seq_len ? (int)wanted
                                                                                       : c->config.max_seq_len,
                                       .sampling = cell->sampling};
    TRY_OUT(backend_open(r->device, &bo, &be));
    TRY_OUT(weights_open(c, cell->precision, cell->recipe, r->threads, &w));
    TRY_OUT(decoder_open(be, w, &o, &d));
    TRY_OUT(decode(r, d, u));
    describe_stop(r, &c->config, u);
    u->engine     = decoder_engine(d);
    u->peak_bytes = atomic_load(&backend_memory(be)->total_peak);
    decoder_close(d);
    weights_close(w);
    d = NULL;
    w = NULL;
    if (r->wav)
        TRY_OUT(speak(r, be, &c->config, u));
out:
    decoder_close(d);
    weights_close(w);
    backend_close(be);
    checkpoint_close(c);
    return st;
}

/* ---- what comes out ---------------------------------------------------------------------------------------------- */

static double frames_per_s(const struct utterance *u)
{
    double ms = u->prefill_ms + u->decode_ms;
    return ms > 0 ? u->n * 1e3 / ms : 0;
}

static void print_summary(FILE *to, const struct request *r, const struct utterance *u)
{
    const struct cell *c  = &r->cell;
    double             ms = u->prefill_ms + u->decode_ms + u->codec_ms;
    fprintf(to, "prompt     %d columns\n", u->prompt.columns);
    fprintf(to, "frames     %d, %.1f frames/s, stopped by %s\n", u->n, frames_per_s(u), u->stop);
    fprintf(to, "audio      %.2f s, %.2f x real time\n", u->audio_s, ms > 0 ? u->audio_s * 1e3 / ms : 0);
    fprintf(to, "time       %.1f ms prefill, %.1f ms decode", u->prefill_ms, u->decode_ms);
    if (r->wav)
        fprintf(to, ", %.1f ms codec (%s) -> %s", u->codec_ms, codec_mode_name(c->codec), r->wav);
    fputc('\n', to);
    fprintf(to, "memory     %.1f MB at most (weights, cache, workspace)\n", (double)u->peak_bytes * 1e-6);
    fprintf(to, "engine     %s on %s, precision %s, kv %s, head %s, sampling %s%s\n", u->engine, r->device,
            precision_name(c->precision), kv_format_name(c->kv), head_mode_name(c->head), sampling_rules_name(c->sampling.rules),
            c->sampling.greedy ? ", greedy" : "");
}

static void write_matrix(FILE *f, const int32_t *values, int rows, int columns)
{
    for (int row = 0; row < rows; row++) {
        fputs(row ? ",\n    [" : "\n    [", f);
        for (int j = 0; j < columns; j++)
            fprintf(f, "%s%d", j ? ", " : "", (int)values[(size_t)row * (size_t)columns + (size_t)j]);
        fputc(']', f);
    }
}

static status_t write_codes(FILE *f, const char *name, const struct request *r, const struct utterance *u)
{
    const struct cell     *c = &r->cell;
    const struct sampling *s = &c->sampling;
    /* JSON text of what may hold any character. */
    json_t *model = json_stringn_nocheck(r->checkpoint, strlen(r->checkpoint));
    char   *label = model ? json_dumps(model, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    fputs("{\n  \"prompt\": [", f);
    write_matrix(f, u->prompt.values, u->prompt.rows, u->prompt.columns);
    fputs("\n  ],\n  \"frames\": [", f);
    write_matrix(f, u->frames, u->n, u->width);
    fprintf(f, "\n  ],\n  \"checkpoint\": %s,\n  \"stop\": \"%s\",\n", label ? label : "null", u->stop);
    fprintf(f, "  \"precision\": \"%s\", \"kv\": \"%s\", \"head\": \"%s\", \"engine\": \"%s\", \"device\": \"%s\",\n",
            precision_name(c->precision), kv_format_name(c->kv), head_mode_name(c->head), u->engine, r->device);
    fprintf(f, "  \"sampling\": \"%s\", \"greedy\": %s, \"temperature\": %g, \"top_p\": %g, \"top_k\": %d,\n",
            sampling_rules_name(s->rules), s->greedy ? "true" : "false", (double)s->temperature, (double)s->top_p, s->top_k);
    fprintf(f, "  \"repetition_penalty\": %g, \"history\": \"%s\", \"seed\": %llu,\n", (double)s->repetition_penalty,
            s->history == HISTORY_FIXED ? "fixed" : "faithful", (unsigned long long)s->seed);
    fprintf(f, "  \"prefill_ms\": %.3f, \"decode_ms\": %.3f, \"frames_per_s\": %.3f, \"audio_s\": %.4f\n}\n", u->prefill_ms,
            u->decode_ms, frames_per_s(u), u->audio_s);
    json_decref(model);
    free(label);
    if (fflush(f) != 0 || ferror(f))
        return FAIL(ST_EIO, "%s: %s", name, strerror(errno));
    return ST_OK;
}

/* Written beside the name and renamed, so that a full disk or a signal leaves no half file; a device or a pipe that
 * already has the name is written to as it is. */
static status_t save_codes(const struct request *r, const struct utterance *u)
{
    struct stat info;
    char        temporary[4200];
    bool        direct = stat(r->codes, &info) == 0 && !S_ISREG(info.st_mode);
    if (strcmp(r->codes, "-") == 0)
        return write_codes(stdout, "standard output", r, u);
    int n = direct ? snprintf(temporary, sizeof temporary, "%s", r->codes)
                   : snprintf(temporary, sizeof temporary, "%s.%ld.tmp", r->codes, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof temporary)
        return FAIL(ST_EUSAGE, "--codes: the path is too long");
    FILE *f = fopen(temporary, "w");
    if (!f)
        return FAIL(ST_EIO, "%s: %s", r->codes, strerror(errno));
    status_t st = write_codes(f, r->codes, r, u);
    if (fclose(f) != 0 && st == ST_OK)
        st = FAIL(ST_EIO, "%s: %s", r->codes, strerror(errno));
    if (st == ST_OK && !direct && rename(temporary, r->codes) != 0)
        st = FAIL(ST_EIO, "%s: %s", r->codes, strerror(errno));
    if (st != ST_OK && !direct)
        unlink(temporary);
    return st;
}

static int run(int argc, char **argv)
{
    struct request   r;
    struct utterance u  = {0};
    status_t         st = parse(argc, argv, &r);
    if (st == ST_OK)
        st = generate(&r, &u);
    if (st == ST_OK && r.codes)
        st = save_codes(&r, &u);
    if (st == ST_OK)
        print_summary(r.codes && strcmp(r.codes, "-") == 0 ? stderr : stdout, &r, &u);
    if (st == ST_OK && fflush(stdout) != 0)
        st = FAIL(ST_EIO, "standard output: %s", strerror(errno));
    prompt_free(&u.prompt);
    free(u.frames);
    cell_free(&r.cell);
    return status_exit(st);
}

const struct command command_generate = {
    .name = "generate", .summary = "decode one utterance to codes", .help = help_text, .run = run};
