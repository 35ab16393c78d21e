// Half precision on the CPU: products of bfloat16 factors with float32 sums, with what follows them, and attention, which
// is made of such products. kernels.h is included before this file; kernels.py says what the letters in shapes mean.
#pragma once
#if (defined(__AVX512BF16__) || defined(__AMX_BF16__)) && !defined(CLIP_EMULATED_TILES)
#include <immintrin.h>
#endif
#include <stdexcept>
#include <sys/syscall.h>
#include <unistd.h>

namespace clip {

// A product is computed in squares of SIDE x SIDE sums. Both factors are padded with zeros to multiples of SIDE. The
// second one is packed: for each SIDE columns of the result, and for each two of its inputs, the SIDE pairs of numbers.
const Int SIDE = 32;
const Int DEPTH = 768;  // so many inputs of a square are summed before the next one: SIDE columns of them are 48 KB

inline Int squares(Int n) { return (n + SIDE - 1) / SIDE; }

// An array of zeros at the start of a cache line; the rows of squares would lie in two lines each otherwise.
template <class T>
class Lines {
    std::vector<char> memory;
    T* start;

public:
    explicit Lines(Int n) : memory(n * sizeof(T) + 63) {
        start = (T*)((uintptr_t(memory.data()) + 63) / 64 * 64);
    }
    Lines(const Lines&) = delete;
    T& operator[](Int i) { return start[i]; }
    const T& operator[](Int i) const { return start[i]; }
};

// Who computes a square: c (SIDE, SIDE) = [c +] a (SIDE, depth) times packed b (depth, SIDE). The rows of a and c are
// a_row and c_row numbers apart. Only the first `rows` of c are wanted, and a kernel may take more inputs than depth, up
// to a multiple of SIDE; they are zeros. A thread holds a Setup meanwhile.

// On any processor; slow.
struct Plain {
    struct Setup {
        Setup() {}
    };
    static bool is_there() { return true; }
    static void square(const Bfloat16* a, Int a_row, const Bfloat16* b, Int depth, float* c, Int c_row, Int rows,
                       bool add) {
        for (Int row = 0; row < rows; row++)
            for (Int column = 0; column < SIDE; column += LANES)
                store(c + row * c_row + column, sums(a + row * a_row, b + 2 * column, depth,
                                                     add ? load(c + row * c_row + column) : Vec{}));
    }
    static Vec sums(const Bfloat16* a, const Bfloat16* b, Int depth, Vec sums) {
        for (Int i = 0; i < depth; i += 2, b += 2 * SIDE) {
            BitsVec pairs;
            std::memcpy(&pairs, b, sizeof pairs);
            sums += value(a[i]) * (Vec)(pairs << 16) + value(a[i + 1]) * (Vec)(pairs & 0xffff0000u);
        }
        return sums;
    }
    static float value(Bfloat16 x) {
        const uint32_t bits = uint32_t(x.bits) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
};

#if defined(__AVX512BF16__)
struct Avx512 {
    struct Setup {
        Setup() {}
    };
    static bool is_there() { return true; }
    static void square(const Bfloat16* a, Int a_row, const Bfloat16* b, Int depth, float* c, Int c_row, Int rows,
                       bool add) {
        for (Int row = 0; row < rows; row += ROWS) strip(a + row * a_row, a_row, b, depth, c + row * c_row, c_row, add);
    }

private:
    static const Int ROWS = 8;  // 16 sums, 8 numbers of a and 2 vectors of b are in registers
    static void strip(const Bfloat16* a, Int a_row, const Bfloat16* b, Int depth, float* c, Int c_row, bool add) {
        __m512 sums[ROWS][2];
        for (Int row = 0; row < ROWS; row++)
            for (Int half = 0; half < 2; half++)
                sums[row][half] = add ? _mm512_loadu_ps(c + row * c_row + half * 16) : _mm512_setzero_ps();
        for (Int i = 0; i < depth; i += 2, b += 2 * SIDE) {
            const __m512bh left = (__m512bh)_mm512_loadu_si512(b), right = (__m512bh)_mm512_loadu_si512(b + SIDE);
            for (Int row = 0; row < ROWS; row++) {
                int32_t two;
                std::memcpy(&two, a + row * a_row + i, sizeof two);
                const __m512bh of_a = (__m512bh)_mm512_set1_epi32(two);
                sums[row][0] = _mm512_dpbf16_ps(sums[row][0], of_a, left);
                sums[row][1] = _mm512_dpbf16_ps(sums[row][1], of_a, right);
            }
        }
        for (Int row = 0; row < ROWS; row++)
            for (Int half = 0; half < 2; half++) _mm512_storeu_ps(c + row * c_row + half * 16, sums[row][half]);
    }
};
#endif

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
// Eight tiles of 16 rows of 64 bytes: 0 to 3 hold the sums, 4 and 5 numbers of a, 6 and 7 of b. GCC does not know that
// the instructions read memory, hence the barriers.
struct Amx {
    static bool is_there() {  // Linux gives a process the tiles when it asks for them: ARCH_REQ_XCOMP_PERM, XTILEDATA
        static const bool is_allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
        return is_allowed;
    }
    struct Setup {
        Setup() {
            alignas(64) uint8_t tiles[64] = {1};  // the palette; from 16 on bytes a row, from 48 on rows of each tile
            for (Int tile = 0; tile < 8; tile++) tiles[16 + 2 * tile] = 64, tiles[48 + tile] = 16;
            barrier(tiles);
            _tile_loadconfig(tiles);
        }
        ~Setup() { _tile_release(); }
    };
    static void square(const Bfloat16* a, Int a_row, const Bfloat16* b, Int depth, float* c, Int c_row, Int, bool add) {
        const Int line = 2 * SIDE * sizeof *b;  // of packed b
        barrier(c);
        if (add) {
            _tile_loadd(0, c, c_row * 4); _tile_loadd(1, c + 16, c_row * 4);
            _tile_loadd(2, c + 16 * c_row, c_row * 4); _tile_loadd(3, c + 16 * c_row + 16, c_row * 4);
        } else {
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        }
        for (Int i = 0; i < depth; i += 32, b += 32 * SIDE) {
            _tile_loadd(6, b, line); _tile_loadd(7, b + SIDE, line);
            _tile_loadd(4, a + i, a_row * 2);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a + 16 * a_row + i, a_row * 2);
            _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, c_row * 4); _tile_stored(1, c + 16, c_row * 4);
        _tile_stored(2, c + 16 * c_row, c_row * 4); _tile_stored(3, c + 16 * c_row + 16, c_row * 4);
        barrier(c);
    }
    static void barrier(const void* read) { asm volatile("" ::"r"(read) : "memory"); }
};
#endif

// Calls f with a kernel, or returns false where it does not work.
template <class Kernel, class F>
inline bool with_kernel(F f) {
    if (!Kernel::is_there()) return false;
    f(Kernel());
    return true;
}

// Calls f with the fastest kernel that works, or returns false if none but Plain does.
template <class F>
inline bool with_fastest(F f) {
#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
    if (with_kernel<Amx>(f)) return true;
#endif
#if defined(__AVX512BF16__)
    return with_kernel<Avx512>(f);
#else
    return false;
#endif
}

// Packs a weight, (outputs, inputs) or its transpose; `packed` has room for both sides padded.
inline void pack(const Bfloat16* weight, Int outputs, Int inputs, bool is_transpose, Bfloat16* packed) {
    const Int pairs = squares(inputs) * SIDE / 2;
#pragma omp parallel for schedule(static)
    for (Int line = 0; line < squares(outputs) * pairs; line++)
        for (Int i = 0; i < 2 * SIDE; i++) {
            const Int output = line / pairs * SIDE + i / 2, input = line % pairs * 2 + i % 2;
            const bool is_inside = output < outputs && input < inputs;
            const Int index = is_transpose ? input * outputs + output : output * inputs + input;
            packed[line * 2 * SIDE + i] = is_inside ? weight[index] : Bfloat16(0.f);
        }
}

// The rows of a factor (rows, inputs), of which as many as needed are copied to pad them.
class PaddedRows {
    const Bfloat16* const x;
    const Int inputs, copied_from;
    Lines<Bfloat16> copy;

public:
    const Int depth;

