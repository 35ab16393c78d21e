"""Each CPU kernel and its equivalent in plain Jittor are compared with numpy in float64."""

import math

import numpy as np
import pytest

from jclip.errors import ClipError

WIDTHS = [(3, 5, 64), (2, 7, 48), (1, 1, 1), (2, 3, 17), (1, 33, 130)]  # multiples of the vector width, and others


@pytest.fixture(scope="module")
def kernels(jt):
    from jclip import kernels

    return kernels


def both(jt, function, *arrays):
    """Return the results of the kernel and of plain Jittor."""
    with jt.no_grad():
        fused = function(*map(jt.array, arrays)).numpy()
    return fused, function(*map(jt.array, arrays)).numpy()


def normal(shape, scale=1.0, seed=0):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(qkv, heads, causal):
    n, l, w = *qkv.shape[:2], qkv.shape[2] // 3
    q, k, v = (
        part.reshape(n, l, heads, -1).transpose(0, 2, 1, 3) for part in np.split(qkv.astype(np.float64), 3, axis=2)
    )
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(w // heads)
    if causal:
        scores[..., np.triu(np.ones((l, l), bool), 1)] = -np.inf
    return (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(n, l, w)


def test_kernels_without_a_gradient_are_used_under_no_grad_only(jt, kernels, monkeypatch):
    called = []
    monkeypatch.setattr(kernels, "_run", lambda shape, dtype, call, *inputs: called.append(call) or inputs[0])
    x, bias = jt.array(normal((2, 8))), jt.array(normal((8,)))
    for activation in kernels.ACTIVATIONS.values():
        activation(x, bias)
        assert not called
        with jt.no_grad():
            activation(x, bias)
        assert len(called) == 1
        called.clear()


@pytest.mark.parametrize("n, side, size", [(2, 48, 16), (3, 12, 4), (1, 7, 7), (2, 15, 5)])
def test_patches_and_tokens_are_those_of_plain_jittor(jt, kernels, n, side, size):
    x = normal((n, 3, side, side))
    fused, plain = both(jt, lambda x: kernels.patches(x, size), x)
    np.testing.assert_array_equal(fused, plain)
    first, positions = normal((fused.shape[2],)), normal((fused.shape[1] + 1, fused.shape[2]))
    np.testing.assert_array_equal(*both(jt, kernels.tokens, fused, first, positions))


@pytest.mark.parametrize("shape", WIDTHS)
@pytest.mark.parametrize("mean", [0, 100])
def test_layer_norm_is_exact_also_far_from_zero(jt, kernels, shape, mean):
    x, weight, bias = normal(shape) + np.float32(mean), normal(shape[-1:], seed=1), normal(shape[-1:], seed=2)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5) * weight + bias
    for actual in both(jt, kernels.layer_norm, x, weight, bias):
        # with mean 100, the error of jittor.nn.LayerNorm is 0.02
        np.testing.assert_allclose(actual, exact, atol=1e-6 if not mean else 3e-4)


@pytest.mark.parametrize("shape", WIDTHS)
@pytest.mark.parametrize("scale", [1, 40])
def test_quick_gelu_is_exact_in_all_its_range(jt, kernels, shape, scale):
    x, bias = normal(shape, scale), normal(shape[-1:], seed=1)
    z = x.astype(np.float64) + bias
    for actual in both(jt, kernels.quick_gelu, x, bias):
        np.testing.assert_allclose(actual, z / (1 + np.exp(-1.702 * z)), rtol=2e-6, atol=2e-6)


def exact_gelu(z):
    """z · Φ(z) in float64, without the cancellation of 1 + erf for negative z."""
    return z.astype(np.float64) * np.vectorize(math.erfc)(-z.astype(np.float64) / math.sqrt(2)) / 2


@pytest.mark.parametrize("shape", WIDTHS)
@pytest.mark.parametrize("scale", [1, 40])
def test_gelu_is_exact_in_all_its_range(jt, kernels, shape, scale):
    x, bias = normal(shape, scale), normal(shape[-1:], seed=1)
    for actual in both(jt, kernels.gelu, x, bias):
        np.testing.assert_allclose(actual, exact_gelu(x + bias), rtol=2e-6, atol=2e-6)


def test_the_kernel_of_gelu_is_exact_at_every_z(jt, kernels):
    """Also between the points that random numbers hit; the tail below -9 is not zero, but too small to matter."""
    z = np.linspace(-15, 15, 30 * 4096 + 16, dtype=np.float32).reshape(8, -1)
    with jt.no_grad():
        actual = kernels.gelu(jt.array(z), jt.zeros(z.shape[1:])).numpy()
    np.testing.assert_allclose(actual, exact_gelu(z), rtol=1e-6, atol=5e-7)


def test_with_gradients_half_stays_half(jt, kernels):
    x, bias = jt.array(normal((2, 8)).astype(np.float16)), jt.array(normal((8,)))
    for activation in kernels.ACTIVATIONS.values():
        assert str(activation(x, bias).dtype) == "float16"
    assert str(kernels.layer_norm(jt.array(normal((2, 8))), bias, bias, "float16").dtype) == "float16"


@pytest.mark.parametrize("shape", WIDTHS)
def test_residual_adds_all_three(jt, kernels, shape):
    x, branch, bias = normal(shape), normal(shape, seed=1), normal(shape[-1:], seed=2)
    for actual in both(jt, kernels.residual, x, branch, bias):
        np.testing.assert_allclose(actual, x + branch + bias, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "n, l, w, heads", [(2, 50, 128, 2), (3, 77, 64, 1), (1, 1, 64, 1), (2, 5, 48, 2), (1, 19, 12, 4), (1, 197, 64, 1)]
)
def test_attention_is_exact(jt, kernels, n, l, w, heads, causal):
    qkv, bias = normal((n, l, 3 * w), 2), normal((3 * w,), seed=1)
    exact = attention(qkv + bias, heads, causal)
    for actual in (
        *both(jt, lambda *inputs: kernels.attention(*inputs, heads, causal), qkv, bias),
        kernels.plain_attention(jt.array(qkv), jt.array(bias), heads, causal).numpy(),
    ):
        np.testing.assert_allclose(actual, exact, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "n, l, w, heads", [(2, 50, 128, 2), (1, 1, 64, 1), (3, 5, 48, 2), (1, 19, 12, 4), (1, 130, 64, 1)]
)
def test_attention_has_the_gradient_of_plain_attention(jt, kernels, n, l, w, heads, causal):
    qkv, bias, slope = normal((n, l, 3 * w), 2), normal((3 * w,), seed=1), normal((n, l, w), seed=2)

    def gradients(function):
        inputs = [jt.array(qkv), jt.array(bias)]
        loss = (function(*inputs, heads, causal) * jt.array(slope)).sum()
        return [gradient.numpy() for gradient in jt.grad(loss, inputs)]

    for actual, expected in zip(gradients(kernels.attention), gradients(kernels.plain_attention)):
        np.testing.assert_allclose(actual, expected, atol=2e-6 * np.abs(expected).max())


def test_the_bias_has_a_gradient_if_queries_keys_and_values_are_frozen(jt, kernels):
    qkv, bias = normal((2, 7, 48), 2), jt.array(normal((48,), seed=1))
    actual = [
        jt.grad(attention(jt.array(qkv).stop_grad(), bias, 2, True).sqr().sum(), [bias])[0].numpy()
        for attention in (kernels.attention, kernels.plain_attention)
    ]
    np.testing.assert_allclose(*actual, atol=2e-6 * np.abs(actual[1]).max())


def test_attention_with_very_different_scores_does_not_overflow(jt, kernels):
    qkv = normal((1, 20, 192), 30)
    bias = np.zeros(192, np.float32)
    for actual in (
        *both(jt, lambda *inputs: kernels.attention(*inputs, 1, False), qkv, bias),
        kernels.plain_attention(jt.array(qkv), jt.array(bias), 1, False).numpy(),
    ):
        np.testing.assert_allclose(actual, attention(qkv, 1, False), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", ["qkv", "bias", "slope"])
def test_a_gradient_of_the_gradient_of_attention_is_refused(jt, kernels, target):
    """Jittor would take it for zero."""
    inputs = {
        "qkv": jt.array(normal((1, 3, 12))),
        "bias": jt.array(normal((12,))),
        "slope": jt.array(normal((1, 3, 4), seed=1)),
    }
    mixed = kernels.attention(inputs["qkv"], inputs["bias"], 1, False)
    gradient = jt.grad((mixed * inputs["slope"]).sum(), inputs["qkv"])
    with pytest.raises(ClipError, match="a gradient of a gradient"):
        jt.grad(gradient.sqr().sum(), inputs[target])
