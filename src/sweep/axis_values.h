/* axis_values.h — the values of one axis as a job file writes them: a word, a list, a range, a set of texts. */
#ifndef QSWEEP_SWEEP_AXIS_VALUES_H
#define QSWEEP_SWEEP_AXIS_VALUES_H

#include "sweep/sweep.h"

/* One value of a field, "auto" included where a field has it. */
status_t value_parse(const struct yaml *y, const char *label, int field, union field_value *out);

/* A path of a model; texts: "reference", one text, a list of texts, {file: PATH} or {reference: [short, long]}. The
 * index into s of what is new or already there. */
status_t model_parse(const struct yaml *y, const char *label, struct sweep *s, int *index);
status_t text_set_parse(const struct yaml *y, const char *label, const struct job_files *files, struct sweep *s,
                        int *index);

/* Everything under one key of a sweep: fills axis->values and n. */
status_t axis_parse(const struct yaml *y, const char *label, const struct job_files *files, struct sweep *s,
                    struct axis *axis);

#endif
