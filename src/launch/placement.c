#include "launch/placement.h"

#include "launch/visible.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { HOST_GPUS_MAX = 128 };

void placement_free(struct placement *p)
{
    free(p->places);
    *p = (struct placement){0};
}

void placement_look(const struct fabric_info *me, struct rank_view *out)
{
    struct nvml_gpu *all = calloc(2 * HOST_GPUS_MAX, sizeof *all);
    memset(out, 0, sizeof *out);
    memcpy(out->host, me->host, sizeof out->host);
    if (!all) {
        snprintf(out->why, sizeof out->why, "no memory for the list of GPUs");
        return;
    }
    int n = nvml_list(all, HOST_GPUS_MAX, out->why, sizeof out->why);
    if (n > 0) {
        struct nvml_gpu *seen = all + HOST_GPUS_MAX;
        n = visible_gpus(getenv("CUDA_VISIBLE_DEVICES"), getenv("CUDA_DEVICE_ORDER"), all, n, seen, out->why,
                         sizeof out->why);
        out->n = n < 0 ? 0 : n < RANK_GPUS_MAX ? n : RANK_GPUS_MAX;
        memcpy(out->gpus, seen, (size_t)out->n * sizeof *seen);
    }
    free(all);
}

/* ---- one GPU a rank ---------------------------------------------------------------------------------------------- */

/* Ranks and the GPUs of all hosts as a bipartite graph: edge [rank][k] is a GPU's number. */
struct graph {
    const struct rank_view *views;
    int                     n, n_gpus;
    uint64_t               *keys;   /* [n_gpus] hashes of host and UUID, sorted        */
    int                    *edges;  /* [n][RANK_GPUS_MAX]                               */
    int                    *owner;  /* [n_gpus] rank or −1                              */
    int                    *users;  /* [n_gpus]                                         */
    int                    *seen;   /* [n_gpus] the last search that came by, from 1    */
};

static uint64_t key_of(const struct rank_view *v, int i)
{
    return XXH3_64bits_withSeed(v->gpus[i].uuid, strlen(v->gpus[i].uuid), XXH3_64bits(v->host, strlen(v->host)));
}

