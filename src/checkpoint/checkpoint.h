/* checkpoint.h — a checkpoint directory: configuration, cleaned tensors, tokenizer files, identity.
 *
 * Finds model.safetensors, model.safetensors.index.json or model.pth; applies the original's key rules (`state_dict`,
 * `model.`, `audio_`, wq|wk|wv → wqkv, S2's remap); checks every expected tensor's presence, shape and dtype. Missing or
 * mis-shaped tensors and LoRA files are ST_EINPUT. INT8 weights with scales are recognised by content: with a
 * `quantization` object in config.json they are ours, without one the legacy form of fish-speech. */
#ifndef QSWEEP_CHECKPOINT_CHECKPOINT_H
#define QSWEEP_CHECKPOINT_CHECKPOINT_H

#include "checkpoint/config.h"
#include "checkpoint/tensor.h"

struct checkpoint {
    char                dir[4096];
    char                weights_path[4200]; /* the file (or index) the tensors came from   */
    struct model_config config;             /* token ids filled in (S1: from the tokenizer) */
    struct tensor_set   tensors;            /* names as in spec §3: "layers.0.attention.wqkv.weight", … */
    size_t              weight_bytes;       /* Σ bytes of tensors                           */
    char                identity[33];       /* of the files when opened: sizes, times, inodes */
    struct checkpoint_files *files;         /* maps behind the tensors; opaque              */
};

/* Map dir's checkpoint. Only tensors of the model are kept; others are ignored with one warning. No weight is copied,
 * except wq, wk, wv of old files (concatenated) and strided tensors. */
status_t checkpoint_open(const char *dir, struct checkpoint **out);
void     checkpoint_close(struct checkpoint *c); /* NULL is accepted */

/* Identity of the model: XXH3-128 over the resolved configuration and every tensor's name, dtype, shape and bytes, as
 * 32 hex digits. Independent of path, file format and machine. Reads all weights once (memory speed) and caches
 * the result beside the checkpoint when that is writable (keyed by file size, mtime and inode). */
status_t checkpoint_fingerprint(const struct checkpoint *c, char out[33]);

#endif
