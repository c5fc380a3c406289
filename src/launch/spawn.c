/* spawn.c — the launcher's half: packs requests, unpacks results. */
#include "launch/spawn.h"

#include "base/log.h"
#include "launch/spawn_message.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct queued {
    struct spawn_result result;
    struct queued      *next;
};

struct spawner {
    int            socket;
    pid_t          pid;
    int            last_job;
    struct queued *ended;  /* results that came while a start waited for its answer */
    char          *packet; /* [SPAWN_PACKET_MAX] */
};

void spawn_result_free(struct spawn_result *r)
{
    free(r->log);
    r->log = NULL;
    r->log_size = 0;
}

status_t spawner_open(struct spawner **out)
{
    int             pair[2] = {-1, -1};
    struct spawner *s = calloc(1, sizeof *s);
    if (!s || !(s->packet = malloc(SPAWN_PACKET_MAX))) {
        free(s);
        return FAIL(ST_ENOMEM, "no memory for the spawner");
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        free(s->packet);
        free(s);
        return FAIL(ST_EIO, "socketpair: %s", strerror(errno));
    }
    s->pid = fork();
    if (s->pid < 0) {
        int error = errno;
        close(pair[0]);
        close(pair[1]);
        free(s->packet);
        free(s);
        return FAIL(ST_EIO, "cannot fork the spawner: %s", strerror(error));
    }
    if (s->pid == 0) {
        close(pair[0]);
        spawner_serve(pair[1]);
    }
    close(pair[1]);
    s->socket = pair[0];
    *out = s;
    return ST_OK;
}

void spawner_close(struct spawner *s)
{
    if (!s)
        return;
    close(s->socket);
    while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    for (struct queued *q = s->ended, *next; q; q = next) {
        next = q->next;
        spawn_result_free(&q->result);
        free(q);
    }
    free(s->packet);
    free(s);
}

int spawner_pid(const struct spawner *s)
{
    return s->pid;
}

static status_t gone(struct spawner *s)
{
    return FAIL(ST_EINTERNAL,
                "the spawner (process %d) has died: its workers died with it and no worker can be started",
                (int)s->pid);
}

static status_t send_packet(struct spawner *s, const void *data, size_t size)
{
    ssize_t n;
    do
        n = send(s->socket, data, size, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN))
        return gone(s);
    return n < 0 ? FAIL(ST_EIO, "cannot talk to the spawner: %s", strerror(errno)) : ST_OK;
}

