"""CLIP's two towers in Jittor: a vision transformer and a causal text transformer (Radford et al., arXiv:2103.00020).

Parameters carry the names of OpenAI's state dict. Letters: n images or texts, l positions, w width, d feature width.
"""
from __future__ import annotations

import numpy as np
import jittor as jt
from jittor import nn

from .errors import ClipError
from .kernels import attention, layer_norm, quick_gelu, residual
from .weights import Architecture, architecture, expected_shapes


class Affine(nn.Module):
    """A weight and a bias of given shapes, zero until weights are loaded; what it computes is up to the subclass."""

    def __init__(self, weight: tuple[int, ...], bias: int):
        self.weight = jt.zeros(weight)
        self.bias = jt.zeros((bias,))


class LayerNorm(Affine):
    def __init__(self, width: int):
        super().__init__((width,), width)

    def execute(self, x):
        return layer_norm(x, self.weight, self.bias)


class Linear(Affine):
    """A linear layer without its bias, which the kernel behind it adds on its way."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__((outputs, inputs), outputs)

    def execute(self, x):
        return _product(x, self.weight)


class Weight(nn.Module):
    """A weight alone: the token embedding and the patch embedding."""

    def __init__(self, *shape: int):
        self.weight = jt.zeros(shape)


class Attention(nn.Module):
    """Multi-head self-attention up to, but without, its output projection."""

    def __init__(self, width: int, heads: int, causal: bool):
        self.in_proj_weight = jt.zeros((3 * width, width))
        self.in_proj_bias = jt.zeros((3 * width,))
        self.out_proj = Linear(width, width)
        self.heads, self.causal = heads, causal

    def execute(self, x):  # (n, l, w)
        return attention(_product(x, self.in_proj_weight), self.in_proj_bias, self.heads, self.causal)


class MLP(nn.Module):
    """The two layers of a block's feed-forward part, without the last bias."""

    def __init__(self, width: int):
        self.c_fc = Linear(width, 4 * width)
        self.c_proj = Linear(4 * width, width)

    def execute(self, x):
        return self.c_proj(quick_gelu(self.c_fc(x), self.c_fc.bias))


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool):
        self.attn = Attention(width, heads, causal)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width)
        self.ln_2 = LayerNorm(width)

    def execute(self, x, read=lambda x: x):
        """x (n, l, w) -> the same shape, or what `read` leaves of it: behind the attention nothing passes between positions."""
        x, mixed = read(x), read(self.attn(self.ln_1(x)))
        x = residual(x, self.attn.out_proj(mixed), self.attn.out_proj.bias)
        return residual(x, self.mlp(self.ln_2(x)), self.mlp.c_proj.bias)


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, causal: bool):
        self.resblocks = nn.Sequential(*[ResidualAttentionBlock(width, heads, causal) for _ in range(layers)])

    def execute(self, x, read):
        """x (n, l, w) -> (n, w): of each sequence the position that `read` takes, the only one that the last block computes."""
        *others, last = self.resblocks
        for block in others:
            x = block(x)
        return last(x, read)


