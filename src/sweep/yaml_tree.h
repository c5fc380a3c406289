/* yaml_tree.h — a YAML document as a small tree that knows its lines, built from libyaml's events within bounds.
 *
 * Anchors, aliases, tags, duplicate keys, further documents, NUL bytes and anything but UTF-8 are refused, so a tree
 * is never larger than its text. Scalars stay text: what a word means is for the reader of the tree to say. */
#ifndef QSWEEP_SWEEP_YAML_TREE_H
#define QSWEEP_SWEEP_YAML_TREE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

enum yaml_kind { YAML_SCALAR, YAML_LIST, YAML_MAP };

struct yaml {
    enum yaml_kind kind;
    int            line;   /* 1, 2, …; 0 when it came from the command line                      */
    bool           quoted; /* scalar in quotes or a block: never a null, a range or a size       */
    char          *text;   /* scalar                                                             */
    char         **keys;   /* map [n], else NULL                                                 */
    int           *key_lines;
    struct yaml  **items;  /* list or map [n]                                                    */
    int            n;
    const char    *set;    /* the --set argument it came from, borrowed; NULL = from the file    */
};

struct yaml_limits {
    int depth, nodes, keys; /* nesting, nodes in all, keys of one map */
};

/* Messages begin "label:line:", or with the --set argument when set is not NULL (then the code is ST_EUSAGE). An empty
 * document is an error. */
status_t tree_parse(const char *bytes, size_t size, const char *label, const char *set,
                    const struct yaml_limits *limits, struct yaml **out);
void     tree_free(struct yaml *y); /* NULL is accepted */

/* Raise ST_EINPUT as "label:line: …", or ST_EUSAGE as "--set …: …" for a node that came from the command line. */
__attribute__((format(printf, 3, 4))) status_t tree_refuse(const struct yaml *at, const char *label, const char *fmt,
                                                           ...);

/* Value of a key, or NULL. */
struct yaml *tree_get(const struct yaml *map, const char *key);

/* Apply "dotted.key=YAML": replaces or adds the value, makes maps on the way; numbers index lists; an empty value
 * removes the key. arg must outlive the tree. */
status_t tree_set(struct yaml *root, const char *arg, const struct yaml_limits *limits);

#endif
