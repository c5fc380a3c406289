#include "model/quantize.h"

#include "base/clock.h"
#include "base/cores.h"
#include "base/file.h"
#include "base/outfile.h"
#include "checkpoint/companions.h"
#include "checkpoint/safetensors.h"
#include "model/int8_line.h"
#include "model/quantize_plan.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    COPY_BYTES  = 4 << 20, /* of an unquantized tensor, between two looks at stop          */
    DISK_MARGIN = 1 << 20, /* folders, config.json and the header of the safetensors file */
    CONFIG_MAX  = 1 << 20, /* as in checkpoint.c                                            */
    THREADS_MAX = 256,
};

/* ---- the weights ---- */

struct writing {
    const struct checkpoint       *c;
    const struct quantize_options *options;
    struct safetensors_writer     *writer;
    struct int8_line              *line;
    char                          *scales; /* of the matrix being written, at most plan.most_rows */
    size_t                         done;   /* bytes of the source behind us                      */
};

static status_t look_around(const struct writing *w)
{
    if (w->options->stop && *w->options->stop)
        return FAIL(ST_EINTERRUPTED, "%s: quantization was stopped; nothing is left behind", w->c->dir);
    if (w->options->progress)
        w->options->progress(w->options->ctx, w->done, w->c->weight_bytes);
    return ST_OK;
}

static status_t write_as_is(struct writing *w, const struct tensor *t)
{
    for (size_t at = 0; at < t->bytes;) {
        size_t bytes = t->bytes - at < COPY_BYTES ? t->bytes - at : COPY_BYTES;
        TRY(safetensors_writer_data(w->writer, (const char *)t->data + at, bytes));
        at += bytes;
        w->done += bytes;
        TRY(look_around(w));
    }
    return ST_OK;
}

static status_t write_codes(struct writing *w, const struct tensor *t)
{
    size_t scale_size = dtype_size(recipe_scale_dtype(w->options->recipe, DT_BF16));
    for (int64_t k = int8_line_chunks(t); k > 0; k--) {
        const struct int8_chunk *chunk;
        TRY(int8_line_take(w->line, &chunk));
        TRY(safetensors_writer_data(w->writer, chunk->codes, (size_t)(chunk->rows * t->shape[1])));
        memcpy(w->scales + (size_t)chunk->first_row * scale_size, chunk->scales, (size_t)chunk->rows * scale_size);
        w->done += (size_t)(chunk->rows * t->shape[1]) * dtype_size(t->dtype);
        TRY(look_around(w));
    }
    return ST_OK;
}

static status_t write_weights(const struct checkpoint *c, const struct quantize_plan *p, const struct quantize_options *options,
                              int n_threads, const char *path, const char *metadata, double *weights_s)
{
    status_t       st    = ST_OK;
    int64_t        t0_ns = clock_ns();
    struct writing w     = {.c = c, .options = options};
    w.scales             = malloc((size_t)p->most_rows * sizeof(float) + 1);
    if (!w.scales) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %lld scales", c->dir, (long long)p->most_rows);
        goto out;
    }
    TRY_OUT(safetensors_writer_begin(path, p->list, p->n, metadata, &w.writer));
    TRY_OUT(int8_line_open(p->matrices, p->n_matrices, options->recipe, n_threads, &w.line));
    for (size_t i = 0; i < p->n; i++)
        switch (p->parts[i]) {
        case PART_AS_IS: TRY_OUT(write_as_is(&w, p->sources[i])); break;
        case PART_CODES: TRY_OUT(write_codes(&w, p->sources[i])); break;
        case PART_SCALES: TRY_OUT(safetensors_writer_data(w.writer, w.scales, p->list[i].bytes)); break;
        }
    *weights_s                      = clock_ms_since(t0_ns) * 1e-3;
    struct safetensors_writer *done = w.writer;
    w.writer                        = NULL;
    TRY_OUT(safetensors_writer_end(done));
out:
    int8_line_close(w.line);
    safetensors_writer_abort(w.writer);
    free(w.scales);
    return st;
}

/* ---- config.json ---- */

/* Fewest significant digits, the same for all, with which every real number of the document reads back unchanged. */
static int real_digits(const json_t *v, int digits)
{
    const char   *key;
    const json_t *item;
    size_t        i;
    if (json_is_real(v)) {
        char text[64];
        for (; digits < 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, json_real_value(v));
            if (strtod(text, NULL) == json_real_value(v))
                break;
        }
    } else if (json_is_object(v)) {
        json_object_foreach((json_t *)v, key, item)
            digits = real_digits(item, digits);
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, item)
            digits = real_digits(item, digits);
    }
    return digits;
}

status_t quantize_write_config(const struct checkpoint *c, enum recipe recipe, const char *source_hash, const char *dir)
{
    status_t        st   = ST_OK;
    char            path[sizeof c->dir + 128], *bytes = NULL, *text = NULL;
    size_t          size = 0;
    json_error_t    error;
    json_t         *root = NULL;
    struct outfile *file = NULL;

    snprintf(path, sizeof path, "%s/config.json", c->dir);
    TRY(file_read(path, CONFIG_MAX, &bytes, &size));
    root = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        st = FAIL(ST_EINPUT, "%s:%d: %s", path, error.line, error.text);
        goto out;
    }
    if (json_object_set_new(root, "quantization", json_pack("{s:s, s:s, s:s, s:n, s:s}", "method", "qsweep", "mode", "int8",
                                                            "recipe", recipe_name(recipe), "group_size", "source_hash",
                                                            source_hash)) != 0) {
        st = FAIL(ST_ENOMEM, "%s: no memory to add a quantization object", path);
        goto out;
    }
    text = json_dumps(root, JSON_INDENT(4) | JSON_SORT_KEYS | JSON_REAL_PRECISION(real_digits(root, 1)));
    if (!text) {
        st = FAIL(ST_ENOMEM, "%s: no memory to rewrite it", path);
        goto out;
    }
    snprintf(path, sizeof path, "%s/config.json", dir);
    TRY_OUT(outfile_open(path, &file));
    TRY_OUT(outfile_write(file, text, strlen(text)));
    struct outfile *done = file;
    file                 = NULL;
    TRY_OUT(outfile_commit(done));
