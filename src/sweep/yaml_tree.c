#include "sweep/yaml_tree.h"

#include "sweep/field.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct builder {
    yaml_parser_t             parser;
    const char               *bytes;
    size_t                    size;
    const char               *label, *set;
    const struct yaml_limits *limits;
    int                       nodes;
};

/* One line for everything that can be wrong with a text; what: a whole clause. */
static status_t refuse(const struct builder *b, size_t line, const char *what)
{
    return tree_refuse(&(struct yaml){.line = (int)line, .set = b->set}, b->label, "%s", what);
}

static size_t line_of(const struct builder *b, size_t offset)
{
    size_t line = 1;
    for (size_t i = 0; i < offset && i < b->size; i++)
        line += b->bytes[i] == '\n';
    return line;
}

static status_t refuse_syntax(const struct builder *b)
{
    const yaml_parser_t *p = &b->parser;
    char                 what[256];
    if (p->error == YAML_MEMORY_ERROR)
        return FAIL(ST_ENOMEM, "no memory to read %s", b->label);
    if (p->error == YAML_READER_ERROR) {
        snprintf(what, sizeof what, "byte %zu: %s; job files are UTF-8 text", p->problem_offset, p->problem);
        return refuse(b, line_of(b, p->problem_offset), what);
    }
    size_t at = p->problem_mark.index; /* counts characters: right while the text before it is ASCII, a hint else */
    bool   tab = at < b->size && b->bytes[at] == '\t';
    snprintf(what, sizeof what, "%s%s%s%s", p->context ? p->context : "", p->context ? ": " : "",
             p->problem ? p->problem : "broken YAML", tab ? " (a tab; indent with spaces)" : "");
    return refuse(b, p->problem_mark.line + 1, what);
}

static status_t next_event(struct builder *b, yaml_event_t *e)
{
    if (!yaml_parser_parse(&b->parser, e))
        return refuse_syntax(b);
    const char *anchor = NULL, *tag = NULL;
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        anchor = (const char *)e->data.scalar.anchor;
        tag    = (const char *)e->data.scalar.tag;
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = (const char *)e->data.sequence_start.anchor;
        tag    = (const char *)e->data.sequence_start.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = (const char *)e->data.mapping_start.anchor;
        tag    = (const char *)e->data.mapping_start.tag;
        break;
    default:
        break;
    }
    if (!anchor && !tag && e->type != YAML_ALIAS_EVENT)
        return ST_OK;
    status_t st = refuse(b, e->start_mark.line + 1,
                         tag ? "tags (!name) have no place in a job file"
                             : "anchors (&name) and aliases (*name) have no place in a job file; quote a text that "
                               "begins with & or *");
    yaml_event_delete(e);
    return st;
}

static struct yaml *new_node(struct builder *b, enum yaml_kind kind, size_t line)
{
    struct yaml *y = calloc(1, sizeof *y);
    if (!y)
        return NULL;
    y->kind = kind;
    y->line = b->set ? 0 : (int)line;
    y->set  = b->set;
    b->nodes++;
    return y;
}

void tree_free(struct yaml *y)
{
    if (!y)
        return;
    for (int i = 0; i < y->n; i++) {
        tree_free(y->items[i]);
        if (y->keys)
            free(y->keys[i]);
    }
    free(y->items);
    free(y->keys);
    free(y->key_lines);
    free(y->text);
    free(y);
}

/* Append item (and key, for a map) to y; both belong to y on success and stay the caller's on failure. */
static status_t append(struct yaml *y, char *key, int key_line, struct yaml *item)
{
    if ((y->n & (y->n - 1)) == 0) { /* full at powers of two */
        size_t        room  = y->n ? 2 * (size_t)y->n : 1;
        struct yaml **items = realloc(y->items, room * sizeof *items);
        if (!items)
            return FAIL(ST_ENOMEM, "no memory for a list of %zu", room);
        y->items = items;
        if (y->kind == YAML_MAP) {
            char **keys = realloc(y->keys, room * sizeof *keys);
            if (!keys)
                return FAIL(ST_ENOMEM, "no memory for a map of %zu", room);
            y->keys    = keys;
            int *lines = realloc(y->key_lines, room * sizeof *lines);
            if (!lines)
                return FAIL(ST_ENOMEM, "no memory for a map of %zu", room);
            y->key_lines = lines;
        }
    }
    y->items[y->n] = item;
    if (y->kind == YAML_MAP) {
        y->keys[y->n]      = key;
        y->key_lines[y->n] = key_line;
    }
    y->n++;
    return ST_OK;
}

static status_t take_text(struct builder *b, const yaml_event_t *e, char **out)
{
    const char *text = (const char *)e->data.scalar.value;
    size_t      n    = e->data.scalar.length;
    if (memchr(text, '\0', n))
        return refuse(b, e->start_mark.line + 1, "a NUL byte in a text");
    char *copy = malloc(n + 1);
    if (!copy)
        return FAIL(ST_ENOMEM, "no memory for a text of %zu bytes", n);
    memcpy(copy, text, n);
    copy[n] = '\0';
    *out    = copy;
    return ST_OK;
}

