/* summary_print.h — summary rows for people (Markdown, 100 columns) and for programs (CSV, JSON, JSON lines). */
#ifndef QSWEEP_BENCH_SUMMARY_PRINT_H
#define QSWEEP_BENCH_SUMMARY_PRINT_H

#include "bench/summary.h"

enum summary_format { SUMMARY_MD, SUMMARY_CSV, SUMMARY_JSON, SUMMARY_JSONL, SUMMARY_FORMAT_COUNT };
int summary_format_parse(const char *name); /* "md", "csv", "json", "jsonl"; -1 for others */

/* Markdown: what all cells share, a table of what varies and the main figures, the differences between precisions, the
 * cells that are not ok with their reasons. The other formats: every column of every row, unknown numbers empty or null.
 * ST_EIO when `to` cannot be written. */
status_t summary_print(const struct summary_row *rows, size_t n, enum summary_format format, FILE *to);

/* Every column with its unit and definition. */
status_t summary_print_definitions(FILE *to);

/* The row as a JSON object, new reference; NULL without memory. Texts that are no UTF-8 must have been cleaned before. */
struct json_t;
struct json_t *summary_to_json(const struct summary_row *row);

#endif
