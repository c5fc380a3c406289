#include "model/stage_file.h"

#include "base/clock.h"
#include "base/cores.h"
#include "model/int8_line.h"
#include "checkpoint/safetensors.h"
#include "model/quantize.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum { PIECE = 4 << 20, PAGE = 4096, THREADS_MAX = 256 };

status_t stage_file_plan(const struct checkpoint *c, enum recipe recipe, const char *source_hash, struct stage_file *out)
{
    struct stage_file f = {.checkpoint = c, .recipe = recipe};
    char             *metadata = recipe == RECIPE_NONE ? NULL : quantize_metadata(recipe, source_hash);
    uint64_t          data_bytes = 0;
    status_t          st = ST_OK;
    if (recipe != RECIPE_NONE && !metadata)
        return FAIL(ST_ENOMEM, "%s: no memory to plan a copy", c->dir);
    TRY_OUT(quantize_plan_build(c, recipe, &f.plan));
    TRY_OUT(safetensors_head(c->dir, f.plan.list, f.plan.n, metadata, &f.head, &f.head_bytes, &data_bytes));
    f.offsets = malloc((f.plan.n + 1) * sizeof *f.offsets);
    if (!f.offsets) {
        st = FAIL(ST_ENOMEM, "%s: no memory to plan a copy", c->dir);
        goto out;
    }
    f.bytes = f.head_bytes;
    for (size_t i = 0; i < f.plan.n; i++) {
        f.offsets[i] = f.bytes;
        f.bytes += f.plan.list[i].bytes;
    }
    *out = f;
    memset(&f, 0, sizeof f);
out:
    free(metadata);
    stage_file_free(&f);
    return st;
}

void stage_file_free(struct stage_file *f)
{
    quantize_plan_free(&f->plan);
    free(f->head);
    free(f->offsets);
    memset(f, 0, sizeof *f);
}

/* n·i/parts without leaving 64 bits: n is at most 2^63. */
static size_t share(size_t n, int i, int parts)
{
    return (size_t)((unsigned __int128)n * (unsigned)i / (unsigned)parts);
}

struct stage_segment stage_file_segment(const struct stage_file *f, int part, int n_parts, size_t k)
{
    const struct tensor *t = &f->plan.list[k];
    struct stage_segment s = {.entry = k};
    if (f->plan.parts[k] == PART_AS_IS) {
        size_t first = share(t->bytes, part, n_parts);
        s.offset = f->offsets[k] + first;
        s.bytes = share(t->bytes, part + 1, n_parts) - first;
        return s;
    }
    size_t rows = (size_t)t->shape[0], row_bytes = rows ? t->bytes / rows : 0;
    s.first_row = (int64_t)share(rows, part, n_parts);
    s.rows = (int64_t)share(rows, part + 1, n_parts) - s.first_row;
    s.offset = f->offsets[k] + (size_t)s.first_row * row_bytes;
    s.bytes = (size_t)s.rows * row_bytes;
    return s;
}

size_t stage_file_part_bytes(const struct stage_file *f, int part, int n_parts)
{
    size_t bytes = 0;
    for (size_t k = 0; k < f->plan.n; k++)
        bytes += stage_file_segment(f, part, n_parts, k).bytes;
    return bytes;
}

/* What a segment is made from. */
static const char *source_of(const struct stage_file *f, const struct stage_segment *s, size_t *bytes)
{
    const struct tensor *t = f->plan.sources[s->entry];
    if (f->plan.parts[s->entry] == PART_AS_IS) {
        *bytes = s->bytes;
        return (const char *)t->data + (s->offset - f->offsets[s->entry]);
    }
    size_t row_bytes = t->shape[0] ? t->bytes / (size_t)t->shape[0] : 0;
    *bytes = (size_t)s->rows * row_bytes;
    return (const char *)t->data + (size_t)s->first_row * row_bytes;
}

/* ---- filling ---- */

struct filling {
    const struct stage_file *f;
    int                      part, n_parts, fd;
    XXH3_state_t            *hash;
    struct int8_line        *line;
    struct tensor           *views;  /* [n_matrices] the part's rows of every matrix that has some */
    const struct tensor    **list;   /* [n_views] */
    size_t                   n_views;
    char                    *scales; /* of the matrix whose codes were written last */
    atomic_bool              leave;
    struct stage_times       times;
};

/* Touch the source in the order in which it will be needed, so that the others find it in memory. */
static void *read_ahead(void *argument)
{
    struct filling        *w = argument;
    volatile unsigned char sink = 0;
    int64_t                t0 = clock_ns();
    for (size_t k = 0; k < w->f->plan.n && !atomic_load(&w->leave); k++) {
        struct stage_segment s = stage_file_segment(w->f, w->part, w->n_parts, k);
        size_t               bytes;
        if (w->f->plan.parts[k] == PART_SCALES)
            continue;
        const char *source = source_of(w->f, &s, &bytes);
        for (size_t at = 0; at < bytes && !atomic_load(&w->leave); at += PAGE)
            sink = (unsigned char)(sink + (unsigned char)source[at]);
        w->times.bytes_read += bytes;
    }
    w->times.read_s = clock_ms_since(t0) * 1e-3;
    return NULL;
}

