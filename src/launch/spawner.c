/* spawner.c — the spawner's half: one thread, one poll loop over the launcher's socket, SIGCHLD and the workers'
 * stderr. */
#include "launch/spawn.h"

#include "base/clock.h"
#include "base/log.h"
#include "checkpoint/companions.h"
#include "launch/oom_kill.h"
#include "launch/spawn_message.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* A worker that outlives SIGKILL this long (stuck in the kernel, as a hung driver makes it) is reported and let go. */
static const int64_t UNKILLABLE_NS = 20 * (int64_t)1000000000;

struct worker {
    int             job;
    pid_t           pid;
    int             log_fd;                                    /* read end of its stderr, -1 = closed */
    int64_t         exec_ns, deadline_ns, kill_ns, give_up_ns; /* times; 0 = not set */
    int64_t         grace_ns;
    enum spawn_end  end;
    bool            forward, exited;
    int             wait_status;
    struct rusage   usage;
    struct oom_kill oom_before;
    char           *log; /* ring [SPAWN_LOG_MAX] */
    size_t          log_total;
    struct worker  *next;
};

struct server {
    int            socket, signal_fd;
    struct worker *workers;
    char          *packet;
    char           remove[4096]; /* a folder to remove at the end, "" = none */
};

static void append_log(struct worker *w, const char *bytes, size_t n)
{
    if (w->forward) {
        ssize_t ignored = write(STDERR_FILENO, bytes, n);
        (void)ignored;
    }
    for (size_t i = 0; i < n; i++)
        w->log[(w->log_total + i) % SPAWN_LOG_MAX] = bytes[i];
    w->log_total += n;
}

