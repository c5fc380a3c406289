/* field.h — the table of everything a cell can be told: its name in job files, its kind, its limits, where it sits.
 *
 * Job files, where-filters, the canonical text and the JSON of a cell all walk this one table, so a new axis is one
 * line in field.c. Texts and the model directory are not scalars and are handled by their owners. */
#ifndef QSWEEP_SWEEP_FIELD_H
#define QSWEEP_SWEEP_FIELD_H

#include "sweep/cell.h"

enum field_kind { FIELD_CHOICE, FIELD_INT, FIELD_FLOAT, FIELD_BOOL, FIELD_BYTES, FIELD_SEED };
enum field_section { SECTION_AXIS, SECTION_WORKLOAD, SECTION_WEIGHTS };

struct field {
    const char        *name;
    enum field_kind    kind;
    enum field_section section;   /* where it stands in a job file when it is a constant            */
    size_t             offset;    /* in struct cell                                                 */
    const char *const *choices;   /* FIELD_CHOICE: [n_choices], index = value of the enum           */
    int                n_choices;
    double             min, max;  /* numbers: inclusive                                             */
    bool               omit_zero; /* left out of the canonical text at 0 (came after ids were fixed) */
    const char        *help;      /* one line for people                                            */
};

/* A scalar in the widest form: i for everything but FIELD_FLOAT, which uses f. */
union field_value {
    int64_t i;
    double  f;
};

enum { FIELD_COUNT = 28, FIELD_TEXT_MAX = 64 };
extern const struct field cell_fields[FIELD_COUNT]; /* sorted by name */

int  field_find(const char *name); /* index or -1 */
union field_value field_get(const struct field *f, const struct cell *c);
void field_set(const struct field *f, struct cell *c, union field_value v);

/* Text of a value as job files write it; returns its length. out: at least FIELD_TEXT_MAX bytes. */
int field_format(const struct field *f, union field_value v, char *out);
/* Read a value; false with the complaint ("want one of bf16, int8") in why when it is not one. */
bool field_parse(const struct field *f, const char *text, union field_value *out, char *why, size_t why_size);
/* "one of fp32, bf16, int8", "a whole number from 1 to 1024", … */
void field_allowed(const struct field *f, char *out, size_t size);

/* The same as JSON; false with the complaint in why when the value is of another type or out of range. */
struct json_t;
struct json_t *field_to_json(const struct field *f, union field_value v);
bool field_from_json(const struct field *f, const struct json_t *j, union field_value *out, char *why, size_t why_size);

/* The nearest of names to a misspelt one, or NULL when none is near (Damerau-Levenshtein, at most a third wrong). */
const char *nearest_name(const char *wrong, const char *const *names, int n);

/* Control characters become spaces: what users wrote must not break a message into lines. */
void text_one_line(char *text);

/* Shortest decimal that reads back as the same float; returns its length. out: at least 24 bytes. */
int float_text(float v, char *out);

#endif
