#include "checkpoint/synth_tokenizer.h"

#include "base/outfile.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKEN = 15, MAX_LEARNED = 1024, PARENTS = 4096, SPECIALS = 4111 };

struct token {
    unsigned char length, bytes[MAX_TOKEN];
};

/* Tokens in rank order and a set of their bytes (open addressing; 0 = free, else rank + 1). */
struct table {
    struct token *tokens;
    int           count;
    int          *slots;
    size_t        n_slots; /* a power of two, at least twice the count */
};

static const char corpus[] =
    "The model reads a sentence and speaks it. It does so one frame at a time, and each frame is a short piece of sound. "
    "First comes the text, which is cut into small parts that the model knows. Then the model says what the next part of "
    "the sound should be, again and again, until it says that the sentence has ended. This is what we measure here: how "
    "long each step takes, how much memory it needs, and how good the sound is when the numbers in the model are stored "
    "with fewer bits. A number with fewer bits is smaller and can be read faster, but it is less exact. Sometimes this "
    "matters, and sometimes nobody can hear it. There is only one way to know, and that is to try both and compare them "
    "with the same text, the same seed and the same machine. Hello, this is a test of the text to speech system. The "
    "quick brown fox jumps over the lazy dog. This sentence contains every letter of the English alphabet and is commonly "
    "used for testing. Artificial intelligence has changed the way we work with machines. Voice systems have become part "
    "of daily life, and large language models have made them more natural to talk to. I hope you are having a wonderful "
    "day! What would you like to hear next? Numbers such as 0, 1, 2, 3, 10, 24 and 1000 are read out, too. The computer "
    "has processors, memory and storage; every one of them sets a limit. When the weights are read for every frame, the "
    "memory sets it. When many sentences are spoken together, the processors do. A good measurement says which of them it "
    "was, shows every sample, and tells the reader how it was made, so that another person can make it again and find the "
    "same. Nothing that was measured is thrown away, because the next question is always a different one. The user "
    "speaks, the voice answers; the speaker listens, and the answer is understood. From the first word to the last, the "
    "system has to be quick, and it has to be right. It should run on the small machine on the desk and on the large one "
    "in the basement, and it should say plainly what it could not do. Testing, training, reading, writing, speaking and "
    "hearing are all words with the same ending, and so they share a part. The rest of the words are made of what is left.";

static uint64_t hash_bytes(const unsigned char *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < n; i++)
        h = (h ^ bytes[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

/* Slot of these bytes: the token's, or the free one where it would go. */
static int *find_slot(const struct table *t, const unsigned char *bytes, size_t n)
{
    for (size_t i = hash_bytes(bytes, n);; i++) {
        int *slot = &t->slots[i & (t->n_slots - 1)];
        if (*slot == 0)
            return slot;
        const struct token *known = &t->tokens[*slot - 1];
        if (known->length == n && memcmp(known->bytes, bytes, n) == 0)
            return slot;
    }
}

/* Append the concatenation of two tokens; false when it is too long or known already. */
static bool join(struct table *t, int left, int right)
{
    const struct token *a = &t->tokens[left], *b = &t->tokens[right];
    struct token        both;
    if (a->length + b->length > MAX_TOKEN)
        return false;
    both.length = (unsigned char)(a->length + b->length);
    memcpy(both.bytes, a->bytes, a->length);
    memcpy(both.bytes + a->length, b->bytes, b->length);
    int *slot = find_slot(t, both.bytes, both.length);
    if (*slot)
        return false;
    t->tokens[t->count] = both;
    *slot               = ++t->count;
    return true;
}

/* The 256 bytes in the order of the byte-level BPE family (openai/gpt-2, encoder.py): the printable ones first. */
static void add_bytes(struct table *t)
{
    for (int pass = 0; pass < 2; pass++)
        for (int b = 0; b < 256; b++) {
            bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
            if (printable != (pass == 0))
                continue;
            t->tokens[t->count] = (struct token){1, {(unsigned char)b}};
            *find_slot(t, t->tokens[t->count].bytes, 1) = t->count + 1;
            t->count++;
        }
}

/* The corpus as ranks, −1 before every space and every character that is not a letter: merges stay inside words, which
 * is also where the tokenizer's pattern keeps them. */
static int corpus_ranks(const struct table *t, int *out)
{
    int n = 0;
    for (const char *c = corpus; *c; c++) {
        if (!isalpha((unsigned char)*c))
            out[n++] = -1;
        unsigned char byte = (unsigned char)*c;
        out[n++]           = *find_slot(t, &byte, 1) - 1;
        if (!isalpha((unsigned char)*c) && *c != ' ')
            out[n++] = -1;
    }
    return n;
}

/* The pair that occurs most often (lowest ranks on a tie) and how often. */
static int best_pair(const int *text, int n, uint16_t *counts, int n_tokens, int *left, int *right)
{
    int best = 0;
    memset(counts, 0, sizeof *counts * MAX_LEARNED * MAX_LEARNED);
    for (int i = 0; i + 1 < n; i++)
        if (text[i] >= 0 && text[i + 1] >= 0)
            counts[text[i] * MAX_LEARNED + text[i + 1]]++;
    for (int a = 0; a < n_tokens; a++)
        for (int b = 0; b < n_tokens; b++)
            if (counts[a * MAX_LEARNED + b] > best) {
                best   = counts[a * MAX_LEARNED + b];
                *left  = a;
                *right = b;
            }
    return best;
}

/* Byte-pair encoding until n_ranks, MAX_LEARNED or no pair occurs twice. */
static status_t learn(struct table *t, int n_ranks)
{
    uint16_t *counts = malloc(sizeof *counts * MAX_LEARNED * MAX_LEARNED);
    int      *text   = malloc(3 * sizeof corpus * sizeof *text);
    if (!counts || !text) {
        free(counts);
        free(text);
        return FAIL(ST_ENOMEM, "no memory to learn a tokenizer");
    }
    int n = corpus_ranks(t, text), left = 0, right = 0;
    while (t->count < n_ranks && t->count < MAX_LEARNED) {
        if (best_pair(text, n, counts, t->count, &left, &right) < 2 || !join(t, left, right))
            break;
        int kept = 0;
        for (int i = 0; i < n; i++) {
            bool merges  = i + 1 < n && text[i] == left && text[i + 1] == right;
            text[kept++] = merges ? t->count - 1 : text[i];
            i += merges;
        }
        n = kept;
    }
    free(counts);
    free(text);
    return ST_OK;
}

/* Fill up with pairs of early tokens, chosen by a linear congruential sequence (Knuth, MMIX). */
static void fill_up(struct table *t, int n_ranks)
{
    uint64_t x       = 1;
    int      parents = t->count < PARENTS ? t->count : PARENTS;
    while (t->count < n_ranks) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        join(t, (int)((x >> 33) % (unsigned)parents), (int)((x >> 13) % (unsigned)parents));
        parents = t->count < PARENTS ? t->count : PARENTS;
    }
}

static status_t build(struct table *t, int n_ranks)
{
    for (t->n_slots = 1024; t->n_slots < 2 * (size_t)n_ranks;)
        t->n_slots *= 2;
    t->tokens = calloc((size_t)n_ranks, sizeof *t->tokens);
    t->slots  = calloc(t->n_slots, sizeof *t->slots);
    if (!t->tokens || !t->slots)
        return FAIL(ST_ENOMEM, "no memory for a tokenizer of %d tokens", n_ranks);
    add_bytes(t);
    TRY(learn(t, n_ranks));
    fill_up(t, n_ranks);
    return ST_OK;
}

static void base64(const struct token *token, char *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < token->length; i += 3) {
        int      n = token->length - i;
        uint32_t v = (uint32_t)token->bytes[i] << 16 | (n > 1 ? (uint32_t)token->bytes[i + 1] << 8 : 0) |
                     (n > 2 ? (uint32_t)token->bytes[i + 2] : 0);
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = n > 1 ? digits[v >> 6 & 63] : '=';
        *out++ = n > 2 ? digits[v & 63] : '=';
    }
    *out = '\0';
}

