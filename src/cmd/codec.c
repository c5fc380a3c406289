/* codec.c — `qsweep codec decode|encode`: codes to speech and speech to codes. */
#include "base/clock.h"
#include "base/log.h"
#include "cmd/command.h"
#include "model/audio.h"
#include "model/codec.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct arguments {
    const char     *checkpoint, *codes, *wav, *device;
    enum codec_mode mode;
    bool            float32, mode_given;
    int             threads, chunk, frames, runs;
};

/* NumPy's .npy, version 1.0: int32 [codebooks][frames], C order. */
static status_t write_npy(FILE *f, const struct codes *c)
{
    char header[128];
    int  n = snprintf(header, sizeof header, "{'descr': '<i4', 'fortran_order': False, 'shape': (%d, %d), }", c->codebooks,
                      c->frames);
    while ((10 + n + 1) % 64)
        header[n++] = ' ';
    header[n++]                  = '\n';
    const unsigned char magic[] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (unsigned char)n, 0};
    size_t              count   = (size_t)c->codebooks * (size_t)c->frames;
    bool ok = fwrite(magic, 1, sizeof magic, f) == sizeof magic && fwrite(header, 1, (size_t)n, f) == (size_t)n &&
              fwrite(c->values, sizeof *c->values, count, f) == count;
    return ok ? ST_OK : ST_EIO;
}

static status_t write_json(FILE *f, const struct codes *c)
{
    fputc('[', f);
    for (int k = 0; k < c->codebooks; k++) {
        fprintf(f, "%s[", k ? ",\n " : "");
        for (int t = 0; t < c->frames; t++)
            fprintf(f, "%s%d", t ? ", " : "", c->values[(size_t)k * (size_t)c->frames + (size_t)t]);
        fputc(']', f);
    }
    fputs("]\n", f);
    return ferror(f) ? ST_EIO : ST_OK;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static status_t write_codes(const char *path, const struct codes *c)
{
    if (strcmp(path, "-") == 0)
        return write_json(stdout, c) == ST_OK ? ST_OK : FAIL(ST_EIO, "standard output: %m");
    char temporary[4200];
    snprintf(temporary, sizeof temporary, "%s.tmp%d", path, (int)getpid());
    FILE *f = fopen(temporary, "wb");
    if (!f)
        return FAIL(ST_EIO, "%s: cannot be written: %m", path);
    status_t st = ends_with(path, ".npy") ? write_npy(f, c) : write_json(f, c);
    if (fclose(f) || st != ST_OK || rename(temporary, path)) {
        unlink(temporary);
        return FAIL(ST_EIO, "%s: cannot be written: %m", path);
    }
    return ST_OK;
}

static status_t decode(struct codec *codec, const struct arguments *a)
{
    struct codes codes = {0};
    float       *wav   = NULL;
    status_t     st    = ST_OK;
    TRY(codes_open(a->codes, 1 << 20, -1, &codes)); /* above a codebook's size the codec clamps, as the original does */
    size_t n = (size_t)codes.frames * (size_t)codec_hop(codec);
    int    rate = codec_config_of(codec)->sample_rate;
    wav = malloc(n * sizeof *wav);
    if (!wav)
        TRY_OUT(FAIL(ST_ENOMEM, "no memory for %zu samples", n));
    int64_t t0 = clock_ns();
    TRY_OUT(codec_decode(codec, &codes, wav));
    double ms = clock_ms_since(t0), seconds = (double)n / rate;
    TRY_OUT(audio_write(a->wav, wav, n, rate, a->float32));
    fprintf(stderr, "%d frames, %.2f s of audio in %.0f ms: %.2f × real time (%s, %s) → %s\n", codes.frames, seconds, ms,
            seconds / ms * 1e3, codec_mode_name(a->mode), a->device, a->wav);
out:
    free(wav);
    codes_free(&codes);
    return st;
}

static status_t encode(struct codec *codec, const struct arguments *a)
{
    float       *wav = NULL;
    size_t       n   = 0;
    struct codes codes = {0};
    status_t     st    = ST_OK;
    int          rate  = codec_config_of(codec)->sample_rate;
    TRY(audio_read(a->wav, rate, &wav, &n));
    int64_t t0 = clock_ns();
    TRY_OUT(codec_encode(codec, wav, n, &codes));
    double ms = clock_ms_since(t0), seconds = (double)n / rate;
    TRY_OUT(write_codes(a->codes, &codes));
    fprintf(stderr, "%.2f s of audio → %d frames of %d codes in %.0f ms: %.2f × real time (%s)\n", seconds, codes.frames,
            codes.codebooks, ms, seconds / ms * 1e3, a->device);
out:
    free(wav);
    codes_free(&codes);
    return st;
}

/* ---- bench: how fast, how much memory, how soon the first sound ---- */

enum { BENCH_WARMUP = 3, BENCH_FIRST = 8, BENCH_CHUNK = 72 }; /* 72: FP32 buffers below 200 MB */

/* Arithmetic of one frame of the published shape (codec.md §7); another shape has no figure here. */
static const double PUBLISHED_GFLOP_PER_FRAME = 6.768;

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *sorted, int n, double q)
{
    double at = q * (n - 1);
    int    i  = (int)at;
    return i + 1 < n ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[n - 1];
}

