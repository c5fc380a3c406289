#include "checkpoint/pickle.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bounds on what one pickle may ask for. A state dict of 541 tensors takes 83 KB of pickle, some 5,000 memo slots and
 * 0.2 MB of arena; the arena's bound is what stops a small pickle from building a large structure. */
enum {
    MAX_PICKLE = 64 << 20,
    MAX_MEMO   = 4000000,
    MAX_STACK  = 100000,
    MAX_TEXT   = 64 << 10,
    MAX_ARENA  = 128 << 20,
    ARENA_STEP = 256 << 10,
};

enum kind { V_MARK, V_NONE, V_BOOL, V_INT, V_FLOAT, V_TEXT, V_GLOBAL, V_TUPLE, V_LIST, V_DICT, V_STORAGE, V_TENSOR };

enum callable { G_ORDERED_DICT, G_REBUILD_V2, G_REBUILD_V3, G_REBUILD_PARAMETER, G_STORAGE, G_UNTYPED_STORAGE, G_DTYPE };

struct value {
    uint8_t  kind;
    uint8_t  callable; /* V_GLOBAL */
    uint8_t  dtype;    /* V_GLOBAL: G_STORAGE, G_DTYPE */
    uint32_t n;        /* V_TEXT: bytes; V_TUPLE: items */
    union {
        int64_t                 number; /* V_INT, V_BOOL */
        const char             *text;
        struct value           *items;
        struct mapping         *mapping;
        struct pickled_storage *storage;
        struct pickled_tensor  *tensor;
    } u;
};

/* Only what can matter later is kept of a dict: its text keys whose values are tensors or dicts. */
struct pair {
    struct value key, value;
};

struct mapping {
    struct pair *pairs;
    size_t       count, capacity;
    struct value first_key; /* V_TEXT once there is one */
};

struct arena_block {
    struct arena_block *next;
    _Alignas(16) unsigned char bytes[];
};

struct machine {
    const unsigned char *bytes;
    size_t               size, at;
    const char          *label;

    struct value *stack;
    size_t        depth, stack_capacity;
    struct value *memo; /* kind V_MARK = empty slot: a mark is never memoized */
    size_t        memo_count, memo_capacity;

    struct arena_block *blocks;
    size_t              arena_left, arena_total;
    unsigned char      *arena_at;
};

__attribute__((format(printf, 2, 3))) static status_t bad(const struct machine *m, const char *fmt, ...)
{
    char    text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return FAIL(ST_EINPUT, "%s: data.pkl, byte %zu: %s", m->label, m->at, text);
}

static status_t arena_take(struct machine *m, size_t bytes, void **out)
{
    bytes = (bytes + 15) & ~(size_t)15;
    if (bytes > m->arena_left) {
        size_t step = bytes > ARENA_STEP ? bytes : ARENA_STEP;
        if (m->arena_total + step > MAX_ARENA)
            return bad(m, "the structure needs more than %d MB of memory; no state dict does", MAX_ARENA >> 20);
        struct arena_block *block = malloc(sizeof *block + step);
        if (!block)
            return FAIL(ST_ENOMEM, "%s: no memory to read data.pkl", m->label);
        block->next = m->blocks;
        m->blocks   = block;
        m->arena_at = block->bytes;
        m->arena_left = step;
        m->arena_total += step;
    }
    *out = m->arena_at;
    m->arena_at += bytes;
    m->arena_left -= bytes;
    return ST_OK;
}

static status_t push(struct machine *m, struct value v)
{
    if (m->depth >= MAX_STACK)
        return bad(m, "more than %d values on the stack", MAX_STACK);
    if (m->depth == m->stack_capacity) {
        size_t        capacity = m->stack_capacity ? 2 * m->stack_capacity : 256;
        struct value *stack    = realloc(m->stack, capacity * sizeof *stack);
        if (!stack)
            return FAIL(ST_ENOMEM, "%s: no memory to read data.pkl", m->label);
        m->stack          = stack;
        m->stack_capacity = capacity;
    }
    m->stack[m->depth++] = v;
    return ST_OK;
}

