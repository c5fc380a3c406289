#include "model/quantize_plan.h"

#include "model/floats.h"
#include "model/quantize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void quantize_plan_free(struct quantize_plan *p)
{
    for (size_t i = 0; p->list && i < p->n; i++)
        if (p->parts[i] == PART_SCALES)
            free((char *)p->list[i].name);
    free(p->list);
    free(p->sources);
    free(p->parts);
    free(p->matrices);
    *p = (struct quantize_plan){0};
}

static void plan_add(struct quantize_plan *p, enum quantize_part part, const struct tensor *source, struct tensor t)
{
    t.data           = NULL;
    t.bytes          = (size_t)tensor_elements(&t) * dtype_size(t.dtype);
    p->list[p->n]    = t;
    p->sources[p->n] = source;
    p->parts[p->n]   = part;
    p->bytes += t.bytes;
    p->n++;
}

status_t quantize_plan_build(const struct checkpoint *c, enum recipe recipe, struct quantize_plan *p)
{
    size_t most = 2 * c->tensors.count + 1;
    p->list     = calloc(most, sizeof *p->list);
    p->sources  = calloc(most, sizeof *p->sources);
    p->parts    = calloc(most, sizeof *p->parts);
    p->matrices = calloc(most, sizeof *p->matrices);
    if (!p->list || !p->sources || !p->parts || !p->matrices)
        return FAIL(ST_ENOMEM, "%s: no memory for a list of %zu tensors", c->dir, most);
    for (size_t i = 0; i < c->tensors.count; i++) {
        const struct tensor *t = &c->tensors.items[i];
        if (recipe == RECIPE_NONE || !quantize_applies(&c->config, t->name)) {
            plan_add(p, PART_AS_IS, t, *t);
            continue;
        }
        if (t->rank != 2 || !float_dtype(t->dtype))
            return FAIL(ST_EINPUT, "%s: tensor %s is %s of rank %d; INT8 is made from a matrix of floating-point weights",
                        c->weights_path, t->name, dtype_name(t->dtype), t->rank);
        struct tensor codes = *t, scales = {.dtype = recipe_scale_dtype(recipe, DT_BF16), .rank = 1, .shape = {t->shape[0]}};
        char         *name;
        codes.dtype = DT_I8;
        if (asprintf(&name, "%.*sscales", (int)(strlen(t->name) - strlen("weight")), t->name) < 0)
            return FAIL(ST_ENOMEM, "%s: no memory for a list of tensors", c->dir);
        scales.name = name;
        plan_add(p, PART_CODES, t, codes);
        plan_add(p, PART_SCALES, t, scales);
        p->matrices[p->n_matrices++] = t;
        p->most_rows                 = t->shape[0] > p->most_rows ? t->shape[0] : p->most_rows;
    }
    return ST_OK;
}
