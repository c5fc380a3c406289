/* torch_file.h — reads torch.save's zip container (model.pth, codec.pth) without running any of it.
 *
 * The reader maps the file, walks the zip's central directory, and interprets data.pkl with a whitelist of opcodes and
 * names (spec: PyTorch caffe2/serialize/inline_container.cc; pickle protocol 2). Anything else is ST_EINPUT. */
#ifndef QSWEEP_CHECKPOINT_TORCH_FILE_H
#define QSWEEP_CHECKPOINT_TORCH_FILE_H

#include "base/filemap.h"
#include "checkpoint/tensor.h"

struct torch_file; /* owns the map and the copies of tensors that were not contiguous */

/* Parse bytes [size] as a container; tensors are views into bytes (which must outlive *out). For tests and fuzzing. */
status_t torch_file_parse(const void *bytes, size_t size, const char *label, struct torch_file **out);
/* Map path read-only; tensors point into the map and die with torch_file_close(). */
status_t torch_file_open(const char *path, struct torch_file **out);
void     torch_file_close(struct torch_file *f); /* NULL is accepted */

/* Every tensor, names as in the file (after `state_dict` was taken if present), sorted. */
const struct tensor_set *torch_file_tensors(const struct torch_file *f);
/* The first key of the mapping in file order ("" if empty): the `model.` rule looks at it. */
const char *torch_file_first_key(const struct torch_file *f);
/* The map behind the tensors (empty after torch_file_parse). */
const struct filemap *torch_file_map(const struct torch_file *f);

#endif