/* Codes that look like codes: uniform, fixed seed (xorshift64), never zeros. */
static void fill_codes(struct codes *c)
{
    uint64_t x = 88172645463325252u;
    for (int k = 0; k < c->codebooks; k++)
        for (int t = 0; t < c->frames; t++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            c->values[(size_t)k * (size_t)c->frames + (size_t)t] = (int32_t)(x >> 33) % (k ? 1024 : 4096);
        }
}

static status_t bench_mode(const struct arguments *a, enum codec_mode mode)
{
    struct backend_options wanted  = {.n_threads = a->threads, .pin = true, .rounding = ROUND_NONE};
    struct codec_options   how     = {.mode = mode, .decoder = true, .chunk_frames = a->chunk ? a->chunk : BENCH_CHUNK};
    struct backend        *be      = NULL;
    struct codec          *codec   = NULL;
    struct codes           codes   = {.frames = a->frames};
    float                 *wav     = NULL;
    double                *ms      = calloc((size_t)a->runs, sizeof *ms), *first = calloc((size_t)a->runs, sizeof *first);
    status_t               st      = ST_OK;
    TRY_OUT(backend_open(a->device, &wanted, &be));
    TRY_OUT(codec_open(be, a->checkpoint, &how, &codec));
    codes.codebooks = codec_codebooks(codec);
    codes.values    = malloc((size_t)codes.codebooks * (size_t)codes.frames * sizeof *codes.values);
    wav             = malloc((size_t)codes.frames * (size_t)codec_hop(codec) * sizeof *wav);
    if (!codes.values || !wav || !ms || !first)
        TRY_OUT(FAIL(ST_ENOMEM, "no memory for the codec bench"));
    fill_codes(&codes);
    int first_frames = codes.frames < BENCH_FIRST ? codes.frames : BENCH_FIRST;
    if (first_frames > how.chunk_frames)
        first_frames = how.chunk_frames;
    for (int i = -BENCH_WARMUP; i < a->runs; i++) {
        int64_t t0 = clock_ns();
        TRY_OUT(codec_decode_begin(codec));
        TRY_OUT(codec_decode_push(codec, codes.values, (size_t)codes.frames, first_frames, wav));
        double soon = clock_ms_since(t0);
        t0          = clock_ns();
        TRY_OUT(codec_decode(codec, &codes, wav));
        if (i >= 0) {
            ms[i]    = clock_ms_since(t0);
            first[i] = soon;
        }
    }
    qsort(ms, (size_t)a->runs, sizeof *ms, by_value);
    qsort(first, (size_t)a->runs, sizeof *first, by_value);
    double median    = quantile(ms, a->runs, 0.5), audio_s = (double)codes.frames * codec_hop(codec) / codec_config_of(codec)->sample_rate;
    size_t total     = atomic_load(&backend_memory(be)->total_peak), weights = codec_weight_bytes(codec);
    bool   published = codec_config_of(codec)->latent == 1024 && codec_config_of(codec)->decoder_dim == 1536;
    printf("| %-9s | %6d | %9.2f | %9.2f … %9.2f | %8.1f | %8.2f | %8.1f | %8.1f |", codec_mode_name(mode), codes.frames, median,
           quantile(ms, a->runs, 0.05), quantile(ms, a->runs, 0.95), audio_s * 1e3 / median, quantile(first, a->runs, 0.5),
           (double)weights * 1e-6, (double)(total - weights) * 1e-6);
    if (published)
        printf(" %8.2f |\n", PUBLISHED_GFLOP_PER_FRAME * codes.frames / median);
    else
        printf(" %8s |\n", "-");
    fflush(stdout);
out:
    codec_close(codec);
    backend_close(be);
    free(codes.values);
    free(wav);
    free(ms);
    free(first);
    return st;
}

static status_t bench(const struct arguments *a)
{
    printf("codec decode on %s, chunks of %d frames, %d runs after %d to warm up\n\n", a->device, a->chunk ? a->chunk : BENCH_CHUNK, a->runs,
           BENCH_WARMUP);
    puts("| precision | frames | median ms |       p5 … p95 ms      | x real   | first ms | weights  | buffers  | TFLOP/s  |");
    puts("|-----------|-------:|----------:|-----------------------:|---------:|---------:|---------:|---------:|---------:|");
    for (enum codec_mode mode = CODEC_FP32; mode < CODEC_COUNT; mode++)
        if (!a->mode_given || mode == a->mode)
            TRY(bench_mode(a, mode));
    puts("\nx real: seconds of audio a second; first: the first 8 frames alone; weights and buffers in MB (10^6 bytes).");
    return ST_OK;
}

