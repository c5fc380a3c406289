/* The codec on the GPU against the original's samples and against the CPU: usage test_codec GOLDEN_DIR
 * [CKPT ...]; ONLY=convolutions|golden|cpu narrows it.
 *
 * GOLDEN_DIR holds codec.pth, codec.json and expected.safetensors; its narrow layers run the any-shape kernel. Each
 * CKPT (a folder with codec.pth of the published shape, say) runs the tensor-core kernels, compared with the fast CPU.
 */
#include "tests/gpu/tap.h"

#include "backend/backend.h"
#include "checkpoint/safetensors.h"
#include "kernels/codec.h"
#include "model/bf16.h"
#include "model/codec.h"

#include <math.h>

/* FP32 mode multiplies 16 bits of mantissa through some 30 layers; on samples in (−1, 1): 2.7e-5 seen on the golden
 * codec, 5.6e-4 on random weights of the published shape, which amplify more than trained ones. */
static const double GOLDEN_BOUND = 1e-4, RANDOM_BOUND = 1e-3;
/* BF16 products everywhere but in the last layer, against the FP32 samples of the golden codec; random weights of the
 * published shape let BF16 codecs on any device differ more. */
static const double GOLDEN_SNR_DB = 30.0, RANDOM_SNR_DB = 15.0;
/* A convolution of N(0, 1) inputs and weights scaled to outputs of about 1: 2^-16 a product, and BF16 inputs given. */
static const double CONV_BOUND = 2e-4;

static float *decode(const char *device, const char *dir, enum codec_mode mode, int chunk, const struct codes *codes,
                     size_t *n)
{
    struct backend_options options = {.rounding = ROUND_NONE};
    struct codec_options   how = {.mode = mode, .decoder = true, .chunk_frames = chunk};
    struct backend        *be = NULL;
    struct codec          *c = NULL;
    float                 *wav = NULL;
    if (backend_open(device, &options, &be) == ST_OK && codec_open(be, dir, &how, &c) == ST_OK) {
        *n = (size_t)codes->frames * (size_t)codec_hop(c);
        wav = malloc(*n * sizeof *wav);
        memset(wav, 0xff, *n * sizeof *wav); /* NaN: every sample must be written */
        if (codec_decode(c, codes, wav) != ST_OK) {
            free(wav);
            wav = NULL;
        }
    }
    codec_close(c);
    backend_close(be);
    return wav;
}

static void compare(const char *what, const float *got, const float *want, size_t n, enum codec_mode mode, double most,
                    double least_db)
{
    double worst = 0, signal = 0, noise = 0;
    for (size_t i = 0; got && i < n; i++) {
        double d = (double)got[i] - want[i];
        worst = fabs(d) > worst || isnan(d) ? fabs(d) : worst;
        signal += (double)want[i] * want[i];
        noise += d * d;
    }
    double snr = 10 * log10(signal / noise);
    tap_ok(got && (mode == CODEC_FP32 ? worst <= most : snr >= least_db),
           "%s: %s samples on the GPU are within their bound (%.2e, %.1f dB)", what, codec_mode_name(mode), worst, snr);
}

/* ---- one convolution on tensor cores against sums in FP64 ---- */

struct conv_case {
    int  n, rows, taps, cols, stride, dilation, act, channels;
    bool residual, gamma, alpha, plain;
};

static uint64_t noise_state = 0x9e3779b97f4a7c15u;

static float noise(void) /* about N(0, 1): a sum of four uniform values */
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        noise_state ^= noise_state << 13;
        noise_state ^= noise_state >> 7;
        noise_state ^= noise_state << 17;
        sum += (float)(noise_state >> 40) * 0x1p-24f - 0.5f;
    }
    return sum * 1.7320508f;
}

static float *noises(size_t n, float scale, bool rounded)
{
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = rounded ? bf16_round(noise() * scale) : noise() * scale;
    return v;
}

static void *on_device(struct backend *be, const void *host, size_t bytes)
{
    void *d = NULL;
    if (backend_ops_of(be)->alloc(be, MEM_WORKSPACE, bytes, &d) == ST_OK && host)
        backend_ops_of(be)->upload(be, d, host, bytes);
    return d;
}

static size_t halves_at(size_t i) /* kernels/codec.h, SPLIT */
{
    return i / 32 * 64 + i % 32;
}

static void put_rows(int form, void *to, const float *v, size_t n)
{
    bf16_t *h = to;
    for (size_t i = 0; i < n; i++)
        if (form == CODEC_FORM_BF16) {
            h[i] = bf16_from_f32(v[i]);
        } else {
            h[halves_at(i)] = bf16_from_f32(v[i]);
            h[halves_at(i) + 32] = bf16_from_f32(v[i] - bf16_round(v[i]));
        }
}

