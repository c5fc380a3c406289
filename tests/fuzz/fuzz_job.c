/* Bytes as a job file, as a --set argument, as a filter, as plan.json and as a cell's JSON. What is accepted must plan,
 * survive its JSON with every id, and be scheduled with each cell exactly once. Input: one byte of choice, the bytes. */
#include "base/log.h"
#include "sweep/plan.h"
#include "sweep/schedule.h"
#include "sweep/sweep.h"
#include "sweep/where.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MODELS_MAX = 8, CELLS_MAX = 5000 };

static const char standard_job[] = "model: m\n"
                                   "sweep: {precision: [bf16, int8], batch: [1, 2], kv: [bf16, int8], zip: [precision, kv]}\n"
                                   "workload: {samples: 2}\n"
                                   "device: cpu\n";

static void must(bool holds)
{
    if (!holds)
        abort();
}

static status_t read_text(void *ctx, const char *path, char **bytes, size_t *size)
{
    (void)ctx;
    *bytes = strdup(path);
    *size  = strlen(path);
    return *bytes ? ST_OK : ST_ENOMEM;
}

static void check_schedule(const struct plan *p)
{
    struct schedule_input in  = {.plan = p, .n_ranks = 3, .n_kinds = 1, .split = true};
    int32_t              *of  = malloc(p->n * sizeof *of);
    must(of && schedule_static(&in, of) == ST_OK);
    for (size_t i = 0; i < p->n; i++)
        must(p->invalid[i] ? of[i] == RANK_SKIP : of[i] >= 0 && of[i] < 3);
    free(of);
}

static void check_plan(const struct plan *p)
{
    char        *json, *again;
    struct plan *back;
    must(p->n >= 1);
    for (size_t i = 0; i < p->n; i++) {
        must(cell_check(&p->cells[i], "planned cell") == ST_OK);
        must(plan_find(p, p->cells[i].id) == (long)i);
    }
    if (plan_to_json(p, &json) != ST_OK)
        abort();
    must(plan_from_json(json, strlen(json), "round trip", &back) == ST_OK);
    must(plan_to_json(back, &again) == ST_OK && strcmp(json, again) == 0);
    check_schedule(back);
    plan_close(back);
    free(json);
    free(again);
}

static void try_job(const char *yaml, size_t size, const char *const *set, int n_set)
{
    static const char      fingerprints[MODELS_MAX][33] = {
        "00000000000000000000000000000000", "11111111111111111111111111111111", "22222222222222222222222222222222",
        "33333333333333333333333333333333", "44444444444444444444444444444444", "55555555555555555555555555555555",
        "66666666666666666666666666666666", "77777777777777777777777777777777"};
    const struct job_files files = {read_text, NULL};
    struct job            *j;
    struct plan           *p;
    int                    n_models;
    size_t                 product = 0;
    if (job_parse(yaml, size, "fuzz", set, n_set, &files, &j) != ST_OK)
        return;
    job_models(j, &n_models);
    for (int i = 0; i < job_sweep(j)->n_blocks; i++)
        product += block_size(&job_sweep(j)->blocks[i]);
    if (n_models <= MODELS_MAX && product <= CELLS_MAX) { /* larger plans are slow, not different */
        struct plan_input in = {fingerprints, n_models, size & 1, NULL, NULL, 0};
        if (plan_build(j, &in, &p) == ST_OK) {
            check_plan(p);
            plan_close(p);
        }
    }
    job_close(j);
}

static void try_where(const char *text)
{
    struct where *w;
    struct cell   c;
    cell_defaults(&c);
    if (where_parse(text, "fuzz", ST_EINPUT, &w) != ST_OK)
        return;
    must(where_holds(w, &c) == where_holds(w, &c));
    where_free(w);
}

static void try_cell(const char *json, size_t size)
{
    struct cell c, back;
    char       *text;
    if (cell_from_json(json, size, "fuzz", &c) != ST_OK)
        return;
    must(cell_to_json(&c, &text) == ST_OK);
    must(cell_from_json(text, strlen(text), "round trip", &back) == ST_OK);
    free(text);
    cell_free(&c);
    cell_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    log_set_level(LOG_ERROR);
    if (size < 1)
        return 0;
    char *text = malloc(size);
    if (!text)
        return 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    const char  *set[] = {text};
    struct plan *p;
    switch (data[0] % 5) {
    case 0:
        try_job(text, size - 1, NULL, 0);
        break;
    case 1:
        try_job(standard_job, sizeof standard_job - 1, set, 1);
        break;
    case 2:
        try_where(text);
        break;
    case 3:
        if (plan_from_json(text, size - 1, "fuzz", &p) == ST_OK) {
            check_plan(p);
            plan_close(p);
        }
        break;
    case 4:
        try_cell(text, size - 1);
        break;
    }
    free(text);
    return 0;
}
