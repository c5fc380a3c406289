/* precision.h — the table of number formats a sweep can ask for. */
#ifndef QSWEEP_MODEL_PRECISION_H
#define QSWEEP_MODEL_PRECISION_H

#include "base/status.h"

/* How the weights of the linear layers are stored. Activations are FP32 for PRECISION_FP32 and BF16-rounded otherwise. */
enum precision { PRECISION_FP32, PRECISION_BF16, PRECISION_INT8, PRECISION_COUNT };
enum kv_format { KV_FP32, KV_BF16, KV_INT8, KV_COUNT };
enum head_mode { HEAD_FULL, HEAD_SEMANTIC, HEAD_COUNT };
enum engine_kind { ENGINE_AUTO, ENGINE_OPS, ENGINE_GRAPH, ENGINE_PERSISTENT, ENGINE_COUNT };
enum codec_mode { CODEC_OFF, CODEC_FP32, CODEC_BF16, CODEC_INT8, CODEC_COUNT };

const char *precision_name(enum precision p); /* "fp32", "bf16", "int8" */
const char *kv_format_name(enum kv_format f);
const char *head_mode_name(enum head_mode m); /* "full", "semantic" */
const char *engine_kind_name(enum engine_kind e); /* "auto", "ops", "graph", "persistent" */
const char *codec_mode_name(enum codec_mode c);

/* Value for a name, or -1. */
int precision_parse(const char *name);
int kv_format_parse(const char *name);
int head_mode_parse(const char *name);
int engine_kind_parse(const char *name);
int codec_mode_parse(const char *name);

#endif
