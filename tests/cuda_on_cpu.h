// Enough of CUDA C++ to compile small kernels by g++ and run them on the CPU: tests of numbers where there is no GPU.
//
//     #include "cuda_on_cpu.h"  // before the kernels: it is what nvcc knows by itself
//     #include "kernels.cuh"
//     cuda_on_cpu::launch(dim3(rows), dim3(128), bytes, [&] { kernel<64>(x, out); });  // like <<<rows, 128, bytes>>>
//
//     g++ -std=c++17 -O1 -fno-strict-aliasing [-g -fsanitize=address] test.cpp
//
// Blocks run one after another, and so do a block's threads, as fibers of the calling thread: each runs until it needs
// the others, at a barrier or where a warp exchanges registers. So there are no races here: a missing __syncthreads()
// shows at best as wrong numbers with `backwards` or without, and waiting in a loop for another thread never ends.
// Barriers that only some of a warp's or block's running threads reach end the program with a message.
// Dynamic shared memory is NaN when a block starts. __shared__ arrays are not refilled: they are zero in the program's
// first block and then hold what the last block left (on a GPU, neither is certain).
#pragma once
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <math.h>
#include <type_traits>
#include <vector>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#define CUDA_ON_CPU_UCONTEXT
#endif
#ifdef CUDA_ON_CPU_UCONTEXT
#include <ucontext.h>
#endif

// ---- the language ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static  // one block at a time; g++ wants __align__(16) behind it, not alignas(16)
#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(cuda_on_cpu::dynamic_shared.data())

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
const int warpSize = 32;

struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- functions ----

// Macros, as glibc has functions of these names: __expf long since, rsqrtf since 2.42.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define rsqrtf(x) (1 / sqrtf(x))
inline float __fdividef(float x, float y) { return x / y; }
template <class T> T __ldg(const T* p) { return *p; }
#define CUDA_ON_CPU_MIN_MAX(T)                       \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
CUDA_ON_CPU_MIN_MAX(int)
CUDA_ON_CPU_MIN_MAX(unsigned)
CUDA_ON_CPU_MIN_MAX(long)
CUDA_ON_CPU_MIN_MAX(unsigned long)
CUDA_ON_CPU_MIN_MAX(long long)
CUDA_ON_CPU_MIN_MAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// ---- half ----

namespace cuda_on_cpu {

// In bits, as _Float16 is not in every g++.
inline float half_to_float(uint16_t half) {
    uint32_t bits = uint32_t(half & 0x7fff) << 13;
    float x;
    memcpy(&x, &bits, 4);
    x *= 0x1p112f;  // the exponents' biases are 15 and 127; a product also makes subnormals normal
    memcpy(&bits, &x, 4);
    if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000;
    bits |= uint32_t(half & 0x8000) << 16;
    memcpy(&x, &bits, 4);
    return x;
}

// Rounds to nearest, ties to even.
inline uint16_t float_to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return 0x7fff;          // CUDA's NaN
    if (bits >= 0x477ff000) return sign | 0x7c00;  // from 65520 on
    if (bits < 0x38800000) {                       // subnormal: next to 0.5, floats have the same distance
        const float shifted = fabsf(x) + 0.5f;
        memcpy(&bits, &shifted, 4);
        return sign | (bits - 0x3f000000);
    }
    return sign | (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
}

}  // namespace cuda_on_cpu

struct __half {
    uint16_t bits;
    __half() = default;
    __half(float x) : bits(cuda_on_cpu::float_to_half(x)) {}
    operator float() const { return cuda_on_cpu::half_to_float(bits); }
};
struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half x, __half y) : x(x), y(y) {}
};
typedef __half half;
typedef __half2 half2;
inline __half operator+(__half a, __half b) { return float(a) + float(b); }  // rounded, as on a GPU
inline __half operator-(__half a, __half b) { return float(a) - float(b); }
inline __half operator*(__half a, __half b) { return float(a) * float(b); }
inline __half operator/(__half a, __half b) { return float(a) / float(b); }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }

