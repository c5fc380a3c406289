/* fragment.cuh — the tensor-core step and the way INT8 weights become its operand. */
#ifndef QSWEEP_KERNELS_FRAGMENT_CUH
#define QSWEEP_KERNELS_FRAGMENT_CUH

#include "kernels/device.cuh"

static __device__ __forceinline__ void mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two INT8 of `u` (the pair selected by sel) as two BF16, exactly, in four instructions. With q = low7 − 128·sign,
 * 0x4300|low7 is 128 + low7 and 0x4300|sign·0x80 is 128 or 256; their difference is q. */
static __device__ __forceinline__ uint32_t int8_pair(uint32_t u, uint32_t sel)
{
    uint32_t r = __byte_perm(u, 0x43434343u, sel), a = r & 0xff7fff7fu, b = r & 0xff80ff80u;
    __nv_bfloat162 x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    x = __hsub2(x, y);
    memcpy(&a, &x, sizeof a);
    return a;
}
/* One fragment from the 4 + 4 bytes of rows g and g+8. */
static __device__ __forceinline__ void int8_fragment(uint32_t low, uint32_t high, uint32_t *f)
{
    f[0] = int8_pair(low, 0x4140);
    f[1] = int8_pair(high, 0x4140);
    f[2] = int8_pair(low, 0x4342);
    f[3] = int8_pair(high, 0x4342);
}

#endif
