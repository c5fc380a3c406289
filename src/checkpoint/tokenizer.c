#include "checkpoint/tokenizer.h"

#include "base/file.h"
#include "base/log.h"
#include "base/utf8.h"
#include "checkpoint/bpe.h"
#include "checkpoint/pieces.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FILE_MAX    = 64 << 20, /* the published files have 2.6 and 0.13 MB                        */
    SPECIAL_MAX = 256,      /* bytes of a special token; bounds the search at each character */
    CHUNK       = 400000,   /* the original encodes this many characters at a time           */
    SEMANTIC    = 4096,
};

/* Names before the semantic tokens in the original's built-in list (fishaudio/fish-speech, tokenizer.py). */
static const char *const control_names[] = {
    "<|begin_of_text|>", "<|end_of_text|>",     "<|pad|>",           "<|im_start|>", "<|im_end|>",
    "<|phoneme_start|>", "<|phoneme_end|>",     "<|tool_call_start|>", "<|tool_call_end|>", "<|text|>",
    "<|voice|>",         "<|interleave|>",      "<|audio_start|>",   "<|audio_end|>", "<|audio|>"};

struct special {
    char   *text;
    size_t  size;
    int32_t id;
};

struct tokenizer {
    struct bpe        *bpe;
    struct piece_rule *rule;
    struct special    *specials; /* [n_specials] sorted by bytes                                        */
    size_t             n_specials;
    size_t             first[257]; /* specials that begin with byte c are first[c] .. first[c + 1] - 1    */
};

static int compare_specials(const void *a, const void *b)
{
    const struct special *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->size < y->size ? x->size : y->size);
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

static status_t add_special(struct tokenizer *t, const char *text, const char *label)
{
    size_t size = strlen(text);
    if (size == 0 || size > SPECIAL_MAX)
        return FAIL(ST_EINPUT, "%s: a special token of %zu bytes, want 1..%d", label, size, SPECIAL_MAX);
    char *copy = strdup(text);
    if (!copy)
        return FAIL(ST_ENOMEM, "%s: no memory for the special tokens", label);
    t->specials[t->n_specials] = (struct special){copy, size, bpe_size(t->bpe) + (int32_t)t->n_specials};
    t->n_specials++;
    return ST_OK;
}

static status_t add_builtin(struct tokenizer *t, const char *label)
{
    size_t n_controls = sizeof control_names / sizeof *control_names;
    t->specials       = calloc(n_controls + SEMANTIC, sizeof *t->specials);
    if (!t->specials)
        return FAIL(ST_ENOMEM, "%s: no memory for the special tokens", label);
    for (size_t i = 0; i < n_controls; i++)
        TRY(add_special(t, control_names[i], label));
    for (int i = 0; i < SEMANTIC; i++) {
        char name[32];
        snprintf(name, sizeof name, "<|semantic:%d|>", i);
        TRY(add_special(t, name, label));
    }
    return ST_OK;
}

/* The original numbers the tokens by their position in the file and ignores the ids written there. */
static status_t add_listed(struct tokenizer *t, const char *bytes, size_t size, const char *label)
{
    status_t     st = ST_OK;
    json_error_t error;
    json_t      *root = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error), *value;
    const char  *name;
    size_t       disagree = 0;

    if (!root)
        return FAIL(ST_EINPUT, "%s, special tokens, line %d: %s", label, error.line, error.text);
    if (!json_is_object(root)) {
        st = FAIL(ST_EINPUT, "%s: special tokens: want an object of token → id", label);
        goto out;
    }
    t->specials = calloc(json_object_size(root) + 1, sizeof *t->specials);
    if (!t->specials) {
        st = FAIL(ST_ENOMEM, "%s: no memory for the special tokens", label);
        goto out;
    }
    json_object_foreach(root, name, value) {
        if (!json_is_integer(value)) {
            st = FAIL(ST_EINPUT, "%s: the id of special token \"%s\" is not an integer", label, name);
            goto out;
        }
        TRY_OUT(add_special(t, name, label));
        disagree += json_integer_value(value) != t->specials[t->n_specials - 1].id;
    }
    if (disagree)
        log_warn("%s: %zu special tokens have another id in the file than by their position; the position counts, as in "
                 "the original", label, disagree);
out:
    json_decref(root);
    return st;
}

status_t tokenizer_parse(const char *ranks, size_t ranks_size, const char *specials, size_t specials_size,
                         const char *label, struct tokenizer **out)
{
    status_t          st = ST_OK;
    struct tokenizer *t  = calloc(1, sizeof *t);
    if (!t)
        return FAIL(ST_ENOMEM, "%s: no memory for a tokenizer", label);
    TRY_OUT(bpe_parse(ranks, ranks_size, label, &t->bpe));
    TRY_OUT(piece_rule_open(&t->rule));
    TRY_OUT(specials ? add_listed(t, specials, specials_size, label) : add_builtin(t, label));
    qsort(t->specials, t->n_specials, sizeof *t->specials, compare_specials);
    for (size_t c = 0, i = 0; c <= 256; c++) {
        while (i < t->n_specials && (unsigned char)t->specials[i].text[0] < c)
            i++;
        t->first[c] = i;
    }
    *out = t;
    t    = NULL;
out:
    tokenizer_close(t);
    return st;
}

