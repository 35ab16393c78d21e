// CUDA kernels for the operations of CLIP's transformer other than matrix products, one pass over memory each.
// kernels.py has the same operations in plain Jittor and says what the letters in shapes mean. T, float or half, is the
// type of the inputs and results of matrix products. Sums and the residual stream are float32 always. The file has the
// kernels first, then the functions that launch them.
#pragma once
#ifdef __CUDACC__
#include <cublas_v2.h>
#include <cuda_fp16.h>
#include <stdexcept>
#include <string>
namespace jittor {
extern cublasHandle_t cublas_handle;
}  // namespace jittor
#endif
#include <cstdint>

namespace clip {

typedef int64_t Int;
typedef __half half_t;
const int WARP = 32;

// V numbers that are loaded or stored by one instruction.
template <class T, int V> struct alignas(sizeof(T) * V) Pack {
    T at[V];
};
template <int V, class T> __device__ inline Pack<T, V> load(const T* p) { return *(const Pack<T, V>*)p; }
template <int V, class T> __device__ inline void store(T* p, const Pack<T, V>& pack) { *(Pack<T, V>*)p = pack; }

__device__ inline float number(float x) { return x; }
__device__ inline float number(half_t x) { return __half2float(x); }
__device__ inline void put(float& to, float x) { to = x; }
__device__ inline void put(half_t& to, float x) { to = __float2half(x); }

__device__ inline float warp_sum(float x) {
    for (int lane = WARP / 2; lane; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

// out (n, 3, pixels) = levels (256, 3) of the bytes rgb (n, pixels, 3). One thread per pixel.
__global__ void normalise_kernel(const uint8_t* rgb, const float* levels, float* out, Int n, Int pixels) {
    const Int i = (Int)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n * pixels) return;
    const Int image = i / pixels, pixel = i % pixels;
    for (int channel = 0; channel < 3; channel++)
        out[(image * 3 + channel) * pixels + pixel] = levels[rgb[i * 3 + channel] * 3 + channel];
}

// out (n·grid², 3·size²) = the patches of x (n, 3, side, side), grid = side / size in each direction. V numbers per
// thread.
template <int V, class T> __global__ void patches_kernel(const float* x, T* out, Int count, int side, int size) {
    const Int i = ((Int)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= count) return;
    const int area = size * size, grid = side / size, column = i % (3 * area);
    const Int patch = i / (3 * area), image = patch / (grid * grid);
    const int down = patch / grid % grid * size + column / size % size, across = patch % grid * size + column % size;
    const auto from = load<V>(x + ((image * 3 + column / area) * side + down) * side + across);
    Pack<T, V> to;
    for (int k = 0; k < V; k++) put(to.at[k], from.at[k]);
    store(out + i, to);
}

// out (rows, w) = layer norm of x (rows, w): first the mean, then the variance. One warp per row.
template <int V, class T>
__global__ void layer_norm_kernel(const float* x, const float* weight, const float* bias, T* out, Int rows, int w,
                                  float epsilon) {
    const Int row = (Int)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;  // the whole warp
    const float* from = x + row * w;
    const int first = threadIdx.x % WARP * V, step = WARP * V;
    float total = 0, squares = 0;
    for (int i = first; i < w; i += step) {
        const auto part = load<V>(from + i);
        for (int k = 0; k < V; k++) total += part.at[k];
    }
    const float mean = warp_sum(total) / w;
    for (int i = first; i < w; i += step) {
        const auto part = load<V>(from + i);
        for (int k = 0; k < V; k++) squares += (part.at[k] - mean) * (part.at[k] - mean);
    }
    const float scale = 1 / sqrtf(warp_sum(squares) / w + epsilon);
    for (int i = first; i < w; i += step) {
        const auto part = load<V>(from + i), factor = load<V>(weight + i), shift = load<V>(bias + i);
        Pack<T, V> result;
        for (int k = 0; k < V; k++) put(result.at[k], (part.at[k] - mean) * scale * factor.at[k] + shift.at[k]);
        store(out + row * w + i, result);
    }
}

// out (rows, w) = x + branch + bias. V numbers per thread.
template <int V, class T>
__global__ void residual_kernel(const float* x, const T* branch, const float* bias, float* out, Int count, int w) {
    const Int i = ((Int)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= count) return;
    auto sum = load<V>(x + i);
    const auto added = load<V>(branch + i);
    const auto shift = load<V>(bias + i % w);
    for (int k = 0; k < V; k++) sum.at[k] += number(added.at[k]) + shift.at[k];
    store(out + i, sum);
}

// out (rows, w) = z · sigmoid(1.702 z) with z = x + bias. V numbers per thread.
template <int V, class T> __global__ void quick_gelu_kernel(const T* x, const float* bias, T* out, Int count, int w) {
    const Int i = ((Int)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= count) return;
    auto part = load<V>(x + i);
    const auto shift = load<V>(bias + i % w);
    for (int k = 0; k < V; k++) {
        const float z = number(part.at[k]) + shift.at[k];
        // clamped, as e^89 is infinite in float32; e^80 already makes the result 0 but for rounding
        put(part.at[k], z / (1 + __expf(fminf(-1.702f * z, 80.f))));
    }
    store(out + i, part);
}

// out (rows, w) = z · Φ(z) with z = x + bias. V numbers per thread.
template <int V, class T> __global__ void gelu_kernel(const T* x, const float* bias, T* out, Int count, int w) {
    const Int i = ((Int)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= count) return;
    auto part = load<V>(x + i);
    const auto shift = load<V>(bias + i % w);
    for (int k = 0; k < V; k++) {
        const float z = number(part.at[k]) + shift.at[k];
        put(part.at[k], 0.5f * z * (1 + erff(z * 0.707106781186547524f)));
    }
    store(out + i, part);
}

// out (n, l, w) = the class token (w), then the patches (n, l - 1, w), plus the positional embedding (l, w).
template <class T>
__global__ void tokens_kernel(const T* patches, const float* first, const float* positions, float* out, Int count,
                              int l, int w) {
    const Int i = (Int)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Int row = i / w, image = row / l;
    const int column = i % w, position = row % l;
    out[i] =
        positions[position * w + column] + (position ? number(patches[(row - image - 1) * w + column]) : first[column]);
}

// out (n, w) = x[rows].
template <class T> __global__ void gather_kernel(const T* x, const int* rows, T* out, Int count, int w) {
    const Int i = (Int)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = x[rows[i / w] * (Int)w + i % w];
}

// ---- attention ----
//
// One block computes a tile of queries of one head of one sequence. It loads keys and values tile by tile, and keeps
// for each query the largest score, the sum of e^(score - largest), and the sum of the values weighted by e^(score -
// largest) (Milakov & Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135). The bias of the queries is added
// first. The bias of the keys is left out, because it adds the same number to all scores of a query, which softmax
// ignores. The bias of the values is added to the result, because the weights sum to 1.

// The tile of queries of this block; the tiles of one head have consecutive blocks.
struct Tile {
    const Int row;          // first row of the sequence in qkv
    const int head, query;  // first column of the head; first query of the tile

    __device__ Tile(int l, int heads, int depth, int queries)
        : row((Int)(blockIdx.x / ((l + queries - 1) / queries) / heads) * l),
          head(blockIdx.x / ((l + queries - 1) / queries) % heads * depth),
          query(blockIdx.x % ((l + queries - 1) / queries) * queries) {}
};

// Copies positions first to first + ROWS, DEPTH columns of them, from `from` (l, stride) to shared memory (ROWS,
// STRIDE). Positions after the end of the sequence, and columns from DEPTH to PADDED, are filled with 0.
template <int ROWS, int DEPTH, int PADDED, int STRIDE, class T>
__device__ inline void copy_tile(T* to, const T* from, Int stride, int first, int l) {
    const int V = DEPTH % 8 == 0 && sizeof(T) == 2 ? 8 : DEPTH % 4 == 0 ? 4 : 1, PARTS = PADDED / V;
    for (int part = threadIdx.x; part < ROWS * PARTS; part += blockDim.x) {
        const int row = part / PARTS, column = part % PARTS * V;
        Pack<T, V> pack;
        for (int k = 0; k < V; k++) put(pack.at[k], 0);
        if (first + row < l && column < DEPTH) pack = load<V>(from + (first + row) * stride + column);
        store(to + row * STRIDE + column, pack);
    }
}

// Float32: 128 threads, 32 queries by 32 keys. A thread computes 4 rows: of the scores columns x and x + 16, of the
// results 4 of every 64 columns.
template <int DEPTH>
__global__ void attention_kernel(const float* qkv, const float* bias, float* out, int l, int w, int heads,
                                 bool causal) {
    const int ROWS = 32, PADDED = (DEPTH + 3) / 4 * 4, STRIDE = PADDED + 4, SCORES = ROWS + 4,
              PARTS = (PADDED + 63) / 64;
    __shared__ __align__(16) float queries[ROWS * STRIDE];
    __shared__ __align__(16) float tile[ROWS * STRIDE];  // the keys, then the values
    __shared__ __align__(16) float scores[ROWS * SCORES];
    __shared__ float largest[ROWS], sums[ROWS], fade[ROWS];
    const Tile at(l, heads, DEPTH, ROWS);
    const int thread = threadIdx.x, x = thread % 16, y = thread / 16 * 4;
    const Int stride = 3 * w;
    const float* from = qkv + at.row * stride + at.head;

    copy_tile<ROWS, DEPTH, PADDED, STRIDE>(queries, from, stride, at.query, l);
    if (thread < ROWS) largest[thread] = -INFINITY, sums[thread] = 0;
    __syncthreads();
    const float scale = 1 / sqrtf((float)DEPTH);
    for (int i = thread; i < ROWS * DEPTH; i += blockDim.x) {
        float& q = queries[i / DEPTH * STRIDE + i % DEPTH];
        q = (q + bias[at.head + i % DEPTH]) * scale;
    }
    float result[4][PARTS][4] = {};
    const int end = causal ? min(l, at.query + ROWS) : l;  // no query of the tile attends to keys from here on
    for (int key = 0; key < end; key += ROWS) {
        __syncthreads();
        copy_tile<ROWS, DEPTH, PADDED, STRIDE>(tile, from + w, stride, key, l);
        __syncthreads();
        float score[4][2] = {};
        for (int d = 0; d < PADDED; d += 4) {
            const auto k0 = load<4>(tile + x * STRIDE + d), k1 = load<4>(tile + (x + 16) * STRIDE + d);
            for (int r = 0; r < 4; r++) {
                const auto q = load<4>(queries + (y + r) * STRIDE + d);
                for (int i = 0; i < 4; i++) score[r][0] += q.at[i] * k0.at[i], score[r][1] += q.at[i] * k1.at[i];
            }
        }
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 2; c++) {
                const int column = key + x + 16 * c;
                const bool seen = column < l && !(causal && column > at.query + y + r);
                scores[(y + r) * SCORES + x + 16 * c] = seen ? score[r][c] : -INFINITY;
            }
        __syncthreads();
        copy_tile<ROWS, DEPTH, PADDED, STRIDE>(tile, from + 2 * w, stride, key, l);
        {  // update the softmax, 4 neighbouring threads per row; in every row that is used, the tile's first key is not
           // masked
            const int row = thread / 4;
            float* p = scores + row * SCORES + thread % 4 * 8;
            const float before = largest[row];
            float most = before, total = 0;
            for (int i = 0; i < 8; i++) most = fmaxf(most, p[i]);
            for (int lane = 1; lane < 4; lane *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, lane));
            for (int i = 0; i < 8; i++) total += p[i] = __expf(p[i] - most);
            for (int lane = 1; lane < 4; lane *= 2) total += __shfl_xor_sync(~0u, total, lane);
            if (thread % 4 == 0) {
                fade[row] = __expf(before - most);
                sums[row] = sums[row] * fade[row] + total;
                largest[row] = most;
            }
        }
        __syncthreads();
        for (int r = 0; r < 4; r++)
            for (int part = 0; part < PARTS; part++)
                for (int i = 0; i < 4; i++) result[r][part][i] *= fade[y + r];
        for (int j = 0; j < ROWS; j += 4) {
            Pack<float, 4> p[4];
            for (int r = 0; r < 4; r++) p[r] = load<4>(scores + (y + r) * SCORES + j);
            for (int part = 0; part < PARTS; part++)
                if (part * 64 + x * 4 < PADDED)
                    for (int k = 0; k < 4; k++) {
                        const auto v = load<4>(tile + (j + k) * STRIDE + part * 64 + x * 4);
                        for (int r = 0; r < 4; r++)
                            for (int i = 0; i < 4; i++) result[r][part][i] += p[r].at[k] * v.at[i];
                    }
        }
    }
    for (int r = 0; r < 4; r++)
        for (int part = 0; part < PARTS; part++)
            for (int i = 0; i < 4; i++) {
                const int row = at.query + y + r, column = part * 64 + x * 4 + i;
                if (row < l && column < DEPTH)
                    out[(at.row + row) * w + at.head + column] =
                        result[r][part][i] / sums[y + r] + bias[2 * w + at.head + column];
            }
}

