#include "launch/visible.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { ENTRY_MAX = 128 };

static bool one_model(const struct nvml_gpu *all, int n)
{
    for (int i = 1; i < n; i++)
        if (all[i].card != all[0].card && strcmp(all[i].name, all[0].name) != 0)
            return false;
    return true;
}

struct reading {
    const char            *variable;
    const struct nvml_gpu *all;
    int                    n;
    bool                   numbers; /* they mean the same to CUDA and to NVML */
    struct nvml_gpu       *out;
    int                    n_out;
    char                  *why;
    size_t                 why_size;
};

static bool take(struct reading *r, const struct nvml_gpu *gpu)
{
    for (int i = 0; i < r->n_out; i++)
        if (strcmp(r->out[i].uuid, gpu->uuid) == 0) {
            snprintf(r->why, r->why_size, "CUDA_VISIBLE_DEVICES=%.200s names %s twice", r->variable, gpu->uuid);
            return false;
        }
    r->out[r->n_out++] = *gpu;
    return true;
}

static bool take_number(struct reading *r, long number)
{
    int cards = 0;
    bool found = false;
    if (!r->numbers) {
        snprintf(r->why, r->why_size,
                 "CUDA_VISIBLE_DEVICES=%.200s: this host has cards of different models, which CUDA and NVML number "
                 "differently; name UUIDs (`qsweep devices` lists them) or set CUDA_DEVICE_ORDER=PCI_BUS_ID",
                 r->variable);
        return false;
    }
    for (int i = 0; i < r->n; i++) {
        cards = r->all[i].card >= cards ? r->all[i].card + 1 : cards;
        if (r->all[i].card == number) {
            found = true;
            if (!take(r, &r->all[i]))
                return false;
        }
    }
    if (!found)
        snprintf(r->why, r->why_size, "CUDA_VISIBLE_DEVICES=%.200s: there is no device %ld, this host shows %d", r->variable,
                 number, cards);
    return found;
}

static bool take_uuid(struct reading *r, const char *text)
{
    const struct nvml_gpu *found = NULL;
    int                    matches = 0;
    for (int i = 0; i < r->n; i++) {
        if (strcasecmp(r->all[i].uuid, text) == 0)
            return take(r, &r->all[i]);
        if (strncasecmp(r->all[i].uuid, text, strlen(text)) == 0) {
            found = &r->all[i];
            matches++;
        }
    }
    if (matches == 1)
        return take(r, found);
    snprintf(r->why, r->why_size, "CUDA_VISIBLE_DEVICES=%.200s: %s %s here", r->variable, text,
             matches ? "is the beginning of several UUIDs" : "is no device");
    return false;
}

int visible_gpus(const char *variable, const char *order, const struct nvml_gpu *all, int n, struct nvml_gpu *out, char *why,
                 size_t why_size)
{
    struct reading r = {.variable = variable,
                        .all = all,
                        .n = n,
                        .numbers = one_model(all, n) || (order && strcmp(order, "PCI_BUS_ID") == 0),
                        .out = out,
                        .why = why,
                        .why_size = why_size};
    if (!variable) {
        memcpy(out, all, (size_t)n * sizeof *all);
        return n;
    }
    for (const char *at = variable;;) {
        char        entry[ENTRY_MAX], *end;
        const char *comma = at + strcspn(at, ",");
        while (at < comma && (*at == ' ' || *at == '\t'))
            at++;
        size_t size = (size_t)(comma - at);
        while (size && (at[size - 1] == ' ' || at[size - 1] == '\t'))
            size--;
        snprintf(entry, sizeof entry, "%.*s", size < sizeof entry ? (int)size : ENTRY_MAX - 1, at);
        long number = strtol(entry, &end, 10);
        /* An empty entry, a negative number or a word such as NoDevFiles ends the list, as it does for CUDA. */
        if (!*entry || number < 0 || (end == entry && strncmp(entry, "GPU-", 4) != 0 && strncmp(entry, "MIG-", 4) != 0))
            break;
        if (end != entry && *end) {
            snprintf(why, why_size, "CUDA_VISIBLE_DEVICES=%.200s: \"%s\" is neither a number nor a UUID", variable, entry);
            return -1;
        }
        if (end != entry ? !take_number(&r, number) : !take_uuid(&r, entry))
            return -1;
        if (!*comma)
            break;
        at = comma + 1;
    }
    if (r.n_out == 0)
        snprintf(why, why_size, "CUDA_VISIBLE_DEVICES=%.200s hides every GPU", variable);
    return r.n_out;
}
