/* decode.h — autoregressive decoding of frames: slow stack, head, sampler, fast stack, history, stop.
 *
 * The graph is written once over backend ops (decode.c); a backend's fused engine replaces it behind the same calls.
 * One frame of a sequence = 1 + num_codebooks integers: token, codes. Generation stops after the frame whose token is
 * im_end (kept in the output) unless fixed_length. An im_end in the very first frame does not stop (decode.md §8). */
#ifndef QSWEEP_MODEL_DECODE_H
#define QSWEEP_MODEL_DECODE_H

#include "backend/backend.h"
#include "model/prompt.h"
#include "model/sampler.h"
#include "model/weights.h"

/* Looks at logits and hidden states as they are used: row order of calls is frame by frame. Engine `ops` and the fused
 * engines' teacher-forced mode call it; it costs time, so never in a timed run. */
struct decode_tap {
    void *ctx;
    /* codebook 0: slow logits [n = rows of the head mode]; ≥ 1: residual logits [n]. Before any penalty. */
    void (*logits)(void *ctx, int sequence, int frame, int codebook, const float *logits, int n);
    /* Hidden state [n] handed to the fast stack (after fast_project_in). NULL is accepted. */
    void (*hidden)(void *ctx, int sequence, int frame, const float *hidden, int n);
};

struct decode_options {
    int               batch;       /* sequences decoded together, ≥ 1                                  */
    int               max_seq_len; /* KV positions allocated per sequence; 0 = the model's             */
    enum kv_format    kv;
    enum head_mode    head;        /* HEAD_SEMANTIC: rows semantic_begin…semantic_end, then im_end     */
    enum engine_kind  engine;      /* AUTO: fused where the backend has it, else ops                   */
    struct sampling   sampling;
    bool              fixed_length; /* ignore im_end                                                   */
    const int32_t    *forced;      /* [batch][n_forced][1 + num_codebooks] or NULL: teacher forcing     */
    int               n_forced;
    const struct decode_tap *tap;  /* NULL: none                                                       */
    const uint32_t   *sequence_ids; /* [batch] noise sequence numbers, NULL = 0, 1, …: the noise of an utterance does
                                      not depend on the batch it rides in */
};

struct decoder;

/* The backend and the weights must outlive the decoder. Weights are adopted (uploaded) here, or by the fused engine, which
 * gets `w` as it is and a copy of the options that lives as long as the decoder: sequence_ids is never NULL in it and
 * is read anew at every prefill. AUTO falls back to ops when fused_open answers ST_EUNSUPPORTED. */
status_t decoder_open(struct backend *be, const struct weights *w, const struct decode_options *options,
                      struct decoder **out);
void decoder_close(struct decoder *d); /* NULL is accepted */

/* Start `batch` utterances: reset histories and stops, run every prompt [batch] through the slow stack.
 * sequence_ids [batch] as in the options (NULL keeps the last). ST_EUSAGE when a prompt does not fit max_seq_len. */
status_t decoder_prefill(struct decoder *d, const struct prompt *prompts, const uint32_t *sequence_ids);

/* Decode up to n more frames for every sequence that has not stopped. frames [batch][n][1 + num_codebooks] (rows of a
 * stopped sequence are -1); step_ms [n] wall time of each step; *n_done ≤ n steps were made (0 when all have stopped
 * or the cache is full). */
status_t decoder_run(struct decoder *d, int n, int32_t *frames, double *step_ms, int *n_done);

/* Frames of a sequence so far, its im_end frame included; true once it has stopped. */
int  decoder_length(const struct decoder *d, int sequence);
bool decoder_stopped(const struct decoder *d, int sequence);

/* Fewest bytes one step moves now: every used weight once per pass (nine fast passes), KV read. */
size_t decoder_step_bytes(const struct decoder *d);
/* "ops", "graph", "persistent": what really runs. */
const char *decoder_engine(const struct decoder *d);
/* Rows of the slow head and the token id of row i. */
int     decoder_head_rows(const struct decoder *d);
int32_t decoder_head_id(const struct decoder *d, int row);

#endif