#ifdef __CUDACC__
// d (16, 8) += a (16, 16) · b (16, 8) by one warp. NVIDIA's PTX ISA, "mma.m16n8k16", says which numbers each lane
// holds.
__device__ inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads two 8 x 8 tiles, transposed, from shared memory; lanes 0 to 15 pass the addresses of their rows.
__device__ inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) {
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}
#endif

__device__ inline unsigned pair(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *(const unsigned*)&both;
}
__device__ inline unsigned pair_at(const half_t* p) { return *(const unsigned*)p; }

// Half, on the tensor cores: 4 warps with 16 queries each, by 64 keys. Scores and results stay in registers. Of every 8
// columns, a lane holds two in row lane / 4 (numbers 0 and 1) and two in row lane / 4 + 8 (numbers 2 and 3).
template <int DEPTH>
__global__ void __launch_bounds__(128)
    attention_kernel(const half_t* qkv, const float* bias, half_t* out, int l, int w, int heads, bool causal) {
    const int ROWS = 64, PADDED = (DEPTH + 15) / 16 * 16,
              STRIDE = PADDED + 8;                        // 8 more, so that rows start in different banks
    __shared__ __align__(16) half_t keys[ROWS * STRIDE];  // first used for the queries
    __shared__ __align__(16) half_t values[ROWS * STRIDE];
    const Tile at(l, heads, DEPTH, ROWS);
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4 * 2, warp = threadIdx.x / WARP * 16;
    const Int stride = 3 * w;
    const half_t* from = qkv + at.row * stride + at.head;

    copy_tile<ROWS, DEPTH, PADDED, STRIDE>(keys, from, stride, at.query, l);
    __syncthreads();
    const float scale = 1 / sqrtf((float)DEPTH);
    unsigned query[PADDED / 16][4];  // tiles of (16, 16) in the layout of mma_m16n8k16
    for (int step = 0; step < PADDED / 16; step++)
        for (int i = 0; i < 4; i++) {
            const int row = warp + g + i % 2 * 8, column = step * 16 + t + i / 2 * 8;
            float q[2];
            for (int k = 0; k < 2; k++)
                q[k] = column + k < DEPTH
                           ? (number(keys[row * STRIDE + column + k]) + bias[at.head + column + k]) * scale
                           : 0;
            query[step][i] = pair(q[0], q[1]);
        }
    float result[PADDED / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sums[2] = {};
    const int end = causal ? min(l, at.query + ROWS) : l;
    for (int key = 0; key < end; key += ROWS) {
        __syncthreads();
        copy_tile<ROWS, DEPTH, PADDED, STRIDE>(keys, from + w, stride, key, l);
        copy_tile<ROWS, DEPTH, PADDED, STRIDE>(values, from + 2 * w, stride, key, l);
        __syncthreads();
        float score[ROWS / 8][4] = {};
        for (int tile = 0; tile < ROWS / 8; tile++)
            for (int step = 0; step < PADDED / 16; step++) {
                const half_t* k = keys + (tile * 8 + g) * STRIDE + step * 16 + t;
                const unsigned b[2] = {pair_at(k), pair_at(k + 8)};
                mma_m16n8k16(score[tile], query[step], b);
            }
        float most[2] = {largest[0], largest[1]};
        for (int tile = 0; tile < ROWS / 8; tile++)
            for (int i = 0; i < 4; i++) {
                const int column = key + tile * 8 + t + i % 2, row = at.query + warp + g + i / 2 * 8;
                if (column >= l || (causal && column > row)) score[tile][i] = -INFINITY;
                most[i / 2] = fmaxf(most[i / 2], score[tile][i]);
            }
        float fade[2], total[2] = {};
        for (int i = 0; i < 2; i++) {
            for (int other = 1; other < 4; other *= 2) most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], other));
            fade[i] = __expf(largest[i] - most[i]);
            largest[i] = most[i];
        }
        for (int tile = 0; tile < ROWS / 8; tile++)
            for (int i = 0; i < 4; i++) total[i / 2] += score[tile][i] = __expf(score[tile][i] - most[i / 2]);
        // over this lane's columns; the lanes' sums are added at the end
        for (int i = 0; i < 2; i++) sums[i] = sums[i] * fade[i] + total[i];
        for (int part = 0; part < PADDED / 8; part++)
            for (int i = 0; i < 4; i++) result[part][i] *= fade[i / 2];
        for (int step = 0; step < ROWS / 16; step++) {
            // two neighbouring tiles of scores have the layout of a (16, 16) in mma_m16n8k16
            const auto &s0 = score[2 * step], &s1 = score[2 * step + 1];
            const unsigned p[4] = {pair(s0[0], s0[1]), pair(s0[2], s0[3]), pair(s1[0], s1[1]), pair(s1[2], s1[3])};
            for (int part = 0; part < PADDED / 8; part++) {
                unsigned v[2];
                ldmatrix_x2_trans(v, values + (step * 16 + lane % 16) * STRIDE + part * 8);
                mma_m16n8k16(result[part], p, v);
            }
        }
    }
    for (int i = 0; i < 2; i++)
        for (int other = 1; other < 4; other *= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], other);
    for (int part = 0; part < PADDED / 8; part++)
        for (int i = 0; i < 4; i++) {
            const int row = at.query + warp + g + i / 2 * 8, column = part * 8 + t + i % 2;
            if (row < l && column < DEPTH)
                put(out[(at.row + row) * w + at.head + column],
                    result[part][i] / sums[i / 2] + bias[2 * w + at.head + column]);
        }
}