    PaddedRows(const Bfloat16* x, Int rows, Int inputs)
        : x(x),
          inputs(inputs),
          copied_from(inputs % SIDE ? 0 : rows / SIDE * SIDE),
          copy((squares(rows) * SIDE - copied_from) * squares(inputs) * SIDE),
          depth(squares(inputs) * SIDE) {
        for (Int row = copied_from; row < rows; row++)
            std::copy_n(x + row * inputs, inputs, &copy[(row - copied_from) * depth]);
    }
    const Bfloat16* at(Int row) const {
        return row < copied_from ? x + row * inputs : &copy[(row - copied_from) * depth];
    }
};

// In how many rows at a time a product is computed: as many as half of the second level cache holds, but in equal parts,
// since a thread gets as many of them as another.
inline Int rows_at_a_time(Int rows, Int depth) {
    static const Int known = sysconf(_SC_LEVEL2_CACHE_SIZE), bytes = std::max(known, Int(512) << 10) / 2;
    const Int most = std::max(Int(1), bytes / Int(depth * sizeof(Bfloat16)) / SIDE), parts = squares(rows);
    const Int groups = (parts + most - 1) / most;
    return (parts + groups - 1) / groups * SIDE;
}

// Sums (rows, outputs) = x (rows, inputs) times the packed weight (inputs, outputs). finish(row, column, sums, n) gets n
// of them, those of a row from a column on.
template <class Kernel, class Finish>
inline void multiply(const Bfloat16* x, const Bfloat16* packed, Int rows, Int inputs, Int outputs, Finish finish) {
    const PaddedRows from(x, rows, inputs);
    const Int depth = from.depth, group = rows_at_a_time(rows, depth), columns = squares(outputs);
#pragma omp parallel
    {
        typename Kernel::Setup setup;
        Lines<float> sums(group * SIDE);
#pragma omp for schedule(static)
        for (Int task = 0; task < (rows + group - 1) / group * columns; task++) {
            const Int first = task / columns * group, last = std::min(rows, first + group);
            const Int column = task % columns * SIDE;
            for (Int start = 0; start < depth; start += DEPTH)
                for (Int row = first; row < last; row += SIDE)
                    Kernel::square(from.at(row) + start, depth, packed + column * depth + start * SIDE,
                                   std::min(DEPTH + 0, depth - start), &sums[(row - first) * SIDE], SIDE,
                                   std::min(SIDE + 0, last - row), start > 0);
            for (Int row = first; row < last; row++)
                finish(row, column, &sums[(row - first) * SIDE], std::min(SIDE + 0, outputs - column));
        }
    }
}

// out (rows, w) = the sums
struct Stored {
    float* out;
    Int w;

