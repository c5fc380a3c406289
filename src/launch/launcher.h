/* launcher.h — `qsweep run` from the job file to sweep.h5, on one rank or many. */
#ifndef QSWEEP_LAUNCH_LAUNCHER_H
#define QSWEEP_LAUNCH_LAUNCHER_H

#include "launch/prepare.h"

/* Returns the exit status: 0 every cell is ok, 1 the launcher failed or was told to leave, 2 usage, 3 finished but some
 * cells are not ok. Ranks other than 0 return 0 unless the group itself broke: a rank's status ends an MPI job. */
int launcher_run(const struct launch *launch, int *argc, char ***argv);

/* Replace this process by `mpirun -n ranks qsweep-mpi ARGS`, with what Open MPI wants from root and from more ranks
 * than cores. argv: the arguments after the program, NULL-terminated. Returns only on failure. */
status_t launcher_exec_mpirun(int ranks, char *const *argv);

#endif