// ---- launches ----

const int THREADS = 256;  // per block, unless a launch has another number
inline int blocks(Int count) { return (count + THREADS - 1) / THREADS; }

inline void normalise(const uint8_t* rgb, const float* levels, float* out, Int n, Int pixels) {
    normalise_kernel<<<blocks(n * pixels), THREADS>>>(rgb, levels, out, n, pixels);
}

template <class T> void patches(const float* x, T* out, Int n, int side, int size) {
    const int grid = side / size;
    const Int count = n * grid * grid * 3 * size * size;
    if (size % 4 == 0 && side % 4 == 0) patches_kernel<4><<<blocks(count / 4), THREADS>>>(x, out, count, side, size);
    else patches_kernel<1><<<blocks(count), THREADS>>>(x, out, count, side, size);
}

template <class T>
void layer_norm(const float* x, const float* weight, const float* bias, T* out, Int rows, int w, float epsilon) {
    const int grid = blocks(rows * WARP);
    if (w % 4 == 0) layer_norm_kernel<4><<<grid, THREADS>>>(x, weight, bias, out, rows, w, epsilon);
    else layer_norm_kernel<1><<<grid, THREADS>>>(x, weight, bias, out, rows, w, epsilon);
}

template <class T> void residual(const float* x, const T* branch, const float* bias, float* out, Int rows, int w) {
    const Int count = rows * w;
    if (w % 4 == 0) residual_kernel<4><<<blocks(count / 4), THREADS>>>(x, branch, bias, out, count, w);
    else residual_kernel<1><<<blocks(count), THREADS>>>(x, branch, bias, out, count, w);
}