static status_t put(struct filling *w, const void *data, size_t bytes, size_t offset)
{
    const char *at = data;
    XXH3_128bits_update(w->hash, data, bytes);
    w->times.bytes_written += bytes;
    while (bytes) {
        ssize_t n = pwrite(w->fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return FAIL(ST_EIO, "staged weights: cannot write %zu bytes: %s", bytes, n ? strerror(errno) : "no space");
        at += n;
        offset += (size_t)n;
        bytes -= (size_t)n;
    }
    return ST_OK;
}

static status_t fill_as_is(struct filling *w, const struct stage_segment *s)
{
    size_t      bytes;
    const char *source = source_of(w->f, s, &bytes);
    for (size_t at = 0; at < bytes; at += PIECE)
        TRY(put(w, source + at, bytes - at < PIECE ? bytes - at : PIECE, s->offset + at));
    return ST_OK;
}

static status_t fill_codes(struct filling *w, const struct stage_segment *s, const struct tensor *view)
{
    const size_t scale_size = dtype_size(recipe_scale_dtype(w->f->recipe, DT_BF16)), cols = (size_t)view->shape[1];
    for (int64_t k = int8_line_chunks(view); k > 0; k--) {
        const struct int8_chunk *chunk;
        TRY(int8_line_take(w->line, &chunk));
        TRY(put(w, chunk->codes, (size_t)chunk->rows * cols, s->offset + (size_t)chunk->first_row * cols));
        memcpy(w->scales + (size_t)chunk->first_row * scale_size, chunk->scales, (size_t)chunk->rows * scale_size);
    }
    return ST_OK;
}

/* The part's rows of every matrix as matrices of their own. */
static status_t make_views(struct filling *w)
{
    const struct quantize_plan *plan = &w->f->plan;
    w->views = calloc(plan->n_matrices + 1, sizeof *w->views);
    w->list = calloc(plan->n_matrices + 1, sizeof *w->list);
    w->scales = malloc((size_t)plan->most_rows * sizeof(float) + 1);
    if (!w->views || !w->list || !w->scales)
        return FAIL(ST_ENOMEM, "no memory to stage %zu matrices", plan->n_matrices);
    for (size_t k = 0; k < plan->n; k++) {
        struct stage_segment s = stage_file_segment(w->f, w->part, w->n_parts, k);
        size_t               bytes;
        if (plan->parts[k] != PART_CODES || !s.rows)
            continue;
        struct tensor *view = &w->views[w->n_views];
        *view = *plan->sources[k];
        view->data = source_of(w->f, &s, &bytes);
        view->bytes = bytes;
        view->shape[0] = s.rows;
        w->list[w->n_views++] = view;
    }
    return ST_OK;
}

static int threads(int asked)
{
    struct cores *cores = malloc(sizeof *cores);
    int           n = asked > 0 ? asked : cores && cores_of_process(0, cores) == ST_OK ? cores->n : 1;
    free(cores);
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : n;
}

static status_t fill(struct filling *w, int n_threads)
{
    const struct quantize_plan *plan = &w->f->plan;
    size_t                      view = 0;
    if (w->n_views)
        TRY(int8_line_open(w->list, w->n_views, w->f->recipe, threads(n_threads), &w->line));
    for (size_t k = 0; k < plan->n; k++) {
        struct stage_segment s = stage_file_segment(w->f, w->part, w->n_parts, k);
        if (!s.bytes)
            continue;
        switch (plan->parts[k]) {
        case PART_AS_IS: TRY(fill_as_is(w, &s)); break;
        case PART_CODES: TRY(fill_codes(w, &s, &w->views[view++])); break;
        case PART_SCALES: TRY(put(w, w->scales, s.bytes, s.offset)); break; /* those of the codes just before */
        }
    }
    return ST_OK;
}

static void take_digest(XXH3_state_t *hash, unsigned char digest[16])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(hash));
    memcpy(digest, canonical.digest, 16);
}

status_t stage_file_fill(const struct stage_file *f, int part, int n_parts, int n_threads, int fd, struct stage_times *times,
                         unsigned char digest[16])
{
    struct filling w = {.f = f, .part = part, .n_parts = n_parts, .fd = fd, .hash = XXH3_createState()};
    pthread_t      reader;
    int64_t        t0 = clock_ns();
    status_t       st = w.hash ? ST_OK : FAIL(ST_ENOMEM, "no memory to stage weights");
    if (st == ST_OK)
        st = make_views(&w);
    if (st == ST_OK) {
        XXH3_128bits_reset(w.hash);
        bool reads = pthread_create(&reader, NULL, read_ahead, &w) == 0;
        st = fill(&w, n_threads);
        atomic_store(&w.leave, st != ST_OK);
        if (reads)
            pthread_join(reader, NULL);
    }
    int8_line_close(w.line);
    w.times.quantize_s = clock_ms_since(t0) * 1e-3;
    if (st == ST_OK) {
        take_digest(w.hash, digest);
        *times = w.times;
    }
    XXH3_freeState(w.hash);
    free(w.views);
    free(w.list);
    free(w.scales);
    return st;
}

status_t stage_file_digest(const struct stage_file *f, int part, int n_parts, const unsigned char *file,
                           unsigned char digest[16])
{
    XXH3_state_t *hash = XXH3_createState();
    if (!hash)
        return FAIL(ST_ENOMEM, "no memory for a checksum");
    XXH3_128bits_reset(hash);
    for (size_t k = 0; k < f->plan.n; k++) {
        struct stage_segment s = stage_file_segment(f, part, n_parts, k);
        XXH3_128bits_update(hash, file + s.offset, s.bytes);
    }
    take_digest(hash, digest);
    XXH3_freeState(hash);
    return ST_OK;
}
