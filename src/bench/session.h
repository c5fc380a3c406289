/* session.h — an open model on an open device, ready to answer requests of one cell. */
#ifndef QSWEEP_BENCH_SESSION_H
#define QSWEEP_BENCH_SESSION_H

#include "backend/backend.h"
#include "bench/speech.h"
#include "bench/voice.h"
#include "bench/work.h"
#include "checkpoint/checkpoint.h"
#include "model/decode.h"

struct session {
    const struct cell *cell;
    struct backend    *backend;
    struct checkpoint *checkpoint;
    struct tokenizer  *tokenizer;
    struct weights    *weights;
    struct decoder    *decoder;
    struct speech     *speech; /* with cell.codec other than off */
    char               audio_error[256]; /* why the sounds could not be kept, "" if they could */
    struct voice       voice;  /* with cell.context > 0 */
    int                max_seq_len;
    /* Buffers of a request, made before anything is timed. */
    int32_t           *frames;    /* [batch][max_new_tokens][1 + num_codebooks] */
    int32_t           *chunk;     /* what one decoder_run returns, at most that */
    double            *step_ms;   /* [max_new_tokens]                           */
    uint32_t          *sequences; /* [batch]                                    */
    struct prompt     *prompts;   /* [batch]                                    */
};

/* Phase context: open the device. `work` must outlive the session. */
status_t session_open_device(struct session *s, const struct work *work);
/* Phase load: checkpoint, tokenizer, weights in the cell's precision, KV cache, decoder. Every text's prompt is built
 * once, to know that it fits: ST_EUSAGE names the text that does not. */
status_t session_open_model(struct session *s, const struct work *work);
/* The prompt of a text, with the reference voice if the cell has one; the caller frees it. */
status_t session_prompt(const struct session *s, const char *text, struct prompt *out);
/* Closes whatever is open; a zeroed session is fine. */
void     session_close(struct session *s);

/* The text of warm-up requests: the reference benchmark's. */
extern const char WARMUP_TEXT[];

#endif