out:
    outfile_abort(file);
    free(bytes);
    free(text);
    json_decref(root);
    return st;
}

/* ---- the folder ---- */

static status_t check_space(const char *dir, size_t needed)
{
    char           copy[PATH_MAX];
    struct statvfs info;
    snprintf(copy, sizeof copy, "%s", dir);
    const char *parent = dirname(copy);
    if (statvfs(parent, &info) != 0)
        return FAIL(ST_EIO, "%s: %s", parent, strerror(errno));
    uint64_t free_bytes = (uint64_t)info.f_bavail * info.f_frsize;
    if (free_bytes < (uint64_t)needed + DISK_MARGIN)
        return FAIL(ST_EIO, "%s needs %.1f MB, but only %.1f MB are free there; choose another place with --output", dir,
                    ((double)needed + DISK_MARGIN) / 1e6, (double)free_bytes / 1e6);
    return ST_OK;
}

static void sync_folder(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

/* dir without trailing slashes, and a name beside it to work under. */
static status_t name_folders(const char *dir, char *clean, char *temporary, size_t size)
{
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (n == 0 || n + 32 > size)
        return FAIL(ST_EUSAGE, "\"%.80s\" cannot be the name of an output folder", dir);
    snprintf(clean, size, "%.*s", (int)n, dir);
    snprintf(temporary, size, "%.*s.tmp.%ld", (int)n, dir, (long)getpid());
    if (file_exists(clean))
        return FAIL(ST_EUSAGE, "%s exists already and is never overwritten; remove it or choose another --output", clean);
    return ST_OK;
}

static int choose_threads(int asked)
{
    struct cores cores;
    int          n = asked > 0 ? asked : cores_of_process(0, &cores) == ST_OK ? cores.n : 1;
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : n;
}

char *quantize_metadata(enum recipe recipe, const char *source_hash)
{
    char *text;
    int   n = asprintf(&text,
                       "{\"format\": \"qsweep\", \"version\": \"" QSWEEP_VERSION "\", \"mode\": \"int8\", \"recipe\": \"%s\", "
                       "\"scheme\": \"%s\", \"source_hash\": \"%s\"}",
                       recipe_name(recipe), recipe_scheme(recipe, DT_BF16), source_hash);
    return n < 0 ? NULL : text;
}

status_t quantize_checkpoint(const struct checkpoint *c, const char *dir, const struct quantize_options *options,
                             struct quantize_report *report)
{
    status_t               st    = ST_OK;
    int64_t                t0_ns = clock_ns();
    struct quantize_plan            plan  = {0};
    struct quantize_report r     = {.bytes_before = c->weight_bytes};
    char temporary[sizeof r.output], path[sizeof temporary + 32], source_hash[33], *metadata = NULL;
    bool made = false; /* the temporary folder is there, and ours */

    if (c->config.quantization.recipe != RECIPE_NONE)
        return FAIL(ST_EINPUT, "%s is quantized already (%s, %s); quantize the checkpoint it was made from", c->dir,
                    c->config.quantization.mode, recipe_name(c->config.quantization.recipe));
    TRY(name_folders(dir, r.output, temporary, sizeof r.output));
    r.n_threads = choose_threads(options->n_threads);
    TRY_OUT(quantize_plan_build(c, options->recipe, &plan));
    TRY_OUT(companions_size(c->dir, &r.bytes_copied));
    TRY_OUT(check_space(r.output, plan.bytes + r.bytes_copied));
    TRY_OUT(checkpoint_fingerprint(c, source_hash));
    r.bytes_after = plan.bytes;
    r.n_quantized = (int)plan.n_matrices;
    metadata      = quantize_metadata(options->recipe, source_hash);
    if (!metadata) {
        st = FAIL(ST_ENOMEM, "%s: no memory", c->dir);
        goto out;
    }
    made = mkdir(temporary, 0777) == 0;
    if (!made) {
        st = FAIL(ST_EIO, "%s: cannot create: %s", temporary, strerror(errno));
        goto out;
    }
    snprintf(path, sizeof path, "%s/model.safetensors", temporary);
    TRY_OUT(write_weights(c, &plan, options, r.n_threads, path, metadata, &r.weights_s));
    TRY_OUT(companions_copy(c->dir, temporary, options->stop));
    TRY_OUT(quantize_write_config(c, options->recipe, source_hash, temporary));
    if (options->stop && *options->stop) {
        st = FAIL(ST_EINTERRUPTED, "%s: quantization was stopped; nothing is left behind", c->dir);
        goto out;
    }
    sync_folder(temporary);
    TRY_OUT(outfile_rename_new(temporary, r.output));
    made      = false;
    r.seconds = clock_ms_since(t0_ns) * 1e-3;
    *report   = r;
out:
    if (made)
        companions_remove(temporary);
    quantize_plan_free(&plan);
    free(metadata);
    return st;
}
