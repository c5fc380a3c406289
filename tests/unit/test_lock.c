/* test_lock.c — one launcher per folder; a dead owner does not block; another host's lock is respected. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/log.h"
#include "launch/lock.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[64], path[96];

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/qsweep-test-lock-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/lock", dir);
    unsetenv("SLURM_JOB_ID");
    unsetenv("SLURM_RESTART_COUNT");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

static void write_lock(const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* A child that takes the lock, says so, and waits to be killed. */
static pid_t start_owner(void)
{
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct lock *l;
        char         good = lock_take(dir, false, &l) == ST_OK;
        ssize_t      n = write(ready[1], &good, 1);
        (void)n;
        for (;;)
            pause();
    }
    char good = 0;
    assert_int_equal(read(ready[0], &good, 1), 1);
    close(ready[0]);
    close(ready[1]);
    assert_true(good);
    return pid;
}

static void a_second_launcher_is_refused_and_told_who_is_first(void **state)
{
    (void)state;
    struct lock *l;
    char         pid_text[32];
    pid_t        owner = start_owner();
    snprintf(pid_text, sizeof pid_text, "process %d", (int)owner);
    assert_int_equal(lock_take(dir, false, &l), ST_EIO);
    assert_non_null(strstr(status_last(), pid_text));
    assert_int_equal(lock_take(dir, true, &l), ST_EIO); /* force does not take a living owner's */
    kill(owner, SIGKILL);
    waitpid(owner, NULL, 0);
}

static void the_lock_of_a_killed_owner_is_taken_over(void **state)
{
    (void)state;
    struct lock *l;
    pid_t        owner = start_owner();
    kill(owner, SIGKILL);
    waitpid(owner, NULL, 0);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(lock_take(dir, false, &l), ST_OK);
    lock_release(l);
    assert_int_not_equal(access(path, F_OK), 0);
}

static void another_hosts_lock_is_refused_unless_forced(void **state)
{
    (void)state;
    struct lock *l;
    write_lock("{\"host\": \"no-such-host\", \"pid\": 1, \"started\": \"2020-01-01T00:00:00Z\"}");
    assert_int_equal(lock_take(dir, false, &l), ST_EIO);
    assert_non_null(strstr(status_last(), "no-such-host"));
    assert_non_null(strstr(status_last(), "--take-lock"));
    assert_int_equal(lock_take(dir, true, &l), ST_OK);
    lock_release(l);
}

static void a_restart_of_the_same_slurm_job_takes_over_from_another_host(void **state)
{
    (void)state;
    static const char other[] = "{\"host\": \"no-such-host\", \"pid\": 1, \"started\": \"\", \"slurm_job_id\": \"42\", "
                                "\"slurm_restart_count\": 1}";
    struct lock      *l;
    write_lock(other);
    setenv("SLURM_JOB_ID", "42", 1);
    setenv("SLURM_RESTART_COUNT", "1", 1);
    assert_int_equal(lock_take(dir, false, &l), ST_EIO); /* the same incarnation */
    setenv("SLURM_RESTART_COUNT", "2", 1);
    assert_int_equal(lock_take(dir, false, &l), ST_OK);
    lock_release(l);
    write_lock(other);
    setenv("SLURM_JOB_ID", "43", 1);
    assert_int_equal(lock_take(dir, false, &l), ST_EIO); /* another job */
}

static void an_empty_or_broken_lock_file_belongs_to_nobody(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "{", "[]", "{\"host\": 7}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct lock *l;
        write_lock(texts[i]);
        assert_int_equal(lock_take(dir, false, &l), ST_OK);
        lock_release(l);
    }
}

/* Many launchers at once, again and again: never two inside. */
static void launchers_that_race_never_share_the_folder(void **state)
{
    (void)state;
    enum { LAUNCHERS = 6, ROUNDS = 15 };
    char inside[112];
    snprintf(inside, sizeof inside, "%s/inside", dir);
    pid_t pids[LAUNCHERS];
    for (int i = 0; i < LAUNCHERS; i++)
        if ((pids[i] = fork()) == 0) {
            if (!freopen("/dev/null", "w", stderr)) /* refusals are expected here */
                _exit(2);
            for (int done = 0; done < ROUNDS;) {
                struct lock *l;
                if (lock_take(dir, false, &l) != ST_OK)
                    continue;
                if (mkdir(inside, 0700) != 0 || rmdir(inside) != 0)
                    _exit(1);
                lock_release(l);
                done++;
            }
            _exit(0);
        }
    for (int i = 0; i < LAUNCHERS; i++) {
        int status;
        waitpid(pids[i], &status, 0);
        assert_int_equal(status, 0);
    }
}

int main(void)
{
    log_set_level(LOG_ERROR);
#define FOLDER_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(a_second_launcher_is_refused_and_told_who_is_first),
        FOLDER_TEST(the_lock_of_a_killed_owner_is_taken_over),
        FOLDER_TEST(another_hosts_lock_is_refused_unless_forced),
        FOLDER_TEST(a_restart_of_the_same_slurm_job_takes_over_from_another_host),
        FOLDER_TEST(an_empty_or_broken_lock_file_belongs_to_nobody),
        FOLDER_TEST(launchers_that_race_never_share_the_folder),
    };
    return cmocka_run_group_tests_name("lock", tests, NULL, NULL);
}
