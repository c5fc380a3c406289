/* sweep_schema.h — the tables of sweep.h5 as schemas: /summary, /sources, /events. Private to store/. */
#ifndef QSWEEP_STORE_SWEEP_SCHEMA_H
#define QSWEEP_STORE_SWEEP_SCHEMA_H

#include "bench/summary.h"
#include "store/table.h"

/* A summary row as the table keeps it: choices are words there. */
struct summary_record {
    struct summary_row row;
    char               choice[FIELD_COUNT][24];
};
const struct table_schema *summary_schema(void);
void     summary_pack(const struct summary_row *row, struct summary_record *out);
status_t summary_unpack(const struct summary_record *record, struct summary_row *out);
/* What a record holds before it is read: columns that an older file does not have stay unknown. */
void     summary_record_init(struct summary_record *out);

/* One row a cell that came from a cell file; xxh3 tells contents apart. */
struct source_record {
    char     id[33], file[96];
    uint64_t size, xxh3;
};
extern const struct table_schema source_schema;

/* One line of progress.jsonl: starts, ends, failures, stops. */
struct event_record {
    char    time[24], event[16], id[33], status[16], host[32], text[160];
    int64_t process, rank, pid;
    double  seconds;
};
extern const struct table_schema event_schema;

/* One row a node and model of one launch: staging.jsonl. */
struct staging_record {
    char     host[64], model[160], form[16], mode[16], checksum[33];
    uint64_t bytes, bytes_read, bytes_received;
    double   init_s, read_s, quantize_s, copy_s, transfer_s, verify_s, total_s;
    double   read_gb_s, quantize_gb_s, transfer_gb_s;
};
extern const struct table_schema staging_schema;

#endif
