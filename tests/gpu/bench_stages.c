/* Where a frame's time goes: usage bench_stages CHECKPOINT PRECISION KV HEAD BATCH CONTEXT. Each kind of kernel alone, as a
 * graph of one frame's worth of them, and the frame without it; both per kernel. */
#include "backend/cuda.h"
#include "model/decode.h"

#include <stdio.h>
#include <stdlib.h>

static struct fused *f;

static double time_of(unsigned mask, int *n)
{
    double us = 0;
    if (graph_stage_us(f, mask, 31, &us, n) != ST_OK)
        exit(1);
    return us;
}

int main(int argc, char **argv)
{
    struct checkpoint     *c;
    struct weights        *w;
    struct backend        *be;
    if (argc < 7) {
        fprintf(stderr, "usage: bench_stages CHECKPOINT PRECISION KV HEAD BATCH CONTEXT\n");
        return 2;
    }
    const int                    batch = atoi(argv[5]), context = atoi(argv[6]);
    const struct backend_options bo = {.rounding = ROUND_BF16};
    uint32_t                     ids[64] = {0};
    struct decode_options        o = {.batch = batch, .max_seq_len = context + 64, .kv = (enum kv_format)kv_format_parse(argv[3]),
                                      .head = (enum head_mode)head_mode_parse(argv[4]), .fixed_length = true,
                                      .engine = ENGINE_GRAPH, .sequence_ids = ids};
    if (batch > 64 || checkpoint_open(argv[1], &c) != ST_OK)
        return 1;
    sampling_defaults(c->config.family == FAMILY_S2 ? SAMPLING_S2 : SAMPLING_S1, &o.sampling);
    if (backend_open("cuda", &bo, &be) != ST_OK ||
        weights_open(c, (enum precision)precision_parse(argv[2]), RECIPE_NONE, 0, &w) != ST_OK || graph_open(be, w, &o, &f) != ST_OK)
        return 1;
    const int     width = 1 + c->config.num_codebooks;
    struct prompt prompts[64];
    int32_t      *values = calloc((size_t)width * (size_t)context, sizeof *values), out[64 * 4 * 33];
    double        step[4];
    for (int i = 0; i < context; i++)
        values[i] = i * 7919 % 100000 % c->config.vocab_size;
    for (int i = 0; i < batch; i++)
        prompts[i] = (struct prompt){.rows = width, .columns = context, .values = values};
    int done, n, n_all, n_without;
    if (graph_prefill(f, prompts) != ST_OK || graph_run(f, 4, out, step, &done) != ST_OK)
        return 1;
    const double all = time_of(~0u, &n_all), empty = time_of(1u << STAGE_HEAD, &n);
    printf("%s %s kv-%s %s b%d ctx %d: whole frame %.1f us, %d kernels, %.2f us each; a graph of the head alone %.1f us\n", argv[1],
           argv[2], argv[3], argv[4], batch, context, all, n_all, all / n_all, empty);
    for (int s = 0; s < STAGE_COUNT; s++) {
        const double alone = time_of(1u << s, &n), without = time_of(~(1u << s), &n_without);
        printf("  %-16s %3d kernels: alone %7.1f us = %5.2f each | frame without %7.1f, so %5.2f each, %5.1f us in all\n",
               graph_stage_name((enum graph_stage)s), n, alone, alone / n, without, (all - without) / n, all - without);
    }
    graph_close(f);
    weights_close(w);
    backend_close(be);
    checkpoint_close(c);
    return 0;
}
