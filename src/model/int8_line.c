#include "model/int8_line.h"

#include "model/bf16.h"
#include "model/floats.h"
#include "model/int8_rows.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Codes of one chunk: small enough that a few lie in the second-level cache between quantizing and writing. */
enum { CHUNK_CODES = 256 << 10, SLOTS_PER_THREAD = 3 };

struct slot {
    struct int8_chunk chunk;
    bool              ready;
};

struct int8_line {
    const struct tensor *const *matrices;
    size_t          n_matrices;
    enum recipe     recipe;
    pthread_t      *threads;
    int             n_threads;
    struct slot    *slots;
    size_t          n_slots;

    pthread_mutex_t lock;
    pthread_cond_t  changed;
    /* Under lock. Chunks are numbered along the line; chunk k lives in slot k % n_slots. */
    size_t          claimed, taken; /* chunks given to workers; chunks the caller is done with */
    size_t          matrix;         /* where the next claim continues                          */
    int64_t         row;
    bool            holding, stopping;
    status_t        failure;
    char            reason[512]; /* of the failure, from the worker that met it */
};

static int64_t rows_per_chunk(const struct tensor *m)
{
    int64_t cols = m->shape[1] > 0 ? m->shape[1] : 1, rows = CHUNK_CODES / cols;
    return rows < 1 ? 1 : rows;
}

int64_t int8_line_chunks(const struct tensor *matrix)
{
    int64_t rows = rows_per_chunk(matrix);
    return (matrix->shape[0] + rows - 1) / rows;
}

/* ---- workers ---- */

static status_t quantize_chunk(enum recipe recipe, const struct int8_chunk *chunk)
{
    const struct tensor *m    = chunk->source;
    int64_t              cols = m->shape[1];
    if (m->dtype == DT_BF16) {
        const char *rows = (const char *)m->data + (size_t)chunk->first_row * (size_t)cols * sizeof(bf16_t);
        return quantize_rows(recipe, m->name, chunk->first_row, rows, DT_BF16, chunk->rows, cols, chunk->codes, chunk->scales);
    }
    size_t  scale_size = dtype_size(recipe_scale_dtype(recipe, DT_BF16));
    bf16_t *row        = malloc((size_t)cols * sizeof *row);
    if (!row)
        return FAIL(ST_ENOMEM, "no memory for a row of %lld weights", (long long)cols);
    status_t st = ST_OK;
    for (int64_t i = 0; i < chunk->rows && st == ST_OK; i++) {
        for (int64_t j = 0; j < cols; j++)
            row[j] = bf16_from_f32(float_element(m, (size_t)((chunk->first_row + i) * cols + j)));
        st = quantize_rows(recipe, m->name, chunk->first_row + i, row, DT_BF16, 1, cols, chunk->codes + i * cols,
                           (char *)chunk->scales + (size_t)i * scale_size);
    }
    free(row);
    return st;
}

/* Claim the next chunk into a free slot; NULL when there is none left. Called and left with the lock held. */
static struct slot *claim(struct int8_line *line)
{
    for (;;) {
        while (line->matrix < line->n_matrices && line->row >= line->matrices[line->matrix]->shape[0]) {
            line->matrix++;
            line->row = 0;
        }
        if (line->stopping || line->matrix == line->n_matrices)
            return NULL;
        if (line->claimed - line->taken < line->n_slots)
            break;
        pthread_cond_wait(&line->changed, &line->lock);
    }
    struct slot         *slot = &line->slots[line->claimed++ % line->n_slots];
    const struct tensor *m    = line->matrices[line->matrix];
    int64_t              left = m->shape[0] - line->row, rows = rows_per_chunk(m);
    slot->chunk.source    = m;
    slot->chunk.first_row = line->row;
    slot->chunk.rows      = rows < left ? rows : left;
    line->row += slot->chunk.rows;
    return slot;
}

