// AMX's tiles in plain C++, and the products and attention of half.h computed with them beside those of Plain: prints the
// largest difference. test_half_cpu.py compiles it, with -I for the folder of half.h.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

static thread_local uint8_t config[64], tiles[8][16][64];

// As the processor does, refuses tiles that were not configured; half.h uses whole ones only.
static void check_config() {
    for (int t = 0; t < 8; t++)
        if (config[0] != 1 || config[16 + 2 * t] != 64 || config[17 + 2 * t] || config[48 + t] != 16) std::abort();
}
static void copy_tile(int t, const void* from, long stride) {
    check_config();
    for (int row = 0; row < 16; row++) std::memcpy(tiles[t][row], (const char*)from + row * stride, 64);
}
static void store_tile(int t, void* to, long stride) {
    check_config();
    for (int row = 0; row < 16; row++) std::memcpy((char*)to + row * stride, tiles[t][row], 64);
}
static float number(const uint8_t* bytes) {
    const uint32_t bits = uint32_t(bytes[0]) << 16 | uint32_t(bytes[1]) << 24;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
static void multiply_tiles(int c, int a, int b) {
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++) {
            float sum;
            std::memcpy(&sum, &tiles[c][row][4 * column], sizeof sum);
            for (int i = 0; i < 16; i++)
                for (int odd = 0; odd < 2; odd++)
                    sum += number(&tiles[a][row][4 * i + 2 * odd]) * number(&tiles[b][i][4 * column + 2 * odd]);
            std::memcpy(&tiles[c][row][4 * column], &sum, sizeof sum);
        }
}

#include "kernels.h"
#undef __AVX512BF16__
#undef __AMX_BF16__
#undef __AMX_TILE__
#define __AMX_BF16__ 1
#define __AMX_TILE__ 1
#define CLIP_EMULATED_TILES
#define _tile_loadconfig(from) std::memcpy(config, from, 64)
#define _tile_release() std::memset(config, 0, 64)
#define _tile_zero(t) (check_config(), std::memset(tiles[t], 0, sizeof tiles[t]))
#define _tile_loadd copy_tile
#define _tile_stored store_tile
#define _tile_dpbf16ps multiply_tiles
#include "half.h"
using namespace clip;

static std::mt19937 generator(0);
template <class T>
static std::vector<T> normal(Int n) {
    std::normal_distribution<float> draw;
    std::vector<T> x(n);
    for (auto& value : x) value = draw(generator);
    return x;
}

template <class Kernel>
static std::vector<float> product(const std::vector<Bfloat16>& x, const std::vector<Bfloat16>& weight, Int rows,
                                  Int outputs, bool is_transpose) {
    const Int inputs = weight.size() / outputs;
    std::vector<Bfloat16> packed(squares(outputs) * squares(inputs) * SIDE * SIDE);
    std::vector<float> out(rows * outputs);
    pack(weight.data(), outputs, inputs, is_transpose, packed.data());
    multiply<Kernel>(x.data(), packed.data(), rows, inputs, outputs, Stored{out.data(), outputs});
    return out;
}

template <class Kernel>
static std::vector<float> attended(const std::vector<Bfloat16>& qkv, Int n, Int l, Int w, Int heads, bool causal) {
    std::vector<Bfloat16> out(n * l * w);
    half_attention<Kernel>(qkv.data(), out.data(), n, l, w, heads, causal);
    std::vector<float> values;
    for (Bfloat16 x : out) values.push_back(Plain::value(x));
    return values;
}

static double most = 0;
static void compare(const std::vector<float>& found, const std::vector<float>& expected) {
    for (size_t i = 0; i < found.size(); i++) most = std::max(most, std::fabs(double(found[i]) - expected[i]));
}

int main() {
    for (auto size : {std::vector<Int>{7, 33, 50}, {200, 900, 130}, {3, 1, 40}, {24, 100, 1}, {65, 588, 64}})
        for (bool is_transpose : {false, true}) {
            const Int rows = size[0], inputs = size[1], outputs = size[2];
            const auto x = normal<Bfloat16>(rows * inputs), weight = normal<Bfloat16>(outputs * inputs);
            compare(product<Amx>(x, weight, rows, outputs, is_transpose),
                    product<Plain>(x, weight, rows, outputs, is_transpose));
        }
    for (Int l : {1, 9, 32, 50, 77})
        for (bool causal : {false, true}) {
            const auto qkv = normal<Bfloat16>(2 * l * 3 * 128);
            compare(attended<Amx>(qkv, 2, l, 128, 2, causal), attended<Plain>(qkv, 2, l, 128, 2, causal));
        }
    std::printf("%g\n", most);
}