static int compare_keys(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void graph_free(struct graph *g)
{
    free(g->keys);
    free(g->edges);
    free(g->owner);
    free(g->users);
    free(g->seen);
}

static status_t graph_make(const struct rank_view *views, int n, struct graph *g)
{
    size_t most = (size_t)n * RANK_GPUS_MAX + 1, count = 0;
    *g = (struct graph){.views = views, .n = n};
    g->keys = malloc(most * sizeof *g->keys);
    g->edges = malloc(most * sizeof *g->edges);
    g->owner = malloc(most * sizeof *g->owner);
    g->users = calloc(most, sizeof *g->users);
    g->seen = calloc(most, sizeof *g->seen);
    if (!g->keys || !g->edges || !g->owner || !g->users || !g->seen) {
        graph_free(g);
        return FAIL(ST_ENOMEM, "no memory to place %d ranks", n);
    }
    for (int r = 0; r < n; r++)
        for (int i = 0; i < views[r].n; i++)
            g->keys[count++] = key_of(&views[r], i);
    qsort(g->keys, count, sizeof *g->keys, compare_keys);
    for (size_t i = 0; i < count; i++)
        if (i == 0 || g->keys[i] != g->keys[i - 1])
            g->keys[g->n_gpus++] = g->keys[i];
    for (int r = 0; r < n; r++)
        for (int i = 0; i < views[r].n; i++) {
            uint64_t  key = key_of(&views[r], i);
            uint64_t *at = bsearch(&key, g->keys, (size_t)g->n_gpus, sizeof key, compare_keys);
            g->edges[r * RANK_GPUS_MAX + i] = (int)(at - g->keys);
        }
    for (int i = 0; i < g->n_gpus; i++)
        g->owner[i] = -1;
    return ST_OK;
}

/* Find rank r a GPU, moving others that can move (Kuhn's augmenting path; its depth is at most RANK_GPUS_MAX GPUs of
 * one host). mark is new for every search. */
static bool augment(struct graph *g, struct place *places, int r, int mark)
{
    for (int i = 0; i < g->views[r].n; i++) {
        int gpu = g->edges[r * RANK_GPUS_MAX + i];
        if (g->owner[gpu] >= 0)
            continue; /* first what is free, so that local rank i has the i-th card where all see all */
        g->owner[gpu] = r;
        places[r].gpu = i;
        return true;
    }
    for (int i = 0; i < g->views[r].n; i++) {
        int gpu = g->edges[r * RANK_GPUS_MAX + i];
        if (g->seen[gpu] == mark)
            continue;
        g->seen[gpu] = mark;
        if (!augment(g, places, g->owner[gpu], mark))
            continue;
        g->owner[gpu] = r;
        places[r].gpu = i;
        return true;
    }
    return false;
}

/* The least used GPU that rank r sees. */
static int least_used(const struct graph *g, int r)
{
    int best = 0;
    for (int i = 1; i < g->views[r].n; i++)
        if (g->users[g->edges[r * RANK_GPUS_MAX + i]] < g->users[g->edges[r * RANK_GPUS_MAX + best]])
            best = i;
    return best;
}

static status_t refuse(const struct graph *g, const char *host)
{
    int                     ranks = 0, gpus = 0;
    const struct rank_view *widest = NULL;
    for (int r = 0; r < g->n; r++)
        if (strcmp(g->views[r].host, host) == 0) {
            ranks++;
            if (g->views[r].n > gpus) {
                gpus = g->views[r].n;
                widest = &g->views[r];
            }
        }
    return FAIL(ST_EUSAGE,
                "%s: %d ranks, but they see %d GPU%s (%s%s): start one rank a GPU (mpirun -n %d on one host, -npernode on "
                "several), or let ranks take turns on one: --set share_gpus=yes",
                host, ranks, gpus, gpus == 1 ? "" : "s", widest ? widest->gpus[0].name : "", gpus > 1 ? ", …" : "", gpus);
}

/* ---- kinds ------------------------------------------------------------------------------------------------------- */

static status_t find_kind(struct placement *p, const struct nvml_gpu *gpu, int *kind)
{
    for (int k = 1; k < p->n_kinds; k++)
        if (strcmp(p->kinds[k].gpu, gpu->name) == 0 && p->kinds[k].memory_bytes == gpu->memory_bytes) {
            *kind = k;
            return ST_OK;
        }
    if (p->n_kinds == KINDS_MAX)
        return FAIL(ST_EUNSUPPORTED, "more than %d kinds of GPU in one run", KINDS_MAX - 1);
    memcpy(p->kinds[p->n_kinds].gpu, gpu->name, NVML_TEXT);
    p->kinds[p->n_kinds].memory_bytes = gpu->memory_bytes;
    *kind = p->n_kinds++;
    return ST_OK;
}

static status_t assign(struct graph *g, bool share, bool needed, struct placement *out)
{
    for (int r = 0; r < g->n; r++) {
        out->places[r] = (struct place){.gpu = -1};
        augment(g, out->places, r, r + 1);
    }
    for (int r = 0; r < g->n; r++)
        if (out->places[r].gpu >= 0)
            g->users[g->edges[r * RANK_GPUS_MAX + out->places[r].gpu]]++;
    for (int r = 0; r < g->n; r++) {
        if (out->places[r].gpu >= 0 || g->views[r].n == 0)
            continue;
        if (!share && needed)
            return refuse(g, g->views[r].host);
        if (share) {
            out->places[r].gpu = least_used(g, r);
            g->users[g->edges[r * RANK_GPUS_MAX + out->places[r].gpu]]++;
        }
    }
    for (int r = 0; r < g->n && !out->why[0]; r++)
        memcpy(out->why, g->views[r].why, sizeof out->why);
    for (int r = 0; r < g->n; r++) {
        struct place *p = &out->places[r];
        if (p->gpu < 0)
            continue;
        p->sharers = g->users[g->edges[r * RANK_GPUS_MAX + p->gpu]];
        TRY(find_kind(out, &g->views[r].gpus[p->gpu], &p->kind));
    }
    return ST_OK;
}

status_t placement_assign(const struct rank_view *views, int n, bool share, bool needed, struct placement *out)
{
    struct graph g;
    *out = (struct placement){.n_ranks = n, .n_kinds = 1};
    if (!(out->places = calloc((size_t)n, sizeof *out->places)))
        return FAIL(ST_ENOMEM, "no memory to place %d ranks", n);
    status_t st = graph_make(views, n, &g);
    if (st == ST_OK) {
        st = assign(&g, share, needed, out);
        graph_free(&g);
    }
    if (st != ST_OK)
        placement_free(out);
    return st;
}

/* ---- which cells ------------------------------------------------------------------------------------------------- */

static bool contains(const char *text, const char *word)
{
    return strcasestr(text, word) != NULL;
}

bool placement_fits(void *ctx, int kind, const struct cell *c)
{
    const struct fit_context *fit = ctx;
    const struct rank_kind   *k = &fit->placement->kinds[kind];
    const struct job_options *o = fit->options;
    if (c->device_class == DEVICE_CPU)
        return true;
    return kind > 0 && contains(k->gpu, o->gpu_name) && k->memory_bytes >= o->gpu_memory &&
           (!c->gpu[0] || strcmp(c->gpu, k->gpu) == 0);
}

void placement_explain(const struct placement *p, const struct job_options *o, const struct cell *c, char *out, size_t size)
{
    if (p->n_kinds == 1) {
        snprintf(out, size, "no rank of this run has a GPU%s%s", p->why[0] ? ": " : "", p->why);
        return;
    }
    size_t n = (size_t)snprintf(out, size, "no rank of this run has a GPU that it may use (");
    if (c->gpu[0] && n < size)
        n += (size_t)snprintf(out + n, size - n, "wanted \"%s\"; ", c->gpu);
    if (o->gpu_name[0] && n < size)
        n += (size_t)snprintf(out + n, size - n, "gpu.name \"%s\"; ", o->gpu_name);
    if (o->gpu_memory && n < size)
        n += (size_t)snprintf(out + n, size - n, "gpu.memory %.4g GB; ", (double)o->gpu_memory * 1e-9);
    for (int k = 1; k < p->n_kinds && n < size; k++)
        n += (size_t)snprintf(out + n, size - n, "%s%s with %.4g GB", k > 1 ? ", " : "here: ", p->kinds[k].gpu,
                              (double)p->kinds[k].memory_bytes * 1e-9);
    if (n < size)
        snprintf(out + n, size - n, ")");
}

int placement_models(const struct rank_view *views, int n, char (*out)[NVML_TEXT], int most)
{
    int found = 0;
    for (int r = 0; r < n; r++)
        for (int i = 0; i < views[r].n; i++) {
            bool known = false;
            for (int k = 0; k < found; k++)
                known |= strcmp(out[k], views[r].gpus[i].name) == 0;
            if (!known && found < most)
                memcpy(out[found++], views[r].gpus[i].name, NVML_TEXT);
        }
    return found;
}

/* ---- cores near a GPU -------------------------------------------------------------------------------------------- */

bool placement_near(const char *sys, const char *bus_id, const struct cores *allowed, struct cores *out)
{
    char     path[512], line[1024], address[32];
    unsigned domain, bus, device, function;
    int      used;
    out->n = 0;
    if (sscanf(bus_id, "%x:%x:%x.%x%n", &domain, &bus, &device, &function, &used) != 4 || bus_id[used])
        return false;
    snprintf(address, sizeof address, "%04x:%02x:%02x.%x", domain, bus, device, function);
    snprintf(path, sizeof path, "%s/bus/pci/devices/%s/local_cpulist", sys, address);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool read = fgets(line, sizeof line, f) != NULL;
    fclose(f);
    for (const char *at = line; read && isdigit((unsigned char)*at);) { /* "0-23,48-71" */
        char *end;
        long  first = strtol(at, &end, 10), last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        for (int i = 0; i < allowed->n; i++)
            if (allowed->ids[i] >= first && allowed->ids[i] <= last)
                out->ids[out->n++] = allowed->ids[i];
        if (*end != ',')
            break;
        at = end + 1;
    }
    return out->n > 0;
}
