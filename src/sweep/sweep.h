/* sweep.h — what a job asks to enumerate: a base cell, and blocks of axes that vary it.
 *
 * A block is the product of its dimensions; a dimension is one axis, or several that advance together (zip). Cells of a
 * block are numbered with the first dimension slowest. */
#ifndef QSWEEP_SWEEP_SWEEP_H
#define QSWEEP_SWEEP_SWEEP_H

#include "sweep/field.h"
#include "sweep/job.h"
#include "sweep/where.h"
#include "sweep/yaml_tree.h"

enum {
    AXIS_MODEL       = FIELD_COUNT,     /* value i = index into models                     */
    AXIS_TEXTS       = FIELD_COUNT + 1, /* value i = index into text_sets                  */
    AXIS_COUNT       = FIELD_COUNT + 2, /* of them, at most one each in a block            */
    AXIS_VALUES_MAX  = 100000,
    BLOCKS_MAX       = 256,
    PRODUCT_MAX      = 4000000,         /* combinations of all blocks before their filters */
    VALUE_AUTO       = -1,              /* follows the rest of the cell; see value_has_auto()  */
};

struct axis {
    int                field; /* index into cell_fields, AXIS_MODEL or AXIS_TEXTS */
    int                dim;   /* axes of one dim advance together                 */
    int                n;
    union field_value *values; /* [n] */
};

struct block {
    struct axis    axes[AXIS_COUNT];
    int            n_axes, n_dims;
    int            dim_size[AXIS_COUNT];
    struct where **where; /* [n_where]: all must hold */
    int            n_where;
};

struct text_set {
    char **texts;
    int    n;
};

void text_set_free(struct text_set *set); /* zeroes it */

struct sweep {
    struct cell      base; /* without model and texts: base_model and base_texts name them */
    int              base_model, base_texts;
    char            *prequantized[PRECISION_COUNT]; /* directory that cells of this precision read instead, or NULL */
    struct block    *blocks;
    int              n_blocks;
    char           **models;
    int              n_models;
    struct text_set *text_sets;
    int              n_text_sets;
};

/* Read every value of a cell, model:, prequantized:, texts:, sweep: and where: below root. *out must be zeroed; sweep_free() it also
 * after a failure. */
status_t sweep_parse(const struct yaml *root, const char *label, const struct job_files *files, struct sweep *out);
void     sweep_free(struct sweep *s);

/* Combinations of one block, at most PRODUCT_MAX (checked by sweep_parse). */
size_t block_size(const struct block *b);
/* The index-th of them written over a copy of the base; *model and *texts are indices. Autos are not resolved. */
void block_cell(const struct sweep *s, const struct block *b, size_t index, struct cell *c, int *model, int *texts);

/* May this field be "auto"? (device, kv, length, recipe, top_k; it is their default.) */
bool value_has_auto(int field);

/* "batch", "model", "texts", … */
const char *axis_name(int field);
int         axis_find(const char *name); /* or −1 */

/* The sweep of a job, for the planner. */
const struct sweep *job_sweep(const struct job *j);

#endif
