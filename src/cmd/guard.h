/* guard.h — a command's work on files from elsewhere, in a child process: what brings HDF5's parser down or sends it round
 * in circles (1 in 400 randomly damaged files did, with HDF5 1.10.8) ends as one clear line and exit status 1. */
#ifndef QSWEEP_CMD_GUARD_H
#define QSWEEP_CMD_GUARD_H

#include <stddef.h>

/* Run work(context) in a child and return its exit status. files [n]: what it reads; they name the culprit, and their sizes
 * limit its processor time to what reading them can take. */
int guarded(const char *const *files, size_t n, int (*work)(void *context), void *context);

#endif
