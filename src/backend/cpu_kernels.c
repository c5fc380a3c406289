#include "backend/cpu_kernels.h"

#include "backend/cpu_topology.h"

#include <stdlib.h>
#include <string.h>

const struct cpu_kernels *cpu_kernels_find(const char *name)
{
    const struct cpu_kernels *usable[3];
    int                       n = 0;
#if defined(__x86_64__)
    const struct cpu_topology *t = cpu_topology_get();
    if (t->avx512)
        usable[n++] = &cpu_kernels_avx512;
    if (t->avx2)
        usable[n++] = &cpu_kernels_avx2;
#endif
    usable[n++] = &cpu_kernels_portable;
    if (!name || !*name)
        name = getenv("QSWEEP_CPU");
    if (!name || !*name)
        return usable[0];
    for (int i = 0; i < n; i++)
        if (strcmp(usable[i]->name, name) == 0)
            return usable[i];
    return NULL;
}
