/* card.h — microbenchmark kernels: what a card gives to reading, to dependent kernels and to blocks that wait for each other. */
#ifndef QSWEEP_KERNELS_CARD_H
#define QSWEEP_KERNELS_CARD_H

#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Read `bytes` (a multiple of 64 KiB) once, 16 bytes a thread and eight loads in flight; *d_sink keeps the reads alive. */
cudaError_t card_read_launch(const void *d_src, size_t bytes, int blocks, unsigned *d_sink, cudaStream_t stream);
/* Random words, so that nothing is timed on zeros. */
cudaError_t card_fill_launch(void *d_dst, size_t bytes, cudaStream_t stream);
/* A kernel that does nothing (words 0), or reads a vector of `words` that its predecessor wrote and writes the next. */
cudaError_t card_node_launch(uint32_t *d_out, const uint32_t *d_in, int words, int blocks, bool pdl, cudaStream_t stream);
/* `rounds` barriers over one block per SM: one counter, released by add, acquired by polling. *d_counter starts at zero. */
cudaError_t card_barrier_launch(unsigned *d_counter, int rounds, int blocks, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
