"""CLIP's two towers in Jittor: a vision transformer and a causal text transformer (Radford et al., arXiv:2103.00020).

Parameters carry the names of OpenAI's state dict. Letters: n images or texts, l positions, w width, d feature width.

`dtype` is that of the matrix products, what goes into them and what comes out. All else is float32, also where dtype is
float16: layer norms, softmax, the residual that goes through the network, and the features.
"""

from __future__ import annotations

import jittor as jt
import numpy as np
from jittor import nn

from . import kernels
from .architecture import Architecture, architecture_of, expected_shapes
from .errors import ClipError


class LayerNorm(nn.Module):
    def __init__(self, width: int, dtype: str):
        self.weight = jt.zeros((width,))
        self.bias = jt.zeros((width,))
        self.dtype = dtype

    def execute(self, x):  # float32 -> dtype
        return kernels.layer_norm(x, self.weight, self.bias, self.dtype)


class Linear(nn.Module):
    """A linear layer without its bias, which the kernel behind it adds on its way."""

    def __init__(self, inputs: int, outputs: int, dtype: str):
        self.weight = jt.zeros((outputs, inputs), dtype)
        self.bias = jt.zeros((outputs,))

    def execute(self, x):
        return _product(x, self.weight)


class Weight(nn.Module):
    """A weight alone: the token embedding and the patch embedding."""

    def __init__(self, *shape: int, dtype: str = "float32"):
        self.weight = jt.zeros(shape, dtype)


class Attention(nn.Module):
    """Multi-head self-attention up to, but without, its output projection."""

    def __init__(self, width: int, heads: int, causal: bool, dtype: str):
        self.in_proj_weight = jt.zeros((3 * width, width), dtype)
        self.in_proj_bias = jt.zeros((3 * width,))
        self.out_proj = Linear(width, width, dtype)
        self.heads, self.causal = heads, causal

    def execute(self, x):  # (n, l, w)
        return kernels.attention(_product(x, self.in_proj_weight), self.in_proj_bias, self.heads, self.causal)


class MLP(nn.Module):
    """The two layers of a block's feed-forward part, without the last bias."""

    def __init__(self, width: int, dtype: str):
        self.c_fc = Linear(width, 4 * width, dtype)
        self.c_proj = Linear(4 * width, width, dtype)

    def execute(self, x):
        return self.c_proj(kernels.quick_gelu(self.c_fc(x), self.c_fc.bias))


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool, dtype: str):
        self.attn = Attention(width, heads, causal, dtype)
        self.ln_1 = LayerNorm(width, dtype)
        self.mlp = MLP(width, dtype)
        self.ln_2 = LayerNorm(width, dtype)

    def execute(self, x, rows=None):
        """x (n, l, w) -> the same shape, or (n, w) where `rows`, int32 (n,), says which of the n·l rows are wanted, one
        a sequence.

        Behind the attention nothing passes between positions, so the others need not be computed there.
        """
        attn, mlp = self.attn, self.mlp
        layers = (
            self.ln_1.weight,
            self.ln_1.bias,
            attn.in_proj_weight,
            attn.in_proj_bias,
            attn.out_proj.weight,
            attn.out_proj.bias,
            self.ln_2.weight,
            self.ln_2.bias,
            mlp.c_fc.weight,
            mlp.c_fc.bias,
            mlp.c_proj.weight,
            mlp.c_proj.bias,
        )
        fused = kernels.block(x, rows, layers, attn.heads, attn.causal)
        if fused is not None:
            return fused
        mixed = attn(self.ln_1(x))
        if rows is not None:
            x, mixed = (every.reshape(-1, every.shape[2])[rows] for every in (x, mixed))
        x = kernels.residual(x, attn.out_proj(mixed), attn.out_proj.bias)
        return kernels.residual(x, mlp(self.ln_2(x)), mlp.c_proj.bias)


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, causal: bool, dtype: str):
        self.resblocks = nn.Sequential(*[ResidualAttentionBlock(width, heads, causal, dtype) for _ in range(layers)])

    def execute(self, x, rows):
        """x (n, l, w) -> (n, w): the rows at `rows`, int32 (n,), of all n·l, one a sequence. The last block computes no
        others."""
        *others, last = self.resblocks
        for block in others:
            x = block(x)
        return last(x, rows)


