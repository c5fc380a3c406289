/* checkpoint_fingerprint() of checkpoint.h: the identity of a model, cached beside it. */
#include "checkpoint/checkpoint.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* Tensors are hashed in chunks of a fixed size, so that the result does not depend on the number of threads: the digest
 * of a tensor is the digest of its chunks' digests in order. */
enum { CHUNK_BYTES = 8 << 20, MAX_THREADS = 16 };

struct chunk {
    const unsigned char *data;
    size_t               bytes;
    XXH128_canonical_t   digest;
};

struct work {
    struct chunk *chunks;
    size_t        count;
    atomic_size_t next;
};

static void *hash_chunks(void *argument)
{
    struct work *work = argument;
    for (;;) {
        size_t i = atomic_fetch_add(&work->next, 1);
        if (i >= work->count)
            return NULL;
        struct chunk *c = &work->chunks[i];
        XXH128_canonicalFromHash(&c->digest, XXH3_128bits(c->data, c->bytes));
    }
}

static int allowed_cores(void)
{
    cpu_set_t set;
    int       n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

/* Cut every tensor into chunks and hash them all. The caller frees *chunks. */
static status_t hash_tensors(const struct checkpoint *c, struct chunk **chunks)
{
    size_t count = 0, k = 0;
    for (size_t i = 0; i < c->tensors.count; i++)
        count += (c->tensors.items[i].bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
    struct work work = {.chunks = calloc(count + 1, sizeof *work.chunks), .count = count};
    if (!work.chunks)
        return FAIL(ST_ENOMEM, "%s: no memory to hash %zu chunks", c->dir, count);
    for (size_t i = 0; i < c->tensors.count; i++) {
        const struct tensor *t = &c->tensors.items[i];
        for (size_t at = 0; at < t->bytes; at += CHUNK_BYTES)
            work.chunks[k++] = (struct chunk){.data  = (const unsigned char *)t->data + at,
                                              .bytes = t->bytes - at < CHUNK_BYTES ? t->bytes - at : CHUNK_BYTES};
    }

    pthread_t threads[MAX_THREADS];
    int       started = 0;
    for (int wanted = allowed_cores() - 1; started < wanted; started++)
        if (pthread_create(&threads[started], NULL, hash_chunks, &work) != 0)
            break;
    hash_chunks(&work);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    *chunks = work.chunks;
    return ST_OK;
}

static status_t compute(const struct checkpoint *c, char out[33])
{
    struct chunk *chunks = NULL;
    TRY(hash_tensors(c, &chunks));
    XXH3_state_t *state = XXH3_createState();
    if (!state) {
        free(chunks);
        return FAIL(ST_ENOMEM, "%s: no memory", c->dir);
    }
    char text[1024 + TENSOR_MAX_NAME];
    XXH3_128bits_reset(state);
    config_canonical(&c->config, text, sizeof text);
    XXH3_128bits_update(state, text, strlen(text));
    for (size_t i = 0, k = 0; i < c->tensors.count; i++) {
        const struct tensor *t = &c->tensors.items[i];
        char                 shape[256];
        tensor_shape_text(t, shape, sizeof shape);
        snprintf(text, sizeof text, "%s %s %s\n", t->name, dtype_name(t->dtype), shape);
        XXH3_128bits_update(state, text, strlen(text));
        for (size_t at = 0; at < t->bytes; at += CHUNK_BYTES)
            XXH3_128bits_update(state, &chunks[k++].digest, sizeof(XXH128_canonical_t));
    }
    XXH128_canonical_t digest;
    XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", digest.digest[i]);
    XXH3_freeState(state);
    free(chunks);
    return ST_OK;
}

/* ---- the cache: one line "qsweep-fingerprint 1 <identity of the files> <fingerprint>" ---- */

#define CACHE_NAME ".qsweep-fingerprint"
#define CACHE_FORMAT "qsweep-fingerprint 1 %s %s\n"

static bool cache_read(const struct checkpoint *c, char out[33])
{
    char path[4200], line[128] = "", identity[33], value[33];
    snprintf(path, sizeof path, "%s/" CACHE_NAME, c->dir);
    FILE *f = fopen(path, "r");
    if (!f)
        return false;
    size_t n = fread(line, 1, sizeof line - 1, f);
    fclose(f);
    line[n] = '\0';
    if (sscanf(line, "qsweep-fingerprint 1 %32[0-9a-f] %32[0-9a-f]", identity, value) != 2 || strlen(value) != 32 ||
        strcmp(identity, c->identity) != 0)
        return false;
    memcpy(out, value, 33);
    return true;
}

/* Best effort: a read-only folder or another process doing the same is no failure. */
static void cache_write(const struct checkpoint *c, const char *fingerprint)
{
    char path[4200], temporary[4300];
    snprintf(path, sizeof path, "%s/" CACHE_NAME, c->dir);
    snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
    FILE *f = fopen(temporary, "wx");
    if (!f)
        return;
    bool written = fprintf(f, CACHE_FORMAT, c->identity, fingerprint) > 0;
    if (fclose(f) != 0 || !written || rename(temporary, path) != 0)
        unlink(temporary);
}

status_t checkpoint_fingerprint(const struct checkpoint *c, char out[33])
{
    if (cache_read(c, out))
        return ST_OK;
    TRY(compute(c, out));
    cache_write(c, out);
    return ST_OK;
}
