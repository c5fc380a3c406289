#include "checkpoint/layout.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { PER_LAYER = 11, OUTSIDE_LAYERS = 10 };

__attribute__((format(printf, 5, 6))) static void add(struct layout *l, enum layout_kind kind, int64_t rows, int64_t cols,
                                                      const char *fmt, ...)
{
    struct layout_entry *e = &l->entries[l->count++];
    va_list              args;
    va_start(args, fmt);
    vsnprintf(e->name, sizeof e->name, fmt, args);
    va_end(args);
    e->kind     = kind;
    e->rank     = cols ? 2 : 1;
    e->shape[0] = rows;
    e->shape[1] = cols;
}

static void add_stack(struct layout *l, const char *prefix, const struct stack_config *c)
{
    int64_t q = (int64_t)c->n_head * c->head_dim, qkv = q + 2 * (int64_t)c->n_kv_heads * c->head_dim;
    for (int i = 0; i < c->n_layer; i++) {
        add(l, LAYOUT_LINEAR, qkv, c->dim, "%slayers.%d.attention.wqkv.weight", prefix, i);
        if (c->qkv_bias)
            add(l, LAYOUT_BIAS, qkv, 0, "%slayers.%d.attention.wqkv.bias", prefix, i);
        add(l, LAYOUT_LINEAR, c->dim, q, "%slayers.%d.attention.wo.weight", prefix, i);
        if (c->o_bias)
            add(l, LAYOUT_BIAS, c->dim, 0, "%slayers.%d.attention.wo.bias", prefix, i);
        if (c->qk_norm) {
            add(l, LAYOUT_NORM, c->head_dim, 0, "%slayers.%d.attention.q_norm.weight", prefix, i);
            add(l, LAYOUT_NORM, c->head_dim, 0, "%slayers.%d.attention.k_norm.weight", prefix, i);
        }
        add(l, LAYOUT_LINEAR, c->intermediate_size, c->dim, "%slayers.%d.feed_forward.w1.weight", prefix, i);
        add(l, LAYOUT_LINEAR, c->intermediate_size, c->dim, "%slayers.%d.feed_forward.w3.weight", prefix, i);
        add(l, LAYOUT_LINEAR, c->dim, c->intermediate_size, "%slayers.%d.feed_forward.w2.weight", prefix, i);
        add(l, LAYOUT_NORM, c->dim, 0, "%slayers.%d.ffn_norm.weight", prefix, i);
        add(l, LAYOUT_NORM, c->dim, 0, "%slayers.%d.attention_norm.weight", prefix, i);
    }
}

status_t layout_build(const struct model_config *c, struct layout *out)
{
    size_t        most = (size_t)(c->slow.n_layer + c->fast.n_layer) * PER_LAYER + OUTSIDE_LAYERS;
    struct layout l    = {calloc(most, sizeof *l.entries), 0};
    if (!l.entries)
        return FAIL(ST_ENOMEM, "no memory for a list of %zu tensors", most);
    add(&l, LAYOUT_EMBEDDING, c->vocab_size, c->slow.dim, "embeddings.weight");
    add(&l, LAYOUT_EMBEDDING, (int64_t)c->codebook_size * c->num_codebooks, c->slow.dim, "codebook_embeddings.weight");
    add_stack(&l, "", &c->slow);
    add(&l, LAYOUT_NORM, c->slow.dim, 0, "norm.weight");
    if (!c->tie_word_embeddings)
        add(&l, LAYOUT_LINEAR, c->vocab_size, c->slow.dim, "output.weight");
    if (c->fast.dim != c->slow.dim) {
        add(&l, LAYOUT_LINEAR, c->fast.dim, c->slow.dim, "fast_project_in.weight");
        add(&l, LAYOUT_BIAS, c->fast.dim, 0, "fast_project_in.bias");
    }
    add(&l, LAYOUT_EMBEDDING, c->codebook_size, c->fast.dim, "fast_embeddings.weight");
    add_stack(&l, "fast_", &c->fast);
    add(&l, LAYOUT_NORM, c->fast.dim, 0, "fast_norm.weight");
    add(&l, LAYOUT_LINEAR, c->codebook_size, c->fast.dim, "fast_output.weight");
    *out = l;
    return ST_OK;
}

void layout_free(struct layout *layout)
{
    free(layout->entries);
    *layout = (struct layout){0};
}

int64_t layout_elements(const struct layout_entry *entry)
{
    return entry->rank == 2 ? entry->shape[0] * entry->shape[1] : entry->shape[0];
}