class VisionTransformer(nn.Module):
    def __init__(self, a: Architecture, dtype: str):
        self.input_resolution, self.output_dim = a.image_resolution, a.embed_dim
        self.patch_size = a.patch_size
        self.conv1 = Weight(a.vision_width, 3, a.patch_size, a.patch_size, dtype=dtype)
        self.class_embedding = jt.zeros((a.vision_width,))
        self.positional_embedding = jt.zeros(((a.image_resolution // a.patch_size) ** 2 + 1, a.vision_width))
        self.ln_pre = LayerNorm(a.vision_width, "float32")
        self.transformer = Transformer(a.vision_width, a.vision_layers, a.vision_heads, False, dtype)
        self.ln_post = LayerNorm(a.vision_width, dtype)
        self.proj = jt.zeros((a.vision_width, a.embed_dim), dtype)

    def execute(self, x):  # (n, 3, resolution, resolution)
        kernel = self.conv1.weight.reshape(self.conv1.weight.shape[0], -1)
        x = _product(kernels.patches(x, self.patch_size, str(kernel.dtype)), kernel)  # the convolution; (n, l - 1, w)
        x = kernels.tokens(x, self.class_embedding, self.positional_embedding)  # (n, l, w)
        first = (
            jt.index((x.shape[0],), 0) * x.shape[1]
        )  # the class tokens; made on the device, which an array would wait for
        x = self.transformer(self.ln_pre(x), first)  # (n, w)
        return _product(self.ln_post(x), self.proj, False).float32()  # (n, d)


class CLIP(nn.Module):
    """Both towers; made by `jclip.load`, or `CLIP(architecture)` with zeros for weights.

    Attributes
    ----------
    visual : the image tower; `visual.input_resolution` is the side of its images in pixels
    context_length, vocab_size : of the texts' tokens
    logit_scale : Var of one element, the logarithm of the factor on cosine similarities
    """

    def __init__(self, a: Architecture, dtype: str = "float32"):
        self.context_length, self.vocab_size = a.context_length, a.vocab_size
        self.visual = VisionTransformer(a, dtype)
        self.transformer = Transformer(a.text_width, a.text_layers, a.text_heads, True, dtype)
        self.token_embedding = Weight(a.vocab_size, a.text_width)
        self.positional_embedding = jt.zeros((a.context_length, a.text_width))
        self.ln_final = LayerNorm(a.text_width, dtype)
        self.text_projection = jt.zeros((a.text_width, a.embed_dim), dtype)
        self.logit_scale = jt.zeros((1,))

    @property
    def dtype(self) -> str:
        return str(self.visual.conv1.weight.dtype)

    def encode_image(self, image):
        """Image features, not normalised: image (n, 3, resolution, resolution), preprocessed -> (n, d) float32."""
        side = self.visual.input_resolution
        if len(image.shape) != 4 or tuple(image.shape[1:]) != (3, side, side):
            raise ClipError(
                f"encode_image: expected images of shape (n, 3, {side}, {side}), found {tuple(image.shape)}; "
                "use preprocess(image).unsqueeze(0)"
            )
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
        ends.sync()  # now: in the middle of the tower it would wait for the device
        x = self.transformer(x, ends)  # (n, w)
        return _product(self.ln_final(x), self.text_projection, False).float32()

    def _checked(self, text) -> np.ndarray:
        tokens = text.numpy() if isinstance(text, jt.Var) else np.asarray(text)
        if (
            tokens.ndim != 2
            or not len(tokens)
            or tokens.shape[1] > self.context_length
            or tokens.dtype.kind not in "iu"
        ):
            raise ClipError(
                f"encode_text: expected token ids of shape (n, up to {self.context_length}), "
                f"found {tokens.dtype} {tokens.shape}; use jclip.tokenize"
            )
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ClipError(
                f"encode_text: token ids reach from {tokens.min()} to {tokens.max()}, "
                f"but these weights know 0 to {self.vocab_size - 1}"
            )
        return tokens.astype(np.int32)

    def execute(self, image, text):
        """logits_per_image (n, m) and logits_per_text (m, n): scaled cosine similarities of n images and m texts."""
        images, texts = _unit(self.encode_image(image)), _unit(self.encode_text(text))
        logits_per_image = self.logit_scale.exp() * jt.matmul(images, texts.transpose(0, 1))
        return logits_per_image, logits_per_image.transpose(0, 1)


DTYPES = {"float32": "float32", "half": "float16"}  # of the matrix products, by precision


def build_model(state: dict, precision: str = "float32") -> CLIP:
    """The model whose sizes and weights `state` holds, as `jclip.weights.read` returns it; `state` is empty afterwards.

    Tensors leave `state` one by one, so that memory never holds them all twice.
    """
    a = architecture_of(state)
    model = CLIP(a, DTYPES[precision])
    parameters = model.state_dict()
    assert set(parameters) == set(expected_shapes(a)), (
        "model.py and architecture.py disagree about the parameters' names"
    )
    for name, parameter in parameters.items():
        # Jittor keeps the dtype of what it is given, and has no 0-d Vars.
        parameter.assign(jt.array(np.asarray(state.pop(name), str(parameter.dtype)).reshape(parameter.shape)))
    model.eval()
    return model


# Where AVX2 is all there is, oneDNN 2.2 computes the last rows of a small product another way, which rounds otherwise;
# it has no such rows at multiples of WHOLE. A product is small below FEW_ROWS rows, and with a matrix narrower than
# NARROW.
WHOLE, FEW_ROWS, NARROW = 24, 640, 512


def _product(x, matrix, transposed: bool = True):
    """x (n, ..., a) times the transpose of matrix (b, a), or matrix (a, b) as it is, in two dimensions: as oneDNN runs
    it on all cores.

    Without gradients on the CPU, the bits of a row do not depend on where it stands, nor on the other rows. (A single
    image or text has no others, and is not filled up.)
    """
    rows, width = x.reshape(-1, x.shape[-1]), matrix.shape[0 if transposed else 1]
    if jt.flags.use_cuda and jt.flags.no_grad:  # what Jittor would find out from a broadcast, a product and a sum
        out = jt.compile_extern.cublas_ops.cublas_matmul(rows, matrix, False, transposed)
    else:
        count = rows.shape[0]
        is_small = count < FEW_ROWS or min(matrix.shape) < NARROW
        rest = -count % WHOLE if is_small and jt.flags.no_grad and x.shape[0] > 1 else 0
        if rest:
            rows = jt.concat([rows, jt.zeros((rest, rows.shape[1]), str(rows.dtype))])
        out = (jt.nn.matmul_transpose if transposed else jt.matmul)(rows, matrix)
        out = out[:count] if rest else out
    return out.reshape(*x.shape[:-1], width)


def _unit(x):
    return x / x.sqr().sum(-1, keepdims=True).sqrt()
