/* merge_items.h — what a merge starts from: one item a cell, the best of all inputs, sorted by id. Private to store/.
 */
#ifndef QSWEEP_STORE_MERGE_ITEMS_H
#define QSWEEP_STORE_MERGE_ITEMS_H

#include "base/log.h"
#include "store/sweep_file.h"
#include "store/sweep_schema.h"
#include "sweep/plan.h"

/* A folder of cell files, or a merged file. */
struct merge_input {
    const char  *path;
    bool         folder;
    hid_t        file;     /* merged file: open, else invalid        */
    struct plan *plan;     /* folder with a plan.json, else NULL     */
    char        *job_text; /* NULL when there is none                */
    uint64_t     events;   /* checksum of what /events is made from  */
};

enum item_kind {
    ITEM_EMPTY, /* no result: pending, or invalid with a reason                */
    ITEM_GROUP, /* /cells/<id> of a merged file                                */
    ITEM_FILE   /* a cell file                                                 */
};
struct item {
    char               id[33];
    enum item_kind     kind;
    enum cell_status   status;
    bool               damaged; /* ITEM_EMPTY: there is a file, but it cannot be read        */
    bool               reused;  /* taken over from the existing output                       */
    uint32_t           input;
    char              *file;   /* relative to the results folder, NULL when there was none  */
    char              *reason; /* ITEM_EMPTY: why it is invalid, else NULL                  */
    const struct cell *plan;   /* borrowed from the plan; NULL when no plan names the cell  */
    uint64_t           size, sum;
    int64_t            started_ns;
};
struct item_list {
    struct merge_input *inputs;
    size_t              n_inputs;
    struct item        *items; /* ascending ids, each once */
    size_t              n, room;
    size_t              n_damaged; /* told so far                 */
    enum log_level      level;     /* while probing               */
};

/* Around what looks into a file that may be damaged: after the first ones, each further one only costs its row. */
void probe_begin(struct item_list *l);
void probe_end(struct item_list *l);

/* List the inputs of a request. Damaged files become items; an input that cannot be listed is an error. */
status_t item_list_open(const struct merge_request *request, struct item_list *out);
void     item_list_close(struct item_list *l); /* after a failure too */

struct item *item_find(const struct item_list *l, const char *id); /* NULL when there is none */

/* Turn an item into a damaged one: its row will be invalid with this reason. */
status_t item_damage(struct item_list *l, struct item *it, const char *reason);

/* Path of an ITEM_FILE. */
void item_path(const struct item_list *l, const struct item *it, char *out, size_t size);

/* merge_events.c: write the table /events of the file `out`, which messages call label. */
status_t merge_events(hid_t out, const char *label, const struct item_list *l);

/* merge_staging.c: the group /staging with its table of nodes. */
status_t merge_staging(hid_t out, const char *label, const struct item_list *l);

/* sweep_file.c: is a merged file as long as it was, and up to sum_limit bytes what it was? ST_EINPUT when not. */
status_t sweep_file_check_seal(const char *path, uint64_t sum_limit);

bool is_cell_id(const char *text); /* 32 hex digits */

#endif
