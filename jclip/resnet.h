// OpenAI's ResNets on the CPU, float32: the convolutions and average pools, computed by oneDNN, and the attention
// pooling. resnet.py has the same in plain Jittor, equal but for rounding, and includes kernels.h before this file:
// Jittor does not find the files that one of ours includes.
#pragma once
#include <cstdlib>
#include <dnnl.hpp>
#include <map>
#include <memory>
#include <new>
#include <unordered_map>
#include <utility>

namespace clip {

// The steps from `chunk` images to their last feature map, with activations and weights in the layouts that oneDNN
// chooses for this processor. A step's result may overwrite what no later step reads.
class ResNet {
    typedef dnnl::memory Memory;
    typedef Memory::format_tag Tag;
    const Memory::data_type FLOAT = Memory::data_type::f32;
    dnnl::engine engine{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream{engine};
    std::vector<std::pair<dnnl::primitive, std::unordered_map<int, Memory>>> steps;
    std::multimap<size_t, float*> unused;  // by size in bytes
    std::vector<std::unique_ptr<void, decltype(&std::free)>> buffers;
    const float* const* parameters;  // weight, bias, weight, … in the order in which they are needed
    Memory first, last;

public:
    ResNet(const float* const* parameters, Int chunk, Int side, Int width, const std::vector<Int>& blocks)
        : parameters(parameters), first({{chunk, 3, side, side}, FLOAT, Tag::nchw}, engine, nullptr) {
        Memory x = convolution(first, width / 2, 3, true, 2);
        x = replaced(x, convolution(x, width / 2, 3, true));
        x = replaced(x, convolution(x, width, 3, true));
        x = replaced(x, pool(x));
        for (size_t layer = 0; layer < blocks.size(); layer++)
            for (Int block = 0; block < blocks[layer]; block++)
                x = bottleneck(x, width << layer, block == 0, block == 0 && layer > 0);
        last = Memory({x.get_desc().dims(), FLOAT, Tag::nhwc}, engine, nullptr);
        steps.push_back({dnnl::reorder(x, last), {{DNNL_ARG_FROM, x}, {DNNL_ARG_TO, last}}});
    }

    void run(const float* images, float* out) {
        first.set_data_handle((void*)images);
        last.set_data_handle(out);
        for (auto& step : steps) step.first.execute(stream, step.second);
        stream.wait();
    }
    Int inputs() const { return first.get_desc().get_size() / sizeof(float); }
    Int outputs() const { return last.get_desc().get_size() / sizeof(float); }

private:
    Memory bottleneck(Memory x, Int width, bool projects, bool halves) {
        Memory y = convolution(x, width, 1, true);
        y = replaced(y, convolution(y, width, 3, true));
        if (halves) y = replaced(y, pool(y));
        if (halves) x = replaced(x, pool(x));
        if (projects) x = replaced(x, convolution(x, 4 * width, 1, false));
        convolution(y, 4 * width, 1, true, 1, &x);
        release(y);
        return x;
    }

    // Returns the convolution of x, which is padded so that only the stride makes it smaller. It is added to *sum where
    // that is given, and goes through ReLU at the end if `relu`.
    Memory convolution(Memory x, Int channels, Int kernel, bool relu, Int stride = 1, Memory* sum = nullptr) {
        const auto from = x.get_desc().dims();
        const Memory::dims to = {from[0], channels, from[2] / stride, from[3] / stride};
        const Memory::dims shape = {channels, from[1], kernel, kernel}, padding = {kernel / 2, kernel / 2};
        dnnl::post_ops after;
        if (sum) after.append_sum(1);
        if (relu) after.append_eltwise(1, dnnl::algorithm::eltwise_relu, 0, 0);
        dnnl::primitive_attr attributes;
        attributes.set_post_ops(after);
        const bool is_first = from[1] == 3;
        const dnnl::convolution_forward::primitive_desc chosen(
            {dnnl::prop_kind::forward_inference,
             dnnl::algorithm::convolution_direct,
             {from, FLOAT, is_first ? Tag::nchw : Tag::any},
             {shape, FLOAT, Tag::any},
             {{channels}, FLOAT, Tag::a},
             sum ? sum->get_desc() : Memory::desc(to, FLOAT, Tag::any),
             {stride, stride},
             padding,
             padding},
            attributes, engine);
        Memory source = x;
        if (chosen.src_desc() != x.get_desc()) {
            source = take(chosen.src_desc());
            steps.push_back({dnnl::reorder(x, source), {{DNNL_ARG_FROM, x}, {DNNL_ARG_TO, source}}});
        }
        Memory given({shape, FLOAT, Tag::oihw}, engine, (void*)*parameters++), weight = made(chosen.weights_desc());
        dnnl::reorder(given, weight).execute(stream, given, weight);
        stream.wait();
        const Memory bias({{channels}, FLOAT, Tag::a}, engine, (void*)*parameters++);
        const Memory result = sum ? *sum : take(chosen.dst_desc());
        steps.push_back(
            {dnnl::convolution_forward(chosen),
             {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_BIAS, bias}, {DNNL_ARG_DST, result}}});
        if (source.get() != x.get()) release(source);
        return result;
    }

    // Returns the means of 2 x 2 pixels.
    Memory pool(const Memory& x) {
        auto to = x.get_desc().dims();
        to[2] /= 2, to[3] /= 2;
        const dnnl::pooling_forward::primitive_desc chosen({dnnl::prop_kind::forward_inference,
                                                            dnnl::algorithm::pooling_avg_exclude_padding,
                                                            x.get_desc(),
                                                            {to, FLOAT, Tag::any},
                                                            {2, 2},
                                                            {2, 2},
                                                            {0, 0},
                                                            {0, 0}},
                                                           engine);
        const Memory result = take(chosen.dst_desc());
        steps.push_back({dnnl::pooling_forward(chosen), {{DNNL_ARG_SRC, x}, {DNNL_ARG_DST, result}}});
        return result;
    }