// ---- fibers ----

namespace cuda_on_cpu {

#ifndef CUDA_ON_CPU_UCONTEXT
// swapcontext would ask the system for the signal mask each time, which is what takes the time.
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(
    .pushsection .text
    .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
    .size cuda_on_cpu_switch, . - cuda_on_cpu_switch
    .popsection
)");
struct Context {
    void* stack;
};
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    void** top = (void**)(stack + size);  // the six registers, where to go, and nowhere to return
    memset(top - 8, 0, 8 * sizeof(void*));
    top[-2] = (void*)entry;
    context.stack = top - 8;
}
inline void change(Context& from, Context& to) { cuda_on_cpu_switch(&from.stack, to.stack); }
#else
typedef ucontext_t Context;
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    makecontext(&context, entry, 0);
}
inline void change(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

#ifdef __SANITIZE_ADDRESS__
const size_t STACK = 256 << 10;  // its frames are larger
#else
const size_t STACK = 64 << 10;
#endif

struct Barrier {
    const char* name;
    int line;
    bool of_block;
};
struct Fiber {
    Context context;
    char* stack;
    uint3 index;
    bool done;
    Barrier waits_at;  // no name: it can run
    void* asan;
};
// What the lanes of a warp give each other.
union Exchange {
    uint64_t values[32];
    struct {
        float a[16][16], b[16][8];
    } mma;
    uint16_t rows[32][8];
};
struct Warp {
    Exchange exchange[2];  // in turns, so that the next exchange can begin before the last lane has read this one
    int turn;
    unsigned took_part;  // lanes, in the last exchange
};

inline bool backwards = false;  // the last block, warp and lane first
inline std::vector<unsigned char> dynamic_shared;
inline Fiber fibers[1024];  // made when first needed, then kept: a fiber runs one thread after another
inline Warp warps[32];
inline Fiber* running;
inline Context scheduler;
inline const std::function<void()>* kernel;

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
    fflush(stdout);
    fprintf(stderr, "cuda_on_cpu: block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    abort();
}

#ifdef __SANITIZE_ADDRESS__
// AddressSanitizer has to know which stack is in use.
inline void* scheduler_asan;
inline const void* scheduler_stack;
inline size_t scheduler_size;
inline void resume(Fiber& fiber) {
    __sanitizer_start_switch_fiber(&scheduler_asan, fiber.stack, STACK);
    change(scheduler, fiber.context);
    __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
}
inline void begun() { __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size); }
inline void leave(Fiber& fiber) {
    __sanitizer_start_switch_fiber(&fiber.asan, scheduler_stack, scheduler_size);
    change(fiber.context, scheduler);
    __sanitizer_finish_switch_fiber(fiber.asan, &scheduler_stack, &scheduler_size);
}
#else
inline void resume(Fiber& fiber) { change(scheduler, fiber.context); }
inline void begun() {}
inline void leave(Fiber& fiber) { change(fiber.context, scheduler); }
#endif

inline void fiber_main() {
    begun();
    for (;;) {
        (*kernel)();
        running->done = true;
        leave(*running);
    }
}

inline void start(Fiber& fiber, unsigned thread) {
    if (!fiber.stack) {
        const size_t page = sysconf(_SC_PAGESIZE);  // below the stack, unusable: an overflow ends the program
        char* memory = (char*)mmap(nullptr, page + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE)) fail("no memory for stacks");
        fiber.stack = memory + page;
        prepare(fiber.context, fiber.stack, STACK, fiber_main);
    }
    fiber.index = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
    fiber.done = false;
    fiber.waits_at = {};
}

inline void wait(const Barrier& barrier) {
    running->waits_at = barrier;
    leave(*running);
}

