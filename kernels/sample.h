/* sample.h — from logits to the next token on the device: penalty, nucleus, noise, draw, history, stop, and the input of
 * what comes next (fast embedding, or the embedding of the finished frame). One block a sequence.
 *
 * The arithmetic is sampler_math.h's, so the draw equals sampler_draw()'s bit for bit on the same logits. */
#ifndef QSWEEP_KERNELS_SAMPLE_H
#define QSWEEP_KERNELS_SAMPLE_H

#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SAMPLE_WINDOW = 16, SAMPLE_RECENT = 10, SAMPLE_MAX_CODEBOOKS = 32, SAMPLE_MAX_CANDIDATES = 1 << 18 };

/* One utterance's state on the device; the host writes it at prefill. */
struct sample_state {
    int      prompt, length, history_n, stopped; /* length: finished frames                    */
    uint32_t id;                                  /* sequence number in the noise stream        */
    int32_t  frame[1 + SAMPLE_MAX_CODEBOOKS];     /* the frame being made                       */
    int32_t  history[SAMPLE_WINDOW][1 + SAMPLE_MAX_CODEBOOKS];
};

/* Finished frames for the host, in mapped pinned memory. Every word carries the number of its frame (since the engine was
 * opened, from 1), so that no write has to wait for another: a fence to the host costs a frame 1 to 2 us.
 *   frames [SAMPLE_RING][batch][1 + num_codebooks]: value | number << 32
 *   ends   [SAMPLE_RING]: %globaltimer in ns at the frame's end, low 40 bits | number << 40 */
enum { SAMPLE_RING = 64 };

struct sample_model { /* constants of a decoder */
    int   num_codebooks, codebook_size, semantic_begin, semantic_end, im_end, max_len;
    int   dim, fast_dim;
    const uint16_t *d_embeddings, *d_codebook_embeddings, *d_fast_embeddings; /* row-major BF16 */
    bool  scale_embeddings, norm_hidden, has_project_in;
    const float *d_norm; /* [dim] final norm, used when norm_hidden */
    float eps;
    bool  s2, greedy, faithful, fixed_length;
    float temperature, top_p, penalty;
    int   top_k;
    uint64_t seed;
    struct sample_state *d_state;  /* [batch] */
    int     *d_pos;                /* [batch] position of the next slow step */
    const int32_t *d_forced;       /* [batch][n_forced][1 + num_codebooks] or NULL */
    int      n_forced, batch;
    uint16_t *d_x, *d_fast_x, *d_hidden; /* slow residual, fast residual, copy of the fast stack's input (or NULL) */
    int       x_stride, fast_x_stride;
    uint64_t *ring_frames, *ring_ends; /* mapped, see above */
    unsigned *d_finished;          /* blocks that finished this frame, and frames finished: two words, zeroed once */
};

struct sample_call {
    int codebook;            /* 0 = slow token */
    const uint16_t *d_logits;
    int stride, n;           /* candidates */
    int first_id, last_id;   /* id of candidate i is first_id + i, of the last one last_id (−1: first_id + n − 1) */
    bool by_id;              /* candidate i's logit stands at its id (S2 on the full head) */
    bool pdl;
};

cudaError_t sample_launch(const struct sample_model *m, const struct sample_call *call, cudaStream_t stream);
/* x [n][x_stride] = embeddings of columns d_cols [n][1 + num_codebooks] (prefill). */
cudaError_t sample_embed_launch(const struct sample_model *m, const int32_t *d_cols, int n, uint16_t *d_x,
                                cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