/* The value i places below the top (0 = top), which must exist above the last mark. */
static status_t peek(const struct machine *m, size_t i, struct value **out)
{
    if (m->depth <= i)
        return bad(m, "the stack is too short");
    for (size_t k = 0; k <= i; k++)
        if (m->stack[m->depth - 1 - k].kind == V_MARK)
            return bad(m, "the stack is too short");
    *out = &m->stack[m->depth - 1 - i];
    return ST_OK;
}

static status_t pop(struct machine *m, struct value *out)
{
    struct value *top = NULL;
    TRY(peek(m, 0, &top));
    *out = *top;
    m->depth--;
    return ST_OK;
}

/* Index of the first value above the last mark. */
static status_t find_mark(const struct machine *m, size_t *first)
{
    for (size_t i = m->depth; i > 0; i--)
        if (m->stack[i - 1].kind == V_MARK) {
            *first = i;
            return ST_OK;
        }
    return bad(m, "no mark on the stack");
}

static status_t memo_put(struct machine *m, uint64_t index)
{
    struct value *top = NULL;
    TRY(peek(m, 0, &top));
    /* Picklers number from 0 and each slot costs them at least two bytes, so the pickle's size bounds the index. */
    if (index >= MAX_MEMO || index >= m->size)
        return bad(m, "memo slot %llu is out of range", (unsigned long long)index);
    if (index >= m->memo_capacity) {
        size_t        capacity = m->memo_capacity ? m->memo_capacity : 256;
        while (capacity <= index)
            capacity *= 2;
        struct value *memo = realloc(m->memo, capacity * sizeof *memo);
        if (!memo)
            return FAIL(ST_ENOMEM, "%s: no memory to read data.pkl", m->label);
        m->memo          = memo;
        m->memo_capacity = capacity;
    }
    while (m->memo_count <= index)
        m->memo[m->memo_count++] = (struct value){.kind = V_MARK};
    m->memo[index] = *top;
    return ST_OK;
}

static status_t memo_get(struct machine *m, uint64_t index)
{
    if (index >= m->memo_count || m->memo[index].kind == V_MARK)
        return bad(m, "memo slot %llu is empty", (unsigned long long)index);
    return push(m, m->memo[index]);
}

/* The next n bytes of the pickle. */
static status_t take(struct machine *m, uint64_t n, const unsigned char **out)
{
    if (n > m->size - m->at)
        return bad(m, "the pickle ends inside an operand");
    *out = m->bytes + m->at;
    m->at += (size_t)n;
    return ST_OK;
}

static uint64_t little_endian(const unsigned char *p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = n; i > 0; i--)
        v = v << 8 | p[i - 1];
    return v;
}

static status_t take_number(struct machine *m, size_t n, uint64_t *out)
{
    const unsigned char *p = NULL;
    TRY(take(m, n, &p));
    *out = little_endian(p, n);
    return ST_OK;
}

static bool text_is(const struct value *v, const char *text)
{
    return v->kind == V_TEXT && v->n == strlen(text) && memcmp(v->u.text, text, v->n) == 0;
}

/* ---- names ---- */

static const struct {
    const char   *storage, *dtype; /* torch.<storage>, torch.<dtype> */
    enum dtype    is;
} torch_types[] = {
    {"FloatStorage", "float32", DT_F32},   {"BFloat16Storage", "bfloat16", DT_BF16}, {"HalfStorage", "float16", DT_F16},
    {"DoubleStorage", "float64", DT_F64},  {"CharStorage", "int8", DT_I8},           {"ByteStorage", "uint8", DT_U8},
    {"ShortStorage", "int16", DT_I16},     {"IntStorage", "int32", DT_I32},          {"LongStorage", "int64", DT_I64},
    {"BoolStorage", "bool", DT_BOOL},      {NULL, "float8_e4m3fn", DT_F8_E4M3},      {NULL, "float8_e5m2", DT_F8_E5M2},
};