// The barrier that the threads from first to end are at, but for those that have finished. No name: all have finished.
inline Barrier common_barrier(int first, int end) {
    const Fiber* one = nullptr;
    for (const Fiber* f = fibers + first; f < fibers + end; f++) {
        if (f->done) continue;
        if (!one) one = f;
        const Barrier &a = one->waits_at, &b = f->waits_at;
        if (a.line != b.line || strcmp(a.name, b.name))
            fail(
                "a deadlock, or undefined on a GPU: thread (%u, %u, %u) waits in %s (line %d), but (%u, %u, %u) in %s"
                " (line %d)",
                one->index.x, one->index.y, one->index.z, a.name, a.line, f->index.x, f->index.y, f->index.z, b.name,
                b.line);
    }
    return one ? one->waits_at : Barrier{};
}

inline void release(int first, int end) {
    for (int i = first; i < end; i++) fibers[i].waits_at = {};
}

// Runs the threads of a warp until each has finished or is at the same __syncthreads().
inline void run_warp(int index, int first, int end) {
    Warp& warp = warps[index];
    for (;;) {
        for (int i = 0; i < end - first; i++) {
            Fiber& fiber = fibers[backwards ? end - 1 - i : first + i];
            if (fiber.done) continue;
            running = &fiber;
            threadIdx = fiber.index;
            resume(fiber);
        }
        const Barrier barrier = common_barrier(first, end);
        if (!barrier.name || barrier.of_block) return;
        warp.turn ^= 1;
        warp.took_part = 0;
        for (int i = first; i < end; i++) warp.took_part |= unsigned(!fibers[i].done) << (i - first);
        release(first, end);
    }
}

inline void run_block(int threads) {
    if (!dynamic_shared.empty()) memset(dynamic_shared.data(), 0xff, dynamic_shared.size());
    for (int i = 0; i < threads; i++) start(fibers[i], i);
    const int count = (threads + 31) / 32;
    do {
        for (int i = 0; i < count; i++) {
            const int warp = backwards ? count - 1 - i : i;
            run_warp(warp, warp * 32, min(warp * 32 + 32, threads));
        }
        if (!common_barrier(0, threads).name) return;
        release(0, threads);
    } while (true);
}

// Runs a call of a kernel in every thread of the grid.
inline void launch(dim3 grid, dim3 block, size_t dynamic_bytes, const std::function<void()>& call) {
    const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
    blockIdx = {};
    if (!threads || threads > 1024 || block.z > 64) fail("a block of (%u, %u, %u) threads", block.x, block.y, block.z);
    if (!blocks || grid.x >> 31 || grid.y > 65535 || grid.z > 65535)
        fail("a grid of (%u, %u, %u) blocks", grid.x, grid.y, grid.z);
    if (dynamic_bytes > 227 << 10) fail("%zu bytes of shared memory; an H100 has 227 KB for a block", dynamic_bytes);
    gridDim = grid;
    blockDim = block;
    kernel = &call;
    dynamic_shared = std::vector<unsigned char>(dynamic_bytes);  // exactly: AddressSanitizer sees what is beyond
    for (uint64_t i = 0; i < blocks; i++) {
        const uint64_t b = backwards ? blocks - 1 - i : i;
        blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
        run_block(threads);
    }
}

// ---- warps ----

inline int thread() { return running - fibers; }
inline int lane() { return thread() % 32; }
inline Warp& warp() { return warps[thread() / 32]; }
inline Exchange& exchange() { return warp().exchange[warp().turn]; }

inline void wait_for_warp(unsigned mask, const char* name, int line) {
    wait({name, line, false});
    if (warp().took_part & ~mask)
        fail("%s (line %d): a mask without all lanes (%#x) is not emulated", name, line, mask);
}

inline void wait_for_all_lanes(const char* name, int line) {
    wait({name, line, false});
    if (warp().took_part != 0xffffffff) fail("%s (line %d) needs all 32 lanes", name, line);
}