    void operator()(Int row, Int column, const float* sums, Int n) const {
        std::copy_n(sums, n, out + row * w + column);
    }
};

// out (rows, w) = the activation of sums + bias; `identity` leaves them as they are
template <Vec activation(Vec)>
struct Activated {
    const float* bias;
    Bfloat16* out;
    Int w;

    void operator()(Int row, Int column, const float* sums, Int n) const {
        activate<activation>(sums, bias + column, out + row * w + column, n);
    }
};

// out (rows, w) = x + sums + bias
struct Added {
    const float *x, *bias;
    float* out;
    Int w;

    void operator()(Int row, Int column, const float* sums, Int n) const {
        const Int start = row * w + column;
        for (Int i = 0; i < n; i++) out[start + i] = x[start + i] + (sums[i] + bias[column + i]);
    }
};

// Attention of one head of one sequence: as `Head`, but the factors of both products are bfloat16.
template <class Kernel>
class HalfHead {
    const Int l, depth, w, l_n, depth_n;   // the last two padded
    Lines<Bfloat16> queries;              // (l_n, depth_n)
    Lines<Bfloat16> keys, values;         // packed
    Lines<Bfloat16> line, nothing;        // (depth_n)
    Lines<Bfloat16> shares;               // (SIDE, l_n)
    Lines<float> scores, mixed;           // (SIDE, l_n), (SIDE, depth_n)

public:
    HalfHead(Int l, Int depth, Int w)
        : l(l),
          depth(depth),
          w(w),
          l_n(squares(l) * SIDE),
          depth_n(squares(depth) * SIDE),
          queries(l_n * depth_n),
          keys(l_n * depth_n),
          values(l_n * depth_n),
          line(depth_n),
          nothing(depth_n),
          shares(SIDE * l_n),
          scores(SIDE * l_n),
          mixed(SIDE * depth_n) {}

