/* sampler.h — from logits to a token: repetition penalty, nucleus, temperature, draw. The canonical steps and their
 * arithmetic, which a device kernel repeats bit for bit, are in sampler_math.h: BF16-rounded logits in (FP32 ones on the
 * fp32 path), FP32 afterwards; the noise is counter-based (Philox 4x32-10), keyed by seed, sequence, frame and codebook,
 * so that every precision, backend and batch composition sees the same noise. */
#ifndef QSWEEP_MODEL_SAMPLER_H
#define QSWEEP_MODEL_SAMPLER_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum sampling_rules { SAMPLING_S1, SAMPLING_S2, SAMPLING_COUNT };
enum history_rule { HISTORY_FAITHFUL, HISTORY_FIXED };

enum { SAMPLING_WINDOW = 16, RAS_WINDOW = 10, HISTORY_MAX_CODEBOOKS = 32 };

/* Defaults: sampling_defaults(). */
struct sampling {
    enum sampling_rules rules;
    bool                greedy;             /* argmax after the penalty; lowest index wins ties */
    float               temperature, top_p; /* (0, 2), (0, 1]                                   */
    float               repetition_penalty; /* (0, 2); S2 ignores it                            */
    int                 top_k;              /* S2: 30; 0 = off                                  */
    enum history_rule   history;
    uint64_t            seed;
};

void        sampling_defaults(enum sampling_rules rules, struct sampling *out);
status_t    sampling_check(const struct sampling *s); /* ranges; ST_EUSAGE names the value */
const char *sampling_rules_name(enum sampling_rules rules);
int         sampling_rules_parse(const char *name);

/* Where in the noise stream one draw sits. codebook 0 is the slow token; draw 1 is S2's second (RAS) sample. */
struct noise_key {
    uint32_t sequence, frame, codebook, draw;
};

/* Philox 4x32-10 block for (seed, key, block): 4 words. The noise of candidate index i is word i%4 of block i/4. */
void noise_block(uint64_t seed, struct noise_key key, uint32_t block, uint32_t out[4]);
/* Exp(1) variate of candidate i: -log((word + 0.5) / 2³²) in FP32, never 0 or infinite. */
float noise_exp(uint64_t seed, struct noise_key key, uint32_t i);

/* Draw from logits [n], 1 ≤ n ≤ 2²⁴. ids [n] maps an index to its token id for the penalty and the noise, NULL = identity.
 * history [n_history]: S1: token ids to penalize (duplicates count once); S2: the semantic ids among the last RAS_WINDOW
 * tokens: if the token drawn is one of them, the result is a second draw (key.draw 1) with temperature 1 and top-p 0.9.
 * scratch: at least n · 8 bytes, aligned for float. Returns the index (not the id) drawn. The noise of index i is that of
 * its id when ids is given, so that the full and the semantic head draw alike. S2's mask (semantic ids and im_end only) is
 * the caller's: it hands over no other candidate. */
int sampler_draw(const struct sampling *s, const float *logits, int n, const int32_t *ids, const int32_t *history,
                 int n_history, struct noise_key key, void *scratch);

/* Candidates left by steps 1 to 4 for the same arguments: the size of the nucleus. */
int sampler_nucleus(const struct sampling *s, const float *logits, int n, const int32_t *ids, const int32_t *history,
                    int n_history, void *scratch);

/* The reference's history of one sequence (decode.md §7): a ring of the frames after the first one. */
struct history {
    int32_t frames[SAMPLING_WINDOW][1 + HISTORY_MAX_CODEBOOKS]; /* [slot][token, codes…] of loop frame slot + k·16 */
    int     n;                                                  /* loop frames so far                              */
    int     num_codebooks;
};
void history_reset(struct history *h, int num_codebooks);
void history_push(struct history *h, const int32_t *frame); /* frame [1 + num_codebooks]; skip the first frame */
/* Ids that step 1 penalizes for the slow token (codebook 0) or residual codebook c ≥ 1; returns how many. `first`: this
 * is the first frame of the utterance, which has no history. out: at least SAMPLING_WINDOW + HISTORY_MAX_CODEBOOKS. */
int history_ids(const struct history *h, enum history_rule rule, bool first, int codebook, int32_t *out);
/* S2: the ids in [semantic_begin, semantic_end] among the tokens of the last RAS_WINDOW loop frames. out: RAS_WINDOW. */
int history_recent(const struct history *h, int semantic_begin, int semantic_end, int32_t *out);

#endif