template <class T> T shuffle(unsigned mask, T value, int from, int width, const char* name, int line) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "a shuffle takes numbers");
    if (width != 32) fail("%s (line %d): a width of %d is not emulated", name, line, width);
    Exchange& data = exchange();
    memcpy(&data.values[lane()], &value, sizeof(T));
    wait_for_warp(mask, name, line);
    if (!(warp().took_part >> from & 1))
        fail("%s (line %d): lane %d reads lane %d, which takes no part", name, line, lane(), from);
    memcpy(&value, &data.values[from], sizeof(T));
    return value;
}

template <int N, bool TRANS> void load_matrices(unsigned (&r)[N], const void* row, const char* name, int line) {
    const int high = lane() / 4, low = lane() % 4 * 2;
    Exchange& data = exchange();
    if (lane() < 8 * N) {
        if ((uintptr_t)row % 16) fail("%s (line %d): the row of lane %d is not aligned to 16", name, line, lane());
        memcpy(data.rows[lane()], row, 16);  // now: after the barrier, lanes ahead of this one may write there
    }
    wait_for_all_lanes(name, line);
    for (int i = 0; i < N; i++) {
        const uint16_t (*matrix)[8] = data.rows + 8 * i;
        const unsigned first = TRANS ? matrix[low][high] : matrix[high][low];
        const unsigned second = TRANS ? matrix[low + 1][high] : matrix[high][low + 1];
        r[i] = first | second << 16;
    }
}

}  // namespace cuda_on_cpu

// The line is the caller's: threads that meet in different lines are an error.
inline void __syncthreads(int line = __builtin_LINE()) { cuda_on_cpu::wait({"__syncthreads", line, true}); }
inline void __syncwarp(unsigned mask = 0xffffffff, int line = __builtin_LINE()) {
    cuda_on_cpu::wait_for_warp(mask, "__syncwarp", line);
}

template <class T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, int line = __builtin_LINE()) {
    return cuda_on_cpu::shuffle(mask, value, from & 31, width, "__shfl_sync", line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, int line = __builtin_LINE()) {
    return cuda_on_cpu::shuffle(mask, value, (cuda_on_cpu::lane() ^ with) & 31, width, "__shfl_xor_sync", line);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, int by, int width = 32, int line = __builtin_LINE()) {
    const int lane = cuda_on_cpu::lane();
    return cuda_on_cpu::shuffle(mask, value, lane + by > 31 ? lane : lane + by, width, "__shfl_down_sync", line);
}

// ---- tensor cores: the PTX instructions, lane by lane as the PTX ISA lays out their fragments ----

inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row, int line = __builtin_LINE()) {
    cuda_on_cpu::load_matrices<2, true>(r, row, "ldmatrix_x2_trans", line);
}
inline void ldmatrix_x4(unsigned (&r)[4], const void* row, int line = __builtin_LINE()) {
    cuda_on_cpu::load_matrices<4, false>(r, row, "ldmatrix_x4", line);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, int line = __builtin_LINE()) {
    cuda_on_cpu::load_matrices<4, true>(r, row, "ldmatrix_x4_trans", line);
}

// d += a·b, a sum of float32 from k = 0 to 15 that is added at the end. A GPU adds in another order and rounds down.
inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    const int group = cuda_on_cpu::lane() / 4, two = cuda_on_cpu::lane() % 4 * 2;
    auto& data = cuda_on_cpu::exchange().mma;
    for (int i = 0; i < 2; i++) {  // the low half of each register, then the high one
        for (int j = 0; j < 4; j++)
            data.a[group + j % 2 * 8][two + j / 2 * 8 + i] = cuda_on_cpu::half_to_float(a[j] >> 16 * i);
        for (int j = 0; j < 2; j++) data.b[two + j * 8 + i][group] = cuda_on_cpu::half_to_float(b[j] >> 16 * i);
    }
    cuda_on_cpu::wait_for_all_lanes("mma_m16n8k16", line);
    for (int j = 0; j < 4; j++) {
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += data.a[group + j / 2 * 8][k] * data.b[k][two + j % 2];
        d[j] += sum;
    }
}
