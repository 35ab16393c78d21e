// CPU kernels for the operations of CLIP's transformer other than matrix products: float32, all cores, one pass over
// memory. A result that is a factor of the next product may be bfloat16. kernels.py has the same operations in plain
// Jittor, equal but for rounding, and says what the letters in shapes mean.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace clip {

typedef int64_t Int;
// One register in GCC's vector types; of larger ones GCC keeps parts in memory, which made attention eight times slower.
#if defined(__AVX512F__)
#define CLIP_REGISTER 64
#elif defined(__AVX__)
#define CLIP_REGISTER 32
#else
#define CLIP_REGISTER 16
#endif
typedef float Vec __attribute__((vector_size(CLIP_REGISTER), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(CLIP_REGISTER)));
typedef uint32_t BitsVec __attribute__((vector_size(CLIP_REGISTER)));
typedef uint16_t HalfVec __attribute__((vector_size(CLIP_REGISTER / 2), aligned(2), may_alias));
const Int LANES = sizeof(Vec) / sizeof(float);

inline Int padded(Int n) { return (n + LANES - 1) / LANES * LANES; }
inline Vec load(const float* p) { return *(const Vec*)p; }
inline void store(float* p, Vec v) { *(Vec*)p = v; }
// v, and where it is computed in a loop: term by term in their order. -Ofast may add up every other term for itself, in
// one version of a loop and not in another, and the bits of a row would depend on what is beside it.
inline Vec in_order(Vec v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}
inline float sum(Vec v) {
    float s = 0;
    for (Int i = 0; i < LANES; i++) s += v[i];
    return s;
}

// The bits of float32 numbers, one or a vector of them, rounded to bfloat16: to nearest, and to even between two. A NaN
// stays one; its comparison is that of integers, since -Ofast takes every float for a number.
template <class Bits>
inline Bits rounded(Bits x) {
    return ((x & 0x7fffffffu) > 0x7f800000u ? Bits{} + 0x7fc00000u : x + 0x7fffu + (x >> 16 & 1u)) >> 16;
}
// A float32 without the lower half of its bits. (Jittor's own type is cut off, not rounded.)
struct Bfloat16 {
    uint16_t bits;

    Bfloat16() = default;
    Bfloat16(float value) {
        uint32_t x;
        std::memcpy(&x, &value, sizeof x);
        bits = uint16_t(rounded(x));
    }
};
#if defined(__AVX512BF16__)  // an instruction does it, and takes denormal numbers for zero
inline void store(Bfloat16* p, Vec v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v)); }
#else
inline void store(Bfloat16* p, Vec v) { *(HalfVec*)p = __builtin_convertvector(rounded((BitsVec)v), HalfVec); }
#endif

// e^x = 2^n · e^r with x = n·ln 2 + r, |r| <= ln 2 / 2, and the Taylor series of e^r, whose error is below 2e-8. x is
// clamped to [-87, 88], where the result is a normal number of float32.
inline Vec exponential(Vec x) {
    x = x < -87.f ? Vec{} - 87.f : x;
    x = x > 88.f ? Vec{} + 88.f : x;
    const Vec turns = x * 1.44269504088896341f;
    const IntVec n = __builtin_convertvector(turns + (turns < 0.f ? Vec{} - 0.5f : Vec{} + 0.5f), IntVec);
    const Vec r = x - __builtin_convertvector(n, Vec) * 0.693147180559945309f;
    Vec e = r * (1.f / 5040) + 1.f / 720;
    e = e * r + 1.f / 120;
    e = e * r + 1.f / 24;
    e = e * r + 1.f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.f;
    e = e * r + 1.f;
    const IntVec power = (n + 127) << 23;
    return e * (Vec)power;
}

// out (n) = x
inline void convert(const float* x, Bfloat16* out, Int n) {
#pragma omp parallel for schedule(static)
    for (Int i = 0; i < n; i++) out[i] = x[i];
}

// out (n·grid², 3·size²) = the patches of x (n, 3, side, side), grid = side / size in each direction
template <class T>
inline void patches(const float* x, T* out, Int n, Int side, Int size) {
    const Int grid = side / size, area = size * size;
#pragma omp parallel for schedule(static)
    for (Int patch = 0; patch < n * grid * grid; patch++) {
        const Int image = patch / (grid * grid), down = patch / grid % grid * size, across = patch % grid * size;
        for (Int i = 0; i < 3 * size; i++) {  // a line of one channel
            const float* from = x + ((image * 3 + i / size) * side + down + i % size) * side + across;
            std::copy_n(from, size, out + patch * 3 * area + i * size);
        }
    }
}

