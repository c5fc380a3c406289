/* driver.h — a unit test's hold on the test double of the NVIDIA driver: what it says from now on. */
#ifndef QSWEEP_TESTS_DRIVER_H
#define QSWEEP_TESTS_DRIVER_H

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char driver_file[64];

/* Load the double from the build folder beside this test's own: a later dlopen of "libnvidia-ml.so.1" finds the library
 * of that name that is already there, also where a real driver is installed. */
static void driver_load(void)
{
    char    path[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
    for (int up = 0; up < 2 && n > 0; up++) /* <build>/tests/unit/test_x */
        while (--n > 0 && path[n] != '/')
            ;
    snprintf(path + (n > 0 ? n : 0), 64, "/fake/libnvidia-ml.so.1");
    if (!dlopen(path, RTLD_NOW | RTLD_GLOBAL)) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    snprintf(driver_file, sizeof driver_file, "/tmp/qsweep-driver-%d", (int)getpid());
    setenv("QSWEEP_FAKE_NVML", driver_file, 1);
}

/* Replaced in one step: the trace's thread reads at any moment. */
static void driver_says(const char *text)
{
    char next[80];
    snprintf(next, sizeof next, "%s.next", driver_file);
    FILE *f = fopen(next, "w");
    if (!f || fputs(text, f) < 0 || fclose(f) != 0 || rename(next, driver_file) != 0) {
        perror(next);
        exit(1);
    }
}

static void driver_is_gone(void)
{
    unlink(driver_file);
}

#endif