    Memory made(const Memory::desc& desc) {
        void* buffer = nullptr;
        if (posix_memalign(&buffer, 64, std::max(desc.get_size(), size_t(1)))) throw std::bad_alloc();
        buffers.emplace_back(buffer, std::free);
        return Memory(desc, engine, buffer);
    }
    // Returns memory that an earlier step has used, which is right for activations, but not for weights.
    Memory take(const Memory::desc& desc) {
        const size_t size = desc.get_size();
        auto found = unused.lower_bound(size);
        if (found == unused.end()) return made(desc);
        const Memory taken(desc, engine, found->second);
        unused.erase(found);
        return taken;
    }
    void release(const Memory& x) { unused.insert({x.get_desc().get_size(), (float*)x.get_data_handle()}); }
    // Returns y, after which x is not read.
    Memory replaced(const Memory& x, const Memory& y) {
        release(x);
        return y;
    }
};

// out (n, (side / 32)², 32 width) = the last feature maps of images (n, 3, side, side). Up to `most` images at a time,
// so that their activations stay in the processor's cache; always equally many, so that all are computed alike. The
// parameters are the weight (OIHW) and bias of each convolution in the order in which they are used.
inline void resnet(const float* images, const float* const* parameters, float* out, Int n, Int side, Int width,
                   const std::vector<Int>& blocks, Int most) {
    Int chunk = std::min(n, most);
    while (n % chunk) chunk--;
    ResNet steps(parameters, chunk, side, width, blocks);
    for (Int i = 0; i < n; i += chunk, images += steps.inputs(), out += steps.outputs()) steps.run(images, out);
}

// c (m, n) = a (m, k) times the transpose of b (n, k); k is a multiple of LANES. Rows are a_row, b_row, c_row apart.
template <int ROWS>
inline void dot_rows(const float* a, Int a_row, const float* b, Int b_row, float* c, Int c_row, Int n, Int k) {
    for (Int column = 0; column < n; column++, b += b_row) {
        Vec sums[ROWS] = {};
        for (Int i = 0; i < k; i += LANES) {
            const Vec of_b = load(b + i);
            for (int row = 0; row < ROWS; row++) sums[row] = in_order(sums[row] + load(a + row * a_row + i) * of_b);
        }
        for (int row = 0; row < ROWS; row++) c[row * c_row + column] = sum(sums[row]);
    }
}
inline void dots(const float* a, Int a_row, const float* b, Int b_row, float* c, Int c_row, Int m, Int n, Int k) {
    Int row = 0;
    for (; row + 4 <= m; row += 4) dot_rows<4>(a + row * a_row, a_row, b, b_row, c + row * c_row, c_row, n, k);
    for (; row < m; row++) dot_rows<1>(a + row * a_row, a_row, b, b_row, c + row * c_row, c_row, n, k);
}

// out (n, l, w) = the mean of x (n, l - 1, w) before its rows, plus the positional embedding (l, w)
inline void pool_tokens(const float* x, const float* positions, float* out, Int n, Int l, Int w) {
#pragma omp parallel for schedule(static)
    for (Int i = 0; i < n; i++) {
        const float* from = x + i * (l - 1) * w;
        float* to = out + i * l * w;
        std::fill(to, to + w, 0.f);
        for (Int row = 0; row < l - 1; row++)
            for (Int c = 0; c < w; c++) to[c] += from[row * w + c];
        for (Int c = 0; c < w; c++) to[c] = to[c] / (l - 1) + positions[c];
        for (Int c = w; c < l * w; c++) to[c] = from[c - w] + positions[c];
    }
}

// out (n, w) = attention of one query an image, queries (n, w), to its tokens (n, l, w). The key of a token x is K x
// and its value V x, with K and V (w, w). As q (K x) = (q K) x, and as the sum of p (V x) is V (the sum of p x),
// neither is computed for every token. The bias of the keys changes all scores of a head by the same number, and so
// nothing.
inline void attention_pool(const float* tokens, const float* queries, const float* key_matrix,
                           const float* value_matrix, const float* value_bias, float* out, Int n, Int l, Int w,
                           Int heads) {
    const Int depth = w / heads, padded_l = padded(l);
    std::unique_ptr<float[]> mixed(new float[n * heads * w]);  // (n, heads, w): first q K, then the sum of p x
#pragma omp parallel
    {
        std::vector<float> scores(heads * padded_l);
#pragma omp for schedule(static)
        for (Int head = 0; head < heads; head++)
            product(queries + head * depth, w, key_matrix + head * depth * w, w, &mixed[head * w], heads * w, n, depth);
#pragma omp for schedule(static)
        for (Int i = 0; i < n; i++) {
            const float* x = tokens + i * l * w;
            float* rows = &mixed[i * heads * w];
            dots(rows, w, x, w, scores.data(), padded_l, heads, l, w);
            for (Int head = 0; head < heads; head++) {
                float* s = &scores[head * padded_l];
                for (Int j = 0; j < l; j++) s[j] /= std::sqrt(float(depth));
                softmax(s, l, padded_l, 1, s);
            }
            product(scores.data(), padded_l, x, w, rows, w, heads, l);
        }
#pragma omp for schedule(static)
        for (Int head = 0; head < heads; head++) {
            float* to = out + head * depth;
            dots(&mixed[head * w], heads * w, value_matrix + head * depth * w, w, to, w, n, depth, w);
            for (Int i = 0; i < n; i++)
                for (Int d = 0; d < depth; d++) to[i * w + d] += value_bias[head * depth + d];
        }
    }
}

}  // namespace clip
