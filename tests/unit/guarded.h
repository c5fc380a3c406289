/* guarded.h — test data that betrays a read or a write past its end: every array ends at a page nobody may touch.
 * Random numbers come from one seed, printed by seed_print(); QSWEEP_SEED repeats a run. */
#ifndef QSWEEP_TESTS_GUARDED_H
#define QSWEEP_TESTS_GUARDED_H

#include "model/bf16.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { GUARDED_MAX = 4096 };

static struct {
    void  *map;
    size_t bytes;
} guarded_maps[GUARDED_MAX];
static int      guarded_count;
static uint64_t seed_first, seed_state;

/* size bytes that end at an inaccessible page, filled with 0xff (a NaN in every format); freed by guarded_free_all(). */
static inline void *guarded(size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (size + page - 1) / page;
    char        *map = mmap(NULL, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + pages * page, page, PROT_NONE) != 0 || guarded_count == GUARDED_MAX)
        abort();
    guarded_maps[guarded_count].map = map;
    guarded_maps[guarded_count++].bytes = (pages + 1) * page;
    memset(map, 0xff, pages * page);
    return map + pages * page - size;
}

static inline void guarded_free_all(void)
{
    while (guarded_count > 0) {
        guarded_count--;
        munmap(guarded_maps[guarded_count].map, guarded_maps[guarded_count].bytes);
    }
}

static inline void seed_print(void)
{
    const char *text = getenv("QSWEEP_SEED");
    seed_first = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL) * 2654435761u + (uint64_t)getpid();
    seed_state = seed_first | 1;
    printf("# QSWEEP_SEED=%llu\n", (unsigned long long)seed_first);
}

static inline uint32_t random_u32(void) /* xorshift64*, Vigna 2014 */
{
    seed_state ^= seed_state >> 12;
    seed_state ^= seed_state << 25;
    seed_state ^= seed_state >> 27;
    return (uint32_t)((seed_state * 2685821657736338717u) >> 32);
}

static inline int random_below(int n)
{
    return (int)(random_u32() % (uint32_t)n);
}

/* Uniform in (-1, 1). */
static inline float random_float(void)
{
    return ((float)random_u32() + 0.5f) / 2147483648.0f - 1.0f;
}

static inline float *random_floats(size_t n, float amplitude, int bf16)
{
    float *x = guarded(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = bf16 ? bf16_round(random_float() * amplitude) : random_float() * amplitude;
    return x;
}

/* Distance of neighbouring BF16 values at |v|. */
static inline float bf16_ulp(float v)
{
    int exponent;
    frexpf(fabsf(v), &exponent);
    return ldexpf(1.0f, (exponent < -125 ? -125 : exponent) - 8);
}

#endif