template <class T> void quick_gelu(const T* x, const float* bias, T* out, Int rows, int w) {
    const Int count = rows * w;
    if (w % 8 == 0) quick_gelu_kernel<8><<<blocks(count / 8), THREADS>>>(x, bias, out, count, w);
    else quick_gelu_kernel<1><<<blocks(count), THREADS>>>(x, bias, out, count, w);
}

template <class T> void gelu(const T* x, const float* bias, T* out, Int rows, int w) {
    const Int count = rows * w;
    if (w % 8 == 0) gelu_kernel<8><<<blocks(count / 8), THREADS>>>(x, bias, out, count, w);
    else gelu_kernel<1><<<blocks(count), THREADS>>>(x, bias, out, count, w);
}

template <class T>
void tokens(const T* patches, const float* first, const float* positions, float* out, Int n, int l, int w) {
    tokens_kernel<<<blocks(n * l * w), THREADS>>>(patches, first, positions, out, n * l * w, l, w);
}

template <class T> void gather(const T* x, const int* rows, T* out, Int n, int w) {
    gather_kernel<<<blocks(n * w), THREADS>>>(x, rows, out, n * w, w);
}

template <int DEPTH, class T>
void attention(const T* qkv, const float* bias, T* out, Int n, int l, int w, int heads, bool causal) {
    const int queries = sizeof(T) == 2 ? 64 : 32;
    const int grid = n * heads * ((l + queries - 1) / queries);
    attention_kernel<DEPTH><<<grid, 128>>>(qkv, bias, out, l, w, heads, causal);
}