static bool global_lookup(const char *module, const char *name, struct value *out)
{
    static const struct {
        const char   *module, *name;
        enum callable callable;
    } plain[] = {
        {"collections", "OrderedDict", G_ORDERED_DICT},
        {"torch._utils", "_rebuild_tensor_v2", G_REBUILD_V2},
        {"torch._utils", "_rebuild_tensor_v3", G_REBUILD_V3},
        {"torch._utils", "_rebuild_parameter", G_REBUILD_PARAMETER},
        {"torch.storage", "UntypedStorage", G_UNTYPED_STORAGE},
    };
    *out = (struct value){.kind = V_GLOBAL};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (strcmp(module, plain[i].module) == 0 && strcmp(name, plain[i].name) == 0) {
            out->callable = (uint8_t)plain[i].callable;
            return true;
        }
    for (size_t i = 0; strcmp(module, "torch") == 0 && i < sizeof torch_types / sizeof *torch_types; i++) {
        bool storage = torch_types[i].storage && strcmp(name, torch_types[i].storage) == 0;
        if (storage || strcmp(name, torch_types[i].dtype) == 0) {
            out->callable = storage ? G_STORAGE : G_DTYPE;
            out->dtype    = (uint8_t)torch_types[i].is;
            return true;
        }
    }
    return false;
}

/* A line of printable ASCII up to LF, as Python identifiers with dots are. */
static status_t take_line(struct machine *m, char *out, size_t size)
{
    size_t n = 0;
    while (m->at < m->size && m->bytes[m->at] != '\n') {
        unsigned char c = m->bytes[m->at++];
        if (c < 0x21 || c > 0x7e || n + 1 >= size)
            return bad(m, "a name of a Python object is too long or not printable");
        out[n++] = (char)c;
    }
    if (m->at == m->size)
        return bad(m, "the pickle ends inside a name");
    m->at++;
    out[n] = '\0';
    return ST_OK;
}

static status_t op_global(struct machine *m)
{
    char         module[128], name[128];
    struct value v;
    TRY(take_line(m, module, sizeof module));
    TRY(take_line(m, name, sizeof name));
    if (global_lookup(module, name, &v))
        return push(m, v);
    if (strncmp(module, "torchao", 7) == 0)
        return bad(m, "holds TorchAO objects (%s.%s), which are Python classes and are not loaded; quantize the original "
                      "checkpoint with `qsweep quantize` instead", module, name);
    return bad(m, "names the Python object %s.%s; only state dicts of plain tensors are loaded", module, name);
}

/* ---- persistent ids and calls ---- */

static status_t op_persistent_id(struct machine *m)
{
    struct value id;
    TRY(pop(m, &id));
    if (id.kind != V_TUPLE || id.n != 5 || !text_is(&id.u.items[0], "storage"))
        return bad(m, "a persistent id that is not a storage");
    const struct value *class = &id.u.items[1], *key = &id.u.items[2], *count = &id.u.items[4];
    bool typed = class->kind == V_GLOBAL && class->callable == G_STORAGE;
    if (!typed && !(class->kind == V_GLOBAL && class->callable == G_UNTYPED_STORAGE))
        return bad(m, "a storage without a storage class");
    if (key->kind != V_TEXT || key->n == 0 || key->n > 20)
        return bad(m, "a storage without a usable key");
    for (uint32_t i = 0; i < key->n; i++)
        if (key->u.text[i] < '0' || key->u.text[i] > '9')
            return bad(m, "a storage whose key is not a number");
    if (id.u.items[3].kind != V_TEXT || count->kind != V_INT || count->u.number < 0)
        return bad(m, "a storage without location or size");

    void *place = NULL;
    TRY(arena_take(m, sizeof(struct pickled_storage), &place));
    struct pickled_storage *s = place;
    *s = (struct pickled_storage){key->u.text, key->n, typed ? (enum dtype)class->dtype : DT_U8, count->u.number};
    return push(m, (struct value){.kind = V_STORAGE, .callable = typed ? G_STORAGE : G_UNTYPED_STORAGE, .u.storage = s});
}

