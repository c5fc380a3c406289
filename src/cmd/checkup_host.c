/* checkup_host.c — where results and weights go, and the programs beside ours: Open MPI, Slurm, audio, Python. */
#include "cmd/checkup.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

/* A sweep of the four texts leaves a few megabytes; a checkpoint's copy as much as its weights. */
#define DISK_NEEDED_BYTES 100e6
#define DISK_WISHED_BYTES 2e9
/* INT8 weights of the published S1-mini with their scales (1,071 MB), the least that a shared copy of it takes. */
#define SHM_WISHED_BYTES 1.1e9

/* The folder itself or its nearest parent that exists. */
static void nearest_folder(const char *path, char *out, size_t size)
{
    struct stat s;
    snprintf(out, size, "%s", path);
    while (out[0] && stat(out, &s) != 0) {
        char *slash = strrchr(out, '/');
        if (!slash)
            snprintf(out, size, ".");
        else
            slash[slash == out] = '\0';
        if (strcmp(out, ".") == 0 || strcmp(out, "/") == 0)
            break;
    }
}

static void check_disk(struct checkup *c, const char *folder)
{
    struct statvfs v;
    if (statvfs(folder, &v) != 0) {
        checkup_add(c, "disk", FOUND_FAIL, "%s: %s", folder, strerror(errno));
        return;
    }
    const double    free_bytes = (double)v.f_bavail * (double)v.f_frsize;
    struct finding *f = checkup_add(c, "disk",
                                    free_bytes < DISK_NEEDED_BYTES   ? FOUND_FAIL
                                    : free_bytes < DISK_WISHED_BYTES ? FOUND_WARN
                                                                     : FOUND_OK,
                                    "%.1f GB free for results in %s", free_bytes * 1e-9, folder);
    if (f->word != FOUND_OK)
        finding_remedy(f, "free space, or give another place: qsweep run JOB --set output=DIR");
}

/* What a cell file goes through: written under another name, locked as HDF5 does, forced to disk, renamed. */
static void check_results(struct checkup *c, const char *folder)
{
    char path[PATH_BYTES + 64], renamed[PATH_BYTES + 72];
    snprintf(path, sizeof path, "%s/.qsweep-doctor-%d-XXXXXX", folder, (int)getpid());
    int fd = mkstemp(path);
    if (fd < 0) {
        finding_remedy(checkup_add(c, "results-folder", FOUND_FAIL, "%s: %s", folder, strerror(errno)),
                       "give a folder that you may write: qsweep run JOB --set output=DIR");
        return;
    }
    snprintf(renamed, sizeof renamed, "%s.done", path);
    bool        locks = flock(fd, LOCK_EX | LOCK_NB) == 0;
    int         refused = errno;
    const char *said = getenv("HDF5_USE_FILE_LOCKING");
    bool        off = said && (strcmp(said, "FALSE") == 0 || strcmp(said, "BEST_EFFORT") == 0);
    bool        written = write(fd, "x", 1) == 1 && fsync(fd) == 0;
    int         error = errno;
    close(fd);
    bool moved = written && rename(path, renamed) == 0;
    if (written && !moved)
        error = errno;
    unlink(moved ? renamed : path);
    if (!moved)
        finding_remedy(checkup_add(c, "results-folder", FOUND_FAIL, "%s: a file cannot be %s: %s", folder,
                                   written ? "renamed" : "written", strerror(error)),
                       "give another folder: qsweep run JOB --set output=DIR");
    else
        checkup_add(c, "results-folder", FOUND_OK, "%s: files can be written, forced to disk and renamed", folder);
    if (locks)
        checkup_add(c, "hdf5-locks", FOUND_OK, "%s has file locks", folder);
    else if (off)
        checkup_add(c, "hdf5-locks", FOUND_OK, "%s has no file locks (%s); HDF5_USE_FILE_LOCKING=%s is set", folder,
                    strerror(refused), said);
    else
        finding_remedy(checkup_add(c, "hdf5-locks", FOUND_FAIL,
                                   "%s has no file locks (%s); HDF5 would refuse to open files", folder,
                                   strerror(refused)),
                       "export HDF5_USE_FILE_LOCKING=FALSE");
}

static void check_shm(struct checkup *c, const struct wish *wish)
{
    struct statvfs v;
    if (statvfs("/dev/shm", &v) != 0) {
        checkup_add(c, "shared-memory", FOUND_WARN, "/dev/shm: %s", strerror(errno));
        return;
    }
    const double    free_bytes = (double)v.f_bavail * (double)v.f_frsize;
    const double    need = wish->model_bytes > 0 ? (double)wish->model_bytes : SHM_WISHED_BYTES;
    struct finding *f = checkup_add(
        c, "shared-memory", free_bytes < need ? FOUND_WARN : FOUND_OK, "/dev/shm has %.2f GB free%s", free_bytes * 1e-9,
        free_bytes < need ? ", too little for one copy of the weights for all workers of this host" : "");
    if (free_bytes < need)
        finding_remedy(
            f, "docker run --shm-size=%.0fg, or sudo mount -o remount,size=%.0fG /dev/shm; or --set weights.share=none",
            need * 1e-9 + 1.5, need * 1e-9 + 1.5);
}

