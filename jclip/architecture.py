"""The sizes of a CLIP model, and the names and shapes of its parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import resnet_weights
from .errors import ClipError
from .settings import OPENAI, ModelSettings

HEAD_WIDTH = 64  # of every attention head in OpenAI's models; build_model in openai/CLIP clip/model.py
# Width of a larger image tower -> of its heads: H/14, g/14, bigG/14 and e/14; open_clip's model_configs
VISION_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
MLP_RATIO = 4  # of the width inside an MLP to that of its tower, in OpenAI's models
# Limits, because memory grows with the square of both. OpenAI's largest model has 577 image tokens and 336 pixels.
MAX_TOKENS = 8192  # of a text or an image
MAX_RESOLUTION = 4096  # pixels of an image's side


@dataclass(frozen=True)
class Architecture:
    """The sizes of a CLIP model.

    Attributes
    ----------
    embed_dim : int, width of image and text features
    image_resolution, patch_size : int
        Side of an image and of a patch in pixels; of a ResNet, side of what becomes one pixel of the last feature map.
    vision_width, vision_heads : int, of the image tower; the width of a ResNet is that inside its first blocks
    vision_layers : int or tuple of int, of the image tower; of a ResNet, the blocks in each of its four layers
    context_length : int, tokens of a text
    vocab_size : int, number of token ids
    text_width, text_layers, text_heads : int, of the text tower
    activation : "quickgelu" or "gelu"
    vision_mlp_width, text_mlp_width : int, inside the MLPs; 0 stands for MLP_RATIO times the width
    """

    embed_dim: int
    image_resolution: int
    patch_size: int
    vision_width: int
    vision_layers: int | tuple[int, ...]
    vision_heads: int
    context_length: int
    vocab_size: int
    text_width: int
    text_layers: int
    text_heads: int
    activation: str = OPENAI.activation
    vision_mlp_width: int = 0
    text_mlp_width: int = 0

    def __post_init__(self):
        for tower in ("vision", "text"):
            if not getattr(self, f"{tower}_mlp_width"):
                object.__setattr__(self, f"{tower}_mlp_width", MLP_RATIO * getattr(self, f"{tower}_width"))

    @property
    def is_resnet(self) -> bool:
        """Whether the image tower is a ResNet."""
        return isinstance(self.vision_layers, tuple)

    def __str__(self) -> str:
        vision = f"ViT of {self.vision_layers} layers, width {self.vision_width}"
        pixels = f"{self.image_resolution} px in patches of {self.patch_size}"
        if self.is_resnet:
            blocks = "-".join(map(str, self.vision_layers))
            vision, pixels = f"ResNet of {blocks} blocks, width {self.vision_width}", f"{self.image_resolution} px"
        text = f"text of {self.text_layers} layers, width {self.text_width}, {self.context_length} tokens"
        activation = "" if self.activation == OPENAI.activation else "; plain GELU"
        return f"{vision}, {pixels}; {text}; features of width {self.embed_dim}{activation}"


def usual_heads(width: int, is_vision: bool) -> int:
    """Return the attention heads that the official models have at a width."""
    return max(1, width // (VISION_HEAD_WIDTHS.get(width, HEAD_WIDTH) if is_vision else HEAD_WIDTH))


def architecture_of(state: dict[str, np.ndarray], settings: ModelSettings = OPENAI) -> Architecture:
    """Return the sizes of a model, read from the shapes of its tensors.

    The rules are those of build_model in openai/CLIP clip/model.py.

    Parameters
    ----------
    state : dict of str to array
        A state dict with OpenAI's names.
    settings : ModelSettings
        What the tensors do not show.

    Returns
    -------
    Architecture

    Raises
    ------
    ClipError
        If a tensor that is needed is missing or has another number of dimensions, or a size is 0, does not divide into
        heads, or exceeds MAX_TOKENS or MAX_RESOLUTION.
    """
    is_resnet = resnet_weights.is_resnet(state)
    if is_resnet:
        vision_width, patch_size = _shape(state, "visual.layer1.0.conv1.weight", 4)[0], resnet_weights.STRIDE
        attention_width = resnet_weights.feature_width(vision_width)
        image_tokens, _ = _shape(state, "visual.attnpool.positional_embedding", 2)  # the mean and the pixels
        vision_layers = tuple(_count_layers(state, f"visual.layer{i + 1}.") for i in range(resnet_weights.LAYERS))
    else:
        vision_width, _, _, patch_size = _shape(state, "visual.conv1.weight", 4)
        attention_width = vision_width
        image_tokens, _ = _shape(state, "visual.positional_embedding", 2)  # the class token and the patches
        vision_layers = _count_layers(state, "visual.transformer.resblocks.")
    context_length, _ = _shape(state, "positional_embedding", 2)
    vocab_size, text_width = _shape(state, "token_embedding.weight", 2)
    grid = round(max(0, image_tokens - 1) ** 0.5)  # patches in a row
    sizes = Architecture(
        embed_dim=_shape(state, "text_projection", 2)[1],
        image_resolution=patch_size * grid,
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=vision_layers,
        vision_heads=settings.vision_heads or usual_heads(attention_width, is_vision=not is_resnet),
        context_length=context_length,
        vocab_size=vocab_size,
        text_width=text_width,
        text_layers=_count_layers(state, "transformer.resblocks."),
        text_heads=settings.text_heads or usual_heads(text_width, False),
        activation=settings.activation,
        vision_mlp_width=_mlp_width(state, "visual.transformer.resblocks.0."),
        text_mlp_width=_mlp_width(state, "transformer.resblocks.0."),
    )
    is_uneven = attention_width % sizes.vision_heads or text_width % sizes.text_heads
    is_large = max(image_tokens, context_length) > MAX_TOKENS or sizes.image_resolution > MAX_RESOLUTION
    numbers = [value for value in vars(sizes).values() if isinstance(value, int)]
    if min(*numbers, *(vision_layers if is_resnet else ())) < 1 or is_uneven or is_large:
        raise ClipError(f"sizes that no CLIP has ({sizes})")
    return sizes


def _shape(state: dict[str, np.ndarray], name: str, ndim: int) -> tuple[int, ...]:
    """Return the shape of a tensor; raise ClipError if it is missing or does not have `ndim` dimensions."""
    if name not in state or state[name].ndim != ndim:
        actual = f"of shape {state[name].shape}" if name in state else "missing"
        raise ClipError(f"{name} is {actual}, expected {ndim} dimension{'s' * (ndim > 1)}")
    return state[name].shape


def _mlp_width(state: dict[str, np.ndarray], block: str) -> int:
    """Return the width inside the MLP of a block; 0 if its bias is missing, which is found later."""
    bias = state.get(f"{block}mlp.c_fc.bias")
    return bias.shape[0] if bias is not None and bias.ndim == 1 else 0


def _count_layers(state: dict[str, np.ndarray], prefix: str) -> int:
    """Return how many different parts of tensor names follow `prefix`, which ends with a dot."""
    return len({name.split(".")[prefix.count(".")] for name in state if name.startswith(prefix)})


def expected_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a model by its name in OpenAI's state dict.

    Parameters
    ----------
    a : Architecture

    Returns
    -------
    dict of str to tuple of int
        The shape of logit_scale is ().
    """
    t = a.text_width
    shapes = {
        "token_embedding.weight": (a.vocab_size, t),
        "positional_embedding": (a.context_length, t),
        "ln_final.weight": (t,),
        "ln_final.bias": (t,),
        "text_projection": (t, a.embed_dim),
        "logit_scale": (),
    }
    for layer in range(a.text_layers):
        shapes.update(_block_shapes(f"transformer.resblocks.{layer}.", t, a.text_mlp_width))
    tokens = (a.image_resolution // a.patch_size) ** 2 + 1
    if a.is_resnet:
        return {**shapes, **resnet_weights.shapes(a.vision_width, a.vision_layers, tokens, a.embed_dim)}
    return {**shapes, **_vit_shapes(a, tokens)}


def _vit_shapes(a: Architecture, tokens: int) -> dict[str, tuple[int, ...]]:
    """Return `expected_shapes` of a vision transformer."""
    v = a.vision_width
    shapes = {
        "visual.class_embedding": (v,),
        "visual.conv1.weight": (v, 3, a.patch_size, a.patch_size),
        "visual.positional_embedding": (tokens, v),
        "visual.ln_pre.weight": (v,),
        "visual.ln_pre.bias": (v,),
        "visual.ln_post.weight": (v,),
        "visual.ln_post.bias": (v,),
        "visual.proj": (v, a.embed_dim),
    }
    for layer in range(a.vision_layers):
        shapes.update(_block_shapes(f"visual.transformer.resblocks.{layer}.", v, a.vision_mlp_width))
    return shapes


def _block_shapes(prefix: str, width: int, mlp_width: int) -> dict[str, tuple[int, ...]]:
    """Return `expected_shapes` of one transformer block."""
    shapes = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (mlp_width, width),
        "mlp.c_fc.bias": (mlp_width,),
        "mlp.c_proj.weight": (width, mlp_width),
        "mlp.c_proj.bias": (width,),
    }
    return {prefix + name: shape for name, shape in shapes.items()}