status_t tokenizer_open(const char *checkpoint_dir, struct tokenizer **out)
{
    status_t st = ST_OK;
    char     ranks_path[4200], specials_path[4200], json_path[4200], *ranks = NULL, *specials = NULL;
    size_t   ranks_size = 0, specials_size = 0;

    if (strlen(checkpoint_dir) > 4096)
        return FAIL(ST_EINPUT, "the path of the checkpoint is too long");
    snprintf(ranks_path, sizeof ranks_path, "%s/tokenizer.tiktoken", checkpoint_dir);
    snprintf(specials_path, sizeof specials_path, "%s/special_tokens.json", checkpoint_dir);
    snprintf(json_path, sizeof json_path, "%s/tokenizer.json", checkpoint_dir);
    if (!file_exists(ranks_path) && file_exists(json_path))
        return FAIL(ST_EUNSUPPORTED, "%s: this kind of tokenizer is not read here, only tokenizer.tiktoken is; "
                                     "give the prompt as ids (--prompt-ids FILE)", json_path);
    TRY_OUT(file_read(ranks_path, FILE_MAX, &ranks, &ranks_size));
    if (file_exists(specials_path))
        TRY_OUT(file_read(specials_path, FILE_MAX, &specials, &specials_size));
    TRY_OUT(tokenizer_parse(ranks, ranks_size, specials, specials_size, ranks_path, out));
out:
    free(ranks);
    free(specials);
    return st;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_specials; i++)
        free(t->specials[i].text);
    free(t->specials);
    piece_rule_close(t->rule);
    bpe_close(t->bpe);
    free(t);
}

int32_t tokenizer_special(const struct tokenizer *t, const char *token)
{
    struct special key = {.text = (char *)token, .size = strlen(token)};
    const struct special *s = bsearch(&key, t->specials, t->n_specials, sizeof key, compare_specials);
    return s ? s->id : -1;
}

int32_t tokenizer_size(const struct tokenizer *t)
{
    return bpe_size(t->bpe) + (int32_t)t->n_specials;
}

/* ---- encoding ---- */

struct id_list {
    int32_t *ids;
    size_t   n, capacity;
};

static status_t make_room(struct id_list *list, size_t more)
{
    if (more <= list->capacity - list->n)
        return ST_OK;
    size_t   capacity = 2 * list->capacity + more;
    int32_t *ids      = realloc(list->ids, capacity * sizeof *ids);
    if (!ids)
        return FAIL(ST_ENOMEM, "no memory for %zu token ids", capacity);
    list->ids      = ids;
    list->capacity = capacity;
    return ST_OK;
}

/* The longest special token at the start of text [size], or NULL. Candidates are one sorted range that narrows byte by
 * byte; the range's first entry is the one that ends here, if any does. */
static const struct special *special_at(const struct tokenizer *t, const char *text, size_t size)
{
    const struct special *found = NULL;
    size_t low = t->first[(unsigned char)text[0]], high = t->first[(unsigned char)text[0] + 1];
    for (size_t depth = 1; low < high; depth++) {
        if (t->specials[low].size == depth)
            found = &t->specials[low++];
        if (depth == size || low == high)
            break;
        unsigned char want = (unsigned char)text[depth];
        size_t        a = low, b = high; /* first entry whose next byte is ≥ want */
        while (a < b) {
            size_t middle = a + (b - a) / 2;
            if ((unsigned char)t->specials[middle].text[depth] < want)
                a = middle + 1;
            else
                b = middle;
        }
        size_t c = a;
        b        = high; /* first entry whose next byte is > want */
        while (c < b) {
            size_t middle = c + (b - c) / 2;
            if ((unsigned char)t->specials[middle].text[depth] <= want)
                c = middle + 1;
            else
                b = middle;
        }
        low  = a;
        high = c;
    }
    return found;
}

struct encoder {
    const struct tokenizer *t;
    struct piece_match     *match;
    struct bpe_work         work;
    struct id_list          list;
};

static status_t encode_ordinary(struct encoder *e, const char *text, size_t size)
{
    for (size_t at = 0, end; at < size; at = end) {
        size_t n;
        TRY(piece_next(e->match, text, size, at, &end));
        TRY(make_room(&e->list, end - at));
        TRY(bpe_encode(e->t->bpe, text + at, end - at, &e->work, e->list.ids + e->list.n, &n));
        e->list.n += n;
    }
    return ST_OK;
}

static status_t encode_chunk(struct encoder *e, const char *text, size_t size, bool specials)
{
    size_t start = 0;
    for (size_t at = 0; specials && at < size;) {
        const struct special *s = special_at(e->t, text + at, size - at);
        if (!s) {
            at++;
            continue;
        }
        TRY(encode_ordinary(e, text + start, at - start));
        TRY(make_room(&e->list, 1));
        e->list.ids[e->list.n++] = s->id;
        start = at += s->size;
    }
    return encode_ordinary(e, text + start, size - start);
}

status_t tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, bool specials, int32_t **ids,
                          size_t *n)
{
    status_t       st  = ST_OK;
    size_t         bad = utf8_first_bad(text, size);
    struct encoder e   = {.t = t};

    if (bad < size)
        return FAIL(ST_EINPUT, "the text is not UTF-8: byte 0x%02x at offset %zu", (unsigned char)text[bad], bad);
    TRY_OUT(piece_match_open(t->rule, &e.match));
    TRY_OUT(make_room(&e.list, 16));
    for (size_t at = 0, end; at < size; at = end) {
        end = at;
        for (int characters = 0; characters < CHUNK && end < size; characters++)
            end += utf8_length(text + end, size - end);
        TRY_OUT(encode_chunk(&e, text + at, end - at, specials));
    }
    *ids       = e.list.ids;
    *n         = e.list.n;
    e.list.ids = NULL;
out:
    free(e.list.ids);
    bpe_work_free(&e.work);
    piece_match_close(e.match);
    return st;
}