#ifdef __CUDACC__
inline void check() {  // without it, a launch that fails would leave random numbers
    const auto error = cudaGetLastError();
    if (error)
        throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

inline cudaDataType_t type_of(const float*) { return CUDA_R_32F; }
inline cudaDataType_t type_of(const half_t*) { return CUDA_R_16F; }

// out (m, n) = x (m, k) times the transpose of matrix (n, k); in float32, TF32 is not used.
template <class T> void product(const T* x, const T* matrix, T* out, Int m, int k, int n) {
    const float one = 1, zero = 0;
    const auto type = type_of(x);
    const auto status = cublasGemmEx(jittor::cublas_handle, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &one, matrix, type, k, x,
                                     type, k, &zero, out, type, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status == CUBLAS_STATUS_ALLOC_FAILED) throw std::runtime_error("cublasGemmEx: CUBLAS_STATUS_ALLOC_FAILED");
    if (status) throw std::runtime_error("cublasGemmEx: status " + std::to_string(status));
}
#endif

// A block of the transformer: out = y + MLP of y, where y = x + attention of x, x (n, l, w). With `rows` (n), only
// those rows of y are computed, and out is (n, w): after the attention, no position depends on another. The MLP has
// `hidden` numbers inside, and plain GELU or QuickGELU. scratch has n·l·(wide_w + w) numbers; wide_w is a multiple of 8,
// and neither below 3w nor below hidden.
template <int DEPTH, bool PLAIN_GELU, class T>
void block(const float* x, const float* norm_1, const float* norm_1_bias, const T* qkv, const float* qkv_bias,
           const T* projection, const float* projection_bias, const float* norm_2, const float* norm_2_bias,
           const T* fc, const float* fc_bias, const T* fc_out, const float* fc_out_bias, const int* rows, float* out,
           T* scratch, Int n, int l, int w, int hidden, int wide_w, int heads, bool causal, float epsilon) {
    Int count = n * l;
    // (count, wide_w), first, because its alignment allows loads of 8 numbers, and (count, w)
    T *wide = scratch, *narrow = scratch + count * wide_w;
    layer_norm(x, norm_1, norm_1_bias, narrow, count, w, epsilon);
    product(narrow, qkv, wide, count, w, 3 * w);
    attention<DEPTH>(wide, qkv_bias, narrow, n, l, w, heads, causal);
    T *mixed = narrow, *branch = wide;
    if (rows) {
        gather(narrow, rows, wide, n, w);
        gather(x, rows, out, n, w);
        x = out, mixed = wide, branch = narrow, count = n;
    }
    product(mixed, projection, branch, count, w, w);
    residual(x, branch, projection_bias, out, count, w);
    layer_norm(out, norm_2, norm_2_bias, narrow, count, w, epsilon);
    product(narrow, fc, wide, count, w, hidden);
    if (PLAIN_GELU) gelu(wide, fc_bias, wide, count, hidden);
    else quick_gelu(wide, fc_bias, wide, count, hidden);
    product(wide, fc_out, narrow, count, hidden, w);
    residual(out, narrow, fc_out_bias, out, count, w);
}

}  // namespace clip
