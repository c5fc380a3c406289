/* cpu_ref_codec.h — the scalar codec operations, for the table of cpu_ref and for what the fast CPU does not speed up. */
#ifndef QSWEEP_BACKEND_CPU_REF_CODEC_H
#define QSWEEP_BACKEND_CPU_REF_CODEC_H

#include "backend/codec_ops.h"

extern const struct codec_ops cpu_ref_codec_ops;

/* The epilogue's activation of one value. */
float codec_activate(enum codec_activation act, float x);

#endif
