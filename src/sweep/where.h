/* where.h — the filter language of sweeps: "batch * context <= 4096 and precision in [bf16, int8]".
 *
 *   or || · and && · not ! · == != < <= > >= in · + - · * / % · ( )     loosest first; comparisons do not chain
 *   names    every value of a cell (batch, precision, kv, temperature, …) and model
 *   numbers  8, 0.5, 8GB;  words  int8, true, or in quotes "int8", 'a dir'
 * A word is checked against what the name on the other side may be, so a misspelt filter is an error, not an empty
 * sweep. */
#ifndef QSWEEP_SWEEP_WHERE_H
#define QSWEEP_SWEEP_WHERE_H

#include "sweep/cell.h"

enum { WHERE_BYTES_MAX = 4096, WHERE_NODES_MAX = 512, WHERE_DEPTH_MAX = 64 };

struct where;

/* Parse text. `place` begins every message ("jobs/a.yaml:7: where"). code: what a mistake is raised as. */
status_t where_parse(const char *text, const char *place, status_t code, struct where **out);
void     where_free(struct where *w); /* NULL is accepted */
bool     where_holds(const struct where *w, const struct cell *c);

#endif
