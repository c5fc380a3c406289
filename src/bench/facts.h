/* facts.h — provenance: what this program, host and job are, as keys and texts of a result. */
#ifndef QSWEEP_BENCH_FACTS_H
#define QSWEEP_BENCH_FACTS_H

#include "bench/result.h"

/* Program (version, git, compiler, isa), host (name, kernel, os, cpu_model, cores, ram_bytes, numa_nodes, governor,
 * transparent_hugepages, boot_id) and time. What a host does not tell is left out. */
status_t facts_host(struct result *r);

/* Ids of the batch system in this process's environment (slurm_job_id, slurm_array_task_id, mpi_rank, …); to be called
 * in the launcher: workers no longer see MPI's variables. */
status_t facts_job(struct result *r);

/* Join argv with spaces, quoting where a shell would need it. The caller frees; NULL without memory. */
char *facts_command(int argc, char *const *argv);

/* Processor time of the whole host and of this process, to say how much others computed meanwhile. */
struct cpu_time {
    double host_busy_s, own_s; /* NaN when unknown */
};
void   cpu_time_read(struct cpu_time *out);
/* Seconds of processor time that other processes used between two readings; NaN when unknown, never negative. */
double cpu_time_others(const struct cpu_time *from, const struct cpu_time *to);

#endif
