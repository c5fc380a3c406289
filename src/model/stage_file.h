/* stage_file.h — the weights file that cells of one node share, made in parts by several processes.
 *
 * Its bytes are those that quantize_checkpoint() writes (or, with RECIPE_NONE, the checkpoint's tensors as one safetensors
 * file), whatever the number of parts: rows are quantized one by one, so who does which does not matter. Part i of n has
 * rows [rows·i/n, rows·(i+1)/n) of every quantized matrix with their scales, and the same share of the bytes of every other
 * tensor; the header belongs to no part. */
#ifndef QSWEEP_MODEL_STAGE_FILE_H
#define QSWEEP_MODEL_STAGE_FILE_H

#include "checkpoint/checkpoint.h"
#include "model/quantize_plan.h"

struct stage_file {
    const struct checkpoint *checkpoint;
    enum recipe              recipe;
    struct quantize_plan     plan;
    char                    *head;    /* [head_bytes] what stands before the data */
    size_t                   head_bytes;
    size_t                  *offsets; /* [plan.n] of the tensors in the file      */
    size_t                   bytes;   /* of the whole file                        */
};

/* source_hash: fingerprint of the checkpoint, for the metadata of an INT8 file. The checkpoint must outlive *out. */
status_t stage_file_plan(const struct checkpoint *c, enum recipe recipe, const char *source_hash, struct stage_file *out);
void     stage_file_free(struct stage_file *f); /* zeroes it; a zeroed one is fine */

/* A run of bytes of one part; segments come in the order of the plan. */
struct stage_segment {
    size_t  entry; /* of the plan             */
    size_t  offset, bytes;
    int64_t first_row, rows; /* codes and scales */
};
/* Segment k of part `part` of n: one for every entry of the plan, some of 0 bytes. */
struct stage_segment stage_file_segment(const struct stage_file *f, int part, int n_parts, size_t k);
size_t               stage_file_part_bytes(const struct stage_file *f, int part, int n_parts);

struct stage_times {
    double read_s;     /* the reader, which touches the source ahead of the others, from first to last byte */
    double quantize_s; /* or copying: everything until the last byte was written                            */
    size_t bytes_read, bytes_written;
};

/* Write one part into the file fd, which has its full size. digest: XXH3-128 of the part's segments in order, as they
 * were made. Reads ahead with one thread, quantizes with n_threads (0: all allowed cores). */
status_t stage_file_fill(const struct stage_file *f, int part, int n_parts, int n_threads, int fd, struct stage_times *times,
                         unsigned char digest[16]);

/* The same digest of a part as it stands in a mapped file of f->bytes. */
status_t stage_file_digest(const struct stage_file *f, int part, int n_parts, const unsigned char *file,
                           unsigned char digest[16]);

#endif