/* *size = 0 when nothing came before the timeout (-1 = for ever) or a signal came first. */
static status_t receive_packet(struct spawner *s, int timeout_ms, size_t *size)
{
    struct pollfd p = {.fd = s->socket, .events = POLLIN};
    *size = 0;
    int ready = poll(&p, 1, timeout_ms);
    if (ready < 0 && errno != EINTR)
        return FAIL(ST_EIO, "poll: %s", strerror(errno));
    if (ready <= 0)
        return ST_OK;
    ssize_t n = recv(s->socket, s->packet, SPAWN_PACKET_MAX, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return ST_OK;
    if (n <= 0)
        return gone(s);
    *size = (size_t)n;
    return ST_OK;
}

static status_t unpack_done(struct spawner *s, size_t size, struct spawn_result *out)
{
    struct spawn_done m;
    if (size < sizeof m)
        return FAIL(ST_EINTERNAL, "the spawner sent %zu bytes where a result was due", size);
    memcpy(&m, s->packet, sizeof m);
    if (m.kind != SPAWN_MSG_DONE || m.log_size < 0 || (size_t)m.log_size != size - sizeof m)
        return FAIL(ST_EINTERNAL, "the spawner sent a malformed result");
    char *log = malloc((size_t)m.log_size + 1);
    if (!log)
        return FAIL(ST_ENOMEM, "no memory for a worker's log");
    memcpy(log, s->packet + sizeof m, (size_t)m.log_size);
    log[m.log_size] = '\0';
    *out = (struct spawn_result){
        .job = m.job,
        .end = (enum spawn_end)m.end,
        .exit_code = m.exit_code,
        .signal = m.signal,
        .oom_kill = m.oom_kill,
        .exec_ns = m.exec_ns,
        .end_ns = m.end_ns,
        .user_s = (double)m.user_us * 1e-6,
        .system_s = (double)m.system_us * 1e-6,
        .max_rss_kib = (long)m.max_rss_kib,
        .major_faults = (long)m.major_faults,
        .involuntary_switches = (long)m.involuntary_switches,
        .log = log,
        .log_size = (size_t)m.log_size,
        .log_cut = m.log_cut != 0,
    };
    return ST_OK;
}

static int count(char *const *strings)
{
    int n = 0;
    while (strings && strings[n])
        n++;
    return n;
}

/* Append the strings with their NULs at *used; false when the packet is full. */
static bool pack_strings(char *packet, size_t *used, char *const *strings)
{
    for (int i = 0; strings && strings[i]; i++) {
        size_t n = strlen(strings[i]) + 1;
        if (n > SPAWN_PACKET_MAX - *used)
            return false;
        memcpy(packet + *used, strings[i], n);
        *used += n;
    }
    return true;
}

/* Wait for the answer to a start; results that come first are kept for spawner_wait. */
static status_t await_started(struct spawner *s, int job, struct spawn_started *answer)
{
    for (;;) {
        size_t size;
        TRY(receive_packet(s, -1, &size));
        if (size == sizeof *answer) {
            memcpy(answer, s->packet, sizeof *answer);
            if (answer->kind == SPAWN_MSG_STARTED && answer->job == job)
                return ST_OK;
        }
        if (size == 0)
            continue;
        struct queued *q = calloc(1, sizeof *q);
        if (!q)
            return FAIL(ST_ENOMEM, "no memory for a worker's result");
        status_t st = unpack_done(s, size, &q->result);
        if (st != ST_OK) {
            free(q);
            return st;
        }
        struct queued **end = &s->ended;
        while (*end)
            end = &(*end)->next;
        *end = q;
    }
}

status_t spawner_start(struct spawner *s, const struct spawn_request *request, int *job, int *pid)
{
    struct spawn_start m = {
        .kind = SPAWN_MSG_START,
        .job = s->last_job + 1,
        .deadline_ns = (int64_t)(request->deadline_s * 1e9),
        .grace_ns = (int64_t)(request->grace_s * 1e9),
        .address_space = request->address_space,
        .forward = request->forward,
        .n_argv = count(request->argv),
        .n_environment = count(request->environment),
        .n_cores = request->cores ? request->cores->n : 0,
    };
    memcpy(s->packet, &m, sizeof m);
    size_t used = sizeof m;
    for (int i = 0; i < m.n_cores; i++, used += sizeof(int32_t)) {
        int32_t core = request->cores->ids[i];
        memcpy(s->packet + used, &core, sizeof core);
    }
    if (!pack_strings(s->packet, &used, request->argv) || !pack_strings(s->packet, &used, request->environment))
        return FAIL(ST_EINTERNAL, "a worker's command line does not fit %d bytes", SPAWN_PACKET_MAX);
    TRY(send_packet(s, s->packet, used));
    s->last_job++;

    struct spawn_started answer;
    TRY(await_started(s, m.job, &answer));
    if (answer.error)
        return FAIL(ST_EIO, "cannot fork a worker: %s", strerror(answer.error));
    *job = m.job;
    if (pid)
        *pid = answer.pid;
    return ST_OK;
}

status_t spawner_wait(struct spawner *s, int timeout_ms, struct spawn_result *out)
{
    *out = (struct spawn_result){0};
    if (s->ended) {
        struct queued *q = s->ended;
        s->ended = q->next;
        *out = q->result;
        free(q);
        return ST_OK;
    }
    size_t size;
    TRY(receive_packet(s, timeout_ms, &size));
    return size ? unpack_done(s, size, out) : ST_OK;
}

status_t spawner_remove_at_end(struct spawner *s, const char *folder)
{
    struct spawn_remove m = {.kind = SPAWN_MSG_REMOVE};
    if ((size_t)snprintf(m.folder, sizeof m.folder, "%s", folder) >= sizeof m.folder)
        return FAIL(ST_EINTERNAL, "%.80s…: the path is too long", folder);
    return send_packet(s, &m, sizeof m);
}

status_t spawner_drop(struct spawner *s, int job, double grace_s)
{
    struct spawn_drop m = {.kind = SPAWN_MSG_DROP, .job = job, .grace_ns = (int64_t)(grace_s * 1e9)};
    return send_packet(s, &m, sizeof m);
}
