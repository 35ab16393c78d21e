"""The CUDA kernels are compared with numpy in float64; cuda_emulator.py runs them on the CPU, so no GPU is needed."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import GOLDEN
from cuda_emulator import Emulator
from test_kernels import WIDTHS, attention, exact_gelu, normal

from jclip.preprocess import LEVELS, normalised

if not shutil.which("g++"):
    pytest.skip("needs g++", allow_module_level=True)

DTYPES = {"float32": 2e-5, "float16": 2e-3}  # dtype -> tolerance for numbers up to about 5


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def kernels(jt, emulator, monkeypatch):
    """jclip.kernels as on CUDA under no_grad; the emulator computes what Jittor would."""
    from jclip import kernels

    called = []

    def run(shapes, dtypes, call, *inputs):
        called.append(call.split("(")[0])
        several = isinstance(dtypes, list)
        outs = emulator.run(
            shapes if several else [shapes],
            dtypes if several else [dtypes],
            kernels.CUDA_SOURCE,
            f"clip::{call}; clip::check();",
            [x.numpy() for x in inputs],
        )
        return [jt.array(out) for out in outs] if several else jt.array(outs[0])

    monkeypatch.setattr(kernels, "_run", run)
    monkeypatch.setattr(kernels, "_device", lambda: "cuda")
    monkeypatch.setattr(kernels, "called", called, raising=False)
    return kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", WIDTHS)
def test_layer_norm(jt, kernels, shape, dtype):
    x, weight, bias = normal(shape) + np.float32(10), normal(shape[-1:], seed=1), normal(shape[-1:], seed=2)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5) * weight + bias
    actual = kernels.layer_norm(*map(jt.array, (x, weight, bias)), dtype).numpy()
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, exact, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, scale", [(shape, 1) for shape in WIDTHS] + [((3, 5, 64), 40)])
def test_quick_gelu(jt, kernels, shape, scale, dtype):
    x, bias = normal(shape, scale).astype(dtype), normal(shape[-1:], seed=1)
    z = x.astype(np.float64) + bias
    actual = kernels.quick_gelu(jt.array(x), jt.array(bias)).numpy()
    assert actual.dtype == dtype
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(actual, z / (1 + np.exp(-1.702 * z)), rtol=DTYPES[dtype], atol=DTYPES[dtype] / 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, scale", [(shape, 1) for shape in WIDTHS] + [((3, 5, 64), 40)])
def test_gelu(jt, kernels, shape, scale, dtype):
    x, bias = normal(shape, scale).astype(dtype), normal(shape[-1:], seed=1)
    actual = kernels.gelu(jt.array(x), jt.array(bias)).numpy()
    assert actual.dtype == dtype
    exact = exact_gelu(x.astype(np.float32) + bias)
    np.testing.assert_allclose(actual, exact, rtol=DTYPES[dtype], atol=DTYPES[dtype] / 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", WIDTHS)
def test_residual(jt, kernels, shape, dtype):
    x, branch, bias = normal(shape), normal(shape, seed=1).astype(dtype), normal(shape[-1:], seed=2)
    actual = kernels.residual(*map(jt.array, (x, branch, bias))).numpy()
    np.testing.assert_allclose(actual, x + branch.astype(np.float32) + bias, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side, size", [(32, 8), (30, 5), (28, 14)])
def test_patches(jt, kernels, monkeypatch, side, size, dtype):
    x = normal((3, 3, side, side))
    actual = kernels.patches(jt.array(x), size, dtype).numpy()
    monkeypatch.undo()
    np.testing.assert_array_equal(actual, kernels.patches(jt.array(x), size).numpy().astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens(jt, kernels, dtype):
    patches, first, positions = normal((3, 6, 20)).astype(dtype), normal((20,), seed=1), normal((7, 20), seed=2)
    actual = kernels.tokens(*map(jt.array, (patches, first, positions))).numpy()
    exact = np.concatenate([np.tile(first, (3, 1, 1)), patches.astype(np.float32)], axis=1) + positions
    np.testing.assert_array_equal(actual, exact)


def test_normalised_pixels_are_those_of_the_cpu_to_the_bit(jt, kernels):
    rgb = np.random.default_rng(0).integers(0, 256, (3, 10, 14, 3), np.uint8)
    np.testing.assert_array_equal(kernels.normalise(rgb, LEVELS).numpy(), normalised(rgb))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "n, l, w, heads", [(2, 50, 128, 2), (1, 1, 64, 1), (2, 5, 48, 2), (1, 19, 12, 4), (1, 197, 64, 1), (1, 70, 176, 2)]
)
def test_attention(jt, kernels, n, l, w, heads, dtype, causal):
    qkv, bias = normal((n, l, 3 * w), 2).astype(dtype), normal((3 * w,), seed=1)
    actual = kernels.attention(jt.array(qkv), jt.array(bias), heads, causal).numpy()
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, attention(qkv.astype(np.float32) + bias, heads, causal), atol=5 * DTYPES[dtype])


def test_attention_with_very_different_scores_does_not_overflow(jt, kernels):
    qkv, bias = normal((1, 70, 192), 30), np.zeros(192, np.float32)
    for dtype in DTYPES:
        actual = kernels.attention(jt.array(qkv.astype(dtype)), jt.array(bias), 1, True).numpy()
        np.testing.assert_allclose(
            actual, attention(qkv.astype(dtype), 1, True), rtol=1e-2, atol=1e-3 if dtype == "float32" else 0.2
        )


@pytest.mark.parametrize("precision", ["float32", "half"])
@pytest.mark.parametrize("source", ["clip_weights.npz", "open_clip"])  # the latter has plain GELU and other widths
def test_both_towers(jt, request, monkeypatch, precision, source):
    """A model whose blocks are the operators of CUDA has the features of the plain model."""
    from jclip import model as towers
    from jclip import weights

    monkeypatch.setitem(towers.DTYPES, "cpu", towers.DTYPES["cuda"])
    plain, fast = (
        towers.build_model(state, chosen, settings)
        for chosen in ("float32", precision)
        for state, settings in [weights.read_model(GOLDEN / source)]
    )
    side = plain.visual.input_resolution
    images, texts = jt.array(normal((2, 3, side, side))), np.array([[298, 17, 250, 3, 299, 0], [298, 9, 299, 0, 0, 0]])
    with jt.no_grad():
        expected = [plain.encode_image(images).numpy(), plain.encode_text(texts).numpy()]
        called = request.getfixturevalue("kernels").called
        actual = [fast.encode_image(images).numpy(), fast.encode_text(texts).numpy()]
    assert (
        set(called) == {"patches", "tokens", "layer_norm", *(name for name in called if name.startswith("block<"))}
        and len(called) > 7
    )
    assert sum(name.startswith("block<") for name in called) == len(fast.visual.transformer.resblocks) + len(
        fast.transformer.resblocks
    )
    for a, b in zip(actual, expected):
        assert a.dtype == np.float32 and np.linalg.norm(a - b) < {"float32": 1e-5, "half": 5e-3}[
            precision
        ] * np.linalg.norm(b)


@pytest.fixture
def cache_logits(jt, emulator, monkeypatch):
    """fewshot.cache_logits, computed by the emulator; `.gradient(slope)` is that of the last operator."""
    from fewshot import cache_logits

    def code(shape, dtype, inputs, cuda_header, cuda_src, cuda_grad_src, **_):
        arrays = [x.numpy() for x in inputs]

        def gradient(slope):
            source = cuda_grad_src[0].replace("dout_p", f"in{len(arrays)}_p")
            return emulator.run([arrays[0].shape], [dtype], cuda_header, source, [*arrays, slope])[0]

        monkeypatch.setattr(cache_logits, "gradient", gradient, raising=False)
        return jt.array(emulator.run([shape], [dtype], cuda_header, cuda_src, arrays)[0])

    monkeypatch.setattr(cache_logits, "jt", SimpleNamespace(code=code, array=jt.array))
    return cache_logits


def test_the_caches_logits_and_their_gradient(jt, cache_logits):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2, 4], [3, 1, 20, 13]))  # class 3 has no keys
    affinity, base, slope = rng.uniform(-1, 1, (7, 37)), rng.normal(0, 3, (7, 5)), rng.normal(0, 1, (7, 5))
    cached = np.exp(-1.5 * (1 - affinity))
    actual = cache_logits.CacheLogits(labels, 5, 4.0, 1.5)(
        *map(jt.array, (affinity.astype(np.float32), base.astype(np.float32)))
    )
    np.testing.assert_allclose(actual.numpy(), base + 4 * cached @ np.eye(5)[labels], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        cache_logits.gradient(slope.astype(np.float32)), 4 * 1.5 * cached * slope[:, labels], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("classes", [1, 5, 300])
def test_cross_entropy_and_its_gradient(jt, cache_logits, classes):
    rng = np.random.default_rng(0)
    logits, labels, slope = (
        rng.normal(0, 30, (7, classes)),
        rng.integers(0, classes, 7).astype(np.int32),
        rng.normal(0, 1, 7),
    )
    log_p = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    actual = cache_logits.cuda_cross_entropy(jt.array(logits.astype(np.float32)), jt.array(labels)).numpy()
    np.testing.assert_allclose(actual, -log_p[np.arange(7), labels].mean(), rtol=1e-5, atol=1e-5)
    expected = slope[:, None] * (np.exp(log_p) - np.eye(classes)[labels])
    np.testing.assert_allclose(cache_logits.gradient(slope.astype(np.float32)), expected, rtol=1e-4, atol=1e-5)
