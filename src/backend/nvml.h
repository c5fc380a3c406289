/* nvml.h — one NVIDIA device through the driver's management library, opened at run time with our own declarations after
 * NVIDIA's NVML API reference, so that a machine without a driver builds and starts. Reading creates no CUDA context. */
#ifndef QSWEEP_BACKEND_NVML_H
#define QSWEEP_BACKEND_NVML_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nvml; /* the library and one device */

enum { NVML_TEXT = 96 };
#define NVML_UNKNOWN UINT64_MAX

/* What does not change while a worker runs. */
struct nvml_identity {
    char name[NVML_TEXT], uuid[NVML_TEXT], driver[NVML_TEXT];
    int  ecc;          /* 1 on, 0 off, −1 unknown                                              */
    int  capability;   /* 90 = sm_90, −1 unknown                                               */
    int  cuda_version; /* the latest that the driver speaks, 13000 = 13.0 (−1 unknown)         */
};

/* Bytes as the driver counts them. v1 counts its own reservation as used, v2 apart; a field that could not be read is
 * NVML_UNKNOWN. process: this process, unknown in many containers. */
struct nvml_memory {
    uint64_t v1_total, v1_free, v1_used;
    uint64_t v2_total, v2_free, v2_used, v2_reserved;
    uint64_t process;
};

/* Fields that the card does not tell are NaN or NVML_UNKNOWN. */
struct nvml_state {
    double   sm_clock_mhz, mem_clock_mhz, power_mw, temperature_c;
    uint64_t throttle;        /* clock event reasons                       */
    uint64_t energy_mj;       /* counter since the driver was loaded       */
    uint64_t ecc_uncorrected; /* volatile count                            */
};

struct nvml_process {
    unsigned pid;
    uint64_t bytes; /* NVML_UNKNOWN in many containers */
};

/* A device that a process can compute on: a whole GPU, or an instance of one that is divided (MIG). */
struct nvml_gpu {
    char     name[NVML_TEXT], uuid[NVML_TEXT]; /* "GPU-…" or "MIG-…"                                    */
    char     bus_id[32];                       /* PCI address of the card, "" when unknown              */
    uint64_t memory_bytes;                     /* 0 when unknown                                        */
    int      card;                             /* position of its card among all cards, in PCI order    */
};

/* uuid "GPU-…", or NULL for device `index`. ST_EUNSUPPORTED with the reason where there is no driver or no such device. */
status_t nvml_open(const char *uuid, int index, struct nvml **out);
void     nvml_close(struct nvml *n); /* NULL is accepted */

/* What the driver shows to this process, in PCI order: at most `most` are written, their number is returned. A divided
 * card stands there as its instances. 0 with the reason in why when there is none; logs nothing. */
int nvml_list(struct nvml_gpu *out, int most, char *why, size_t why_size);

void nvml_identity(const struct nvml *n, struct nvml_identity *out);
void nvml_memory(const struct nvml *n, struct nvml_memory *out); /* about 20 us; at most every 10 ms    */
void nvml_state(const struct nvml *n, struct nvml_state *out);   /* slower: at most every 100 ms        */
/* Compute processes on the device; returns how many there are (at most `most` are written), −1 when it cannot be told. */
int nvml_processes(const struct nvml *n, struct nvml_process *out, int most);

/* Name of a process's program as the driver knows it, "" when it does not tell. */
void nvml_process_name(const struct nvml *n, unsigned pid, char *out, unsigned size);

#endif
