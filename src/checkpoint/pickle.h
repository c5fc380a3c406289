/* pickle.h — the state dict inside a torch.save file: interprets data.pkl with a whitelist of opcodes and names.
 *
 * Nothing is ever called or imported. The only values that come out are descriptions of tensors: which storage, where in
 * it, what shape. Sources: Python's pickletools (protocol 2–5), torch/_utils.py (argument lists of _rebuild_*). */
#ifndef QSWEEP_CHECKPOINT_PICKLE_H
#define QSWEEP_CHECKPOINT_PICKLE_H

#include "checkpoint/tensor.h"

struct pickled_storage {
    const char *key; /* name of the entry under data/, decimal digits; points into the pickle, not terminated */
    size_t      key_length;
    enum dtype  dtype;
    int64_t     elements; /* as the pickle says; the entry's size must agree                                  */
};

struct pickled_tensor {
    const char            *name; /* valid by tensor_name_valid(); points into the pickle, not terminated      */
    size_t                 name_length;
    enum dtype             dtype;
    struct pickled_storage storage;
    int64_t                offset; /* in elements of dtype                                                    */
    int                    rank;
    int64_t                shape[TENSOR_MAX_RANK], stride[TENSOR_MAX_RANK]; /* ≥ 0; strides in elements       */
};

/* The tensors of the top-level mapping (or of its `state_dict`) in file order; values that are not tensors are left out. */
struct pickled_dict {
    struct pickled_tensor *items;
    size_t                 count;
    const char            *first_key; /* first string key of the mapping, tensor or not; NULL if there is none */
    size_t                 first_key_length;
};

status_t pickle_parse(const unsigned char *bytes, size_t size, const char *label, struct pickled_dict *out);
void     pickle_free(struct pickled_dict *dict);

#endif
