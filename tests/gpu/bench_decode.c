/* Decode speed of one setting: usage bench_decode CHECKPOINT PRECISION KV HEAD BATCH CONTEXT [FRAMES [RUNS [ENGINE]]].
 * Decodes FRAMES frames RUNS times from a prompt that makes CONTEXT the mean context, device idle at both ends, host wall
 * clock, and prints the median with the bytes a frame must move, the limit at the measured bandwidth and the share. */
#include "base/clock.h"
#include "backend/backend.h"
#include "model/decode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double arg(char **argv, int argc, int i, double otherwise)
{
    return argc > i ? atof(argv[i]) : otherwise;
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "usage: bench_decode CHECKPOINT PRECISION KV HEAD BATCH CONTEXT [FRAMES [RUNS [ENGINE]]]\n");
        return 2;
    }
    const int64_t          start = clock_ns();
    struct checkpoint     *c;
    struct weights        *w;
    struct backend        *be;
    struct decoder        *d;
    const int              batch = atoi(argv[5]), context = atoi(argv[6]), frames = (int)arg(argv, argc, 7, 256);
    const int              runs = (int)arg(argv, argc, 8, 20), columns = context - frames / 2;
    const double           bandwidth = getenv("QSWEEP_BANDWIDTH") ? atof(getenv("QSWEEP_BANDWIDTH")) * 1e9 : 4.3e12;
    struct backend_options bo = {.rounding = ROUND_BF16};
    struct decode_options  o = {.batch = batch, .max_seq_len = context + frames, .kv = (enum kv_format)kv_format_parse(argv[3]),
                                .head = (enum head_mode)head_mode_parse(argv[4]), .fixed_length = true,
                                .engine = argc > 9 ? (enum engine_kind)engine_kind_parse(argv[9]) : ENGINE_AUTO};
    if (columns < 1 || checkpoint_open(argv[1], &c) != ST_OK)
        return 1;
    sampling_defaults(c->config.family == FAMILY_S2 ? SAMPLING_S2 : SAMPLING_S1, &o.sampling);
    if (backend_open("cuda", &bo, &be) != ST_OK)
        return 1;
    const double context_s = (double)(clock_ns() - start) * 1e-9;
    if (weights_open(c, (enum precision)precision_parse(argv[2]), RECIPE_NONE, 0, &w) != ST_OK)
        return 1;
    const double weights_s = (double)(clock_ns() - start) * 1e-9;
    if (decoder_open(be, w, &o, &d) != ST_OK)
        return 1;
    const double   open_s = (double)(clock_ns() - start) * 1e-9;
    const int      width = 1 + c->config.num_codebooks;
    struct prompt *prompts = calloc((size_t)batch, sizeof *prompts);
    for (int b = 0; b < batch; b++) {
        prompts[b] = (struct prompt){.rows = width, .columns = columns};
        prompts[b].values = calloc((size_t)width * (size_t)columns, sizeof *prompts[b].values);
        for (int t = 0; t < columns; t++)
            prompts[b].values[t] = (t * 7919 + b * 104729) % 100000 % c->config.vocab_size;
    }
    int32_t *out = malloc((size_t)batch * (size_t)frames * (size_t)width * sizeof *out);
    double  *step = malloc((size_t)frames * sizeof *step), *rate = calloc((size_t)runs, sizeof *rate), prefill_ms = 0, first_s = 0;
    uint64_t hash = 0, first_hash = 0;
    for (int r = -1; r < runs; r++) {
        int     done = 0;
        int64_t t0 = clock_ns();
        if (decoder_prefill(d, prompts, NULL) != ST_OK)
            return 1;
        prefill_ms = clock_ms_since(t0);
        t0         = clock_ns();
        if (r < 0) {
            if (decoder_run(d, 1, out, step, &done) != ST_OK)
                return 1;
            first_s = (double)(clock_ns() - start) * 1e-9;
            continue;
        }
        if (decoder_run(d, frames, out, step, &done) != ST_OK || done != frames)
            return 1;
        rate[r] = (double)(clock_ns() - t0) * 1e-3 / frames; /* us a frame */
        hash    = 1469598103934665603u;
        for (size_t i = 0; i < (size_t)batch * (size_t)frames * (size_t)width; i++)
            hash = (hash ^ (uint32_t)out[i]) * 1099511628211u;
        if (r == 0)
            first_hash = hash;
        if (hash != first_hash)
            printf("# run %d has other codes than run 0\n", r);
    }
    qsort(rate, (size_t)runs, sizeof *rate, by_value);
    qsort(step, (size_t)frames, sizeof *step, by_value);
    const double us = rate[runs / 2];
    const double bytes = (double)decoder_step_bytes(d); /* after the last frame: context + frames/2 */
    struct memory_ledger *m = backend_memory(be);
    printf("%-10s %-4s kv-%-4s %-8s b%-2d ctx %-4d %-10s | %8.1f us  %8.1f frames/s (p5 %.1f p95 %.1f) | step median %.1f us | "
           "%.1f MB limit %.0f us share %.1f %% | prefill %.1f ms (%d col) | context %.2f weights %.2f open %.2f first frame %.2f s | "
           "MB:", strrchr(argv[1], '/') ? strrchr(argv[1], '/') + 1 : argv[1], argv[2], argv[3], argv[4], batch, context,
           decoder_engine(d), us, 1e6 / us * batch, rate[(int)(0.05 * (runs - 1))], rate[(int)(0.95 * (runs - 1) + 0.5)],
           step[frames / 2] * 1e3, bytes * 1e-6, bytes / bandwidth * 1e6, bytes / bandwidth * 1e8 / us, prefill_ms, columns,
           context_s, weights_s - context_s, open_s - weights_s, first_s);
    for (int i = 0; i < MEM_CLASS_COUNT; i++)
        if (atomic_load(&m->peak[i]))
            printf(" %s %.1f", memory_class_name((enum memory_class)i), (double)atomic_load(&m->now[i]) * 1e-6);
    printf(" | codes %016llx\n", (unsigned long long)first_hash);
    fflush(stdout);
    decoder_close(d);
    weights_close(w);
    backend_close(be);
    checkpoint_close(c);
    return 0;
}
