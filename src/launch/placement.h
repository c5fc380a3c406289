/* placement.h — which GPU each rank's workers use, by UUID. Ranks read NVML only; none ever makes a CUDA context. */
#ifndef QSWEEP_LAUNCH_PLACEMENT_H
#define QSWEEP_LAUNCH_PLACEMENT_H

#include "backend/nvml.h"
#include "base/cores.h"
#include "launch/fabric.h"
#include "sweep/plan.h"
#include "sweep/schedule.h"

enum { RANK_GPUS_MAX = 32 };

/* What one rank sees; plain bytes, gathered at rank 0. */
struct rank_view {
    char            host[64];
    int             n;
    char            why[256]; /* why there is none, "" otherwise */
    struct nvml_gpu gpus[RANK_GPUS_MAX];
};

/* A kind of rank, for the schedule: ranks with the same model of GPU, or without one. */
struct rank_kind {
    char     gpu[NVML_TEXT]; /* "" = none */
    uint64_t memory_bytes;
};

/* A rank's place; plain bytes. */
struct place {
    int kind;
    int gpu;     /* index into its own view, −1 = none                  */
    int sharers; /* ranks that use this GPU, itself included; 0 without */
};

struct placement {
    struct rank_kind kinds[KINDS_MAX]; /* [0] is "no GPU" */
    int              n_kinds, n_ranks;
    char             why[256]; /* the first rank's reason to have none, "" otherwise */
    struct place    *places; /* [n_ranks] */
};

void placement_free(struct placement *p);

/* What this rank sees now. A host without a driver is no failure. */
void placement_look(const struct fabric_info *me, struct rank_view *out);

/* Give each of n ranks a GPU it sees, no GPU to two of them; with `share`, ranks that are left over get the GPU with the
 * fewest ranks. `needed`: without share a rank that is left over on a host that has GPUs is refused (ST_EUSAGE names the host
 * and both ways out); otherwise it only has none. */
status_t placement_assign(const struct rank_view *views, int n, bool share, bool needed, struct placement *out);

/* May ranks of this kind run this cell? (the schedule's `fits`; ctx: struct fit_context) */
struct fit_context {
    const struct placement   *placement;
    const struct job_options *options;
};
bool placement_fits(void *ctx, int kind, const struct cell *c);

/* Why no rank can run this cell, for its row. */
void placement_explain(const struct placement *p, const struct job_options *o, const struct cell *c, char *out, size_t size);

/* Distinct names of GPUs that any rank sees [*n], for `gpu: {each_model: yes}`; at most `most` are written. */
int placement_models(const struct rank_view *views, int n, char (*out)[NVML_TEXT], int most);

/* Cores near a PCI device that are also in `allowed`: /sys/bus/pci/devices/ADDRESS/local_cpulist below sys ("/sys"). False
 * when the system does not tell or none is allowed. bus_id as NVML gives it: "00000000:18:00.0". */
bool placement_near(const char *sys, const char *bus_id, const struct cores *allowed, struct cores *out);

#endif
