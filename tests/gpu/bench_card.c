/* What the card gives, for the model of spec and results: read bandwidth from HBM and L2, cost of a graph node with and
 * without programmatic dependent launch, grid barrier. The last line is the bandwidth that bench_decode's limits use. */
#include "backend/cuda.h"
#include "kernels/card.h"

#include <stdio.h>
#include <stdlib.h>

enum { RUNS = 21, NODES = 400 };

static struct cuda *cu;

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void must(status_t st)
{
    if (st != ST_OK)
        exit(1);
}

/* Median microseconds of what `work` enqueues. */
static double time_of(void (*work)(int run, void *ctx), void *ctx)
{
    cudaEvent_t a, b;
    float       ms[RUNS];
    must(CUDA_DO(cudaEventCreate(&a)));
    must(CUDA_DO(cudaEventCreate(&b)));
    for (int i = -3; i < RUNS; i++) {
        must(CUDA_DO(cudaEventRecord(a, cu->stream)));
        work(i + 3, ctx);
        must(CUDA_DO(cudaEventRecord(b, cu->stream)));
        must(CUDA_DO(cudaEventSynchronize(b)));
        if (i >= 0)
            must(CUDA_DO(cudaEventElapsedTime(&ms[i], a, b)));
    }
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    qsort(ms, RUNS, sizeof *ms, by_value);
    return 1e3 * (double)ms[RUNS / 2];
}

struct reading {
    char  *d_base;
    size_t bytes, sets; /* rotate over `sets` ranges of `bytes` */
    unsigned *d_sink;
};

static void read_work(int run, void *ctx)
{
    const struct reading *r = ctx;
    must(CUDA_DO(card_read_launch(r->d_base + (size_t)run % r->sets * r->bytes, r->bytes, 2 * cu->sms, r->d_sink, cu->stream)));
}

static void graph_work(int run, void *ctx)
{
    must(CUDA_DO(cudaGraphLaunch(*(cudaGraphExec_t *)ctx, cu->stream)));
}

static double node_us(uint32_t *d_vectors, int words, bool pdl)
{
    cudaGraph_t     graph;
    cudaGraphExec_t exec;
    must(CUDA_DO(cudaStreamBeginCapture(cu->stream, cudaStreamCaptureModeThreadLocal)));
    for (int i = 0; i < NODES; i++)
        must(CUDA_DO(card_node_launch(d_vectors + (i + 1) % 2 * 4096, d_vectors + i % 2 * 4096, words, 128, pdl, cu->stream)));
    must(CUDA_DO(cudaStreamEndCapture(cu->stream, &graph)));
    must(CUDA_DO(cudaGraphInstantiate(&exec, graph, 0)));
    const double us = time_of(graph_work, &exec) / NODES;
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return us;
}

struct barrier {
    unsigned *d_counter;
    int       rounds;
};

static void barrier_work(int run, void *ctx)
{
    const struct barrier *b = ctx;
    must(CUDA_DO(cudaMemsetAsync(b->d_counter, 0, sizeof *b->d_counter, cu->stream)));
    must(CUDA_DO(card_barrier_launch(b->d_counter, b->rounds, cu->sms, cu->stream)));
}

int main(void)
{
    const struct backend_options o = {.rounding = ROUND_BF16};
    struct backend              *be;
    void                        *d_big, *d_small;
    if (backend_open("cuda", &o, &be) != ST_OK)
        return 1;
    cu = cuda_of(be);
    const struct backend_ops *ops = backend_ops_of(be);
    const size_t              big = (size_t)1536 << 20;
    must(ops->alloc(be, MEM_WORKSPACE, big, &d_big));
    must(ops->alloc(be, MEM_WORKSPACE, 1 << 20, &d_small));
    must(CUDA_DO(card_fill_launch(d_big, big, cu->stream)));
    must(CUDA_DO(card_fill_launch(d_small, 1 << 20, cu->stream)));
    const size_t sizes[] = {12 << 20, 24 << 20, 448 << 20};
    double       bandwidth = 0;
    for (int i = 0; i < 3; i++) {
        struct reading r = {.d_base = d_big, .bytes = sizes[i], .sets = i < 2 ? 1 : 3, .d_sink = d_small};
        const double   us = time_of(read_work, &r), again = time_of(read_work, &r);
        bandwidth = (double)sizes[i] / us * 1e-3;
        printf("read %4zu MiB%s: %8.1f us %7.0f GB/s (again %.0f)\n", sizes[i] >> 20, i < 2 ? ", the same again (L2)" : ", rotating (HBM)   ",
               us, bandwidth, (double)sizes[i] / again * 1e-3);
    }
    for (int pdl = 0; pdl < 2; pdl++)
        printf("graph node, %s: empty %.2f us, dependent on 1024 words %.2f, on 3072 %.2f\n", pdl ? "PDL  " : "plain",
               node_us(d_small, 0, pdl), node_us(d_small, 1024, pdl), node_us(d_small, 3072, pdl));
    struct barrier few = {d_small, 100}, many = {d_small, 1100};
    printf("grid barrier over %d blocks: %.0f ns\n", cu->sms, time_of(barrier_work, &many) - time_of(barrier_work, &few));
    printf("bandwidth %.3f TB/s\n", bandwidth * 1e-3);
    backend_close(be);
    return 0;
}
