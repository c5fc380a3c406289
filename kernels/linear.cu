/* linear.cu — how a matrix is cut into fragments, and the kernel that packs it. */
#include "kernels/device.cuh"
#include "kernels/linear.h"

extern "C" cudaError_t linear_bf16_launch(const struct linear *, const struct linear_call *, cudaStream_t);
extern "C" cudaError_t linear_int8_launch(const struct linear *, const struct linear_call *, cudaStream_t);

static int up(int a, int b)
{
    return (a + b - 1) / b * b;
}

/* Columns are cut for 8 warps in whole pairs of ksteps (256 columns); beyond 8 ksteps a warp in chunks of 8 or 10. */
static int ksteps_for(int cols)
{
    int k = up(cols, 256) / 128; /* ksteps a warp, even */
    if (k <= 4)
        return 4;
    if (k <= 8)
        return 8;
    int by8 = up(k, 8), by10 = up(k, 10);
    return by10 < by8 ? by10 : by8;
}

extern "C" void linear_plan(struct linear *l, int rows, int cols, bool int8, bool paired, bool normed)
{
    struct linear p = {};
    p.rows = rows, p.cols = cols, p.int8 = int8, p.paired = paired;
    p.fold   = 1;
    p.tiles  = up(rows, paired ? 8 : 16) / (paired ? 8 : 16);
    p.ksteps = ksteps_for(cols);
    /* Few rows leave SMs idle: tiles of 8 rows double the blocks. */
    const bool one_chunk = cols == 1024 || (!normed && (cols == 2048 || cols == 3072));
    if (!paired && p.tiles <= 72 && one_chunk)
        p.fold = 2, p.ksteps = cols / 256;
    else if (!paired && !normed && p.tiles > 72 && p.tiles <= 264 && cols > 2048)
        p.fold = 2, p.ksteps = ksteps_for(up(cols, 2) / 2);
    if (p.fold == 2)
        p.tiles = up(rows, 8) / 8;
    *l = p;
}

extern "C" size_t linear_weight_bytes(const struct linear *l)
{
    return (size_t)l->tiles * LINEAR_WARPS * (size_t)l->ksteps * (l->int8 ? 256 : 512);
}

extern "C" size_t linear_scale_bytes(const struct linear *l)
{
    return l->int8 ? (size_t)l->tiles * 16 * sizeof(float) : 0;
}

extern "C" int linear_padded_cols(int cols)
{
    return up(cols, 256) + 2816; /* what ksteps_for() may add, twice for the two halves of fold 2 */
}

/* A thread writes one lane's 16 bytes: one BF16 fragment, or two INT8 ones. Fragment rows of other parts are left alone:
 * the arena is zeroed once. */
static __global__ void pack_kernel(struct linear l, uint8_t *w, const uint8_t *rows, int to, int n_rows, int part)
{
    const int    per = l.int8 ? 2 : 1, lane = threadIdx.x % WARP, g = lane >> 2, t = lane & 3;
    const size_t units = (size_t)l.tiles * LINEAR_WARPS * (l.ksteps / per);
    for (size_t u = (size_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; u < units;
         u += (size_t)gridDim.x * (blockDim.x / WARP)) {
        const int s0 = (int)(u % (l.ksteps / per)) * per, warp = (int)(u / (l.ksteps / per) % LINEAR_WARPS);
        const int tile = (int)(u / (l.ksteps / per) / LINEAR_WARPS);
        const int width = l.ksteps * LINEAR_WARPS * 16; /* fold 2: columns of one half */
        uint8_t  *out   = w + (u * per) * (l.int8 ? 256 : 512) + (size_t)lane * 16;
        for (int s = 0; s < per; s++)
            for (int hi = 0; hi < 2; hi++) {
                int row = l.fold == 2 ? tile * 8 + g : l.paired ? tile * 8 + g : tile * 16 + g + 8 * hi;
                if (l.paired && hi != part)
                    continue;
                row -= to;
                if (row < 0 || row >= n_rows)
                    continue;
                for (int j = 0; j < 4; j++) {
                    const int ks = s0 + s;
                    const int k  = (l.fold == 2 ? hi * width : 0) + warp * l.ksteps * 16 + 32 * (ks / 2) + 8 * t +
                                  4 * (ks % 2) + j;
                    const size_t at = (size_t)row * l.cols + k;
                    if (k >= l.cols)
                        continue;
                    if (l.int8)
                        out[s * 8 + hi * 4 + j] = rows[at];
                    else /* registers: (g, low pair), (g+8, low pair), (g, high pair), (g+8, high pair) */
                        for (int b = 0; b < 2; b++) /* by bytes: the source has no alignment */
                            out[(j / 2) * 8 + hi * 4 + (j % 2) * 2 + b] = rows[2 * at + b];
                }
            }
    }
}

static __global__ void pack_scales_kernel(struct linear l, float *scale, const void *scales, int f32, int to, int n_rows,
                                          int part)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_rows)
        return;
    const int   row = to + i;
    const float s   = f32 ? ((const float *)scales)[i] : __bfloat162float(((const __nv_bfloat16 *)scales)[i]);
    if (l.paired)
        scale[row / 8 * 16 + part * 8 + row % 8] = s;
    else
        scale[row] = s; /* fold 2: [tiles·8] rows in order */
}

extern "C" cudaError_t linear_pack_launch(const struct linear *l, void *d_w, float *d_scale, const void *d_rows,
                                          const void *d_scales, bool scales_f32, int to, int n_rows, int part,
                                          cudaStream_t stream)
{
    pack_kernel<<<1056, 256, 0, stream>>>(*l, (uint8_t *)d_w, (const uint8_t *)d_rows, to, n_rows, part);
    cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess && d_scales) {
        pack_scales_kernel<<<(n_rows + 255) / 256, 256, 0, stream>>>(*l, d_scale, d_scales, scales_f32, to, n_rows, part);
        e = cudaGetLastError();
    }
    return e;
}

extern "C" cudaError_t linear_launch(const struct linear *l, const struct linear_call *call, cudaStream_t stream)
{
    return l->int8 ? linear_int8_launch(l, call, stream) : linear_bf16_launch(l, call, stream);
}
