"""bfloat16 products in plain C++, for the tests of half precision on CPUs that lack the instructions for them.

Factors are bfloat16 and sums float32, as in oneDNN's; only the order of additions is another.
"""

from jclip import runtime

SOURCE = """
namespace clip {
inline std::vector<float> widened(const Bfloat16* x, Int n) {
    std::vector<float> out(n);
    for (Int i = 0; i < n; i++) {
        const uint32_t bits = uint32_t(x[i].bits) << 16;
        std::memcpy(&out[i], &bits, sizeof bits);
    }
    return out;
}

// out (n, outputs) = x (n, inputs) times the transpose of weight (outputs, inputs), or times weight (inputs, outputs)
inline void portable_product(const void* x, const void* weight, float* out, Int n, Int outputs, Int inputs,
                             bool transposed) {
    const auto factors = widened((const Bfloat16*)weight, outputs * inputs);
    const Int row = transposed ? inputs : 1, column = transposed ? 1 : outputs;
#pragma omp parallel for
    for (Int i = 0; i < n; i++) {
        const auto from = widened((const Bfloat16*)x + i * inputs, inputs);
        for (Int j = 0; j < outputs; j++) {
            float sum = 0;
            for (Int k = 0; k < inputs; k++) sum += from[k] * factors[j * row + k * column];
            out[i * outputs + j] = sum;
        }
    }
}
}  // namespace clip
"""


def product(rows, matrix, transposed):
    """Compute what jclip.products.packed_product does."""
    from jclip import kernels

    arguments = f"in0_p, in1_p, out0_p, out0_shape0, out0_shape1, in0_shape1, {int(transposed)}"
    return runtime.jittor().code(
        (rows.shape[0], matrix.shape[0 if transposed else 1]),
        "float32",
        [kernels.bfloat16(rows), matrix],
        cpu_header=kernels.CPU_SOURCE + SOURCE,
        cpu_src=f"clip::portable_product({arguments});",
    )


def install(setattr=setattr):
    """Put this product in the place of oneDNN's, in this process."""
    runtime.jittor()
    from jclip import products

    setattr(runtime, "has_bfloat16", lambda: True)
    setattr(products, "packed_product", product)