    void run(const Bfloat16* qkv, Bfloat16* out, bool causal) {
        for (Int i = 0; i < l; i++) copy(qkv + i * 3 * w, i);
        for (Int first = 0; first < l; first += SIDE) {
            const Int count = std::min(SIDE + 0, l - first), seen = causal ? first + count : l;
            for (Int key = 0; key < seen; key += SIDE)
                Kernel::square(&queries[first * depth_n], depth_n, &keys[key * depth_n], depth, &scores[key], l_n, count,
                               false);
            for (Int i = 0; i < count; i++)
                softmax(&scores[i * l_n], causal ? first + i + 1 : l, squares(seen) * SIDE,
                        1 / std::sqrt(float(depth)), &shares[i * l_n]);
            for (Int column = 0; column < depth; column += SIDE)
                Kernel::square(&shares[0], l_n, &values[column * l_n], seen, &mixed[column], depth_n, count, false);
            for (Int i = 0; i < count; i++) std::copy_n(&mixed[i * depth_n], depth, out + (first + i) * w);
        }
    }

private:
    void copy(const Bfloat16* from, Int i) {  // the query, key and value of position i
        for (Int part = 0; part < 3; part++)  // of the next head, which is the next task
            for (Int d = 0; d < depth; d += 32) __builtin_prefetch(from + part * w + depth + d);
        std::copy_n(from, depth, &queries[i * depth_n]);
        std::copy_n(from + w, depth, &line[0]);
        Bfloat16* key = &keys[i / SIDE * SIDE * depth_n + i % SIDE * 2];
        for (Int d = 0; d < depth_n; d += 2) std::memcpy(key + d * SIDE, &line[d], 2 * sizeof *key);
        if (i % 2 == 0) two_values(from + 2 * w, i + 1 < l ? from + 5 * w : &nothing[0], i);
    }
    void two_values(const Bfloat16* first, const Bfloat16* second, Int i) {
        for (Int column = 0; column < depth; column += SIDE) {
            uint32_t pairs[SIDE] = {};
            for (Int d = 0; d < std::min(SIDE + 0, depth - column); d++)
                pairs[d] = first[column + d].bits | uint32_t(second[column + d].bits) << 16;
            std::memcpy(&values[column * l_n + i * SIDE], pairs, sizeof pairs);
        }
    }
};

// out (n, l, w) = attention of qkv (n, l, 3w).
template <class Kernel>
inline void half_attention(const Bfloat16* qkv, Bfloat16* out, Int n, Int l, Int w, Int heads,
                           bool causal) {
    const Int depth = w / heads;
#pragma omp parallel
    {
        typename Kernel::Setup setup;
        HalfHead<Kernel> scratch(l, depth, w);
#pragma omp for schedule(static)
        for (Int task = 0; task < n * heads; task++) {
            const Int row = task / heads * l, head = task % heads * depth;
            scratch.run(qkv + row * 3 * w + head, out + row * w + head, causal);
        }
    }
}

}  // namespace clip