void checkup_storage(struct checkup *c, const struct wish *wish)
{
    char folder[PATH_BYTES];
    nearest_folder(wish->output, folder, sizeof folder);
    check_disk(c, folder);
    check_results(c, folder);
    check_shm(c, wish);
}

static void check_mpi(struct checkup *c, const struct wish *wish)
{
    char                    path[PATH_BYTES], line[200], mine[PATH_BYTES + 16];
    const enum verdict_word missing = wish->ranks ? FOUND_FAIL : FOUND_ABSENT;
    checkup_own_folder(mine, PATH_BYTES);
    strcat(mine, "/qsweep-mpi");
    if (access(mine, X_OK) == 0)
        checkup_add(c, "qsweep-mpi", FOUND_OK, "%s", mine);
    else
        finding_remedy(checkup_add(c, "qsweep-mpi", missing, "%s: %s", mine, strerror(errno)),
                       "sudo apt-get install libopenmpi-dev, then make again");
    if (!checkup_which("mpirun", path, sizeof path)) {
        finding_remedy(checkup_add(c, "mpirun", missing, "not on PATH"),
                       "sudo apt-get install openmpi-bin (or `module load openmpi`)");
        return;
    }
    bool good = checkup_command("mpirun --version 2>/dev/null", line, sizeof line) == 0 && strstr(line, "Open MPI");
    struct finding *f = good ? checkup_add(c, "mpirun", FOUND_OK, "%s: %s", path, line)
                             : checkup_add(c, "mpirun", wish->ranks ? FOUND_FAIL : FOUND_WARN,
                                           "%s is not a working Open MPI%s%s", path, line[0] ? ": " : "", line);
    if (!good)
        finding_remedy(f, "Open MPI is wanted; in a moved copy set OPAL_PREFIX (the bundle's `run` does)");
    if (geteuid() == 0 && !(getenv("OMPI_ALLOW_RUN_AS_ROOT") && getenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")))
        finding_remedy(
            checkup_add(c, "mpirun-root", FOUND_WARN, "mpirun refuses root without its two variables"),
            "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 (`qsweep run --ranks N` sets them)");
    if (!checkup_which("ssh", path, sizeof path) && !getenv("OMPI_MCA_plm_rsh_agent") && !getenv("OMPI_MCA_plm"))
        finding_remedy(checkup_add(c, "mpirun-ssh", FOUND_WARN, "no ssh here: Open MPI 4 then fails even on one host"),
                       "export OMPI_MCA_plm_rsh_agent= (empty)");
}

static void check_audio(struct checkup *c)
{
    static const struct {
        const char *library, *package, *use;
    } wanted[] = {{"libsndfile.so.1", "libsndfile1", "reading and writing sound files"},
                  {"libsamplerate.so.0", "libsamplerate0", "reference voices of other sampling rates"}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *library = dlopen(wanted[i].library, RTLD_NOW | RTLD_LOCAL);
        if (library) {
            checkup_add(c, "audio", FOUND_OK, "%s opens", wanted[i].library);
            dlclose(library);
        } else {
            finding_remedy(checkup_add(c, "audio", FOUND_ABSENT, "%s is not here; only %s needs it", wanted[i].library,
                                       wanted[i].use),
                           "sudo apt-get install %s", wanted[i].package);
        }
    }
}

static void check_python(struct checkup *c)
{
    char folder[PATH_BYTES], command[PATH_BYTES + 128], line[64];
    checkup_own_folder(folder, sizeof folder);
    if (strchr(folder, '\'')) /* a path that would end the quoting below */
        folder[0] = '\0';
    snprintf(command, sizeof command, "%s/python", folder);
    bool own = access(command, X_OK) == 0;
    snprintf(command, sizeof command, "'%s%s' -c 'import h5py, pandas, jinja2; print(h5py.__version__)' 2>/dev/null",
             own ? folder : "/usr/bin", own ? "/python" : "/python3");
    if (checkup_command(command, line, sizeof line) == 0)
        checkup_add(c, "report-python", FOUND_OK, "%s%s has h5py %s, pandas and jinja2", own ? folder : "/usr/bin",
                    own ? "/python" : "/python3", line);
    else
        finding_remedy(
            checkup_add(c, "report-python", FOUND_ABSENT,
                        "no Python with h5py, pandas and jinja2: no HTML report here"),
            "jobs/setup.sh --for report; or python3 -m venv v && v/bin/pip install -r analysis/requirements.txt");
}

static void check_slurm(struct checkup *c)
{
    char path[PATH_BYTES], line[200];
    if (checkup_which("sbatch", path, sizeof path) &&
        checkup_command("sbatch --version 2>/dev/null", line, sizeof line) == 0)
        checkup_add(c, "slurm", FOUND_OK, "%s: %s", path, line);
    else
        checkup_add(c, "slurm", FOUND_ABSENT, "no sbatch on PATH; only the scripts below slurm/ need it");
}

void checkup_software(struct checkup *c, const struct wish *wish)
{
    check_mpi(c, wish);
    check_slurm(c);
    check_audio(c);
    check_python(c);
}
