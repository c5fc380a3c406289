#include "bench/linear_watch.h"

#include "bench/divergence.h"
#include "model/bf16.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum side { REFERENCE, MODE, SIDES };

struct linear {
    char                 name[64];
    const struct matrix *host[SIDES];
    const void          *adopted[SIDES]; /* w of what the backend made of it: NULL until then */
    struct matrix        mode;           /* the mode's adopted matrix                         */
    struct sqnr          outputs;
    int                  products;
};

/* A backend's replaced table; the backend's ops point at it, so its functions find their watch. */
struct watched {
    struct backend_ops        table; /* first */
    const struct backend_ops *real;
    struct backend           *be;
    struct linear_watch      *watch;
    enum side                 side;
};

struct linear_watch {
    struct watched sides[SIDES];
    struct linear *linears;
    size_t         n;
    bool           on;
    float         *x, *y, *y_mode;  /* host                        */
    float         *d_x, *d_y;       /* of the mode's backend       */
    size_t         x_room, y_room;  /* floats                      */
};

static struct watched *watched_of(struct backend *be)
{
    return (struct watched *)(uintptr_t)backend_ops_of(be);
}

/* ---- the layers of a model --------------------------------------------------------------------------------------- */

static void add_linear(struct linear_watch *w, const char *name, const struct matrix *reference, const struct matrix *mode)
{
    struct linear *l = &w->linears[w->n++];
    snprintf(l->name, sizeof l->name, "%s", name);
    l->host[REFERENCE] = reference;
    l->host[MODE] = mode;
}

static void add_blocks(struct linear_watch *w, const char *prefix, int n, const struct block *reference,
                       const struct block *mode)
{
    char name[64];
    for (int i = 0; i < n; i++) {
        const struct block *r = &reference[i], *m = &mode[i];
        const struct {
            const char          *part;
            const struct matrix *reference, *mode;
        } parts[] = {{"attention.wqkv", &r->wqkv, &m->wqkv},
                     {"attention.wo", &r->wo, &m->wo},
                     {"feed_forward.w1", &r->w1, &m->w1},
                     {"feed_forward.w3", &r->w3, &m->w3},
                     {"feed_forward.w2", &r->w2, &m->w2}};
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
            snprintf(name, sizeof name, "%s.%d.%s", prefix, i, parts[k].part);
            add_linear(w, name, parts[k].reference, parts[k].mode);
        }
    }
}

static status_t list_linears(struct linear_watch *w, const struct weights *reference, const struct weights *mode)
{
    const struct model_config *c = &reference->config;
    w->linears = calloc(5 * (size_t)(c->slow.n_layer + c->fast.n_layer) + 3, sizeof *w->linears);
    if (!w->linears)
        return FAIL(ST_ENOMEM, "no memory to watch %d layers", c->slow.n_layer + c->fast.n_layer);
    add_blocks(w, "layers", c->slow.n_layer, reference->layers, mode->layers);
    add_linear(w, "output", &reference->output, &mode->output);
    if (reference->fast_project_in.w)
        add_linear(w, "fast_project_in", &reference->fast_project_in, &mode->fast_project_in);
    add_blocks(w, "fast_layers", c->fast.n_layer, reference->fast_layers, mode->fast_layers);
    add_linear(w, "fast_output", &reference->fast_output, &mode->fast_output);
    return ST_OK;
}

/* ---- the two functions that are replaced ------------------------------------------------------------------------- */

static status_t watch_adopt(struct backend *be, const struct matrix *host, struct matrix *out)
{
    struct watched      *side = watched_of(be);
    struct linear_watch *w = side->watch;
    TRY(side->real->adopt(be, host, out));
    for (size_t i = 0; i < w->n; i++)
        if (w->linears[i].host[side->side]->w == host->w) {
            w->linears[i].adopted[side->side] = out->w;
            if (side->side == MODE)
                w->linears[i].mode = *out;
        }
    return ST_OK;
}

static status_t grow(float **host, float **host_2, float **device, const struct watched *mode, size_t *room, size_t n)
{
    if (n <= *room)
        return ST_OK;
    free(*host);
    *host = malloc(n * sizeof **host);
    if (host_2) {
        free(*host_2);
        *host_2 = malloc(n * sizeof **host_2);
    }
    mode->real->free(mode->be, *device);
    *device = NULL;
    *room = 0;
    if (!*host || (host_2 && !*host_2))
        return FAIL(ST_ENOMEM, "no memory for the outputs of a layer");
    TRY(mode->real->alloc(mode->be, MEM_WORKSPACE, n * sizeof(float), (void **)device));
    *room = n;
    return ST_OK;
}

/* d_y: the reference's outputs of rows row0 … for n inputs d_x. */
static status_t repeat_product(struct linear_watch *w, struct linear *l, const float *d_y, int ldy, int row0, int row_count,
                               const float *d_x, int n)
{
    const struct watched *reference = &w->sides[REFERENCE], *mode = &w->sides[MODE];
    size_t                inputs = (size_t)n * (size_t)l->mode.cols, outputs = (size_t)n * (size_t)row_count;
    TRY(grow(&w->x, NULL, &w->d_x, mode, &w->x_room, inputs));
    TRY(grow(&w->y, &w->y_mode, &w->d_y, mode, &w->y_room, outputs));
    TRY(reference->real->download(reference->be, w->x, d_x, inputs * sizeof *w->x));
    /* A backend that rounds takes inputs that are rounded; the reference's may not be. */
    if (((struct backend_base *)(void *)mode->be)->options.rounding == ROUND_BF16)
        for (size_t i = 0; i < inputs; i++)
            w->x[i] = bf16_round(w->x[i]);
    TRY(mode->real->upload(mode->be, w->d_x, w->x, inputs * sizeof *w->x));
    TRY(mode->real->matmul(mode->be, w->d_y, row_count, &l->mode, row0, row_count, w->d_x, n));
    TRY(mode->real->download(mode->be, w->y_mode, w->d_y, outputs * sizeof *w->y_mode));
    for (int i = 0; i < n; i++)
        TRY(reference->real->download(reference->be, w->y + (size_t)i * (size_t)row_count, d_y + (size_t)i * (size_t)ldy,
                                      (size_t)row_count * sizeof *w->y));
    sqnr_add(&l->outputs, w->y, w->y_mode, outputs);
    l->products += n;
    return ST_OK;
}

