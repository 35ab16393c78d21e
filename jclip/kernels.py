"""The operations of CLIP's transformer that Jittor lacks or computes less exactly, in plain Jittor.

Letters: n sequences, l positions, w width, h heads; rows = n * l.
"""
from __future__ import annotations

import jittor as jt

EPSILON = 1e-5  # of every layer norm in CLIP, torch.nn.LayerNorm's default


def layer_norm(x, weight, bias):
    """Layer normalisation over the last axis in two passes, mean first: Jittor's own, E[x²] − E[x]², loses digits.

    x (..., w), weight and bias (w,) float32 -> the shape of x. Ba et al., arXiv:1607.06450.
    """
    width = x.shape[-1]
    centred = x - x.sum(-1, keepdims=True) / width
    variance = centred.sqr().sum(-1, keepdims=True) / width
    return centred / (variance + EPSILON).sqrt() * weight + bias


def quick_gelu(x):
    """x · sigmoid(1.702 x), with which OpenAI trained CLIP. Hendrycks & Gimpel, arXiv:1606.08415, section 2."""
    return x * (x * 1.702).sigmoid()


def attention(qkv, heads: int, causal: bool):
    """Scaled dot-product attention of every position over the positions of its sequence (over earlier ones if causal).

    qkv (n, l, 3w): queries, keys and values side by side, each of `heads` heads of w / heads -> (n, l, w).
    Vaswani et al., arXiv:1706.03762, section 3.2.
    """
    n, l, w3 = qkv.shape
    depth = w3 // 3 // heads
    q, k, v = qkv.reshape(n, l, 3, heads, depth).permute((2, 0, 3, 1, 4))  # each (n, h, l, depth)
    scores = jt.matmul(q * depth**-0.5, k.transpose(2, 3))  # (n, h, l, l)
    if causal:
        later = jt.index((l, l), 1) > jt.index((l, l), 0)
        scores = scores + later.float32() * -1e9
    return jt.matmul(jt.nn.softmax(scores, dim=-1), v).permute((0, 2, 1, 3)).reshape(n, l, heads * depth)
