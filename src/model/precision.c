#include "model/precision.h"

#include <string.h>

static const char *const precision_names[] = {"fp32", "bf16", "int8"};
static const char *const kv_names[]        = {"fp32", "bf16", "int8"};
static const char *const head_names[]      = {"full", "semantic"};
static const char *const engine_names[]    = {"auto", "ops", "graph", "persistent"};
static const char *const codec_names[]     = {"off", "fp32", "bf16", "int8"};

static int find(const char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

#define ENUM_NAMES(prefix, type, names, count)            \
    const char *prefix##_name(type v)                     \
    {                                                     \
        return (int)v >= 0 && v < count ? names[v] : "?"; \
    }                                                     \
    int prefix##_parse(const char *name)                  \
    {                                                     \
        return find(names, count, name);                  \
    }

ENUM_NAMES(precision, enum precision, precision_names, PRECISION_COUNT)
ENUM_NAMES(kv_format, enum kv_format, kv_names, KV_COUNT)
ENUM_NAMES(head_mode, enum head_mode, head_names, HEAD_COUNT)
ENUM_NAMES(engine_kind, enum engine_kind, engine_names, ENGINE_COUNT)
ENUM_NAMES(codec_mode, enum codec_mode, codec_names, CODEC_COUNT)