/* (storage, offset, size, stride, requires_grad, hooks[, metadata]) or, v3, (…, hooks, dtype[, metadata]). */
static status_t call_rebuild(struct machine *m, const struct value *args, bool v3)
{
    const struct value *a = args->u.items;
    if (args->n < (v3 ? 7u : 6u) || args->n > (v3 ? 8u : 7u) || a[0].kind != V_STORAGE || a[1].kind != V_INT ||
        a[2].kind != V_TUPLE || a[3].kind != V_TUPLE || a[2].n != a[3].n)
        return bad(m, "a tensor with the wrong arguments");
    if (v3 ? a[6].kind != V_GLOBAL || a[6].callable != G_DTYPE : a[0].callable != G_STORAGE)
        return bad(m, "a tensor without a known type");
    if (a[2].n > TENSOR_MAX_RANK)
        return bad(m, "a tensor with %u dimensions (at most %d)", a[2].n, TENSOR_MAX_RANK);

    void *place = NULL;
    TRY(arena_take(m, sizeof(struct pickled_tensor), &place));
    struct pickled_tensor *t = place;
    *t = (struct pickled_tensor){.storage = *a[0].u.storage, .offset = a[1].u.number, .rank = (int)a[2].n};
    t->dtype = v3 ? (enum dtype)a[6].dtype : t->storage.dtype;
    for (int i = 0; i < t->rank; i++) {
        const struct value *size = &a[2].u.items[i], *stride = &a[3].u.items[i];
        if (size->kind != V_INT || stride->kind != V_INT || size->u.number < 0 || stride->u.number < 0)
            return bad(m, "a tensor whose sizes or strides are not counts");
        t->shape[i]  = size->u.number;
        t->stride[i] = stride->u.number;
    }
    if (t->offset < 0)
        return bad(m, "a tensor with a negative offset");
    return push(m, (struct value){.kind = V_TENSOR, .u.tensor = t});
}

static status_t push_mapping(struct machine *m)
{
    void *place = NULL;
    TRY(arena_take(m, sizeof(struct mapping), &place));
    struct mapping *d = place;
    *d                = (struct mapping){0};
    return push(m, (struct value){.kind = V_DICT, .u.mapping = d});
}

static status_t op_reduce(struct machine *m)
{
    struct value args, callable;
    TRY(pop(m, &args));
    TRY(pop(m, &callable));
    if (callable.kind != V_GLOBAL || args.kind != V_TUPLE)
        return bad(m, "a call that is not one");
    switch ((enum callable)callable.callable) {
    case G_ORDERED_DICT:
        if (args.n != 0)
            return bad(m, "an OrderedDict with arguments");
        return push_mapping(m);
    case G_REBUILD_V2:
        return call_rebuild(m, &args, false);
    case G_REBUILD_V3:
        return call_rebuild(m, &args, true);
    case G_REBUILD_PARAMETER:
        if (args.n != 3 || args.u.items[0].kind != V_TENSOR)
            return bad(m, "a parameter that is not a tensor");
        return push(m, args.u.items[0]);
    case G_STORAGE:
    case G_UNTYPED_STORAGE:
    case G_DTYPE:
        break;
    }
    return bad(m, "a call of something that is not a function");
}

/* ---- containers ---- */

static status_t make_tuple(struct machine *m, size_t first)
{
    size_t n     = m->depth - first;
    void  *items = NULL;
    if (n)
        TRY(arena_take(m, n * sizeof(struct value), &items));
    if (n)
        memcpy(items, m->stack + first, n * sizeof(struct value));
    m->depth = first;
    return push(m, (struct value){.kind = V_TUPLE, .n = (uint32_t)n, .u.items = items});
}