class VisionTransformer(nn.Module):
    def __init__(self, a: Architecture):
        self.input_resolution, self.output_dim = a.image_resolution, a.embed_dim
        self.patch_size = a.patch_size
        self.conv1 = Weight(a.vision_width, 3, a.patch_size, a.patch_size)
        self.class_embedding = jt.zeros((a.vision_width,))
        self.positional_embedding = jt.zeros(((a.image_resolution // a.patch_size) ** 2 + 1, a.vision_width))
        self.ln_pre = LayerNorm(a.vision_width)
        self.transformer = Transformer(a.vision_width, a.vision_layers, a.vision_heads, causal=False)
        self.ln_post = LayerNorm(a.vision_width)
        self.proj = jt.zeros((a.vision_width, a.embed_dim))

    def execute(self, x):  # (n, 3, resolution, resolution)
        x = self._patches(x)  # (n, l - 1, w)
        first = self.class_embedding.broadcast((x.shape[0], 1, x.shape[2]))
        x = self.ln_pre(jt.concat([first, x], dim=1) + self.positional_embedding)
        x = self.transformer(x, lambda x: x[:, 0])  # the class token; (n, w)
        return jt.matmul(self.ln_post(x), self.proj)  # (n, d)

    def _patches(self, x):
        """The patch embedding: a convolution with stride = kernel is one matrix product over the unfolded patches."""
        n, channels, side, _ = x.shape
        patch, grid = self.patch_size, side // self.patch_size
        x = x.reshape(n, channels, grid, patch, grid, patch).permute((0, 2, 4, 1, 3, 5))
        kernel = self.conv1.weight.reshape(self.conv1.weight.shape[0], -1)
        return _product(x.reshape(n, grid * grid, -1), kernel)


class CLIP(nn.Module):
    """Both towers; made by `jclip.load`, or `CLIP(architecture)` with zeros for weights.

    Attributes
    ----------
    visual : the image tower; `visual.input_resolution` is the side of its images in pixels
    context_length, vocab_size : of the texts' tokens
    logit_scale : Var of one element, the logarithm of the factor on cosine similarities
    """

    def __init__(self, a: Architecture):
        self.context_length, self.vocab_size = a.context_length, a.vocab_size
        self.visual = VisionTransformer(a)
        self.transformer = Transformer(a.text_width, a.text_layers, a.text_heads, causal=True)
        self.token_embedding = Weight(a.vocab_size, a.text_width)
        self.positional_embedding = jt.zeros((a.context_length, a.text_width))
        self.ln_final = LayerNorm(a.text_width)
        self.text_projection = jt.zeros((a.text_width, a.embed_dim))
        self.logit_scale = jt.zeros((1,))

    @property
    def dtype(self) -> str:
        return str(self.visual.conv1.weight.dtype)

    def encode_image(self, image):
        """Image features, not normalised: image (n, 3, resolution, resolution), preprocessed -> (n, d) float32."""
        side = self.visual.input_resolution
        if len(image.shape) != 4 or tuple(image.shape[1:]) != (3, side, side):
            raise ClipError(f"encode_image: expected images of shape (n, 3, {side}, {side}), found {tuple(image.shape)}; "
                            "use preprocess(image).unsqueeze(0)")
        return self.visual(jt.array(image).float32())

    def encode_text(self, text):
        """Text features, not normalised: text (n, l) token ids with l up to context_length -> (n, d) float32.

        The tower is causal and only the end token is read, so positions behind the last end token of the batch change
        nothing and are not computed.
        """
        tokens = self._checked(text)
        end = tokens.argmax(axis=1)  # the end token has the highest id
        n, l = len(tokens), int(end.max()) + 1
        x = self.token_embedding.weight[jt.array(tokens[:, :l])] + self.positional_embedding[:l]
        ends = jt.array((np.arange(n) * l + end).astype(np.int32))
        x = self.transformer(x, lambda x: x.reshape(n * l, -1)[ends])  # (n, w)
        return jt.matmul(self.ln_final(x), self.text_projection)

    def _checked(self, text) -> np.ndarray:
        tokens = text.numpy() if isinstance(text, jt.Var) else np.asarray(text)
        if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] > self.context_length or tokens.dtype.kind not in "iu":
            raise ClipError(f"encode_text: expected token ids of shape (n, up to {self.context_length}), "
                            f"found {tokens.dtype} {tokens.shape}; use jclip.tokenize")
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ClipError(f"encode_text: token ids reach from {tokens.min()} to {tokens.max()}, "
                            f"but these weights know 0 to {self.vocab_size - 1}")
        return tokens.astype(np.int32)

    def execute(self, image, text):
        """logits_per_image (n, m) and logits_per_text (m, n): scaled cosine similarities of n images and m texts."""
        images, texts = _unit(self.encode_image(image)), _unit(self.encode_text(text))
        logits_per_image = self.logit_scale.exp() * jt.matmul(images, texts.transpose(0, 1))
        return logits_per_image, logits_per_image.transpose(0, 1)


def build_model(state: dict) -> CLIP:
    """The model whose sizes and weights `state` holds, as `jclip.weights.read` returns it; `state` is empty afterwards.

    Tensors leave `state` one by one, so that memory never holds them all twice.
    """
    a = architecture(state)
    model = CLIP(a)
    parameters = model.state_dict()
    assert set(parameters) == set(expected_shapes(a)), "model.py and weights.py disagree about the parameters' names"
    for name, parameter in parameters.items():
        # Jittor keeps the dtype of what it is given, and has no 0-d Vars.
        parameter.assign(jt.array(np.asarray(state.pop(name), np.float32).reshape(parameter.shape)))
    model.eval()
    return model


def _product(x, matrix):
    """x (..., a) times the transpose of matrix (b, a), as one two-dimensional product: the kind that oneDNN runs on all cores."""
    return jt.nn.matmul_transpose(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], matrix.shape[0])


def _unit(x):
    return x / x.sqr().sum(-1, keepdims=True).sqrt()
