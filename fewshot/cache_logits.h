// Tip-Adapter's logits and their gradient on all cores of the CPU.
// cache_logits.py has the formula; here rows = B, n = N (keys), classes = C.
// Uses the vector types of jclip/kernels.h.
#pragma once

namespace cache {

using namespace clip;

// out = exp(-beta·(1 - x)) for n affinities x.
inline void sharpen(const float* x, float* out, Int n, float beta) {
    Int i = 0;
    for (; i + LANES <= n; i += LANES) store(out + i, exponential(beta * (load(x + i) - 1.f)));
    for (; i < n; i++) out[i] = std::exp(beta * (x[i] - 1));
}

inline void logits(const float* affinity, const float* zero_shot, const int* labels, float* out, Int rows, Int n,
                   Int classes, float alpha, float beta) {
#pragma omp parallel
    {
        std::vector<float> exponentials(n), sums(classes);
#pragma omp for schedule(static)
        for (Int row = 0; row < rows; row++) {
            sharpen(affinity + row * n, exponentials.data(), n, beta);
            std::fill(sums.begin(), sums.end(), 0.f);
            for (Int i = 0; i < n; i++) sums[labels[i]] += exponentials[i];
            for (Int c = 0; c < classes; c++) out[row * classes + c] = zero_shot[row * classes + c] + alpha * sums[c];
        }
    }
}

// out (rows, n) = the gradient of the loss with respect to the affinities.
// logits_gradient (rows, classes) is the gradient of the loss with respect to the logits.
inline void gradient(const float* affinity, const int* labels, const float* logits_gradient, float* out, Int rows,
                     Int n, Int classes, float alpha, float beta) {
#pragma omp parallel for schedule(static)
    for (Int row = 0; row < rows; row++) {
        sharpen(affinity + row * n, out + row * n, n, beta);
        for (Int i = 0; i < n; i++) out[row * n + i] *= alpha * beta * logits_gradient[row * classes + labels[i]];
    }
}

}  // namespace cache