/* At most 64 pieces a turn: a worker that never stops talking must not keep the others waiting. */
static void drain_log(struct worker *w)
{
    char chunk[8192];
    for (int piece = 0; piece < 64 && w->log_fd >= 0; piece++) {
        ssize_t n = read(w->log_fd, chunk, sizeof chunk);
        if (n > 0) {
            append_log(w, chunk, (size_t)n);
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            close(w->log_fd);
            w->log_fd = -1;
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

static void send_done(struct server *v, struct worker *w)
{
    size_t          kept = w->log_total < SPAWN_LOG_MAX ? w->log_total : SPAWN_LOG_MAX;
    size_t          first = w->log_total < SPAWN_LOG_MAX ? 0 : w->log_total % SPAWN_LOG_MAX;
    struct oom_kill now;
    oom_kill_read(&now);
    bool              signalled = w->exited && WIFSIGNALED(w->wait_status);
    struct spawn_done m = {
        .kind = SPAWN_MSG_DONE,
        .job = w->job,
        .end = w->end,
        .exit_code = w->exited && WIFEXITED(w->wait_status) ? WEXITSTATUS(w->wait_status) : -1,
        .signal = signalled ? WTERMSIG(w->wait_status) : 0,
        .oom_kill = oom_kill_between(&w->oom_before, &now),
        .log_cut = w->log_total > SPAWN_LOG_MAX,
        .log_size = (int32_t)kept,
        .exec_ns = w->exec_ns,
        .end_ns = clock_ns(),
        .user_us = (int64_t)w->usage.ru_utime.tv_sec * 1000000 + w->usage.ru_utime.tv_usec,
        .system_us = (int64_t)w->usage.ru_stime.tv_sec * 1000000 + w->usage.ru_stime.tv_usec,
        .max_rss_kib = w->usage.ru_maxrss,
        .major_faults = w->usage.ru_majflt,
        .involuntary_switches = w->usage.ru_nivcsw,
    };
    memcpy(v->packet, &m, sizeof m);
    for (size_t i = 0; i < kept; i++)
        v->packet[sizeof m + i] = w->log[(first + i) % SPAWN_LOG_MAX];
    ssize_t n;
    do
        n = send(v->socket, v->packet, sizeof m + kept, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
}

static void remove_worker(struct server *v, struct worker *w)
{
    struct worker **at = &v->workers;
    while (*at != w)
        at = &(*at)->next;
    *at = w->next;
    if (w->log_fd >= 0)
        close(w->log_fd);
    free(w->log);
    free(w);
}

static bool is_foreign(const char *variable)
{
    static const char *const prefixes[] = {"OMPI_", "PMIX_", "PRTE_", "PMI_", "ORTE_"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (strncmp(variable, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    return false;
}

/* Remove what belongs to the launcher's MPI job: a child that starts MPI with it fails, and NCCL or UCX may look. */
static void scrub_environment(void)
{
    for (int i = 0; environ[i];) {
        char  *equals = strchr(environ[i], '=');
        char   name[256];
        size_t n = equals ? (size_t)(equals - environ[i]) : 0;
        if (equals && n < sizeof name && is_foreign(environ[i])) {
            memcpy(name, environ[i], n);
            name[n] = '\0';
            unsetenv(name); /* shifts the rest down to i */
        } else {
            i++;
        }
    }
}

/* In the fresh child: become the worker. Failures go to its stderr, which is already the pipe. */
static _Noreturn void become(const struct spawn_start *m, const struct cores *cores, char **argv, char **variables,
                             pid_t spawner, int64_t exec_ns)
{
    /* After the launcher's or the spawner's death nothing may go on using the device. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != spawner)
        _exit(127);
    for (int sig = 1; sig < NSIG; sig++)
        signal(sig, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);

    if (cores->n)
        cores_bind(cores);
    if (m->address_space) {
        struct rlimit limit = {m->address_space, m->address_space};
        setrlimit(RLIMIT_AS, &limit);
    }
    scrub_environment();
    for (int i = 0; i < m->n_environment; i++)
        putenv(variables[i]);
    char born[48];
    snprintf(born, sizeof born, "QSWEEP_EXEC_NS=%lld", (long long)exec_ns);
    putenv(born);
    execv(argv[0], argv);
    fprintf(stderr, "cannot execute %s: %s\n", argv[0], strerror(errno));
    fflush(stderr);
    _exit(127);
}

static status_t move_fd(int from, int to)
{
    return dup2(from, to) == to ? ST_OK : ST_EIO;
}

/* Fork and become; the parent's side fills *w. Returns errno or 0. */
static int start_worker(struct server *v, const struct spawn_start *m, const struct cores *cores, char **argv,
                        char **variables, struct worker *w)
{
    int log_pipe[2];
    if (pipe2(log_pipe, O_CLOEXEC) != 0)
        return errno;
    fcntl(log_pipe[0], F_SETFL, O_NONBLOCK);
    pid_t spawner = getpid();
    oom_kill_read(&w->oom_before);
    w->exec_ns = clock_ns();
    w->pid = fork();
    if (w->pid < 0) {
        int error = errno;
        close(log_pipe[0]);
        close(log_pipe[1]);
        return error;
    }
    if (w->pid == 0) {
        setpgid(0, 0);
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (null < 0 || move_fd(null, STDIN_FILENO) != ST_OK || move_fd(log_pipe[1], STDERR_FILENO) != ST_OK ||
            move_fd(log_pipe[1], STDOUT_FILENO) != ST_OK)
            _exit(127);
        become(m, cores, argv, variables, spawner, w->exec_ns);
    }
    setpgid(w->pid, w->pid); /* both sides do it: whoever comes first, a signal to the group then finds it */
    close(log_pipe[1]);
    w->log_fd = log_pipe[0];
    w->deadline_ns = m->deadline_ns ? w->exec_ns + m->deadline_ns : 0;
    w->grace_ns = m->grace_ns;
    w->forward = m->forward;
    w->next = v->workers;
    v->workers = w;
    return 0;
}

/* Split the strings behind a start; false when it is malformed (which only our own bug can do). */
static bool unpack_strings(char *at, const char *end, char **out, int n)
{
    for (int i = 0; i < n; i++) {
        char *nul = at < end ? memchr(at, 0, (size_t)(end - at)) : NULL;
        if (!nul)
            return false;
        out[i] = at;
        at = nul + 1;
    }
    return true;
}

static void serve_start(struct server *v, size_t size)
{
    struct spawn_start m;
    memcpy(&m, v->packet, sizeof m);
    struct spawn_started answer = {.kind = SPAWN_MSG_STARTED, .job = m.job, .error = EINVAL};

    char          *end = v->packet + size, *at = v->packet + sizeof m;
    char         **strings = calloc((size_t)m.n_argv + (size_t)m.n_environment + 1, sizeof *strings);
    char         **argv = calloc((size_t)m.n_argv + 1, sizeof *argv);
    struct cores  *cores = calloc(1, sizeof *cores);
    struct worker *w = calloc(1, sizeof *w);
    if (w)
        w->log = malloc(SPAWN_LOG_MAX);
    if (!strings || !argv || !cores || !w || !w->log) {
        answer.error = ENOMEM;
    } else if (m.n_cores >= 0 && m.n_cores <= CORES_MAX && (size_t)m.n_cores <= (size_t)(end - at) / sizeof(int32_t)) {
        for (int i = 0; i < m.n_cores; i++, at += sizeof(int32_t)) {
            int32_t core;
            memcpy(&core, at, sizeof core);
            cores->ids[cores->n++] = core;
        }
        if (m.n_argv > 0 && unpack_strings(at, end, strings, m.n_argv + m.n_environment)) {
            memcpy(argv, strings, (size_t)m.n_argv * sizeof *argv);
            w->job = m.job;
            w->log_fd = -1;
            answer.error = start_worker(v, &m, cores, argv, strings + m.n_argv, w);
        }
    }
    answer.pid = answer.error ? 0 : w->pid;
    if (answer.error && w) {
        free(w->log);
        free(w);
    }
    free(cores);
    free(argv);
    free(strings);
    send(v->socket, &answer, sizeof answer, MSG_NOSIGNAL);
}

static void stop_worker(struct worker *w, enum spawn_end end, int64_t grace_ns)
{
    if (w->end == SPAWN_EXITED)
        w->end = end;
    w->deadline_ns = 0;
    if (grace_ns <= 0) {
        kill(-w->pid, SIGKILL);
        w->kill_ns = 0;
        w->give_up_ns = clock_ns() + UNKILLABLE_NS;
    } else {
        kill(-w->pid, SIGTERM);
        w->kill_ns = clock_ns() + grace_ns;
    }
}

static void serve_drop(struct server *v)
{
    struct spawn_drop m;
    memcpy(&m, v->packet, sizeof m);
    for (struct worker *w = v->workers; w; w = w->next)
        if (w->job == m.job && !w->exited)
            stop_worker(w, SPAWN_DROPPED, m.grace_ns);
}

static void serve_remove(struct server *v)
{
    struct spawn_remove m;
    memcpy(&m, v->packet, sizeof m);
    snprintf(v->remove, sizeof v->remove, "%.*s", (int)sizeof m.folder - 1, m.folder);
}

/* False when the launcher is gone. */
static bool serve_socket(struct server *v)
{
    ssize_t n = recv(v->socket, v->packet, SPAWN_PACKET_MAX, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    int32_t kind = 0;
    if (n >= (ssize_t)sizeof kind)
        memcpy(&kind, v->packet, sizeof kind);
    if (kind == SPAWN_MSG_START && n >= (ssize_t)sizeof(struct spawn_start))
        serve_start(v, (size_t)n);
    else if (kind == SPAWN_MSG_DROP && n == (ssize_t)sizeof(struct spawn_drop))
        serve_drop(v);
    else if (kind == SPAWN_MSG_REMOVE && n == (ssize_t)sizeof(struct spawn_remove))
        serve_remove(v);
    else
        return false;
    return true;
}

static void reap(struct server *v)
{
    struct signalfd_siginfo info;
    while (read(v->signal_fd, &info, sizeof info) > 0)
        ;
    int           status;
    struct rusage usage;
    pid_t         pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        for (struct worker *w = v->workers; w; w = w->next)
            if (w->pid == pid) {
                w->exited = true;
                w->wait_status = status;
                w->usage = usage;
            }
    for (struct worker *w = v->workers, *next; w; w = next) {
        next = w->next;
        if (!w->exited)
            continue;
        kill(-w->pid, SIGKILL); /* whatever it may have started */
        drain_log(w);
        send_done(v, w);
        remove_worker(v, w);
    }
}

static void keep_time(struct server *v)
{
    int64_t now = clock_ns();
    for (struct worker *w = v->workers, *next; w; w = next) {
        next = w->next;
        if (w->deadline_ns && now >= w->deadline_ns)
            stop_worker(w, SPAWN_DEADLINE, w->grace_ns);
        else if (w->kill_ns && now >= w->kill_ns)
            stop_worker(w, w->end, 0);
        else if (w->give_up_ns && now >= w->give_up_ns) {
            w->end = SPAWN_UNKILLABLE;
            send_done(v, w);
            remove_worker(v, w);
        }
    }
}

static int next_timeout_ms(const struct server *v)
{
    int64_t next = INT64_MAX;
    for (const struct worker *w = v->workers; w; w = w->next) {
        const int64_t times[] = {w->deadline_ns, w->kill_ns, w->give_up_ns};
        for (int i = 0; i < 3; i++)
            if (times[i] && times[i] < next)
                next = times[i];
    }
    if (next == INT64_MAX)
        return -1;
    int64_t ms = (next - clock_ns()) / 1000000 + 1;
    return ms < 0 ? 0 : ms > 60000 ? 60000 : (int)ms;
}

static void kill_all(struct server *v)
{
    for (struct worker *w = v->workers; w; w = w->next)
        kill(-w->pid, SIGKILL);
    int64_t until = clock_ns() + UNKILLABLE_NS;
    for (struct worker *w = v->workers; w; w = w->next)
        while (waitpid(w->pid, NULL, WNOHANG) == 0 && clock_ns() < until)
            poll(NULL, 0, 2);
}

_Noreturn void spawner_serve(int socket)
{
    struct server v = {.socket = socket, .packet = malloc(SPAWN_PACKET_MAX)};
    /* The launcher decides about signals that reach its whole group (Ctrl-C, mpirun's SIGTERM); its end is our end. */
    const int     ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGQUIT, SIGPIPE, SIGTSTP, SIGTTOU};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        signal(ignored[i], SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    v.signal_fd = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    if (!v.packet || v.signal_fd < 0) {
        log_line(LOG_ERROR, "the spawner cannot start: %s", strerror(errno));
        _exit(1);
    }
    prctl(PR_SET_NAME, "qsweep-spawner");

    enum { POLL_MAX = 1024 };
    static struct pollfd  polls[POLL_MAX];
    static struct worker *owner[POLL_MAX];
    for (bool alive = true; alive;) {
        int n = 0;
        polls[n++] = (struct pollfd){.fd = v.socket, .events = POLLIN};
        polls[n++] = (struct pollfd){.fd = v.signal_fd, .events = POLLIN};
        for (struct worker *w = v.workers; w && n < POLL_MAX; w = w->next)
            if (w->log_fd >= 0) {
                owner[n] = w;
                polls[n++] = (struct pollfd){.fd = w->log_fd, .events = POLLIN};
            }
        if (poll(polls, (nfds_t)n, next_timeout_ms(&v)) < 0 && errno != EINTR)
            break;
        for (int i = 2; i < n; i++)
            if (polls[i].revents)
                drain_log(owner[i]);
        if (polls[0].revents)
            alive = serve_socket(&v);
        reap(&v);
        keep_time(&v);
    }
    kill_all(&v);
    if (v.remove[0])
        companions_remove(v.remove);
    _exit(0);
}
