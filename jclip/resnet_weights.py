"""The parameters of OpenAI's ResNets: names and shapes, and the batch norms that become a part of the convolutions.

Every convolution is followed by a batch norm. With running statistics, that is a scale and a shift of each channel, so
loading multiplies the weights of the convolution by the scale, and keeps the shift as its bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

EPSILON = 1e-5  # of every batch norm, torch.nn.BatchNorm2d's default
STRIDE = 32  # pixels of an image's side to one of the last feature map's
EXPANSION = 4  # channels of a block's result to those inside
LAYERS = 4
NORM = ("weight", "bias", "running_mean", "running_var")  # the tensors of a batch norm


def is_resnet(state: dict) -> bool:
    """Return whether the image tower of a state dict with OpenAI's names is a ResNet."""
    return any(name.startswith("visual.layer1.") for name in state)


def feature_width(width: int) -> int:
    """Return the channels of the last feature map of a ResNet whose first blocks are of `width`."""
    return width * 2 ** (LAYERS - 1) * EXPANSION


def convolutions(width: int, blocks: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield the name of each convolution, that of its batch norm, and the shape of its weight.

    Parameters
    ----------
    width : int, channels inside the first blocks
    blocks : tuple of int, number of blocks in each layer
    """
    yield "conv1", "bn1", (width // 2, 3, 3, 3)
    yield "conv2", "bn2", (width // 2, width // 2, 3, 3)
    yield "conv3", "bn3", (width, width // 2, 3, 3)
    inputs = width
    for layer, count in enumerate(blocks):
        inner, outputs = width * 2**layer, width * 2**layer * EXPANSION
        for block in range(count):
            name = f"layer{layer + 1}.{block}."
            yield f"{name}conv1", f"{name}bn1", (inner, inputs, 1, 1)
            yield f"{name}conv2", f"{name}bn2", (inner, inner, 3, 3)
            yield f"{name}conv3", f"{name}bn3", (outputs, inner, 1, 1)
            if block == 0:
                yield f"{name}downsample.0", f"{name}downsample.1", (outputs, inputs, 1, 1)
            inputs = outputs


def shapes(width: int, blocks: tuple[int, ...], tokens: int, embed_dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the image tower by its name in OpenAI's state dict.

    Parameters
    ----------
    width, blocks : as for `convolutions`
    tokens : int, of the attention pooling
    embed_dim : int, width of the features
    """
    w = feature_width(width)
    tensors = {"attnpool.positional_embedding": (tokens, w)}
    for name, outputs in (("q_proj", w), ("k_proj", w), ("v_proj", w), ("c_proj", embed_dim)):
        tensors[f"attnpool.{name}.weight"], tensors[f"attnpool.{name}.bias"] = (outputs, w), (outputs,)
    for convolution, norm, shape in convolutions(width, blocks):
        tensors[f"{convolution}.weight"] = shape
        tensors.update({f"{norm}.{tensor}": shape[:1] for tensor in NORM})
    return {f"visual.{name}": shape for name, shape in tensors.items()}


def folded(names: set[str], width: int, blocks: tuple[int, ...]) -> set[str]:
    """Return the names of a state dict after `fold`, whose parameters these are."""
    norms = {f"visual.{norm}.{tensor}" for _, norm, _ in convolutions(width, blocks) for tensor in NORM}
    return names - norms | {f"visual.{convolution}.bias" for convolution, _, _ in convolutions(width, blocks)}


def fold(state: dict[str, np.ndarray], width: int, blocks: tuple[int, ...]) -> None:
    """Replace the batch norms in a state dict by biases of the convolutions, whose weights are scaled.

    The result is computed in float64 and rounded to float32 once.

    Parameters
    ----------
    state : dict of str to array, with OpenAI's names; it is changed
    width, blocks : as for `convolutions`
    """
    for convolution, norm, _ in convolutions(width, blocks):
        scale, shift, mean, variance = (state.pop(f"visual.{norm}.{tensor}").astype(np.float64) for tensor in NORM)
        scale = scale / np.sqrt(variance + EPSILON)
        weight = f"visual.{convolution}.weight"
        state[weight] = (state[weight] * scale[:, None, None, None]).astype(np.float32)
        state[f"visual.{convolution}.bias"] = (shift - mean * scale).astype(np.float32)
