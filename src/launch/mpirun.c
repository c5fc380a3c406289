/* mpirun.c — `run --ranks N`: hands over to mpirun. */
#include "launch/launcher.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static status_t program_beside_us(char *out, size_t size)
{
    char    self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return FAIL(ST_EIO, "/proc/self/exe: %s", strerror(errno));
    self[n] = '\0';
    snprintf(out, size, "%.*s/qsweep-mpi", (int)(strrchr(self, '/') - self), self);
    if (access(out, X_OK) != 0)
        return FAIL(ST_EUNSUPPORTED,
                    "%s: %s; --ranks needs it: install an MPI compiler (package libopenmpi-dev) and make again", out,
                    strerror(errno));
    return ST_OK;
}

status_t launcher_exec_mpirun(int ranks, char *const *argv)
{
    char program[4200], count[16];
    int  n = 0;
    TRY(program_beside_us(program, sizeof program));
    while (argv[n])
        n++;
    char **all = calloc((size_t)n + 5, sizeof *all);
    if (!all)
        return FAIL(ST_ENOMEM, "no memory for a command line");
    snprintf(count, sizeof count, "%d", ranks);
    all[0] = "mpirun";
    all[1] = "-n";
    all[2] = count;
    all[3] = program;
    memcpy(all + 4, argv, (size_t)n * sizeof *all);
    /* Open MPI 4.1 refuses root without the first two, and more ranks than cores without the third. */
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 1);
    execvp(all[0], all);
    int error = errno;
    free(all);
    return FAIL(ST_EUNSUPPORTED, "mpirun: %s; --ranks needs it (package openmpi-bin)", strerror(error));
}