static status_t op_small_tuple(struct machine *m, size_t n)
{
    struct value *lowest = NULL;
    TRY(peek(m, n - 1, &lowest));
    return make_tuple(m, m->depth - n);
}

static status_t mapping_add(struct machine *m, struct mapping *d, const struct value *key, const struct value *value)
{
    if (key->kind != V_TEXT)
        return ST_OK;
    if (d->first_key.kind != V_TEXT)
        d->first_key = *key;
    if (value->kind != V_TENSOR && value->kind != V_DICT)
        return ST_OK;
    if (d->count == d->capacity) {
        size_t capacity = d->capacity ? 2 * d->capacity : 8;
        void  *pairs = NULL;
        TRY(arena_take(m, capacity * sizeof(struct pair), &pairs));
        if (d->count)
            memcpy(pairs, d->pairs, d->count * sizeof(struct pair));
        d->pairs    = pairs;
        d->capacity = capacity;
    }
    d->pairs[d->count++] = (struct pair){*key, *value};
    return ST_OK;
}

/* Values first… are keys and values in turn; the dict lies at index `dict`. */
static status_t set_items(struct machine *m, size_t dict, size_t first)
{
    if (dict >= m->depth || m->stack[dict].kind != V_DICT || (m->depth - first) % 2)
        return bad(m, "items for something that is not a dict");
    for (size_t i = first; i < m->depth; i += 2)
        TRY(mapping_add(m, m->stack[dict].u.mapping, &m->stack[i], &m->stack[i + 1]));
    m->depth = dict + 1;
    return ST_OK;
}

static status_t op_set_items(struct machine *m)
{
    size_t first = 0;
    TRY(find_mark(m, &first));
    return set_items(m, first >= 2 ? first - 2 : SIZE_MAX, first);
}

/* Lists occur in training metadata only: their items are dropped. */
static status_t append(struct machine *m, size_t list)
{
    if (list >= m->depth || m->stack[list].kind != V_LIST)
        return bad(m, "items for something that is not a list");
    m->depth = list + 1;
    return ST_OK;
}

static status_t op_appends(struct machine *m)
{
    size_t first = 0;
    TRY(find_mark(m, &first));
    return append(m, first >= 2 ? first - 2 : SIZE_MAX);
}

/* The state of an OrderedDict is {"_metadata": …}, of no use to us; nothing else may have a state. */
static status_t op_build(struct machine *m)
{
    struct value state, *object = NULL;
    TRY(pop(m, &state));
    TRY(peek(m, 0, &object));
    if (object->kind != V_DICT || state.kind != V_DICT)
        return bad(m, "an object with a state of its own");
    return ST_OK;
}

static status_t push_text(struct machine *m, uint64_t length)
{
    const unsigned char *p = NULL;
    if (length > MAX_TEXT)
        return bad(m, "a text of %llu bytes (at most %d)", (unsigned long long)length, MAX_TEXT);
    TRY(take(m, length, &p));
    return push(m, (struct value){.kind = V_TEXT, .n = (uint32_t)length, .u.text = (const char *)p});
}

/* LONG1: two's complement of n bytes; sizes of tensors need at most 8. */
static status_t op_long1(struct machine *m)
{
    uint64_t             n = 0, v;
    const unsigned char *p = NULL;
    TRY(take_number(m, 1, &n));
    TRY(take(m, n, &p));
    if (n > 8)
        return bad(m, "a number of %llu bytes", (unsigned long long)n);
    v = little_endian(p, (size_t)n);
    if (n > 0 && n < 8 && p[n - 1] & 0x80)
        v |= UINT64_MAX << (8 * n);
    return push(m, (struct value){.kind = V_INT, .u.number = (int64_t)v});
}

