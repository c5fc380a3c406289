/* cpu_codec_body.h — the codec's kernels over a vector type; included by cpu_codec_kernels.c once an instruction set.
 * The including file defines ISA (a name suffix), ISA_TARGET, vf, LANES, ROWS, VECS, UNROLLED and the vf_* primitives. */

#define KERNEL    ISA_TARGET static
#define INLINE    ISA_TARGET __attribute__((always_inline)) static inline
#define NAME2(a, b) a##_##b
#define NAME1(a, b) NAME2(a, b)
#define NAME(a)   NAME1(a, ISA)
#define WIDTH     (LANES * VECS)

/* M rows at a time; M is a constant after inlining. */
#define TILE(LOAD)                                                                              \
    vf s[ROWS][VECS];                                                                           \
    UNROLLED for (int r = 0; r < M; r++)                                                        \
        UNROLLED for (int v = 0; v < VECS; v++)                                                 \
            s[r][v] = vf_load(c + r * WIDTH + v * LANES);                                       \
    for (int k = 0; k < n; k++) {                                                               \
        vf w[VECS];                                                                             \
        UNROLLED for (int v = 0; v < VECS; v++)                                                 \
            w[v] = LOAD(panel + (size_t)k * WIDTH + (size_t)v * LANES);                         \
        UNROLLED for (int r = 0; r < M; r++) {                                                  \
            vf b = vf_set(x[(size_t)r * stride + (size_t)k]);                                   \
            UNROLLED for (int v = 0; v < VECS; v++)                                             \
                s[r][v] = vf_fma(b, w[v], s[r][v]);                                             \
        }                                                                                       \
    }                                                                                           \
    UNROLLED for (int r = 0; r < M; r++)                                                        \
        UNROLLED for (int v = 0; v < VECS; v++)                                                 \
            vf_store(c + r * WIDTH + v * LANES, s[r][v]);

INLINE void NAME(tile_f32)(float *c, const float *x, size_t stride, const float *panel, int n, const int M)
{
    TILE(vf_load)
}

INLINE void NAME(tile_b16)(float *c, const float *x, size_t stride, const uint16_t *panel, int n, const int M)
{
    TILE(vf_load_bf16)
}

INLINE void NAME(tile_s8)(float *c, const float *x, size_t stride, const int8_t *panel, int n, const int M)
{
    TILE(vf_load_i8)
}

/* A table of 6 rows is never asked for 7 or 8. */
#define AT_MOST(m) (ROWS < (m) ? ROWS : (m))
#define BY_ROWS(TILE_OF)                                   \
    switch (m) {                                           \
    case 8: TILE_OF(c, x, stride, panel, n, AT_MOST(8)); break;     \
    case 7: TILE_OF(c, x, stride, panel, n, AT_MOST(7)); break;     \
    case 6: TILE_OF(c, x, stride, panel, n, 6); break;     \
    case 5: TILE_OF(c, x, stride, panel, n, 5); break;     \
    case 4: TILE_OF(c, x, stride, panel, n, 4); break;     \
    case 3: TILE_OF(c, x, stride, panel, n, 3); break;     \
    case 2: TILE_OF(c, x, stride, panel, n, 2); break;     \
    default: TILE_OF(c, x, stride, panel, n, 1); break;    \
    }

KERNEL void NAME(f32)(float *c, const float *x, size_t stride, const float *panel, int n, int m)
{
    BY_ROWS(NAME(tile_f32))
}

KERNEL void NAME(bf16)(float *c, const void *inputs, size_t stride, const uint16_t *panel, int n, int m)
{
    const float *x = inputs;
    BY_ROWS(NAME(tile_b16))
}

KERNEL void NAME(i8)(float *c, const float *x, size_t stride, const int8_t *panel, int n, int m)
{
    BY_ROWS(NAME(tile_s8))
}

/* sin²(z): z reduced to r = z − round(z/π)·π in [−π/2, π/2] in three parts (Cody and Waite 1980), where the sign of the
 * sine does not matter; then the Taylor polynomial of degree 13, whose next term is below 1e-8 at π/2. */
INLINE vf NAME(sin2)(vf z)
{
    vf k = vf_round(vf_mul(z, vf_set(0.31830988618379067f)));
    vf r = vf_fma(k, vf_set(-3.140625f), z);
    r    = vf_fma(k, vf_set(-9.67502593994140625e-4f), r);
    r    = vf_fma(k, vf_set(-1.509957990978376e-7f), r);
    vf q = vf_mul(r, r);
    vf p = vf_set(1.6059043836821613e-10f);
    p    = vf_fma(p, q, vf_set(-2.5052108385441720e-8f));
    p    = vf_fma(p, q, vf_set(2.7557319223985893e-6f));
    p    = vf_fma(p, q, vf_set(-1.9841269841269841e-4f));
    p    = vf_fma(p, q, vf_set(8.3333333333333333e-3f));
    p    = vf_fma(p, q, vf_set(-1.6666666666666667e-1f));
    p    = vf_fma(vf_mul(p, q), r, r);
    return vf_mul(p, p);
}

KERNEL void NAME(snake)(float *y, const float *x, const float *alpha, const float *inverse, int channels)
{
    int i = 0;
    for (; i + LANES <= channels; i += LANES) {
        vf v = vf_load(x + i);
        vf_store(y + i, vf_fma(NAME(sin2)(vf_mul(vf_load(alpha + i), v)), vf_load(inverse + i), v));
    }
    if (i < channels) {
        float part[3][LANES] = {{0}};
        int   rest           = channels - i;
        memcpy(part[0], x + i, (size_t)rest * sizeof(float));
        memcpy(part[1], alpha + i, (size_t)rest * sizeof(float));
        memcpy(part[2], inverse + i, (size_t)rest * sizeof(float));
        vf v = vf_load(part[0]);
        vf_store(part[0], vf_fma(NAME(sin2)(vf_mul(vf_load(part[1]), v)), vf_load(part[2]), v));
        memcpy(y + i, part[0], (size_t)rest * sizeof(float));
    }
}

#undef KERNEL
#undef INLINE
#undef NAME
#undef NAME1
#undef NAME2
#undef WIDTH
#undef TILE
#undef BY_ROWS
#undef AT_MOST
