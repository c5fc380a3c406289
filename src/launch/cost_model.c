#include "launch/cost_model.h"

#include "base/file.h"
#include "store/sweep_file.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MODEL_BYTES_MAX = 1 << 20 };
static const double SECONDS_MAX = 1e7;

static status_t number(const json_t *v, const char *label, const char *key, double least, double most, double *out)
{
    if (!v)
        return ST_OK; /* keeps its default */
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= least && x <= most))
        return FAIL(ST_EINPUT, "%s: %s: want a number from %g to %g", label, key, least, most);
    *out = x;
    return ST_OK;
}

static status_t check_keys(const json_t *object, const char *label, const char *what, const char *const *keys)
{
    const char *key;
    json_t     *value;
    if (!json_is_object(object))
        return FAIL(ST_EINPUT, "%s: %s: want an object", label, what);
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        bool known = false;
        for (int i = 0; keys[i]; i++)
            known = known || strcmp(key, keys[i]) == 0;
        if (!known)
            return FAIL(ST_EINPUT, "%s: %s: \"%.40s\" is no key of a cost model; `qsweep help simulate` lists them", label, what,
                        key);
    }
    return ST_OK;
}

static status_t read_seconds(const json_t *seconds, const char *label, struct cost_model *m)
{
    const char *key;
    json_t     *value;
    if (!json_is_object(seconds) || json_object_size(seconds) == 0)
        return FAIL(ST_EINPUT, "%s: seconds: want an object with a number for each precision, like {\"bf16\": 40}", label);
    json_object_foreach((json_t *)(uintptr_t)seconds, key, value) {
        int p = precision_parse(key);
        if (p < 0)
            return FAIL(ST_EINPUT, "%s: seconds: \"%.40s\" is no precision", label, key);
        TRY(number(value, label, "seconds", 1e-6, SECONDS_MAX, &m->mean_s[p]));
    }
    return ST_OK;
}

static status_t read_kinds(const json_t *kinds, const char *label, struct cost_model *m)
{
    static const char *const keys[] = {"share", "speed", "name", NULL};
    double                   sum = 0;
    if (!json_is_array(kinds) || json_array_size(kinds) < 1 || json_array_size(kinds) > COST_KINDS_MAX)
        return FAIL(ST_EINPUT, "%s: kinds: want a list of 1 to %d objects with share and speed", label, (int)COST_KINDS_MAX);
    m->n_kinds = (int)json_array_size(kinds);
    for (int k = 0; k < m->n_kinds; k++) {
        const json_t *kind = json_array_get(kinds, (size_t)k);
        m->kinds[k] = (struct cost_kind){1, 1};
        TRY(check_keys(kind, label, "kinds", keys));
        TRY(number(json_object_get(kind, "share"), label, "share", 1e-6, 1e6, &m->kinds[k].share));
        TRY(number(json_object_get(kind, "speed"), label, "speed", 1e-3, 1e3, &m->kinds[k].speed));
        sum += m->kinds[k].share;
    }
    for (int k = 0; k < m->n_kinds; k++)
        m->kinds[k].share /= sum;
    return ST_OK;
}

static status_t read_model(const json_t *root, const char *label, struct cost_model *m)
{
    static const char *const keys[] = {"seconds", "spread", "straggler", "kinds", "launch_s", "message_us", NULL};
    static const char *const straggler_keys[] = {"share", "factor", NULL};
    const json_t            *straggler = json_object_get(root, "straggler"), *kinds = json_object_get(root, "kinds");
    TRY(check_keys(root, label, "the model", keys));
    TRY(read_seconds(json_object_get(root, "seconds"), label, m));
    TRY(number(json_object_get(root, "spread"), label, "spread", 0, 3, &m->spread));
    TRY(number(json_object_get(root, "launch_s"), label, "launch_s", 0, 1000, &m->launch_s));
    TRY(number(json_object_get(root, "message_us"), label, "message_us", 0, 1e6, &m->message_us));
    if (straggler) {
        TRY(check_keys(straggler, label, "straggler", straggler_keys));
        TRY(number(json_object_get(straggler, "share"), label, "share", 0, 1, &m->straggler_share));
        TRY(number(json_object_get(straggler, "factor"), label, "factor", 1, 1e4, &m->straggler_factor));
    }
    return kinds ? read_kinds(kinds, label, m) : ST_OK;
}

