#include "sweep/where.h"

#include "sweep/field.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum op {
    OP_OR, OP_AND, OP_NOT, OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_IN,
    OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_MOD, OP_NEG,
    OP_FIELD,  /* left = index into cell_fields, or FIELD_COUNT for the model directory */
    OP_NUMBER, /* number                                                                */
    OP_WORD,   /* text                                                                  */
    OP_TRUTH,  /* number is 0 or 1                                                      */
    OP_ITEM,   /* one item of an in-list: left = value, right = next item or −1         */
};

enum type { TYPE_NUMBER, TYPE_WORD, TYPE_TRUTH };

struct node {
    enum op     op;
    enum type   type;
    int         left, right; /* indices of nodes, −1 = none */
    double      number;
    char       *text;        /* OP_WORD: owned              */
};

struct where {
    struct node nodes[WHERE_NODES_MAX];
    int         n, root;
};

enum token { TOKEN_END, TOKEN_NAME, TOKEN_NUMBER, TOKEN_QUOTED, TOKEN_SIGN };

struct parser {
    struct where *w;
    const char   *place;
    status_t      code;
    const char   *at;    /* next byte of source                        */
    enum token    token;
    const char   *start; /* the token; a quoted one without its quotes */
    size_t        len;
    double        number;
    int           depth;
};

static status_t refuse(const struct parser *p, const char *what)
{
    char at[25];
    if (p->token == TOKEN_END)
        return FAIL(p->code, "%s: at the end: %s", p->place, what);
    snprintf(at, sizeof at, "%s", p->start);
    text_one_line(at);
    return FAIL(p->code, "%s: at \"%s\": %s", p->place, at, what);
}

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

static bool is_name(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '-';
}

static status_t take_number(struct parser *p)
{
    /* A number with its unit is what a size field reads: digits, a point, letters. */
    const struct field *size = &cell_fields[field_find("memory_limit")];
    char                text[48], why[512], *end;
    size_t              n = strspn(p->at, "0123456789."), unit = 0;
    while (isalpha((unsigned char)p->at[n + unit]))
        unit++;
    if (n + unit >= sizeof text)
        return refuse(p, "a number is too long");
    memcpy(text, p->at, n + unit);
    text[n + unit] = '\0';
    union field_value v;
    p->number = strtod(text, &end);
    if (unit) {
        if (!field_parse(size, text, &v, why, sizeof why))
            return refuse(p, "want a number or a size such as 8GB");
        p->number = (double)v.i;
    } else if (*end) {
        return refuse(p, "want a number");
    }
    p->token = TOKEN_NUMBER;
    p->at += n + unit;
    return ST_OK;
}

static status_t take_quoted(struct parser *p)
{
    const char *end = strchr(p->at + 1, *p->at);
    if (!end)
        return refuse(p, "the quote is not closed");
    p->token = TOKEN_QUOTED;
    p->start = p->at + 1;
    p->len   = (size_t)(end - p->start);
    p->at    = end + 1;
    return ST_OK;
}

static status_t advance(struct parser *p)
{
    static const char *const doubles[] = {"||", "&&", "==", "!=", "<=", ">="};
    while (isspace((unsigned char)*p->at))
        p->at++;
    p->token = TOKEN_SIGN;
    p->start = p->at;
    if (*p->at == '"' || *p->at == '\'')
        return take_quoted(p);
    if (*p->at == '\0') {
        p->token = TOKEN_END;
    } else if (isdigit((unsigned char)*p->at) || (*p->at == '.' && isdigit((unsigned char)p->at[1]))) {
        TRY(take_number(p));
    } else if (isalpha((unsigned char)*p->at) || *p->at == '_') {
        p->token = TOKEN_NAME;
        while (is_name(*p->at))
            p->at++;
    } else {
        int n = 1;
        for (int i = 0; i < 6; i++)
            if (strncmp(p->at, doubles[i], 2) == 0)
                n = 2;
        p->at += n;
    }
    p->len = (size_t)(p->at - p->start);
    return ST_OK;
}

static bool is_token(const struct parser *p, const char *text)
{
    return (p->token == TOKEN_SIGN || p->token == TOKEN_NAME) && p->len == strlen(text) &&
           memcmp(p->start, text, p->len) == 0;
}

/* ---- nodes and types --------------------------------------------------------------------------------------------- */

static status_t add(struct parser *p, struct node node, int *out)
{
    if (p->w->n == WHERE_NODES_MAX)
        return refuse(p, "the filter has too many parts");
    p->w->nodes[p->w->n] = node;
    *out                 = p->w->n++;
    return ST_OK;
}

