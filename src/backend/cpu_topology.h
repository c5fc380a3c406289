/* cpu_topology.h — the processor as this process may use it: cores, instruction sets, memory, control-group limits. */
#ifndef QSWEEP_BACKEND_CPU_TOPOLOGY_H
#define QSWEEP_BACKEND_CPU_TOPOLOGY_H

#include <stdbool.h>
#include <stddef.h>

enum { CPU_MAX_CORES = 1024 };

struct cpu_topology {
    char   model[96];            /* as /proc/cpuinfo names it, "unknown" otherwise                               */
    int    n_allowed;            /* logical CPUs in the affinity mask of the process                             */
    int    n_cores;              /* threads worth starting: physical cores among them, within the control group  */
    int    cpus[CPU_MAX_CORES];  /* the allowed CPUs [n_allowed]: one of every physical core first, then siblings */
    double quota;                /* CPUs' worth of time the control group grants, 0 = no limit                   */
    size_t memory_bytes;         /* installed                                                                    */
    size_t memory_limit;         /* of the control group, 0 = no limit                                           */
    bool   avx2, avx512;         /* usable by our kernels: AVX2+FMA; AVX-512 F, BW, DQ and VL                    */
};

/* Read once, at the first call, and kept: a thread that was pinned later still learns the whole mask. Thread-safe. */
const struct cpu_topology *cpu_topology_get(void);

/* Parse a control group's cpu.max text ("max 100000", "150000 100000") into CPUs; 0 when unlimited or not understood. */
double cpu_topology_quota(const char *cpu_max);

#endif
