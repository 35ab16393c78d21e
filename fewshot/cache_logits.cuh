// Tip-Adapter's logits, the cross-entropy, and the gradients of both on CUDA: one thread per output for the logits and
// their gradient, one block per row for the cross-entropy and its gradient.
// cache_logits.py has the formula; here rows = B, n = N (keys), classes = C.
// Included after jclip/kernels.cuh.
#pragma once

namespace cache {

using clip::Int;

// members (n,): the indices of the keys, sorted by class; those of class c are members[starts[c]:starts[c + 1]].
__global__ void logits(const float* affinity, const float* zero_shot, const int* members, const int* starts, float* out,
                       Int rows, Int n, int classes, float alpha, float beta) {
    const Int i = (Int)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * classes) return;
    const float* row = affinity + i / classes * n;
    const int c = i % classes;
    float sum = 0;
    for (int j = starts[c]; j < starts[c + 1]; j++) sum += __expf(beta * (row[members[j]] - 1));
    out[i] = zero_shot[i] + alpha * sum;
}

// out (rows, n) = the gradient of the loss with respect to the affinities.
// logits_gradient (rows, classes) is the gradient of the loss with respect to the logits.
__global__ void gradient(const float* affinity, const int* labels, const float* logits_gradient, float* out, Int rows,
                         Int n, int classes, float alpha, float beta) {
    const Int i = (Int)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * n) return;
    out[i] = alpha * beta * logits_gradient[i / n * classes + labels[i % n]] * __expf(beta * (affinity[i] - 1));
}

// Returns the maximum (largest = true) or the sum of x over a block.
__device__ inline float block_reduce(float x, bool largest) {
    __shared__ float warp_values[32];
    for (int lane = 16; lane; lane /= 2) {
        const float other = __shfl_xor_sync(~0u, x, lane);
        x = largest ? fmaxf(x, other) : x + other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) warp_values[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_values[0];
    for (int i = 1; i < blockDim.x / 32; i++) x = largest ? fmaxf(x, warp_values[i]) : x + warp_values[i];
    return x;
}

// Returns log(sum(exp(x))) of a row.
__device__ inline float log_sum_exp(const float* x, int classes) {
    float maximum = -INFINITY, total = 0;
    for (int c = threadIdx.x; c < classes; c += blockDim.x) maximum = fmaxf(maximum, x[c]);
    maximum = block_reduce(maximum, true);
    for (int c = threadIdx.x; c < classes; c += blockDim.x) total += __expf(x[c] - maximum);
    return maximum + __logf(block_reduce(total, false));
}

// out (rows,) = the cross-entropy of logits (rows, classes) at the labels (rows,). One block per row.
__global__ void cross_entropy(const float* logits, const int* labels, float* out, int classes) {
    const float* row = logits + (Int)blockIdx.x * classes;
    const float sum = log_sum_exp(row, classes);
    if (threadIdx.x == 0) out[blockIdx.x] = sum - row[labels[blockIdx.x]];
}

// out (rows, classes) = the gradient of the loss with respect to the logits.
// loss_gradient (rows,) is the gradient of the loss with respect to the cross-entropy of each row.
__global__ void cross_entropy_gradient(const float* logits, const int* labels, const float* loss_gradient, float* out,
                                       int classes) {
    const float* row = logits + (Int)blockIdx.x * classes;
    const float sum = log_sum_exp(row, classes);
    for (int c = threadIdx.x; c < classes; c += blockDim.x)
        out[(Int)blockIdx.x * classes + c] =
            loss_gradient[blockIdx.x] * (__expf(row[c] - sum) - (c == labels[blockIdx.x]));
}

}  // namespace cache
