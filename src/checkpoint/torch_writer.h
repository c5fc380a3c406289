/* torch_writer.h — writes a state dict as torch.save does: a stored zip of data.pkl and one storage per tensor.
 *
 * Layout (PyTorch caffe2/serialize/inline_container.cc, version 3): <folder>/data.pkl, .format_version,
 * .storage_alignment, byteorder, data/0 … data/N−1, version, .data/serialization_id. Payloads start on multiples of 64
 * bytes, sizes and CRC32 stand in data descriptors and in the central directory, Zip64 where needed. torch.load reads it. */
#ifndef QSWEEP_CHECKPOINT_TORCH_WRITER_H
#define QSWEEP_CHECKPOINT_TORCH_WRITER_H

#include "checkpoint/tensor.h"

struct torch_writer;

/* Begin with the full list (name, dtype, shape, bytes; data ignored; F8 types have no storage class and are refused), then
 * give the data in the order of the list, any chunking. folder is the name inside the archive ("model"). */
status_t torch_writer_begin(const char *path, const char *folder, const struct tensor *list, size_t n,
                            struct torch_writer **out);
status_t torch_writer_data(struct torch_writer *w, const void *data, size_t bytes);
status_t torch_writer_end(struct torch_writer *w);   /* checks that all bytes came, fsyncs, renames; frees w always */
void     torch_writer_abort(struct torch_writer *w); /* removes the unfinished file; NULL is accepted             */

#endif