static status_t build_node(struct builder *b, yaml_event_t *e, int depth, struct yaml **out);

static status_t build_list(struct builder *b, int depth, struct yaml *list)
{
    for (;;) {
        yaml_event_t e;
        TRY(next_event(b, &e));
        if (e.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&e);
            return ST_OK;
        }
        struct yaml *item = NULL;
        TRY(build_node(b, &e, depth + 1, &item));
        status_t st = append(list, NULL, 0, item);
        if (st != ST_OK) {
            tree_free(item);
            return st;
        }
    }
}

/* The key in e, checked against the keys the map has. */
static status_t take_key(struct builder *b, const yaml_event_t *e, const struct yaml *map, char **out)
{
    char what[160];
    if (e->type != YAML_SCALAR_EVENT)
        return refuse(b, e->start_mark.line + 1, "a key must be a word");
    if (map->n >= b->limits->keys)
        return refuse(b, e->start_mark.line + 1, "too many keys in one map");
    char *key;
    TRY(take_text(b, e, &key));
    for (int i = 0; i < map->n; i++)
        if (strcmp(map->keys[i], key) == 0) {
            snprintf(what, sizeof what, "%.60s: stands twice, first in line %d", key, map->key_lines[i]);
            free(key);
            return refuse(b, e->start_mark.line + 1, what);
        }
    *out = key;
    return ST_OK;
}

static status_t build_map(struct builder *b, int depth, struct yaml *map)
{
    for (;;) {
        yaml_event_t e;
        TRY(next_event(b, &e));
        if (e.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&e);
            return ST_OK;
        }
        char        *key  = NULL;
        struct yaml *item = NULL;
        int          line = (int)e.start_mark.line + 1;
        status_t     st   = take_key(b, &e, map, &key);
        yaml_event_delete(&e);
        TRY(st);
        TRY_OUT(next_event(b, &e));
        TRY_OUT(build_node(b, &e, depth + 1, &item));
        TRY_OUT(append(map, key, line, item));
        continue;
    out:
        free(key);
        tree_free(item);
        return st;
    }
}

/* Takes over e. */
static status_t build_node(struct builder *b, yaml_event_t *e, int depth, struct yaml **out)
{
    status_t     st   = ST_OK;
    size_t       line = e->start_mark.line + 1;
    struct yaml *y    = NULL;
    if (depth > b->limits->depth) {
        st = refuse(b, line, "nested too deeply");
        goto out;
    }
    if (b->nodes >= b->limits->nodes) {
        st = refuse(b, line, "too many values");
        goto out;
    }
    enum yaml_kind kind = e->type == YAML_SEQUENCE_START_EVENT  ? YAML_LIST
                          : e->type == YAML_MAPPING_START_EVENT ? YAML_MAP
                                                                : YAML_SCALAR;
    if (!(y = new_node(b, kind, line))) {
        st = FAIL(ST_ENOMEM, "no memory to read %s", b->label);
        goto out;
    }
    if (kind == YAML_SCALAR) {
        y->quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
        st        = take_text(b, e, &y->text);
    }
out:
    yaml_event_delete(e);
    if (st == ST_OK && y->kind == YAML_LIST)
        st = build_list(b, depth, y);
    else if (st == ST_OK && y->kind == YAML_MAP)
        st = build_map(b, depth, y);
    if (st == ST_OK)
        *out = y;
    else
        tree_free(y);
    return st;
}

static status_t expect(struct builder *b, yaml_event_type_t type, const char *what)
{
    yaml_event_t e;
    TRY(next_event(b, &e));
    status_t st = e.type == type ? ST_OK : refuse(b, e.start_mark.line + 1, what);
    yaml_event_delete(&e);
    return st;
}

static status_t build_document(struct builder *b, struct yaml **root)
{
    yaml_event_t e;
    TRY(expect(b, YAML_STREAM_START_EVENT, "broken YAML"));
    TRY(expect(b, YAML_DOCUMENT_START_EVENT, "empty"));
    TRY(next_event(b, &e));
    TRY(build_node(b, &e, 0, root));
    TRY(expect(b, YAML_DOCUMENT_END_EVENT, "broken YAML"));
    return expect(b, YAML_STREAM_END_EVENT, "a second document begins here; a job file holds one");
}

status_t tree_parse(const char *bytes, size_t size, const char *label, const char *set,
                    const struct yaml_limits *limits, struct yaml **out)
{
    struct builder b = {.bytes = bytes, .size = size, .label = label, .set = set, .limits = limits};
    if (!yaml_parser_initialize(&b.parser))
        return FAIL(ST_ENOMEM, "no memory to read %s", label);
    yaml_parser_set_encoding(&b.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&b.parser, (const unsigned char *)bytes, size);
    struct yaml *root = NULL;
    status_t     st   = build_document(&b, &root);
    yaml_parser_delete(&b.parser);
    if (st == ST_OK)
        *out = root;
    else
        tree_free(root);
    return st;
}