static int run(int argc, char **argv)
{
    static const struct option options[] = {{"codes", required_argument, NULL, 'c'},     {"wav", required_argument, NULL, 'w'},
                                            {"precision", required_argument, NULL, 'p'}, {"device", required_argument, NULL, 'd'},
                                            {"float", no_argument, NULL, 'f'},           {"threads", required_argument, NULL, 't'},
                                            {"chunk", required_argument, NULL, 'k'},     {"frames", required_argument, NULL, 'n'},
                                            {"runs", required_argument, NULL, 'r'},      {0}};
    struct arguments           a         = {.mode = CODEC_FP32, .device = "cpu", .frames = 215, .runs = 20};
    if (argc < 2 || (strcmp(argv[1], "decode") && strcmp(argv[1], "encode") && strcmp(argv[1], "bench"))) {
        fputs("qsweep codec: want `codec decode`, `codec encode` or `codec bench`; see `qsweep help codec`\n", stderr);
        return 2;
    }
    bool decoding = strcmp(argv[1], "decode") == 0, benching = strcmp(argv[1], "bench") == 0;
    argc--, argv++;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case 'c': a.codes = optarg; break;
        case 'w': a.wav = optarg; break;
        case 'd': a.device = optarg; break;
        case 'f': a.float32 = true; break;
        case 't': a.threads = atoi(optarg); break;
        case 'k': a.chunk = atoi(optarg); break;
        case 'n': a.frames = atoi(optarg); break;
        case 'r': a.runs = atoi(optarg); break;
        case 'p': {
            int mode = codec_mode_parse(optarg);
            if (mode <= CODEC_OFF) {
                fprintf(stderr, "qsweep codec: precision \"%s\": want fp32, bf16 or int8\n", optarg);
                return 2;
            }
            a.mode       = (enum codec_mode)mode;
            a.mode_given = true;
            break;
        }
        default: return 2;
        }
    }
    if (optind + 1 == argc && benching && a.frames > 0 && a.frames <= 4096 && a.runs > 0 && a.runs <= 100000 && a.threads >= 0 &&
        a.chunk >= 0) {
        a.checkpoint = argv[optind];
        return status_exit(bench(&a));
    }
    if (benching || optind + 1 != argc || !a.codes || !a.wav || a.threads < 0 || a.chunk < 0) {
        fputs("qsweep codec: want a checkpoint (decode and encode also --codes FILE and --wav FILE); see `qsweep help codec`\n", stderr);
        return 2;
    }
    struct backend_options wanted  = {.n_threads = a.threads, .pin = true, .rounding = ROUND_NONE};
    struct codec_options   how     = {.mode = a.mode, .decoder = decoding, .encoder = !decoding, .chunk_frames = a.chunk};
    struct backend        *backend = NULL;
    struct codec          *codec   = NULL;
    status_t               st      = backend_open(a.device, &wanted, &backend);
    if (st == ST_OK)
        st = codec_open(backend, argv[optind], &how, &codec);
    if (st == ST_OK)
        st = decoding ? decode(codec, &a) : encode(codec, &a);
    codec_close(codec);
    backend_close(backend);
    return status_exit(st);
}

const struct command command_codec = {
    .name = "codec",
    .summary = "codes to 44.1 kHz speech and back",
    .help = "usage: qsweep codec decode CKPT --codes F.json|F.npy --wav F.wav [options]\n"
            "       qsweep codec encode CKPT --wav F.wav --codes F.json|F.npy|- [options]\n"
            "       qsweep codec bench CKPT [--frames 215] [--runs 20] [options]\n\n"
            "CKPT is a folder with codec.pth (and, for another shape than the published one, codec.json), or the file.\n"
            "decode turns [codebooks][frames] codes, or what `generate --codes` wrote, into sound; encode turns any sound\n"
            "file (mixed to mono, resampled to 44.1 kHz) into codes, as a reference voice for `generate --voice`.\n\n"
            "  --precision P   fp32 (default), bf16, or int8 (linear layers INT8, the rest BF16)\n"
            "  --device D      cpu (default), cpu_ref, cuda[:i]\n"
            "  --float         write 32-bit float samples instead of 16-bit\n"
            "  --chunk N       code frames a pass, default 16: memory grows with it, the samples stay the same\n"
            "  --threads N     CPU threads, default all allowed cores\n"
            "  --frames, --runs   bench: length of the utterance and how often it is decoded\n\n"
            "examples:\n"
            "  qsweep codec decode checkpoints/openaudio-s1-mini --codes out.json --wav out.wav --precision bf16\n"
            "  qsweep codec encode checkpoints/openaudio-s1-mini --wav voice.flac --codes voice.npy\n",
    .run = run,
};