static float get_row(int form, const void *from, size_t i)
{
    const bf16_t *h = from;
    return form == CODEC_FORM_BF16 ? bf16_to_f32(h[i])
                                   : bf16_to_f32(h[halves_at(i)]) + bf16_to_f32(h[halves_at(i) + 32]);
}

static double conv_error(const struct conv_case *k, int form, int format, double *next_error)
{
    struct backend_options options = {.rounding = ROUND_NONE};
    struct backend        *be = NULL;
    if (backend_open("cuda", &options, &be) != ST_OK)
        return INFINITY;
    bool   rounded = form == CODEC_FORM_BF16, codes = format == CODEC_W_I8;
    int    inputs = (k->n - 1) * k->stride + (k->taps - 1) * k->dilation + 1, depth = k->taps * k->cols;
    size_t nx = (size_t)inputs * (size_t)k->cols, nw = (size_t)k->rows * (size_t)depth,
           ny = (size_t)k->n * (size_t)k->rows;
    size_t item = rounded ? 2 : 4;
    float *x = noises(nx, 1, rounded), *w = noises(nw, codes ? 40 : 1 / sqrtf((float)depth), rounded && !codes);
    float *bias = noises((size_t)k->rows, 1, false), *gamma = noises((size_t)k->rows, 1, false),
          *residual = noises(ny, 1, false);
    float *scales = noises((size_t)k->rows, 0.02f / sqrtf((float)depth), false),
          *alpha = noises(2 * (size_t)k->channels, 1, false);
    void  *rows = malloc(nx * item), *stored = malloc(nw * 4), *next = malloc(ny * item);
    float *y = malloc(ny * sizeof *y);
    for (int i = 0; i < k->channels; i++)
        alpha[k->channels + i] = 1 / ((alpha[i] = fabsf(alpha[i]) + 0.1f) + 1e-9f);
    put_rows(form, rows, x, nx);
    if (codes)
        for (size_t i = 0; i < nw; i++)
            ((int8_t *)stored)[i] = (int8_t)(w[i] = rintf(w[i] > 127 ? 127 : w[i] < -128 ? -128 : w[i]));
    else if (format == CODEC_W_BF16)
        put_rows(CODEC_FORM_BF16, stored, w, nw);
    else
        memcpy(stored, w, nw * sizeof *w);
    memset(y, 0xff, ny * sizeof *y);
    memset(next, 0xff, ny * item);
    float *d_y = k->plain ? on_device(be, y, ny * sizeof *y) : NULL,
          *d_residual = on_device(be, residual, ny * sizeof *y);
    struct codec_conv_args a = {.form = form,
                                .format = format,
                                .n = k->n,
                                .rows = k->rows,
                                .taps = k->taps,
                                .cols = k->cols,
                                .stride = k->stride,
                                .dilation = k->dilation,
                                .d_x = on_device(be, rows, nx * item),
                                .d_w = on_device(be, stored, nw * 4),
                                .d_bias = on_device(be, bias, (size_t)k->rows * 4),
                                .act = k->act,
                                .d_y = d_y,
                                .d_next = on_device(be, next, ny * item),
                                .next_form = form,
                                .channels = k->channels};
    a.d_scales = codes ? on_device(be, scales, (size_t)k->rows * 4) : NULL;
    a.d_gamma = k->gamma ? on_device(be, gamma, (size_t)k->rows * 4) : NULL;
    a.d_residual = k->residual ? d_residual : NULL;
    a.d_alpha = k->alpha ? on_device(be, alpha, 2 * (size_t)k->channels * 4) : NULL;
    if (format == CODEC_W_SPLIT)
        codec_split_launch((void *)(uintptr_t)a.d_w, nw, NULL);
    cudaError_t e = cudaDeviceSynchronize();
    if (e == cudaSuccess)
        e = codec_conv_launch(&a, NULL);
    if (e == cudaSuccess)
        e = cudaDeviceSynchronize();
    if (e != cudaSuccess)
        printf("# %s\n", cudaGetErrorString(e));
    if (d_y)
        backend_ops_of(be)->download(be, y, d_y, ny * sizeof *y);
    backend_ops_of(be)->download(be, next, a.d_next, ny * item);
    double worst = e == cudaSuccess ? 0 : INFINITY;
    *next_error = worst;
    for (int pick = 0; pick < 4000; pick++) { /* elements all over, the last rows among them */
        int    t = pick % 8 == 0 ? k->n - 1 - pick / 8 % (k->n < 130 ? k->n : 130)
                                 : (int)((unsigned)pick * 2654435761u % (unsigned)k->n);
        int    r = pick < k->rows ? pick : (int)((unsigned)pick * 40503u % (unsigned)k->rows);
        double sum = 0;
        for (int tap = 0; tap < k->taps; tap++)
            for (int c = 0; c < k->cols; c++)
                sum += (double)x[((size_t)t * (size_t)k->stride + (size_t)tap * (size_t)k->dilation) * (size_t)k->cols +
                                 (size_t)c] *
                       w[((size_t)r * (size_t)k->taps + (size_t)tap) * (size_t)k->cols + (size_t)c];
        size_t at = (size_t)t * (size_t)k->rows + (size_t)r;
        double v = (codes ? sum * scales[r] : sum) + bias[r];
        v = k->act == CODEC_ACT_GELU ? 0.5 * v * (1 + erf(v * 0.70710678118654752)) : v;
        v = (k->gamma ? v * gamma[r] : v) + (k->residual ? residual[at] : 0);
        double d = k->plain ? fabs(v - y[at]) / (1 + fabs(v)) : 0, al = alpha[r % k->channels], s = sin(al * v);
        double z = k->alpha ? v + s * s * alpha[k->channels + r % k->channels] : v;
        double f = fabs(z - get_row(form, next, at)) / (1 + fabs(z)) - (rounded ? 0x1p-8 : 0);
        worst = d > worst || isnan(d) ? d : worst;
        *next_error = f > *next_error || isnan(f) ? f : *next_error;
    }
    free(x), free(w), free(bias), free(gamma), free(residual), free(scales), free(alpha), free(rows), free(stored),
        free(next), free(y);
    backend_close(be);
    return worst;
}

