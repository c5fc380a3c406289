#include "checkpoint/bpe.h"

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* A vocabulary of 2^22 tokens is 27 times the published one. */
enum { RANKS_MAX = 1 << 22 };
/* With the table at most half full, a probe of honest input is a few dozen steps long at worst. A longer one means
 * strings chosen to collide, which would make every look-up slow. */
enum { PROBE_MAX = 1024 };

struct token {
    uint32_t offset, size; /* in bytes[] */
};

struct bpe {
    char         *bytes;  /* all tokens, in rank order of the file's lines */
    struct token *tokens; /* [count] by rank                              */
    int32_t       count;
    uint32_t     *slots;  /* [mask + 1]: rank + 1, or 0                    */
    uint32_t      mask;
    uint32_t      longest;
};

/* ---- the table ---- */

static int base64_digit(char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26 : c >= '0' && c <= '9' ? c - '0' + 52
         : c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decode RFC 4648 base64 with padding; bytes written to out [size / 4 * 3], or -1 if it is not base64. */
static long base64_decode(const char *text, size_t size, char *out)
{
    long n = 0;
    if (size == 0 || size % 4 != 0)
        return -1;
    for (size_t i = 0; i < size; i += 4) {
        int  pad   = i + 4 == size ? (text[i + 3] == '=') + (text[i + 3] == '=' && text[i + 2] == '=') : 0;
        long value = 0;
        for (int k = 0; k < 4; k++) {
            int digit = k >= 4 - pad ? 0 : base64_digit(text[i + k]);
            if (digit < 0)
                return -1;
            value = value << 6 | digit;
        }
        for (int k = 0; k < 3 - pad; k++)
            out[n++] = (char)(value >> (16 - 8 * k));
    }
    return n;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static bool token_is(const struct bpe *b, uint32_t rank, const char *bytes, size_t size)
{
    return b->tokens[rank].size == size && memcmp(b->bytes + b->tokens[rank].offset, bytes, size) == 0;
}

int32_t bpe_rank(const struct bpe *b, const char *bytes, size_t size)
{
    if (size == 0 || size > b->longest)
        return -1;
    uint32_t i = (uint32_t)XXH3_64bits(bytes, size) & b->mask;
    for (; b->slots[i]; i = (i + 1) & b->mask)
        if (token_is(b, b->slots[i] - 1, bytes, size))
            return (int32_t)(b->slots[i] - 1);
    return -1;
}

/* Enter `rank` under its bytes; 0 if done, 1 if the bytes are there already, 2 if the table was made to collide. */
static int insert(struct bpe *b, uint32_t rank)
{
    const char *bytes = b->bytes + b->tokens[rank].offset;
    uint32_t    i     = (uint32_t)XXH3_64bits(bytes, b->tokens[rank].size) & b->mask;
    int         probe = 0;
    for (; b->slots[i]; i = (i + 1) & b->mask) {
        if (token_is(b, b->slots[i] - 1, bytes, b->tokens[rank].size))
            return 1;
        if (++probe > PROBE_MAX)
            return 2;
    }
    b->slots[i] = rank + 1;
    return 0;
}

/* One line [line, end) without its line feed; *used bytes of b->bytes are taken. */
static status_t parse_line(struct bpe *b, const char *line, const char *end, const char *label, size_t number,
                           size_t *used, int32_t capacity)
{
    while (end > line && (is_blank(end[-1]) || end[-1] == '\r'))
        end--;
    while (line < end && is_blank(*line))
        line++;
    const char *gap = line;
    while (gap < end && !is_blank(*gap))
        gap++;
    const char *digits = gap;
    while (digits < end && is_blank(*digits))
        digits++;
    if (line == end)
        return ST_OK;
    if (digits == end)
        return FAIL(ST_EINPUT, "%s:%zu: want \"base64 rank\", found one field", label, number);
    long rank = 0;
    for (const char *c = digits; c < end; c++) {
        if (*c < '0' || *c > '9' || rank >= RANKS_MAX)
            return FAIL(ST_EINPUT, "%s:%zu: the rank is not a number in 0..%d", label, number, RANKS_MAX - 1);
        rank = rank * 10 + (*c - '0');
    }
    if (gap - line == 1 && *line == '=') /* the empty token; the original skips it too */
        return ST_OK;
    if (gap - line > (BPE_TOKEN_MAX + 2) / 3 * 4)
        return FAIL(ST_EINPUT, "%s:%zu: token longer than %d bytes", label, number, BPE_TOKEN_MAX);
    if (rank >= capacity)
        return FAIL(ST_EINPUT, "%s:%zu: rank %ld, but the file has no more than %d lines", label, number, rank, capacity);
    if (b->tokens[rank].size)
        return FAIL(ST_EINPUT, "%s:%zu: rank %ld appears twice", label, number, rank);
    long size = base64_decode(line, (size_t)(gap - line), b->bytes + *used);
    if (size <= 0 || size > BPE_TOKEN_MAX)
        return FAIL(ST_EINPUT, "%s:%zu: the token is not base64 of 1..%d bytes", label, number, BPE_TOKEN_MAX);
    b->tokens[rank] = (struct token){(uint32_t)*used, (uint32_t)size};
    *used += (size_t)size;
    if ((uint32_t)size > b->longest)
        b->longest = (uint32_t)size;
    b->count++;
    return ST_OK;
}

static status_t index_tokens(struct bpe *b, const char *label)
{
    uint32_t slots = 1024;
    while (slots < 2 * (uint32_t)b->count)
        slots *= 2;
    b->slots = calloc(slots, sizeof *b->slots);
    if (!b->slots)
        return FAIL(ST_ENOMEM, "%s: no memory for %d tokens", label, b->count);
    b->mask = slots - 1;
    for (int32_t rank = 0; rank < b->count; rank++) {
        if (b->tokens[rank].size == 0)
            return FAIL(ST_EINPUT, "%s: %d tokens, but none of rank %d", label, b->count, rank);
        int clash = insert(b, (uint32_t)rank);
        if (clash)
            return FAIL(ST_EINPUT, "%s: the token of rank %d %s", label, rank,
                        clash == 1 ? "has another rank too" : "is one of too many that hash alike");
    }
    for (int byte = 0; byte < 256; byte++)
        if (bpe_rank(b, &(char){(char)byte}, 1) < 0)
            return FAIL(ST_EINPUT, "%s: no token for the single byte 0x%02x; every byte needs one", label, (unsigned)byte);
    return ST_OK;
}

status_t bpe_parse(const char *bytes, size_t size, const char *label, struct bpe **out)
{
    status_t    st    = ST_OK;
    size_t      lines = 1, used = 0, number = 0;
    const char *end = bytes + size, *line = bytes;
    struct bpe *b = calloc(1, sizeof *b);

    for (size_t i = 0; i < size; i++)
        lines += bytes[i] == '\n';
    if (lines > RANKS_MAX || size > UINT32_MAX) {
        st = FAIL(ST_EINPUT, "%s: %zu lines, want at most %d", label, lines, RANKS_MAX);
        goto out;
    }
    if (b) {
        b->bytes  = malloc(size + 3); /* base64 is longer than what it stands for */
        b->tokens = calloc(lines, sizeof *b->tokens);
    }
    if (!b || !b->bytes || !b->tokens) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zu tokens", label, lines);
        goto out;
    }
    while (line < end) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        TRY_OUT(parse_line(b, line, stop ? stop : end, label, ++number, &used, (int32_t)lines));
        line = stop ? stop + 1 : end;
    }
    TRY_OUT(index_tokens(b, label));
    *out = b;
    b    = NULL;
out:
    bpe_close(b);
    return st;
}

