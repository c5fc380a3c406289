#include "launch/seat.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct masked {
    char    host[64];
    uint8_t mask[CORES_MAX / 8];
};

/* Union of what the ranks of this host may use: under srun each task may be bound to a part of the job's cores. */
static void unite(const struct masked *all, int n, const char *host, struct cores *out)
{
    uint8_t mask[CORES_MAX / 8] = {0};
    for (int r = 0; r < n; r++)
        if (strcmp(all[r].host, host) == 0)
            for (size_t i = 0; i < sizeof mask; i++)
                mask[i] |= all[r].mask[i];
    out->n = 0;
    for (int c = 0; c < CORES_MAX; c++)
        if (mask[c / 8] >> (c % 8) & 1)
            out->ids[out->n++] = c;
}

status_t seat_find(const struct fabric_info *me, bool parallel, struct seat *out)
{
    struct cores *own = calloc(1, sizeof *own);
    struct masked mine = {0}, *all = calloc((size_t)me->size, sizeof *all);
    if (!own || !all) {
        free(own);
        free(all);
        return FAIL(ST_ENOMEM, "no memory for the core sets of %d ranks", me->size);
    }
    memcpy(mine.host, me->host, sizeof mine.host);
    status_t st = cores_of_job(own);
    for (int i = 0; st == ST_OK && i < own->n; i++)
        mine.mask[own->ids[i] / 8] |= (uint8_t)(1 << own->ids[i] % 8);
    free(own);
    status_t gathered = fabric_all_gather(&mine, sizeof mine, all); /* also after a failure: the others wait for us */
    st = st == ST_OK ? gathered : st;
    if (st == ST_OK) {
        out->me = *me;
        unite(all, me->size, me->host, &out->host);
        out->own = out->host;
        out->disjoint = true;
        out->together = parallel ? me->local_size : 1;
        if (parallel && me->local_size > 1)
            out->disjoint = cores_share(&out->host, me->local_rank, me->local_size, &out->own) == 1;
    }
    free(all);
    return st;
}
