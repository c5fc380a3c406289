/* The codec on the GPU against the original's samples and against the CPU: usage test_codec GOLDEN_DIR [CKPT ...].
 *
 * GOLDEN_DIR holds codec.pth, codec.json and expected.safetensors; its narrow layers run the any-shape kernel. Each CKPT
 * (a folder with codec.pth of the published shape, say) runs the tensor-core kernels, compared with the fast CPU. */
#include "tests/gpu/tap.h"

#include "backend/backend.h"
#include "checkpoint/safetensors.h"
#include "model/codec.h"

#include <math.h>

/* FP32 mode multiplies in TF32 (10 bits of mantissa) through some 30 layers; the bound on samples in (−1, 1). */
static const double FP32_BOUND = 1e-3;
/* BF16 activations and weights everywhere but in the last layer, against the FP32 samples. */
static const double BF16_SNR_DB = 25.0;

static float *decode(const char *device, const char *dir, enum codec_mode mode, int chunk, const struct codes *codes, size_t *n)
{
    struct backend_options options = {.rounding = ROUND_NONE};
    struct codec_options   how     = {.mode = mode, .decoder = true, .chunk_frames = chunk};
    struct backend        *be      = NULL;
    struct codec          *c       = NULL;
    float                 *wav     = NULL;
    if (backend_open(device, &options, &be) == ST_OK && codec_open(be, dir, &how, &c) == ST_OK) {
        *n  = (size_t)codes->frames * (size_t)codec_hop(c);
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

static void compare(const char *what, const float *got, const float *want, size_t n, enum codec_mode mode)
{
    double worst = 0, signal = 0, noise = 0;
    for (size_t i = 0; got && i < n; i++) {
        double d = (double)got[i] - want[i];
        worst = fabs(d) > worst || isnan(d) ? fabs(d) : worst;
        signal += (double)want[i] * want[i];
        noise += d * d;
    }
    double snr = 10 * log10(signal / noise);
    tap_ok(got && (mode == CODEC_FP32 ? worst <= FP32_BOUND : snr >= BF16_SNR_DB), "%s: %s samples on the GPU are within their bound (%.2e, %.1f dB)",
           what, codec_mode_name(mode), worst, snr);
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
    const struct tensor *t = tensor_set_find(safetensors_tensors(file), "codes"), *w = tensor_set_find(safetensors_tensors(file), "wav");
    struct codes         codes = {.codebooks = (int)t->shape[0], .frames = (int)t->shape[1], .values = malloc(t->bytes)};
    float               *want  = malloc(w->bytes);
    memcpy(codes.values, t->data, t->bytes);
    memcpy(want, w->data, w->bytes);
    for (enum codec_mode mode = CODEC_FP32; mode < CODEC_COUNT; mode++) {
        size_t n = 0, m = 0;
        float *whole = decode("cuda", dir, mode, 16, &codes, &n), *pieces = decode("cuda", dir, mode, 3, &codes, &m);
        compare("golden", whole, want, n, mode);
        tap_ok(whole && pieces && n == m && !memcmp(whole, pieces, n * sizeof *whole), "golden: %s chunks of 3 frames give the bits of one shot",
               codec_mode_name(mode));
        free(whole);
        free(pieces);
    }
    free(codes.values);
    free(want);
    safetensors_close(file);
}

static void against_cpu(const char *dir, int codebooks, int frames)
{
    struct codes codes = {.codebooks = codebooks, .frames = frames, .values = malloc((size_t)codebooks * (size_t)frames * sizeof(int32_t))};
    uint64_t     x     = 0x9e3779b97f4a7c15u;
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
        compare(dir, want ? got : NULL, want, n, mode);
        tap_ok(got && pieces && !memcmp(got, pieces, m * sizeof *got), "%s: %s chunks of 5 frames give the bits of chunks of 32", dir,
               codec_mode_name(mode));
        free(got);
        free(pieces);
    }
    free(want);
    free(codes.values);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    golden(argv[1]);
    for (int i = 2; i < argc; i++)
        against_cpu(argv[i], 10, 12);
    return tap_done();
}
