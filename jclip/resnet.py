"""CLIP's other image tower in Jittor: OpenAI's ResNets (Radford et al., arXiv:2103.00020, section 2.4).

They differ from the usual ResNet (He et al., arXiv:1512.03385) in three ways: the first convolution is three; where the
resolution is halved, an average pool does so before a convolution without stride (Zhang, arXiv:1904.11486); and at the
end, one query attends to all positions. The batch norms are a part of the convolutions (resnet_weights.py).

Letters in shapes: n images, h height, w width, c channels, which come last; l positions of the attention. On the CPU
without gradients, the convolutions are those of oneDNN, called by resnet.h. Otherwise they are matrix products, which
have gradients, and which CUDA computes without cuDNN.
"""

from __future__ import annotations

from collections.abc import Iterator

import jittor as jt

from . import onednn, resnet_weights
from .architecture import Architecture
from .module import Module, Sequential
from .products import Linear, matmul

SOURCE = onednn.source("resnet.h")
CHUNK = 8  # images whose activations are in the processor's cache at a time


class Convolution(Module):
    """A convolution with bias; only its stride makes the image smaller."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dtype: str, stride: int = 1):
        self.weight = jt.zeros((outputs, inputs, kernel, kernel), dtype)
        self.bias = jt.zeros((outputs,))
        self.stride = stride

    def execute(self, x):  # (n, h, w, c) -> (n, h / stride, w / stride, channels), float32
        outputs, _, kernel, _ = self.weight.shape
        x = x.cast(str(self.weight.dtype))
        if kernel > 1:
            x = _neighbours(x, kernel, self.stride)  # (n, h, w, kernel² c)
        return matmul(x, self.weight.permute((0, 2, 3, 1)).reshape(outputs, -1)) + self.bias


class Bottleneck(Module):
    """A block: x, projected where its size changes, plus three convolutions of it."""

    def __init__(self, inputs: int, width: int, stride: int, is_first: bool, dtype: str):
        outputs = width * resnet_weights.EXPANSION
        self.conv1 = Convolution(inputs, width, 1, dtype)
        self.conv2 = Convolution(width, width, 3, dtype)
        self.conv3 = Convolution(width, outputs, 1, dtype)
        self.stride = stride
        self.downsample = Sequential(Convolution(inputs, outputs, 1, dtype)) if is_first else None

    def execute(self, x):
        y = jt.nn.relu(self.conv2(jt.nn.relu(self.conv1(x))))
        if self.stride > 1:
            x, y = _average_pool(x), _average_pool(y)
        if self.downsample is not None:
            x = self.downsample(x)
        return jt.nn.relu(x + self.conv3(y))


class Layer(Sequential):
    """The blocks of one resolution, each of which takes and returns (n, h, w, c)."""

    def execute(self, x):
        """Compute all blocks for x (n, c, h, w): channels stand where OpenAI's code has them."""
        return self.channels_last(x.float32().permute((0, 2, 3, 1))).permute((0, 3, 1, 2))

    def channels_last(self, x):
        for block in self:
            x = block(x)
        return x


class AttentionPool(Module):
    """The mean of all positions attends to them and to itself; its result is the feature of the image."""

    def __init__(self, tokens: int, width: int, heads: int, outputs: int, dtype: str):
        self.positional_embedding = jt.zeros((tokens, width))
        self.q_proj, self.k_proj, self.v_proj = (Linear(width, width, dtype) for _ in "qkv")
        self.c_proj = Linear(width, outputs, dtype)
        self.heads = heads

    def execute(self, x):  # (n, c, h, w) -> (n, d), float32
        n, c, h, w = x.shape
        return self.pixels(x.float32().permute((0, 2, 3, 1)).reshape(n, h * w, c))

    def pixels(self, x):  # (n, h·w, c) -> (n, d), float32
        pooled = self._pooled(x) if _uses_onednn() else self._plainly_pooled(x)
        return self._project(self.c_proj, pooled)

    def _pooled(self, x):
        n, l, w = x.shape[0], *self.positional_embedding.shape
        sizes = f"{n}, {l}, {w}"
        x = _run((n, l, w), f"pool_tokens(in0_p, in1_p, out0_p, {sizes})", x, self.positional_embedding)
        query = self._project(self.q_proj, x[:, 0])
        call = f"attention_pool(in0_p, in1_p, in2_p, in3_p, in4_p, out0_p, {sizes}, {self.heads})"
        return _run((n, w), call, x, query, self.k_proj.weight, self.v_proj.weight, self.v_proj.bias)

    def _plainly_pooled(self, x):
        mean = x.sum(1, keepdims=True) / x.shape[1]
        x = jt.concat([mean, x], dim=1) + self.positional_embedding  # (n, l, c)
        n, l, w = x.shape
        heads, depth = self.heads, w // self.heads
        query = self._project(self.q_proj, x[:, 0]).reshape(n, 1, heads, depth)
        keys, values = (self._project(layer, x).reshape(n, l, heads, depth) for layer in (self.k_proj, self.v_proj))
        scores = (query * keys).sum(-1) * depth**-0.5  # (n, l, heads)
        probabilities = jt.nn.softmax(scores, dim=1).unsqueeze(-1)
        return (probabilities * values).sum(1).reshape(n, w)

    @staticmethod
    def _project(layer: Linear, x):
        return layer(x.cast(str(layer.weight.dtype))) + layer.bias  # float32


