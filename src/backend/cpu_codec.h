/* cpu_codec.h — the codec's operations of the fast CPU backend. */
#ifndef QSWEEP_BACKEND_CPU_CODEC_H
#define QSWEEP_BACKEND_CPU_CODEC_H

#include "backend/codec_ops.h"

extern const struct codec_ops cpu_codec_ops;

#endif