static status_t push_int(struct machine *m, size_t bytes, bool is_signed)
{
    uint64_t v = 0;
    TRY(take_number(m, bytes, &v));
    return push(m, (struct value){.kind = V_INT, .u.number = is_signed ? (int64_t)(int32_t)(uint32_t)v : (int64_t)v});
}

enum opcode {
    OP_MARK = '(', OP_STOP = '.', OP_BINFLOAT = 'G', OP_BININT = 'J', OP_BININT1 = 'K', OP_BININT2 = 'M', OP_NONE = 'N',
    OP_BINPERSID = 'Q', OP_REDUCE = 'R', OP_BINUNICODE = 'X', OP_EMPTY_LIST = ']', OP_APPEND = 'a', OP_BUILD = 'b',
    OP_GLOBAL = 'c', OP_APPENDS = 'e', OP_BINGET = 'h', OP_LONG_BINGET = 'j', OP_BINPUT = 'q', OP_LONG_BINPUT = 'r',
    OP_SETITEM = 's', OP_TUPLE = 't', OP_SETITEMS = 'u', OP_EMPTY_DICT = '}', OP_EMPTY_TUPLE = ')', OP_PROTO = 0x80,
    OP_TUPLE1 = 0x85, OP_TUPLE2 = 0x86, OP_TUPLE3 = 0x87, OP_NEWTRUE = 0x88, OP_NEWFALSE = 0x89, OP_LONG1 = 0x8a,
    OP_SHORT_BINUNICODE = 0x8c, OP_MEMOIZE = 0x94, OP_FRAME = 0x95,
};

static status_t step(struct machine *m, unsigned op)
{
    const unsigned char *p = NULL;
    struct value         v;
    uint64_t             n     = 0;
    size_t               first = 0;
    switch (op) {
    case OP_PROTO:
        TRY(take_number(m, 1, &n));
        return n >= 2 && n <= 5 ? ST_OK : bad(m, "pickle protocol %llu (want 2 to 5)", (unsigned long long)n);
    case OP_FRAME:
        return take_number(m, 8, &n);
    case OP_MARK:
        return push(m, (struct value){.kind = V_MARK});
    case OP_NONE:
        return push(m, (struct value){.kind = V_NONE});
    case OP_NEWTRUE:
    case OP_NEWFALSE:
        return push(m, (struct value){.kind = V_BOOL, .u.number = op == OP_NEWTRUE});
    case OP_BININT:
        return push_int(m, 4, true);
    case OP_BININT1:
        return push_int(m, 1, false);
    case OP_BININT2:
        return push_int(m, 2, false);
    case OP_LONG1:
        return op_long1(m);
    case OP_BINFLOAT:
        TRY(take(m, 8, &p));
        return push(m, (struct value){.kind = V_FLOAT});
    case OP_BINUNICODE:
        TRY(take_number(m, 4, &n));
        return push_text(m, n);
    case OP_SHORT_BINUNICODE:
        TRY(take_number(m, 1, &n));
        return push_text(m, n);
    case OP_GLOBAL:
        return op_global(m);
    case OP_BINPERSID:
        return op_persistent_id(m);
    case OP_REDUCE:
        return op_reduce(m);
    case OP_BUILD:
        return op_build(m);
    case OP_EMPTY_TUPLE:
        return make_tuple(m, m->depth);
    case OP_TUPLE1:
    case OP_TUPLE2:
    case OP_TUPLE3:
        return op_small_tuple(m, op - OP_TUPLE1 + 1);
    case OP_TUPLE:
        TRY(find_mark(m, &first));
        TRY(make_tuple(m, first));
        v                      = m->stack[--m->depth];
        m->stack[m->depth - 1] = v; /* over the mark */
        return ST_OK;
    case OP_EMPTY_DICT:
        return push_mapping(m);
    case OP_EMPTY_LIST:
        return push(m, (struct value){.kind = V_LIST});
    case OP_SETITEM:
        return set_items(m, m->depth >= 3 ? m->depth - 3 : SIZE_MAX, m->depth >= 3 ? m->depth - 2 : 0);
    case OP_SETITEMS:
        return op_set_items(m);
    case OP_APPEND:
        return append(m, m->depth >= 2 ? m->depth - 2 : SIZE_MAX);
    case OP_APPENDS:
        return op_appends(m);
    case OP_BINPUT:
        TRY(take_number(m, 1, &n));
        return memo_put(m, n);
    case OP_LONG_BINPUT:
        TRY(take_number(m, 4, &n));
        return memo_put(m, n);
    case OP_MEMOIZE:
        return memo_put(m, m->memo_count);
    case OP_BINGET:
        TRY(take_number(m, 1, &n));
        return memo_get(m, n);
    case OP_LONG_BINGET:
        TRY(take_number(m, 4, &n));
        return memo_get(m, n);
    default:
        return bad(m, "opcode 0x%02x is not one that a state dict needs; refused", op);
    }
}

