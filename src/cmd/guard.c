#include "cmd/guard.h"

#include "base/log.h"
#include "base/status.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Reading every sample of a merged file takes 2 ms for 45 kB; five times that, and five seconds for a busy machine. */
static rlim_t cpu_seconds(const char *const *files, size_t n)
{
    const double bytes_per_s = 4e6;
    double       bytes = 0;
    struct stat  info;
    char         inside[4400];
    for (size_t i = 0; i < n; i++) {
        snprintf(inside, sizeof inside, "%s/sweep.h5", files[i]);
        if (stat(inside, &info) == 0 || stat(files[i], &info) == 0)
            bytes += (double)info.st_size;
    }
    return (rlim_t)(5 + bytes / bytes_per_s);
}

static void limit_processor_time(rlim_t seconds)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_CPU, &limit) != 0 || (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur <= seconds))
        return;
    limit.rlim_cur = seconds;
    setrlimit(RLIMIT_CPU, &limit);
}

int guarded(const char *const *files, size_t n, int (*work)(void *context), void *context)
{
    pid_t parent = getpid();
    fflush(NULL);
    pid_t child = fork();
    if (child < 0)
        return status_exit(FAIL(ST_EIO, "fork: %s", strerror(errno)));
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent)
            _exit(1);
        limit_processor_time(cpu_seconds(files, n));
        exit(work(context));
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return status_exit(FAIL(ST_EIO, "waitpid: %s", strerror(errno)));
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    int signal_number = WTERMSIG(status);
    if (signal_number == SIGXCPU)
        return status_exit(
            FAIL(ST_EINPUT, "%s%s: damaged: reading does not come to an end", files[0], n > 1 ? ", …" : ""));
    if (signal_number == SIGSEGV || signal_number == SIGBUS || signal_number == SIGABRT || signal_number == SIGFPE)
        return status_exit(FAIL(ST_EINPUT, "%s%s: damaged: HDF5 fails on it (%s)", files[0], n > 1 ? ", …" : "",
                                strsignal(signal_number)));
    signal(signal_number, SIG_DFL); /* SIGPIPE, SIGINT, …: end as the child did */
    raise(signal_number);
    return 1;
}