class ResNet(Module):
    """The image tower."""

    def __init__(self, a: Architecture, dtype: str):
        self.input_resolution, self.output_dim = a.image_resolution, a.embed_dim
        self.width, self.blocks = a.vision_width, a.vision_layers
        width = self.width
        self.conv1 = Convolution(3, width // 2, 3, dtype, stride=2)
        self.conv2 = Convolution(width // 2, width // 2, 3, dtype)
        self.conv3 = Convolution(width // 2, width, 3, dtype)
        self.layer1, self.layer2, self.layer3, self.layer4 = (self._layer(i, dtype) for i in range(len(self.blocks)))
        features = resnet_weights.feature_width(width)
        tokens = (a.image_resolution // resnet_weights.STRIDE) ** 2 + 1
        self.attnpool = AttentionPool(tokens, features, a.vision_heads, a.embed_dim, dtype)

    def _layer(self, index: int, dtype: str) -> Layer:
        width = self.width * 2**index
        outputs, inputs = width * resnet_weights.EXPANSION, self.width if index == 0 else width * 2
        first = Bottleneck(inputs, width, 2 if index else 1, True, dtype)
        return Layer(first, *(Bottleneck(outputs, width, 1, False, dtype) for _ in range(self.blocks[index] - 1)))

    def execute(self, x):  # (n, 3, resolution, resolution) -> (n, d), float32
        x = x.float32()
        return self.attnpool.pixels(self._features(x) if _uses_onednn() else self._plain_features(x))

    def _plain_features(self, x):  # -> (n, h·w, c)
        x = x.permute((0, 2, 3, 1))
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = jt.nn.relu(convolution(x))
        x = _average_pool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer.channels_last(x)
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def _features(self, x):
        """Compute the same as one operator, whose steps find in the processor's cache what the step before has left."""
        parameters = [var for convolution in self._convolutions() for var in (convolution.weight, convolution.bias)]
        pointers = ", ".join(f"in{i}_p" for i in range(1, len(parameters) + 1))
        call = f"resnet(in0_p, parameters, out0_p, in0_shape0, in0_shape2, {self.width}, blocks, {CHUNK})"
        declarations = f"const float* parameters[] = {{{pointers}}}; "
        declarations += f"const std::vector<clip::Int> blocks{{{', '.join(map(str, self.blocks))}}}; "
        shape = (x.shape[0], self.attnpool.positional_embedding.shape[0] - 1, resnet_weights.feature_width(self.width))
        return _run(shape, call, x, *parameters, declarations=declarations)

    def _convolutions(self) -> Iterator[Convolution]:
        """Yield the convolutions in the order in which resnet.h uses them."""
        yield from (self.conv1, self.conv2, self.conv3)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                yield from (block.conv1, block.conv2, *(block.downsample or ()), block.conv3)


def _neighbours(x, size: int, stride: int):
    """Return the size² pixels around every stride-th pixel of x (n, h, w, c), as (n, h / stride, w / stride, size² c).

    Pixels outside are zero.
    """
    n, h, w, c = x.shape
    h, w = (h - 1) // stride + 1, (w - 1) // stride + 1
    indices = ["i0", f"i1*{stride}+i3-{size // 2}", f"i2*{stride}+i4-{size // 2}", "i5"]
    return x.reindex([n, h, w, size, size, c], indices).reshape(n, h, w, size * size * c)


def _average_pool(x):
    """Return the means of 2 x 2 pixels of x (n, h, w, c)."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).sum(4).sum(2) / 4


def _uses_onednn() -> bool:
    """Return whether the functions of resnet.h compute: they have no gradients, and Jittor may be without oneDNN."""
    return bool(jt.flags.no_grad and not jt.flags.use_cuda and onednn.is_there())


def _run(shape, call: str, *inputs, declarations: str = ""):
    """Return the float32 Var that a function of resnet.h fills."""
    return onednn.run(shape, "float32", SOURCE, f"{declarations}clip::{call};", *inputs)