static status_t run(struct machine *m, struct value *out)
{
    if (m->size == 0 || m->bytes[0] != OP_PROTO)
        return bad(m, "not a pickle of protocol 2 or later");
    while (m->at < m->size) {
        unsigned op = m->bytes[m->at++];
        if (op == OP_STOP) {
            TRY(pop(m, out));
            return m->depth == 0 ? ST_OK : bad(m, "values left on the stack at the end");
        }
        TRY(step(m, op));
    }
    return bad(m, "the pickle ends without a stop");
}

/* Copy the tensors of the mapping, or of its state_dict, out of the arena. */
static status_t collect(struct machine *m, const struct value *top, struct pickled_dict *out)
{
    if (top->kind != V_DICT)
        return bad(m, "the file holds no mapping of names to tensors");
    const struct mapping *d = top->u.mapping;
    for (size_t i = 0; i < d->count; i++)
        if (text_is(&d->pairs[i].key, "state_dict") && d->pairs[i].value.kind == V_DICT) {
            d = d->pairs[i].value.u.mapping;
            break;
        }

    struct pickled_tensor *items = calloc(d->count + 1, sizeof *items);
    if (!items)
        return FAIL(ST_ENOMEM, "%s: no memory for %zu tensors", m->label, d->count);
    size_t n = 0;
    for (size_t i = 0; i < d->count; i++) {
        const struct value *key = &d->pairs[i].key;
        if (d->pairs[i].value.kind != V_TENSOR)
            continue;
        if (!tensor_name_valid(key->u.text, key->n)) {
            free(items);
            return bad(m, "the name of tensor %zu is empty, too long, not UTF-8 or has control characters", n);
        }
        items[n]             = *d->pairs[i].value.u.tensor;
        items[n].name        = key->u.text;
        items[n].name_length = key->n;
        n++;
    }
    *out = (struct pickled_dict){.items = items, .count = n};
    if (d->first_key.kind == V_TEXT) {
        out->first_key        = d->first_key.u.text;
        out->first_key_length = d->first_key.n;
    }
    return ST_OK;
}

status_t pickle_parse(const unsigned char *bytes, size_t size, const char *label, struct pickled_dict *out)
{
    if (size > MAX_PICKLE)
        return FAIL(ST_EINPUT, "%s: data.pkl has %zu bytes (at most %d)", label, size, MAX_PICKLE);
    struct machine m = {.bytes = bytes, .size = size, .label = label};
    struct value   top;
    status_t       st = run(&m, &top);
    if (st == ST_OK)
        st = collect(&m, &top, out);
    while (m.blocks) {
        struct arena_block *next = m.blocks->next;
        free(m.blocks);
        m.blocks = next;
    }
    free(m.stack);
    free(m.memo);
    return st;
}

void pickle_free(struct pickled_dict *dict)
{
    free(dict->items);
    *dict = (struct pickled_dict){0};
}