static struct cost_model defaults(void)
{
    return (struct cost_model){.straggler_factor = 1, .launch_s = 0.02, .message_us = 20, .kinds = {{1, 1}}, .n_kinds = 1};
}

status_t cost_model_parse(const char *json, size_t size, const char *label, struct cost_model *out)
{
    json_error_t      error;
    struct cost_model m = defaults();
    json_t           *root = json_loadb(json, size, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return FAIL(ST_EINPUT, "%s:%d: %s", label, error.line, error.text);
    status_t st = read_model(root, label, &m);
    json_decref(root);
    if (st == ST_OK)
        *out = m;
    return st;
}

/* ---- from measured cells ---- */

static status_t add_life(struct cost_model *m, enum precision p, double seconds)
{
    size_t n = m->n_lives[p];
    if ((n & (n - 1)) == 0) { /* grown at powers of two */
        double *grown = realloc(m->lives[p], (n ? 2 * n : 1) * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no memory for %zu measured cells", n);
        m->lives[p] = grown;
    }
    m->lives[p][m->n_lives[p]++] = seconds;
    return ST_OK;
}

static status_t load_sweep(const char *path, struct cost_model *m)
{
    struct sweep_file *f;
    size_t             n_ok = 0;
    TRY(sweep_file_open(path, &f));
    status_t st = ST_OK;
    for (size_t i = 0; st == ST_OK && i < sweep_file_rows(f); i++) {
        const struct summary_row *row = sweep_file_row(f, i);
        int                       p = (int)summary_axis(row, "precision").i;
        if (strcmp(row->status, "ok") != 0 || !(row->total_s > 0 && row->total_s <= SECONDS_MAX) || p < 0 || p >= PRECISION_COUNT)
            continue;
        st = add_life(m, (enum precision)p, row->total_s);
        n_ok++;
    }
    sweep_file_close(f);
    TRY(st);
    if (!n_ok)
        return FAIL(ST_EINPUT, "%s: has no ok cell to take times from", path);
    for (int p = 0; p < PRECISION_COUNT; p++) {
        for (size_t i = 0; i < m->n_lives[p]; i++)
            m->mean_s[p] += m->lives[p][i];
        if (m->n_lives[p])
            m->mean_s[p] /= (double)m->n_lives[p];
    }
    return ST_OK;
}

status_t cost_model_load(const char *path, struct cost_model *out)
{
    size_t n = strlen(path), size;
    char  *json;
    if (n > 3 && strcmp(path + n - 3, ".h5") == 0) {
        struct cost_model m = defaults();
        status_t          st = load_sweep(path, &m);
        if (st == ST_OK)
            *out = m;
        else
            cost_model_free(&m);
        return st;
    }
    TRY(file_read(path, MODEL_BYTES_MAX, &json, &size));
    status_t st = cost_model_parse(json, size, path, out);
    free(json);
    return st;
}

void cost_model_free(struct cost_model *m)
{
    for (int p = 0; p < PRECISION_COUNT; p++)
        free(m->lives[p]);
    memset(m, 0, sizeof *m);
}

/* ---- drawing ---- */

/* SplitMix64's finalizer (Steele, Lea, Flood 2014) over a counter: a uniform in (0, 1) per cell and purpose. */
static double uniform(uint64_t seed, uint64_t i, uint64_t purpose)
{
    uint64_t z = seed + (3 * i + purpose + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return ((double)(z >> 11) + 0.5) * 0x1p-53;
}

double cost_model_seconds(const struct cost_model *m, enum precision p, uint64_t seed, size_t i)
{
    if (m->n_lives[p])
        return m->lives[p][(size_t)(uniform(seed, i, 0) * (double)m->n_lives[p])];
    double s = m->mean_s[p];
    if (m->spread > 0) {
        double normal = sqrt(-2 * log(uniform(seed, i, 0))) * cos(2 * M_PI * uniform(seed, i, 1)); /* Box, Muller 1958 */
        s *= exp(m->spread * normal - m->spread * m->spread / 2);
    }
    return uniform(seed, i, 2) < m->straggler_share ? s * m->straggler_factor : s;
}

double cost_model_speed(const struct cost_model *m, int rank, int n_ranks)
{
    double at = (rank + 0.5) / n_ranks, upto = 0;
    for (int k = 0; k < m->n_kinds; k++)
        if ((upto += m->kinds[k].share) > at)
            return m->kinds[k].speed;
    return m->kinds[m->n_kinds - 1].speed;
}
