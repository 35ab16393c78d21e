// Matrix products by oneDNN with the weight in the layout that oneDNN chooses for this processor. T is the type of both
// factors, float or Bfloat16; sums and results are float32. kernels.h is included before this file.
#pragma once
#include <dnnl.hpp>
#include <stdexcept>
#include <type_traits>

namespace clip {

// Products with one weight, (outputs, inputs). oneDNN keeps the last 1,024 primitives that were made, so making the same
// one again, for the next block or batch, costs little. They are inner products: oneDNN 2.2 packs the weight of its
// matmul, in bfloat16, on no processor without AMX.
template <class T>
class Product {
    typedef dnnl::memory Memory;
    typedef Memory::format_tag Tag;
    typedef dnnl::inner_product_forward Primitive;
    static const Memory::data_type FLOAT = Memory::data_type::f32;
    static const Memory::data_type TYPE = std::is_same<T, float>::value ? FLOAT : Memory::data_type::bf16;
    static const Int USUAL_ROWS = 1024;  // what the layout is chosen for; it serves any number of rows
    const Int outputs, inputs;
    dnnl::engine engine{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream{engine};

public:
    Product(Int outputs, Int inputs) : outputs(outputs), inputs(inputs) {}

    // Copies a weight, (outputs, inputs) or its transpose, to `packed`, which has room for `size` bytes.
    void pack(const void* weight, bool is_transpose, void* packed, size_t size) {
        if (layout().get_size() > size) throw std::length_error("oneDNN's layout of the weight is larger than expected");
        Memory from({{outputs, inputs}, TYPE, is_transpose ? Tag::ba : Tag::ab}, engine, (void*)weight);
        Memory to(layout(), engine, packed);
        dnnl::reorder(from, to).execute(stream, from, to);
        stream.wait();
    }

    // out (rows, outputs) = x (rows, inputs) times the transpose of the weight
    void run(const void* x, const void* packed, float* out, Int rows) {
        const auto chosen = primitive(rows, layout());
        const Memory from(chosen.src_desc(), engine, (void*)x), weight(chosen.weights_desc(), engine, (void*)packed);
        const Memory to(chosen.dst_desc(), engine, out);
        Primitive(chosen).execute(stream, {{DNNL_ARG_SRC, from}, {DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_DST, to}});
        stream.wait();
    }

private:
    Memory::desc layout() const {
        return primitive(USUAL_ROWS, {{outputs, inputs}, TYPE, Tag::any}).weights_desc();
    }
    Primitive::primitive_desc primitive(Int rows, const Memory::desc& weight) const {
        const Memory::desc from({rows, inputs}, TYPE, Tag::ab), to({rows, outputs}, FLOAT, Tag::ab);
        return Primitive::primitive_desc({dnnl::prop_kind::forward_inference, from, weight, to}, engine);
    }
};

}  // namespace clip