static void *work(void *argument)
{
    struct int8_line *line = argument;
    pthread_mutex_lock(&line->lock);
    for (struct slot *slot; (slot = claim(line));) {
        pthread_mutex_unlock(&line->lock);
        status_t st = quantize_chunk(line->recipe, &slot->chunk);
        pthread_mutex_lock(&line->lock);
        slot->ready = true;
        if (st != ST_OK && !line->stopping) {
            line->failure  = st;
            line->stopping = true;
            snprintf(line->reason, sizeof line->reason, "%s", status_last());
        }
        pthread_cond_broadcast(&line->changed);
    }
    pthread_mutex_unlock(&line->lock);
    return NULL;
}

/* ---- the caller ---- */

status_t int8_line_open(const struct tensor *const *matrices, size_t n, enum recipe recipe, int n_threads,
                        struct int8_line **out)
{
    size_t codes = 0, scales = 0;
    for (size_t i = 0; i < n; i++) {
        size_t rows = (size_t)rows_per_chunk(matrices[i]), here = rows * (size_t)matrices[i]->shape[1];
        codes  = here > codes ? here : codes;
        scales = rows > scales ? rows : scales;
    }
    struct int8_line *line = calloc(1, sizeof *line);
    if (!line)
        return FAIL(ST_ENOMEM, "no memory to quantize with %d threads", n_threads);
    line->matrices   = matrices;
    line->n_matrices = n;
    line->recipe     = recipe;
    line->n_slots    = (size_t)n_threads * SLOTS_PER_THREAD;
    pthread_mutex_init(&line->lock, NULL);
    pthread_cond_init(&line->changed, NULL);
    line->threads = calloc((size_t)n_threads, sizeof *line->threads);
    line->slots   = calloc(line->n_slots, sizeof *line->slots);
    bool complete = line->threads && line->slots;
    for (size_t i = 0; complete && i < line->n_slots; i++) {
        line->slots[i].chunk.codes  = malloc(codes + 1);
        line->slots[i].chunk.scales = malloc(scales * sizeof(float) + 1);
        complete                    = line->slots[i].chunk.codes && line->slots[i].chunk.scales;
    }
    for (; complete && line->n_threads < n_threads; line->n_threads++)
        if (pthread_create(&line->threads[line->n_threads], NULL, work, line) != 0)
            break;
    if (!complete || line->n_threads == 0) {
        int8_line_close(line);
        return FAIL(ST_ENOMEM, "no memory to quantize with %d threads", n_threads);
    }
    *out = line;
    return ST_OK;
}

status_t int8_line_take(struct int8_line *line, const struct int8_chunk **out)
{
    pthread_mutex_lock(&line->lock);
    if (line->holding) {
        line->slots[line->taken++ % line->n_slots].ready = false;
        line->holding                                    = false;
        pthread_cond_broadcast(&line->changed);
    }
    struct slot *slot = &line->slots[line->taken % line->n_slots];
    while (!slot->ready && !line->stopping)
        pthread_cond_wait(&line->changed, &line->lock);
    status_t st   = line->failure;
    line->holding = st == ST_OK;
    if (st != ST_OK)
        status_adopt(line->reason);
    pthread_mutex_unlock(&line->lock);
    *out = &slot->chunk;
    return st;
}

void int8_line_close(struct int8_line *line)
{
    if (!line)
        return;
    pthread_mutex_lock(&line->lock);
    line->stopping = true;
    pthread_cond_broadcast(&line->changed);
    pthread_mutex_unlock(&line->lock);
    for (int i = 0; i < line->n_threads; i++)
        pthread_join(line->threads[i], NULL);
    for (size_t i = 0; line->slots && i < line->n_slots; i++) {
        free(line->slots[i].chunk.codes);
        free(line->slots[i].chunk.scales);
    }
    free(line->slots);
    free(line->threads);
    pthread_cond_destroy(&line->changed);
    pthread_mutex_destroy(&line->lock);
    free(line);
}