static void convolutions(void)
{
    static const struct conv_case cases[] = {
        {.n = 200,
         .rows = 384,
         .taps = 7,
         .cols = 128,
         .stride = 1,
         .dilation = 9,
         .channels = 384,
         .alpha = true,
         .plain = true},
        {.n = 20000, .rows = 96, .taps = 7, .cols = 96, .stride = 1, .dilation = 3, .channels = 96, .alpha = true},
        {.n = 20000,
         .rows = 192,
         .taps = 1,
         .cols = 192,
         .stride = 1,
         .dilation = 1,
         .channels = 192,
         .alpha = true,
         .residual = true,
         .plain = true},
        {.n = 77,
         .rows = 768,
         .taps = 2,
         .cols = 384,
         .stride = 1,
         .dilation = 1,
         .channels = 192,
         .alpha = true,
         .plain = true},
        {.n = 9,
         .rows = 4096,
         .taps = 1,
         .cols = 1024,
         .stride = 1,
         .dilation = 1,
         .channels = 4096,
         .act = CODEC_ACT_GELU,
         .plain = true},
        {.n = 9,
         .rows = 1024,
         .taps = 1,
         .cols = 4096,
         .stride = 1,
         .dilation = 1,
         .channels = 1024,
         .gamma = true,
         .residual = true,
         .plain = true},
        {.n = 333, .rows = 256, .taps = 16, .cols = 128, .stride = 8, .dilation = 1, .channels = 256, .plain = true},
        {.n = 5000,
         .rows = 640,
         .taps = 7,
         .cols = 64,
         .stride = 1,
         .dilation = 1,
         .channels = 640,
         .alpha = true,
         .plain = true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int kind = 0; kind < 3; kind++) {
            int    form = kind ? CODEC_FORM_BF16 : CODEC_FORM_SPLIT, format = kind == 2 ? CODEC_W_I8
                                                                              : kind    ? CODEC_W_BF16
                                                                                        : CODEC_W_SPLIT;
            double next = INFINITY, worst = conv_error(&cases[i], form, format, &next);
            tap_ok(worst <= CONV_BOUND && next <= CONV_BOUND,
                   "convolution %d × %d × %d × %d, %s: sums and next rows are within %.0e of FP64 (%.1e, %.1e)",
                   cases[i].n, cases[i].rows, cases[i].taps, cases[i].cols,
                   kind == 2 ? "int8"
                   : kind    ? "bf16"
                             : "fp32",
                   CONV_BOUND, worst, next);
        }
}

static void golden(const char *dir)
{
    char                path[4200];
    struct safetensors *file;
    snprintf(path, sizeof path, "%s/expected.safetensors", dir);
    if (safetensors_open(path, &file) != ST_OK) {
        tap_ok(false, "%s can be read", path);
        return;
    }
    const struct tensor *t = tensor_set_find(safetensors_tensors(file), "codes"),
                        *w = tensor_set_find(safetensors_tensors(file), "wav");
    struct codes codes = {.codebooks = (int)t->shape[0], .frames = (int)t->shape[1], .values = malloc(t->bytes)};
    float       *want = malloc(w->bytes);
    memcpy(codes.values, t->data, t->bytes);
    memcpy(want, w->data, w->bytes);
    for (enum codec_mode mode = CODEC_FP32; mode < CODEC_COUNT; mode++) {
        size_t n = 0, m = 0;
        float *whole = decode("cuda", dir, mode, 16, &codes, &n), *pieces = decode("cuda", dir, mode, 3, &codes, &m);
        compare("golden", whole, want, n, mode, GOLDEN_BOUND, GOLDEN_SNR_DB);
        tap_ok(whole && pieces && n == m && !memcmp(whole, pieces, n * sizeof *whole),
               "golden: %s chunks of 3 frames give the bits of one shot", codec_mode_name(mode));
        free(whole);
        free(pieces);
    }
    free(codes.values);
    free(want);
    safetensors_close(file);
}

static void against_cpu(const char *dir, int codebooks, int frames)
{
    struct codes codes = {.codebooks = codebooks,
                          .frames = frames,
                          .values = malloc((size_t)codebooks * (size_t)frames * sizeof(int32_t))};
    uint64_t     x = 0x9e3779b97f4a7c15u;
    for (int i = 0; i < codebooks * frames; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        codes.values[i] = (int32_t)((x >> 33) % (i < frames ? 4096 : 1024));
    }
    size_t n = 0, m = 0;
    float *want = decode("cpu", dir, CODEC_FP32, 16, &codes, &n);
    for (enum codec_mode mode = CODEC_FP32; mode < CODEC_COUNT; mode++) {
        float *got = decode("cuda", dir, mode, 32, &codes, &m), *pieces = decode("cuda", dir, mode, 5, &codes, &m);
        compare(dir, want ? got : NULL, want, n, mode, RANDOM_BOUND, RANDOM_SNR_DB);
        tap_ok(got && pieces && !memcmp(got, pieces, m * sizeof *got),
               "%s: %s chunks of 5 frames give the bits of chunks of 32", dir, codec_mode_name(mode));
        free(got);
        free(pieces);
    }
    free(want);
    free(codes.values);
}

/* Codes of a synthetic sound by the encoder on a device; a glide over a chord, so that frames differ. */
static bool encode(const char *device, const char *dir, size_t n, struct codes *out)
{
    struct backend_options options = {.rounding = ROUND_NONE};
    struct codec_options   how     = {.mode = CODEC_FP32, .encoder = true, .chunk_frames = 5};
    struct backend        *be      = NULL;
    struct codec          *c       = NULL;
    float                 *wav     = malloc(n * sizeof *wav);
    for (size_t i = 0; i < n; i++) {
        double t = (double)i / 44100;
        wav[i]   = (float)(0.4 * sin(6.283185307 * (200 + 500 * t) * t) + 0.2 * sin(6.283185307 * 663 * t));
    }
    bool good = backend_open(device, &options, &be) == ST_OK && codec_open(be, dir, &how, &c) == ST_OK &&
                codec_encode(c, wav, n, out) == ST_OK;
    codec_close(c);
    backend_close(be);
    free(wav);
    return good;
}

/* A code may differ where two candidates are closer than the devices' rounding, and then the later codebooks of its frame
 * follow: so frames are counted, and most must be equal in every codebook. */
static const double EQUAL_FRAMES = 0.75;

static void encoder(const char *dir)
{
    struct codes cpu = {0}, gpu = {0};
    bool         good = encode("cpu", dir, 12 * 2048 - 500, &cpu) && encode("cuda", dir, 12 * 2048 - 500, &gpu);
    int          equal = 0, frames = cpu.frames;
    for (int t = 0; good && t < frames; t++) {
        bool same = true;
        for (int k = 0; k < cpu.codebooks; k++)
            same = same && cpu.values[k * frames + t] == gpu.values[k * frames + t];
        equal += same;
    }
    good = good && gpu.frames == frames && gpu.codebooks == cpu.codebooks && equal >= EQUAL_FRAMES * frames;
    tap_ok(good, "%s: the encoder on the GPU gives the CPU's codes (%d of %d frames equal in all codebooks)", dir, equal, frames);
    codes_free(&cpu);
    codes_free(&gpu);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    if (tap_wanted("convolutions"))
        convolutions();
    if (tap_wanted("golden"))
        golden(argv[1]);
    for (int i = 1; i < argc && tap_wanted("encoder"); i++)
        encoder(argv[i]);
    for (int i = 2; i < argc && tap_wanted("cpu"); i++)
        against_cpu(argv[i], 10, 12);
    return tap_done();
}