static status_t watch_matmul(struct backend *be, float *d_y, int ldy, const struct matrix *m, int row0, int row_count,
                             const float *d_x, int n)
{
    struct watched      *side = watched_of(be);
    struct linear_watch *w = side->watch;
    TRY(side->real->matmul(be, d_y, ldy, m, row0, row_count, d_x, n));
    if (!w->on || side->side != REFERENCE)
        return ST_OK;
    for (size_t i = 0; i < w->n; i++)
        if (w->linears[i].adopted[REFERENCE] == m->w && w->linears[i].adopted[MODE])
            return repeat_product(w, &w->linears[i], d_y, ldy, row0, row_count, d_x, n);
    return ST_OK;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

status_t linear_watch_open(struct backend *reference, const struct weights *reference_weights, struct backend *mode,
                           const struct weights *mode_weights, struct linear_watch **out)
{
    struct linear_watch *w = calloc(1, sizeof *w);
    if (!w)
        return FAIL(ST_ENOMEM, "no memory to watch a model");
    status_t st = list_linears(w, reference_weights, mode_weights);
    if (st != ST_OK) {
        free(w);
        return st;
    }
    struct backend *backends[SIDES] = {reference, mode};
    for (int i = 0; i < SIDES; i++) {
        const struct backend_ops *real = backend_ops_of(backends[i]);
        w->sides[i] = (struct watched){.table = *real, .real = real, .be = backends[i], .watch = w, .side = (enum side)i};
        w->sides[i].table.adopt = watch_adopt;
        w->sides[i].table.matmul = watch_matmul;
        ((struct backend_base *)(void *)backends[i])->ops = &w->sides[i].table;
    }
    *out = w;
    return ST_OK;
}

void linear_watch_close(struct linear_watch *w)
{
    if (!w)
        return;
    const struct watched *mode = &w->sides[MODE];
    mode->real->free(mode->be, w->d_x);
    mode->real->free(mode->be, w->d_y);
    for (int i = 0; i < SIDES; i++)
        ((struct backend_base *)(void *)w->sides[i].be)->ops = w->sides[i].real;
    free(w->x);
    free(w->y);
    free(w->y_mode);
    free(w->linears);
    free(w);
}

void linear_watch_switch(struct linear_watch *w, bool on)
{
    w->on = on;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* Row `row` of m as FP32. */
static void matrix_row(const struct matrix *m, int row, float *out)
{
    size_t first = (size_t)row * (size_t)m->cols;
    float  scale = 1;
    if (m->format == DT_I8)
        scale = m->scale_dtype == DT_BF16 ? bf16_to_f32(((const bf16_t *)m->scales)[row]) : ((const float *)m->scales)[row];
    for (int i = 0; i < m->cols; i++)
        switch (m->format) {
        case DT_F32:
            out[i] = ((const float *)m->w)[first + (size_t)i];
            break;
        case DT_BF16:
            out[i] = bf16_to_f32(((const bf16_t *)m->w)[first + (size_t)i]);
            break;
        default:
            out[i] = scale * (float)((const int8_t *)m->w)[first + (size_t)i];
        }
}

static status_t compare_weights(const struct linear *l, struct sqnr *out)
{
    const struct matrix *reference = l->host[REFERENCE], *mode = l->host[MODE];
    float               *rows = malloc(2 * (size_t)reference->cols * sizeof *rows);
    if (!rows)
        return FAIL(ST_ENOMEM, "no memory for a row of %s", l->name);
    for (int r = 0; r < reference->rows; r++) {
        matrix_row(reference, r, rows);
        matrix_row(mode, r, rows + reference->cols);
        sqnr_add(out, rows, rows + reference->cols, (size_t)reference->cols);
    }
    free(rows);
    return ST_OK;
}

status_t linear_watch_rows(struct linear_watch *w, struct quality_linear **rows, size_t *n)
{
    struct quality_linear *list = calloc(result_room(w->n), sizeof *list);
    size_t                 count = 0;
    if (!list)
        return FAIL(ST_ENOMEM, "no memory for %zu layers", w->n);
    for (size_t i = 0; i < w->n; i++) {
        const struct linear *l = &w->linears[i];
        struct sqnr          weights = {0};
        if (l->host[REFERENCE]->w == l->host[MODE]->w)
            continue; /* one table in one file: the same bytes */
        status_t st = compare_weights(l, &weights);
        if (st != ST_OK) {
            free(list);
            return st;
        }
        if (weights.noise == 0 && l->outputs.noise == 0)
            continue;
        struct quality_linear *row = &list[count++];
        snprintf(row->name, sizeof row->name, "%s", l->name);
        row->products = l->products;
        row->weight_sqnr_db = sqnr_db(&weights);
        row->output_sqnr_db = sqnr_db(&l->outputs);
    }
    *rows = list;
    *n = count;
    return ST_OK;
}