static status_t write_ranks(const struct table *t, struct outfile *f)
{
    char text[32], line[64];
    for (int i = 0; i < t->count; i++) {
        base64(&t->tokens[i], text);
        int n = snprintf(line, sizeof line, "%s %d\n", text, i);
        TRY(outfile_write(f, line, (size_t)n));
    }
    return ST_OK;
}

/* As json.dump(…, indent=2) writes it: the published special_tokens.json byte for byte when n_ranks is 151643. */
static status_t write_specials(int n_ranks, struct outfile *f)
{
    static const char *const control[] = {
        "begin_of_text", "end_of_text", "pad", "im_start", "im_end", "phoneme_start", "phoneme_end", "tool_call_start",
        "tool_call_end", "text", "voice", "interleave", "audio_start", "audio_end", "audio"};
    char line[64];
    int  n_control = (int)(sizeof control / sizeof *control);
    for (int i = 0; i < SPECIALS; i++) {
        char name[32];
        if (i < n_control)
            snprintf(name, sizeof name, "%s", control[i]);
        else
            snprintf(name, sizeof name, "semantic:%d", i - n_control);
        int n = snprintf(line, sizeof line, "%s  \"<|%s|>\": %d", i ? ",\n" : "{\n", name, n_ranks + i);
        TRY(outfile_write(f, line, (size_t)n));
    }
    return outfile_write(f, "\n}", 2);
}

static status_t write_both(const struct table *t, const char *dir)
{
    char            path[4200];
    struct outfile *f  = NULL;
    status_t        st = ST_OK;
    snprintf(path, sizeof path, "%s/tokenizer.tiktoken", dir);
    TRY_OUT(outfile_open(path, &f));
    TRY_OUT(write_ranks(t, f));
    st = outfile_commit(f);
    f  = NULL;
    TRY_OUT(st);
    snprintf(path, sizeof path, "%s/special_tokens.json", dir);
    TRY_OUT(outfile_open(path, &f));
    TRY_OUT(write_specials(t->count, f));
    st = outfile_commit(f);
    f  = NULL;
out:
    outfile_abort(f);
    return st;
}

status_t synth_tokenizer_write(const char *dir, int n_ranks)
{
    struct table t  = {0};
    status_t     st = build(&t, n_ranks);
    if (st == ST_OK)
        st = write_both(&t, dir);
    free(t.tokens);
    free(t.slots);
    return st;
}

unsigned long long synth_tokenizer_bytes(int n_ranks)
{
    return (unsigned long long)n_ranks * 29 + (unsigned long long)SPECIALS * 32;
}