status_t tree_refuse(const struct yaml *at, const char *label, const char *fmt, ...)
{
    char    what[1024];
    va_list args;
    size_t  n = (size_t)(at->set ? snprintf(what, sizeof what, "--set %.200s: ", at->set)
                                 : snprintf(what, sizeof what, "%.400s:%d: ", label, at->line));
    va_start(args, fmt);
    vsnprintf(what + n, sizeof what - n, fmt, args);
    va_end(args);
    text_one_line(what);
    return FAIL(at->set ? ST_EUSAGE : ST_EINPUT, "%s", what);
}

static int key_index(const struct yaml *map, const char *key, size_t key_n)
{
    for (int i = 0; i < map->n; i++)
        if (strlen(map->keys[i]) == key_n && memcmp(map->keys[i], key, key_n) == 0)
            return i;
    return -1;
}

struct yaml *tree_get(const struct yaml *map, const char *key)
{
    int i = map->kind == YAML_MAP ? key_index(map, key, strlen(key)) : -1;
    return i < 0 ? NULL : map->items[i];
}

/* ---- --set ------------------------------------------------------------------------------------------------------- */

static void remove_item(struct yaml *map, int i)
{
    tree_free(map->items[i]);
    free(map->keys[i]);
    map->n--;
    /* Growth looks at n alone, so the arrays keep room for at least n; order is kept because it is the axes' order. */
    for (int k = i; k < map->n; k++) {
        map->items[k]     = map->items[k + 1];
        map->keys[k]      = map->keys[k + 1];
        map->key_lines[k] = map->key_lines[k + 1];
    }
}

static struct yaml *new_map(const char *arg)
{
    struct yaml *y = calloc(1, sizeof *y);
    if (y) {
        y->kind = YAML_MAP;
        y->set  = arg;
    }
    return y;
}

static status_t put(struct yaml *map, const char *key, size_t key_n, struct yaml *value)
{
    int i = key_index(map, key, key_n);
    if (i >= 0) {
        tree_free(map->items[i]);
        map->items[i]     = value;
        map->key_lines[i] = 0;
        return ST_OK;
    }
    char *copy = strndup(key, key_n);
    if (!copy)
        return FAIL(ST_ENOMEM, "no memory for a key");
    status_t st = append(map, copy, 0, value);
    if (st != ST_OK)
        free(copy);
    return st;
}

/* The node below y that one segment of a dotted key names; made when make is set and it is missing. */
static status_t descend(struct yaml *y, const char *arg, const char *segment, size_t n, struct yaml **out)
{
    if (y->kind == YAML_LIST) {
        long i = 0;
        for (size_t k = 0; k < n; k++)
            i = isdigit((unsigned char)segment[k]) && i < 1000000 ? 10 * i + segment[k] - '0' : 1000000;
        if (i >= y->n)
            return FAIL(ST_EUSAGE, "--set %.200s: \"%.*s\" stands for a list of %d here; name an item by its number, 0 to %d",
                        arg, (int)n, segment, y->n, y->n - 1);
        *out = y->items[i];
        return ST_OK;
    }
    if (y->kind == YAML_SCALAR)
        return FAIL(ST_EUSAGE, "--set %.200s: what stands before \"%.*s\" is one value, it has no keys", arg, (int)n,
                    segment);
    int i = key_index(y, segment, n);
    if (i >= 0) {
        *out = y->items[i];
        return ST_OK;
    }
    struct yaml *made = new_map(arg);
    if (!made)
        return FAIL(ST_ENOMEM, "no memory for --set %.200s", arg);
    status_t st = put(y, segment, n, made);
    if (st == ST_OK)
        *out = made;
    else
        tree_free(made);
    return st;
}

status_t tree_set(struct yaml *root, const char *arg, const struct yaml_limits *limits)
{
    const char *equals = strchr(arg, '='), *segment = arg;
    if (!equals || equals == arg)
        return FAIL(ST_EUSAGE, "--set %.200s: want key=value, such as batch=4 or workload.samples=2", arg);
    struct yaml *y = root;
    for (int depth = 0;; depth++) {
        size_t n = strcspn(segment, ".=");
        if (n == 0 || strspn(segment, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") < n)
            return FAIL(ST_EUSAGE, "--set %.200s: a key is words joined by dots", arg);
        if (depth >= limits->depth)
            return FAIL(ST_EUSAGE, "--set %.200s: nested too deeply", arg);
        if (segment + n == equals)
            break;
        TRY(descend(y, arg, segment, n, &y));
        segment += n + 1;
    }
    size_t n = (size_t)(equals - segment);
    if (y->kind != YAML_MAP)
        return FAIL(ST_EUSAGE, "--set %.200s: \"%.*s\" would be a key of something that is not a map", arg, (int)n, segment);
    if (equals[1] == '\0') {
        int i = key_index(y, segment, n);
        if (i >= 0)
            remove_item(y, i);
        return ST_OK;
    }
    struct yaml *value = NULL;
    TRY(tree_parse(equals + 1, strlen(equals + 1), "--set", arg, limits, &value));
    status_t st = put(y, segment, n, value);
    if (st != ST_OK)
        tree_free(value);
    return st;
}