void bpe_close(struct bpe *b)
{
    if (!b)
        return;
    free(b->bytes);
    free(b->tokens);
    free(b->slots);
    free(b);
}

int32_t bpe_size(const struct bpe *b)
{
    return b->count;
}

/* ---- merging one piece ---- */

/* A part of the piece starts at its index; a part that was merged into its left neighbour has size 0. */
struct part {
    uint32_t size, previous; /* previous: start of the left neighbour, or NO_PART */
};
#define NO_PART UINT32_MAX

/* The parts at `start` and after it together have `size` bytes and that rank, as long as they still do. */
struct candidate {
    uint32_t rank, start, size;
};

static bool before(const struct candidate *x, const struct candidate *y)
{
    return x->rank != y->rank ? x->rank < y->rank : x->start < y->start;
}

static void heap_push(struct candidate *heap, size_t *n, struct candidate item)
{
    size_t i = (*n)++;
    for (; i > 0 && before(&item, &heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = item;
}

static struct candidate heap_pop(struct candidate *heap, size_t *n)
{
    struct candidate top = heap[0], last = heap[--*n];
    size_t           i = 0, child;
    while ((child = 2 * i + 1) < *n) {
        if (child + 1 < *n && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &last))
            break;
        heap[i] = heap[child];
        i       = child;
    }
    heap[i] = last;
    return top;
}

static status_t reserve(struct bpe_work *work, size_t size)
{
    if (size <= work->capacity)
        return ST_OK;
    bpe_work_free(work);
    /* At the start a candidate for each neighbouring pair, then at most two more for each of the size - 1 merges. */
    work->parts = malloc(size * sizeof(struct part));
    work->heap  = malloc(3 * size * sizeof(struct candidate));
    if (!work->parts || !work->heap) {
        bpe_work_free(work);
        return FAIL(ST_ENOMEM, "no memory to encode a piece of %zu bytes", size);
    }
    work->capacity = size;
    return ST_OK;
}

void bpe_work_free(struct bpe_work *work)
{
    free(work->parts);
    free(work->heap);
    *work = (struct bpe_work){0};
}

status_t bpe_encode(const struct bpe *b, const char *piece, size_t size, struct bpe_work *work, int32_t *ids, size_t *n)
{
    int32_t whole = bpe_rank(b, piece, size);
    if (whole >= 0) {
        ids[0] = whole;
        *n     = 1;
        return ST_OK;
    }
    if (size > INT32_MAX / 16)
        return FAIL(ST_EINPUT, "a piece of %zu bytes without a border is too long to encode", size);
    TRY(reserve(work, size < 64 ? 64 : size));
    struct part      *parts = work->parts;
    struct candidate *heap  = work->heap;
    size_t            waiting = 0;
    uint32_t          end     = (uint32_t)size;
    for (uint32_t i = 0; i < end; i++) {
        parts[i]     = (struct part){1, i ? i - 1 : NO_PART};
        int32_t rank = i + 1 < end ? bpe_rank(b, piece + i, 2) : -1;
        if (rank >= 0)
            heap_push(heap, &waiting, (struct candidate){(uint32_t)rank, i, 2});
    }
    while (waiting) {
        struct candidate best = heap_pop(heap, &waiting);
        struct part     *left = &parts[best.start];
        uint32_t         next = best.start + left->size;
        /* Stale if either part has changed since: same start and same joint size mean the same bytes. */
        if (left->size == 0 || next >= end || left->size + parts[next].size != best.size)
            continue;
        left->size       = best.size;
        parts[next].size = 0;
        uint32_t after   = best.start + best.size;
        if (after < end) {
            parts[after].previous = best.start;
            uint32_t joint        = best.size + parts[after].size;
            int32_t  rank         = bpe_rank(b, piece + best.start, joint);
            if (rank >= 0)
                heap_push(heap, &waiting, (struct candidate){(uint32_t)rank, best.start, joint});
        }
        if (left->previous != NO_PART) {
            uint32_t joint = parts[left->previous].size + best.size;
            int32_t  rank  = bpe_rank(b, piece + left->previous, joint);
            if (rank >= 0)
                heap_push(heap, &waiting, (struct candidate){(uint32_t)rank, left->previous, joint});
        }
    }
    *n = 0;
    for (uint32_t i = 0; i < end; i += parts[i].size)
        ids[(*n)++] = bpe_rank(b, piece + i, parts[i].size);
    return ST_OK;
}
