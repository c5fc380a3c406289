/* config.h — config.json of a Fish-Speech dual-AR checkpoint as a plain struct.
 *
 * Reads the flat S1 form and S2's nested form (text_config, audio_decoder_config), fills the defaults of the original's
 * DualARModelArgs (fishaudio/fish-speech, llama.py, d3df505) and checks every value; unknown keys are warned about. */
#ifndef QSWEEP_CHECKPOINT_CONFIG_H
#define QSWEEP_CHECKPOINT_CONFIG_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

/* One transformer stack. q rows = n_head·head_dim, k and v rows = n_kv_heads·head_dim each. */
struct stack_config {
    int  n_layer, n_head, n_kv_heads, head_dim, dim, intermediate_size;
    bool qkv_bias, o_bias, qk_norm;
};

enum model_family { FAMILY_S1, FAMILY_S2 };

/* How INT8 (or INT4) weights of a checkpoint were made; NONE for an ordinary one. */
enum recipe { RECIPE_NONE, RECIPE_TORCHAO, RECIPE_TORCHAO_V2, RECIPE_LEGACY };

struct quantization {
    enum recipe recipe;
    char        mode[16];        /* "int8", "" if none                             */
    int         group_size;      /* 0 = per row                                    */
    char        source_hash[65]; /* fingerprint of the checkpoint it was made from */
};

struct model_config {
    enum model_family   family;
    struct stack_config slow, fast;
    int   vocab_size, codebook_size, num_codebooks, max_seq_len;
    float rope_base, norm_eps;
    bool  tie_word_embeddings, scale_codebook_embeddings;
    bool  norm_fastlayer_input;                        /* S2: the fast stack sees the normed hidden state */
    int   semantic_begin_id, semantic_end_id, im_end_id; /* S2: from here; S1: 0, looked up in the tokenizer */
    struct quantization quantization;
};

/* Parse size bytes of JSON. label names the file in messages. */
status_t config_parse(const char *bytes, size_t size, const char *label, struct model_config *out);

const char *recipe_name(enum recipe recipe); /* "none", "torchao", "torchao-v2", "legacy" */

/* Everything that decides what the model computes, as one line of text (for identities; source_hash is left out). */
void config_canonical(const struct model_config *config, char *out, size_t size);

/* Parameters of the model this configuration describes (biases and optional parts included). */
long long config_parameters(const struct model_config *config);

#endif
