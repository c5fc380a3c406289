/* plan_print.c — the table of --dry-run, as Markdown: what all cells share above it, what varies as columns. */
#include "sweep/plan.h"

#include "sweep/plan_pool.h"

#include <math.h>
#include <string.h>

enum { COLUMNS_MAX = AXIS_COUNT + 6, COLUMN_WIDTH = 48 };

/* Which fields vary, and how wide their columns are. */
struct layout {
    int  fields[AXIS_COUNT];
    int  width[AXIS_COUNT];
    int  n;
    bool models, texts, invalid;
};

static int cell_text(const struct plan *p, size_t i, int field, char *out, size_t size)
{
    char        text[FIELD_TEXT_MAX];
    const char *tail = p->cells[i].model;
    if (field == AXIS_MODEL) { /* the end of a path says more than its beginning */
        size_t n = strlen(tail);
        return snprintf(out, size, "%s", n < size ? tail : tail + n - size + 1);
    }
    if (field == AXIS_TEXTS)
        return snprintf(out, size, "set %d (%d)", p->pool->texts_of[i] + 1, p->cells[i].workload.n_texts);
    field_format(&cell_fields[field], field_get(&cell_fields[field], &p->cells[i]), text);
    return snprintf(out, size, "%s", text);
}

static void lay_out(const struct plan *p, struct layout *l)
{
    *l = (struct layout){0};
    for (int field = 0; field < AXIS_COUNT; field++) {
        char first[COLUMN_WIDTH], text[COLUMN_WIDTH];
        bool varies = false;
        int  width  = (int)strlen(axis_name(field));
        cell_text(p, 0, field, first, sizeof first);
        for (size_t i = 0; i < p->n; i++) {
            int n = cell_text(p, i, field, text, sizeof text);
            varies |= strcmp(first, text) != 0;
            if (n > width)
                width = n;
        }
        if (varies) {
            l->fields[l->n]  = field;
            l->width[l->n++] = width;
        }
    }
    for (size_t i = 0; i < p->n; i++)
        l->invalid |= p->invalid[i] != NULL;
}

static bool is_column(const struct layout *l, int field)
{
    for (int k = 0; k < l->n; k++)
        if (l->fields[k] == field)
            return true;
    return false;
}

static void print_constants(const struct plan *p, const struct layout *l, FILE *to)
{
    char text[COLUMN_WIDTH];
    int  column = 0;
    fprintf(to, "%zu cell%s, output %s\n", p->n, p->n == 1 ? "" : "s", p->options.output);
    if (!is_column(l, AXIS_MODEL))
        fprintf(to, "model %s (%.8s)\n", p->cells[0].model, p->cells[0].fingerprint);
    for (int field = 0; field < FIELD_COUNT; field++) {
        if (is_column(l, field))
            continue;
        cell_text(p, 0, field, text, sizeof text);
        int n = snprintf(NULL, 0, "%s %s", axis_name(field), text);
        if (column && column + n > 100)
            column = (fputc('\n', to), 0);
        column += fprintf(to, "%s%s %s", column ? ", " : "", axis_name(field), text);
    }
    if (!is_column(l, AXIS_TEXTS))
        fprintf(to, ", texts %d", p->cells[0].workload.n_texts);
    fputs("\n\n", to);
}

static void print_number(double v, const char *form, int width, FILE *to)
{
    char text[32];
    if (isnan(v))
        snprintf(text, sizeof text, "?");
    else
        snprintf(text, sizeof text, form, v);
    fprintf(to, " %*s |", width, text);
}

void plan_print(const struct plan *p, plan_estimate estimate, void *ctx, FILE *to)
{
    static const char dashes[] = "------------------------------------------------";
    struct layout     l;
    lay_out(p, &l);
    print_constants(p, &l, to);
    fputs("| id       |", to);
    for (int k = 0; k < l.n; k++)
        fprintf(to, " %-*s |", l.width[k], axis_name(l.fields[k]));
    fprintf(to, " requests | frames at most |%s%s\n", estimate ? " memory MB | seconds |" : "",
            l.invalid ? " cannot run |" : "");
    fputs("|:---------|", to);
    for (int k = 0; k < l.n; k++)
        fprintf(to, ":%.*s|", l.width[k] + 1, dashes);
    fprintf(to, "---------:|---------------:|%s%s\n", estimate ? "----------:|--------:|" : "",
            l.invalid ? ":-----------|" : "");
    for (size_t i = 0; i < p->n; i++) {
        const struct cell *c        = &p->cells[i];
        double             requests = (double)c->workload.n_texts * c->workload.samples +
                                      (double)c->workload.warmup * c->workload.processes;
        char               text[COLUMN_WIDTH];
        fprintf(to, "| %.8s |", c->id);
        for (int k = 0; k < l.n; k++) {
            cell_text(p, i, l.fields[k], text, sizeof text);
            fprintf(to, " %-*s |", l.width[k], text);
        }
        print_number(requests, "%.0f", 8, to);
        print_number(requests * c->batch * c->workload.max_new_tokens, "%.0f", 14, to);
        if (estimate) {
            double memory_mb = NAN, seconds = NAN;
            estimate(ctx, c, &memory_mb, &seconds);
            print_number(memory_mb, "%.1f", 9, to);
            print_number(seconds, "%.1f", 7, to);
        }
        if (l.invalid)
            fprintf(to, " %s |", p->invalid[i] ? p->invalid[i] : "");
        fputc('\n', to);
    }
}