/* A word stands where only a name or a number makes sense. */
static status_t refuse_word(const struct parser *p, const struct node *word)
{
    const char *names[FIELD_COUNT + 1];
    for (int i = 0; i < FIELD_COUNT; i++)
        names[i] = cell_fields[i].name;
    names[FIELD_COUNT] = "model";
    const char *near   = nearest_name(word->text, names, FIELD_COUNT + 1);
    return FAIL(p->code, "%s: \"%.40s\" is not a value of a cell%s%s%s", p->place, word->text,
                near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

static status_t want(const struct parser *p, int index, enum type type, const char *what)
{
    const struct node *node = &p->w->nodes[index];
    if (node->type == type)
        return ST_OK;
    return node->op == OP_WORD ? refuse_word(p, node) : refuse(p, what);
}

/* A word beside a name must be one of that name's values. */
static status_t check_word(const struct parser *p, const struct node *name, const struct node *word)
{
    union field_value v;
    char              why[512];
    if (name->op != OP_FIELD || word->op != OP_WORD || name->left == FIELD_COUNT)
        return ST_OK;
    return field_parse(&cell_fields[name->left], word->text, &v, why, sizeof why)
               ? ST_OK
               : FAIL(p->code, "%s: %s", p->place, why);
}

static status_t check_pair(const struct parser *p, enum op op, int left, int right)
{
    const struct node *a = &p->w->nodes[left], *b = &p->w->nodes[right];
    if (a->op == OP_WORD && (b->op == OP_WORD || b->type != TYPE_WORD))
        return refuse_word(p, a);
    if (b->op == OP_WORD && a->type != TYPE_WORD)
        return refuse_word(p, b);
    if (a->type != b->type)
        return refuse(p, "the two sides cannot be compared: one is a number, the other is not");
    if (a->type != TYPE_NUMBER && op != OP_EQ && op != OP_NE && op != OP_IN)
        return refuse(p, "only numbers have an order; words are compared with == and !=");
    TRY(check_word(p, a, b));
    return check_word(p, b, a);
}

/* ---- grammar: one function a level, loosest first ---------------------------------------------------------------- */

static status_t parse_or(struct parser *p, int *out);

/* The token as a word of its own. */
static status_t add_word(struct parser *p, int *out)
{
    char *copy = strndup(p->start, p->len);
    if (!copy)
        return FAIL(ST_ENOMEM, "no memory for a filter");
    status_t st = add(p, (struct node){OP_WORD, TYPE_WORD, -1, -1, 0, copy}, out);
    if (st != ST_OK)
        free(copy);
    return st;
}

static status_t add_name(struct parser *p, int *out)
{
    static const enum type types[] = {[FIELD_CHOICE] = TYPE_WORD, [FIELD_INT] = TYPE_NUMBER, [FIELD_FLOAT] = TYPE_NUMBER,
                                      [FIELD_BOOL] = TYPE_TRUTH, [FIELD_BYTES] = TYPE_NUMBER, [FIELD_SEED] = TYPE_NUMBER};
    if (is_token(p, "true") || is_token(p, "false"))
        return add(p, (struct node){OP_TRUTH, TYPE_TRUTH, -1, -1, is_token(p, "true"), NULL}, out);
    if (is_token(p, "model"))
        return add(p, (struct node){OP_FIELD, TYPE_WORD, FIELD_COUNT, -1, 0, NULL}, out);
    for (int i = 0; i < FIELD_COUNT; i++)
        if (is_token(p, cell_fields[i].name))
            return add(p, (struct node){OP_FIELD, types[cell_fields[i].kind], i, -1, 0, NULL}, out);
    return add_word(p, out);
}

static status_t parse_primary(struct parser *p, int *out)
{
    static const char *const reserved[] = {"and", "or", "not", "in"};
    if (is_token(p, "(")) {
        TRY(advance(p));
        TRY(parse_or(p, out));
        if (!is_token(p, ")"))
            return refuse(p, "want \")\"");
        return advance(p);
    }
    for (int i = 0; i < 4; i++)
        if (is_token(p, reserved[i]))
            return refuse(p, "want a name, a number or a word");
    if (p->token == TOKEN_NUMBER)
        TRY(add(p, (struct node){OP_NUMBER, TYPE_NUMBER, -1, -1, p->number, NULL}, out));
    else if (p->token == TOKEN_QUOTED)
        TRY(add_word(p, out));
    else if (p->token == TOKEN_NAME)
        TRY(add_name(p, out));
    else
        return refuse(p, "want a name, a number or a word");
    return advance(p);
}

static status_t parse_unary(struct parser *p, int *out)
{
    if (!is_token(p, "-"))
        return parse_primary(p, out);
    int operand;
    TRY(advance(p));
    if (++p->depth > WHERE_DEPTH_MAX)
        return refuse(p, "nested too deeply");
    TRY(parse_unary(p, &operand));
    p->depth--;
    TRY(want(p, operand, TYPE_NUMBER, "only a number has a sign"));
    return add(p, (struct node){OP_NEG, TYPE_NUMBER, operand, -1, 0, NULL}, out);
}

/* One level of left-associative operators on numbers. */
static status_t parse_arithmetic(struct parser *p, const char *const *signs, const enum op *ops, int n,
                                 status_t (*tighter)(struct parser *, int *), int *out)
{
    TRY(tighter(p, out));
    for (;;) {
        int k = 0, right;
        while (k < n && !is_token(p, signs[k]))
            k++;
        if (k == n)
            return ST_OK;
        TRY(advance(p));
        TRY(tighter(p, &right));
        TRY(want(p, *out, TYPE_NUMBER, "arithmetic needs numbers"));
        TRY(want(p, right, TYPE_NUMBER, "arithmetic needs numbers"));
        TRY(add(p, (struct node){ops[k], TYPE_NUMBER, *out, right, 0, NULL}, out));
    }
}

static status_t parse_product(struct parser *p, int *out)
{
    static const char *const signs[] = {"*", "/", "%"};
    static const enum op     ops[]   = {OP_MUL, OP_DIV, OP_MOD};
    return parse_arithmetic(p, signs, ops, 3, parse_unary, out);
}

static status_t parse_sum(struct parser *p, int *out)
{
    static const char *const signs[] = {"+", "-"};
    static const enum op     ops[]   = {OP_ADD, OP_SUB};
    return parse_arithmetic(p, signs, ops, 2, parse_product, out);
}

static status_t parse_list(struct parser *p, int left, int *out)
{
    int first = -1, last = -1;
    if (!is_token(p, "["))
        return refuse(p, "want a list such as [1, 2, 4] after \"in\"");
    do {
        int value, item = -1;
        TRY(advance(p));
        TRY(parse_sum(p, &value));
        TRY(check_pair(p, OP_IN, left, value));
        TRY(add(p, (struct node){OP_ITEM, TYPE_TRUTH, value, -1, 0, NULL}, &item));
        if (last >= 0)
            p->w->nodes[last].right = item;
        else
            first = item;
        last = item;
    } while (is_token(p, ","));
    if (!is_token(p, "]"))
        return refuse(p, "want \",\" or \"]\"");
    TRY(advance(p));
    return add(p, (struct node){OP_IN, TYPE_TRUTH, left, first, 0, NULL}, out);
}

static status_t parse_comparison(struct parser *p, int *out)
{
    static const char *const signs[] = {"==", "!=", "<", "<=", ">", ">="};
    static const enum op     ops[]   = {OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE};
    int                      left, right, k = 0;
    TRY(parse_sum(p, &left));
    if (is_token(p, "="))
        return refuse(p, "equality is written ==");
    bool negated = is_token(p, "not");
    if (negated) {
        TRY(advance(p));
        if (!is_token(p, "in"))
            return refuse(p, "want \"in\" after \"not\"");
    }
    if (is_token(p, "in")) {
        TRY(advance(p));
        TRY(parse_list(p, left, out));
        return negated ? add(p, (struct node){OP_NOT, TYPE_TRUTH, *out, -1, 0, NULL}, out) : ST_OK;
    }
    while (k < 6 && !is_token(p, signs[k]))
        k++;
    if (k == 6) {
        *out = left;
        return ST_OK;
    }
    TRY(advance(p));
    TRY(parse_sum(p, &right));
    for (int i = 0; i < 6; i++)
        if (is_token(p, signs[i]))
            return refuse(p, "comparisons do not chain; write a < b and b < c");
    TRY(check_pair(p, ops[k], left, right));
    return add(p, (struct node){ops[k], TYPE_TRUTH, left, right, 0, NULL}, out);
}

static status_t parse_not(struct parser *p, int *out)
{
    if (!is_token(p, "not") && !is_token(p, "!"))
        return parse_comparison(p, out);
    int operand;
    TRY(advance(p));
    if (++p->depth > WHERE_DEPTH_MAX)
        return refuse(p, "nested too deeply");
    TRY(parse_not(p, &operand));
    p->depth--;
    TRY(want(p, operand, TYPE_TRUTH, "\"not\" needs a comparison"));
    return add(p, (struct node){OP_NOT, TYPE_TRUTH, operand, -1, 0, NULL}, out);
}

static status_t parse_logic(struct parser *p, const char *word, const char *sign, enum op op,
                            status_t (*tighter)(struct parser *, int *), int *out)
{
    TRY(tighter(p, out));
    while (is_token(p, word) || is_token(p, sign)) {
        int right;
        TRY(want(p, *out, TYPE_TRUTH, "\"and\" and \"or\" join comparisons"));
        TRY(advance(p));
        TRY(tighter(p, &right));
        TRY(want(p, right, TYPE_TRUTH, "\"and\" and \"or\" join comparisons"));
        TRY(add(p, (struct node){op, TYPE_TRUTH, *out, right, 0, NULL}, out));
    }
    return ST_OK;
}

static status_t parse_and(struct parser *p, int *out)
{
    return parse_logic(p, "and", "&&", OP_AND, parse_not, out);
}

static status_t parse_or(struct parser *p, int *out)
{
    if (++p->depth > WHERE_DEPTH_MAX)
        return refuse(p, "nested too deeply");
    TRY(parse_logic(p, "or", "||", OP_OR, parse_and, out));
    p->depth--;
    return ST_OK;
}

static status_t parse_all(struct parser *p)
{
    TRY(advance(p));
    TRY(parse_or(p, &p->w->root));
    if (p->token != TOKEN_END)
        return refuse(p, "want \"and\", \"or\" or the end");
    return want(p, p->w->root, TYPE_TRUTH, "a filter must be true or false, such as batch <= 8");
}

status_t where_parse(const char *text, const char *place, status_t code, struct where **out)
{
    if (strlen(text) >= WHERE_BYTES_MAX)
        return FAIL(code, "%s: the filter is longer than %d bytes", place, WHERE_BYTES_MAX - 1);
    struct where *w = calloc(1, sizeof *w);
    if (!w)
        return FAIL(ST_ENOMEM, "no memory for a filter");
    struct parser p  = {.w = w, .place = place, .code = code, .at = text};
    status_t      st = parse_all(&p);
    if (st == ST_OK)
        *out = w;
    else
        where_free(w);
    return st;
}

void where_free(struct where *w)
{
    for (int i = 0; w && i < w->n; i++)
        free(w->nodes[i].text);
    free(w);
}

/* ---- evaluation -------------------------------------------------------------------------------------------------- */

static const char *word_of(const struct node *node, const struct cell *c)
{
    if (node->op == OP_WORD)
        return node->text;
    if (node->left == FIELD_COUNT)
        return c->model ? c->model : "";
    const struct field *f = &cell_fields[node->left];
    int64_t             i = field_get(f, c).i;
    return i >= 0 && i < f->n_choices ? f->choices[i] : "?";
}

/* A cell's 0.7 is a float, a filter's 0.7 a double: through its text it is the number that people wrote. */
static double field_number(const struct field *f, const struct cell *c)
{
    union field_value v = field_get(f, c);
    char              text[24];
    if (f->kind != FIELD_FLOAT)
        return (double)v.i;
    float_text((float)v.f, text);
    return strtod(text, NULL);
}

static double number_of(const struct where *w, int index, const struct cell *c);

static bool equal(const struct where *w, int left, int right, const struct cell *c)
{
    const struct node *a = &w->nodes[left], *b = &w->nodes[right];
    if (a->type == TYPE_WORD)
        return strcmp(word_of(a, c), word_of(b, c)) == 0;
    return number_of(w, left, c) == number_of(w, right, c);
}

/* Numbers as they are, truth as 0 or 1. Recursion is bounded by the number of nodes. */
static double number_of(const struct where *w, int index, const struct cell *c)
{
    const struct node *n = &w->nodes[index];
    switch (n->op) {
    case OP_OR:
        return number_of(w, n->left, c) != 0 || number_of(w, n->right, c) != 0;
    case OP_AND:
        return number_of(w, n->left, c) != 0 && number_of(w, n->right, c) != 0;
    case OP_NOT:
        return number_of(w, n->left, c) == 0;
    case OP_EQ:
        return equal(w, n->left, n->right, c);
    case OP_NE:
        return !equal(w, n->left, n->right, c);
    case OP_LT:
        return number_of(w, n->left, c) < number_of(w, n->right, c);
    case OP_LE:
        return number_of(w, n->left, c) <= number_of(w, n->right, c);
    case OP_GT:
        return number_of(w, n->left, c) > number_of(w, n->right, c);
    case OP_GE:
        return number_of(w, n->left, c) >= number_of(w, n->right, c);
    case OP_IN:
        for (int item = n->right; item >= 0; item = w->nodes[item].right)
            if (equal(w, n->left, w->nodes[item].left, c))
                return 1;
        return 0;
    case OP_ADD:
        return number_of(w, n->left, c) + number_of(w, n->right, c);
    case OP_SUB:
        return number_of(w, n->left, c) - number_of(w, n->right, c);
    case OP_MUL:
        return number_of(w, n->left, c) * number_of(w, n->right, c);
    case OP_DIV:
        return number_of(w, n->left, c) / number_of(w, n->right, c);
    case OP_MOD:
        return fmod(number_of(w, n->left, c), number_of(w, n->right, c));
    case OP_NEG:
        return -number_of(w, n->left, c);
    case OP_FIELD:
        return field_number(&cell_fields[n->left], c);
    default:
        return n->number;
    }
}

bool where_holds(const struct where *w, const struct cell *c)
{
    return number_of(w, w->root, c) != 0;
}