// out (n, l, w) = the class token (w), then the patches (n, l - 1, w), plus the positional embedding (l, w)
inline void tokens(const float* patches, const float* first, const float* positions, float* out, Int n, Int l, Int w) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < n * l; row++) {
        const Int image = row / l, position = row % l;
        const float* from = position ? patches + (row - image - 1) * w : first;
        for (Int i = 0; i < w; i++) out[row * w + i] = from[i] + positions[position * w + i];
    }
}

// out (rows, w) = layer norm of x (rows, w): first the mean, then the variance.
template <class T>
inline void layer_norm(const float* x, const float* weight, const float* bias, T* out, Int rows, Int w, float epsilon) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++) {
        const float* from = x + row * w;
        T* to = out + row * w;
        float total = 0, squares = 0;
        for (Int i = 0; i < w; i++) total += from[i];
        const float mean = total / w;
        for (Int i = 0; i < w; i++) squares += (from[i] - mean) * (from[i] - mean);
        const float scale = 1 / std::sqrt(squares / w + epsilon);
        for (Int i = 0; i < w; i++) to[i] = (from[i] - mean) * scale * weight[i] + bias[i];
    }
}

// out (rows, w) = x + y + bias
inline void residual(const float* x, const float* y, const float* bias, float* out, Int rows, Int w) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++)
        for (Int i = 0; i < w; i++) out[row * w + i] = x[row * w + i] + (y[row * w + i] + bias[i]);
}

inline Vec identity(Vec z) { return z; }

inline Vec quick_gelu(Vec z) { return z / (1.f + exponential(-1.702f * z)); }

// Φ(-|z|), the share of a normal distribution below -|z|. The polynomial is that of erfc in Press et al., Numerical
// Recipes, 2nd edition, section 6.2, whose relative error is below 1.2e-7; rounding the exponent adds to it far out.
inline Vec lower_tail(Vec z) {
    const Vec x = (z < 0.f ? -z : z) * 0.707106781186547524f, t = 1.f / (1.f + 0.5f * x);
    Vec p = t * 0.17087277f - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    return 0.5f * t * exponential(p * t - 1.26551223f - x * x);
}

inline Vec gelu(Vec z) {
    const Vec tail = lower_tail(z);
    return z * (z < 0.f ? tail : 1.f - tail);
}

// out (n) = the activation of x + bias
template <Vec activation(Vec), class T>
inline void activate(const float* x, const float* bias, T* out, Int n) {
    Int i = 0;
    for (; i + LANES <= n; i += LANES) store(out + i, activation(load(x + i) + load(bias + i)));
    for (; i < n; i++) out[i] = activation(Vec{} + (x[i] + bias[i]))[0];
}

// out (rows, w) = z · sigmoid(1.702 z) with z = x + bias
template <class T>
inline void quick_gelu(const float* x, const float* bias, T* out, Int rows, Int w) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++) activate<quick_gelu>(x + row * w, bias, out + row * w, w);
}

// out (rows, w) = z · Φ(z) with z = x + bias
template <class T>
inline void gelu(const float* x, const float* bias, T* out, Int rows, Int w) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++) activate<gelu>(x + row * w, bias, out + row * w, w);
}

// ROWS rows by COLUMNS vectors of c (m, n) = a (m, k) times b (k, n); n is a multiple of LANES.
template <int ROWS, int COLUMNS>
inline void product_tile(const float* a, Int a_row, const float* b, Int n, float* c, Int c_row, Int k) {
    Vec sums[ROWS][COLUMNS] = {};
    for (Int i = 0; i < k; i++)
        for (int column = 0; column < COLUMNS; column++) {
            const Vec of_b = load(b + i * n + column * LANES);
            for (int row = 0; row < ROWS; row++)
                sums[row][column] = in_order(sums[row][column] + a[row * a_row + i] * of_b);
        }
    for (int row = 0; row < ROWS; row++)
        for (int column = 0; column < COLUMNS; column++) store(c + row * c_row + column * LANES, sums[row][column]);
}

