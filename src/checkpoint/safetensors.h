/* safetensors.h — reads and writes safetensors files: a JSON header, then one buffer without holes. */
#ifndef QSWEEP_CHECKPOINT_SAFETENSORS_H
#define QSWEEP_CHECKPOINT_SAFETENSORS_H

#include "base/filemap.h"
#include "checkpoint/tensor.h"

struct safetensors;

/* Views into bytes, which must outlive *out. */
status_t safetensors_parse(const void *bytes, size_t size, const char *label, struct safetensors **out);
/* Map path read-only; tensors point into the map and die with safetensors_close(). */
status_t safetensors_open(const char *path, struct safetensors **out);
void     safetensors_close(struct safetensors *s); /* NULL is accepted */

const struct tensor_set *safetensors_tensors(const struct safetensors *s);
/* The map behind the tensors (empty after safetensors_parse). */
const struct filemap *safetensors_map(const struct safetensors *s);
/* A text of the file's __metadata__, or NULL. */
const char *safetensors_metadata(const struct safetensors *s, const char *key);

/* The index of a sharded model: which file holds which tensor. */
struct safetensors_index {
    char **tensors, **files; /* [count]; tensors[i] lies in files[i], a bare file name; order of the index */
    size_t count;
};
status_t safetensors_index_parse(const char *bytes, size_t size, const char *label, struct safetensors_index *out);
void     safetensors_index_free(struct safetensors_index *index);

/* The bytes before the data of such a file: length, JSON header, padding to 64 bytes. list as below; *data_bytes is what
 * has to follow. malloc'ed. */
status_t safetensors_head(const char *path, const struct tensor *list, size_t n, const char *metadata, char **out,
                          size_t *bytes, uint64_t *data_bytes);

/* Write a file in two steps, so that data can be produced while writing: begin with the full list (dtype, shape, bytes;
 * data ignored), then data in the order of the list, any chunking; end checks that all bytes came, fsyncs and renames.
 * metadata is a JSON object text of string→string or NULL. */
struct safetensors_writer;
status_t safetensors_writer_begin(const char *path, const struct tensor *list, size_t n, const char *metadata,
                                  struct safetensors_writer **out);
status_t safetensors_writer_data(struct safetensors_writer *w, const void *data, size_t bytes);
status_t safetensors_writer_end(struct safetensors_writer *w);   /* frees w, also on failure            */
void     safetensors_writer_abort(struct safetensors_writer *w); /* removes the unfinished file; NULL ok */

#endif
