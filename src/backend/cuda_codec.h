/* cuda_codec.h — the codec's operations of the CUDA backend. */
#ifndef QSWEEP_BACKEND_CUDA_CODEC_H
#define QSWEEP_BACKEND_CUDA_CODEC_H

#include "backend/codec_ops.h"

extern const struct codec_ops cuda_codec_ops;

#endif