template <int ROWS>
inline void product_rows(const float* a, Int a_row, const float* b, Int n, float* c, Int c_row, Int k) {
    const int COLUMNS = CLIP_REGISTER == 64 ? 4 : 2;  // AVX-512 has 32 registers, others 16, most of which hold the sums
    Int column = 0;
    for (; column + COLUMNS * LANES <= n; column += COLUMNS * LANES)
        product_tile<ROWS, COLUMNS>(a, a_row, b + column, n, c + column, c_row, k);
    for (; column < n; column += LANES) product_tile<ROWS, 1>(a, a_row, b + column, n, c + column, c_row, k);
}

// c (m, n) = a (m, k) times b (k, n). The rows of a and c are a_row and c_row numbers apart; n is a multiple of LANES.
inline void product(const float* a, Int a_row, const float* b, Int n, float* c, Int c_row, Int m, Int k) {
    Int row = 0;
    for (; row + 4 <= m; row += 4) product_rows<4>(a + row * a_row, a_row, b, n, c + row * c_row, c_row, k);
    for (; row < m; row++) product_rows<1>(a + row * a_row, a_row, b, n, c + row * c_row, c_row, k);
}

inline float largest(const float* x, Int n) {
    float most = x[0];
    Int i = 0;
    if (n >= LANES) {
        Vec lanes = load(x);
        for (; i + LANES <= n; i += LANES) lanes = load(x + i) > lanes ? load(x + i) : lanes;
        for (Int lane = 0; lane < LANES; lane++) most = std::max(most, lanes[lane]);
    }
    for (; i < n; i++) most = std::max(most, x[i]);
    return most;
}

// out (n) = the softmax of the first `seen` scores times `factor`, and 0 from there on; n is a multiple of LANES, and the
// scores are overwritten.
template <class T>
inline void softmax(float* scores, Int seen, Int n, float factor, T* out) {
    const float most = largest(scores, seen);
    const Int end = padded(seen);
    for (Int i = 0; i < end; i += LANES) store(scores + i, exponential((load(scores + i) - most) * factor));
    std::fill(scores + seen, scores + end, 0.f);
    Vec total = {};
    for (Int i = 0; i < end; i += LANES) total = in_order(total + load(scores + i));
    const float scale = 1 / sum(total);
    for (Int i = 0; i < end; i += LANES) store(out + i, load(scores + i) * scale);
    std::fill(out + end, out + n, T(0.f));
}

// Attention of one head of one sequence: qkv points to its first query, out to its first result. A few queries are
// computed at a time, so that their scores stay in the processor's cache.
class Head {
    static const Int QUERIES = 16;
    const Int l, depth, w, keys_n, values_n;
    std::vector<float> queries, keys, values;  // (l, depth), (depth, keys_n), (l, values_n)
    std::vector<float> scores, mixed;          // QUERIES rows each

public:
    Head(Int l, Int depth, Int w)
        : l(l),
          depth(depth),
          w(w),
          keys_n(padded(l)),
          values_n(padded(depth)),
          queries(l * depth),
          keys(depth * keys_n),
          values(l * values_n),
          scores(QUERIES * keys_n),
          mixed(QUERIES * values_n) {}

    void run(const float* qkv, const float* bias, float* out, bool causal) {
        copy(qkv, bias);
        for (Int first = 0; first < l; first += QUERIES) {
            const Int count = std::min(QUERIES + 0, l - first), seen = causal ? first + count : l;
            product(&queries[first * depth], depth, keys.data(), keys_n, scores.data(), keys_n, count, depth);
            for (Int i = 0; i < count; i++) {
                float* row = &scores[i * keys_n];
                softmax(row, causal ? first + i + 1 : l, keys_n, 1, row);
            }
            product(scores.data(), keys_n, values.data(), values_n, mixed.data(), values_n, count, seen);
            for (Int i = 0; i < count; i++) std::copy_n(&mixed[i * values_n], depth, out + (first + i) * w);
        }
    }

private:
    void copy(const float* qkv, const float* bias) {
        const float scale = 1 / std::sqrt(float(depth));
        for (Int i = 0; i < l; i++, qkv += 3 * w)
            for (Int d = 0; d < depth; d++) {
                queries[i * depth + d] = (qkv[d] + bias[d]) * scale;
                keys[d * keys_n + i] = qkv[w + d] + bias[w + d];
                values[i * values_n + d] = qkv[2 * w + d] + bias[2 * w + d];
            }
    }
};

