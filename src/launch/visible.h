/* visible.h — which of a host's GPUs a process may use, by CUDA_VISIBLE_DEVICES. Pure.
 *
 * CUDA numbers devices in an order of its own (fastest first, unless CUDA_DEVICE_ORDER=PCI_BUS_ID) and NVML by PCI
 * address (CUDA C Programming Guide, environment variables), so a number is only trusted where both orders are the same:
 * all cards of one model, or PCI order asked for. UUIDs, their unique beginnings and MIG ids mean the same to both. */
#ifndef QSWEEP_LAUNCH_VISIBLE_H
#define QSWEEP_LAUNCH_VISIBLE_H

#include "backend/nvml.h"

/* variable, order: values of CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, NULL when unset. all [n] as nvml_list() gives them. Writes
 * the visible ones to out [n], in the variable's order, and returns how many; a number of a divided card stands for its
 * instances. −1 with the reason in why when the variable names what is not there, names it twice or cannot be trusted. */
int visible_gpus(const char *variable, const char *order, const struct nvml_gpu *all, int n, struct nvml_gpu *out, char *why,
                 size_t why_size);

#endif