// out (n, l, w) = attention of qkv + bias, for qkv (n, l, 3w) and bias (3w).
inline void attention(const float* qkv, const float* bias, float* out, Int n, Int l, Int w, Int heads, bool causal) {
    const Int depth = w / heads;
#pragma omp parallel
    {
        Head scratch(l, depth, w);
#pragma omp for schedule(static)
        for (Int task = 0; task < n * heads; task++) {
            const Int row = task / heads * l, head = task % heads * depth;
            scratch.run(qkv + row * 3 * w + head, bias + head, out + row * w + head, causal);
        }
    }
}

// The gradient of one head of one sequence. All (l, l) scores are kept; those of texts and small images fit into the
// cache.
class HeadGradient {
    const Int l, depth, w, keys_n, values_n;
    const float scale;
    std::vector<float> queries, keys, grad_out;             // (l, values_n)
    std::vector<float> keys_across, values_across;          // (depth, keys_n)
    std::vector<float> probabilities, grad_scores, turned;  // (l, keys_n)
    std::vector<float> result;                              // (l, values_n)

public:
    HeadGradient(Int l, Int depth, Int w)
        : l(l),
          depth(depth),
          w(w),
          keys_n(padded(l)),
          values_n(padded(depth)),
          scale(1 / std::sqrt(float(depth))),
          queries(l * values_n),
          keys(l * values_n),
          grad_out(l * values_n),
          keys_across(depth * keys_n),
          values_across(depth * keys_n),
          probabilities(l * keys_n),
          grad_scores(l * keys_n),
          turned(l * keys_n),
          result(l * values_n) {}

    // With P = softmax(Q Kᵀ), O = P V and G = dO: dV = Pᵀ G, dP = G Vᵀ, dS = P (dP - rowsum(P dP)), dQ = dS K, dK = dSᵀ
    // Q.
    void run(const float* qkv, const float* grad, float* out, bool causal) {
        copy(qkv, grad);
        product(queries.data(), values_n, keys_across.data(), keys_n, probabilities.data(), keys_n, l, depth);
        product(grad_out.data(), values_n, values_across.data(), keys_n, grad_scores.data(), keys_n, l, depth);
        for (Int i = 0; i < l; i++) {
            float *p = &probabilities[i * keys_n], *s = &grad_scores[i * keys_n], total = 0;
            softmax(p, causal ? i + 1 : l, keys_n, 1, p);
            for (Int j = 0; j < l; j++) total += p[j] * s[j];
            for (Int j = 0; j < l; j++) s[j] = p[j] * (s[j] - total);
        }
        multiply(grad_scores, keys, scale, out);
        multiply(transposed(grad_scores), queries, 1, out + w);
        multiply(transposed(probabilities), grad_out, 1, out + 2 * w);
    }

private:
    void copy(const float* qkv, const float* grad) {
        for (Int i = 0; i < l; i++, qkv += 3 * w, grad += w)
            for (Int d = 0; d < depth; d++) {
                queries[i * values_n + d] = qkv[d] * scale;
                keys[i * values_n + d] = keys_across[d * keys_n + i] = qkv[w + d];
                values_across[d * keys_n + i] = qkv[2 * w + d];
                grad_out[i * values_n + d] = grad[d];
            }
    }

    const std::vector<float>& transposed(const std::vector<float>& square) {
        for (Int i = 0; i < l; i++)
            for (Int j = 0; j < l; j++) turned[j * keys_n + i] = square[i * keys_n + j];
        return turned;
    }

    // to (l, depth) = square (l, l) times rows (l, depth) times factor; the rows of `to` are 3w numbers apart
    void multiply(const std::vector<float>& square, const std::vector<float>& rows, float factor, float* to) {
        product(square.data(), keys_n, rows.data(), values_n, result.data(), values_n, l, l);
        for (Int i = 0; i < l; i++, to += 3 * w)
            for (Int d = 0; d < depth; d++) to[d] = result[i * values_n + d] * factor;
    }
};

// out (n, l, 3w) = the gradient with respect to qkv (n, l, 3w), which includes the bias, given the gradient with
// respect to the result of attention, grad (n, l, w).
inline void attention_gradient(const float* qkv, const float* grad, float* out, Int n, Int l, Int w, Int heads,
                               bool causal) {
    const Int depth = w / heads;
#pragma omp parallel
    {
        HeadGradient scratch(l, depth, w);
#pragma omp for schedule(static)
        for (Int task = 0; task < n * heads; task++) {
            const Int row = task / heads * l, head = task % heads * depth;
            scratch.run(qkv + row * 3 * w + head, grad + row * w + head, out + row * 3 * w + head, causal);
        }
    }
}

}  // namespace clip
