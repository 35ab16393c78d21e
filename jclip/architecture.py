"""The sizes of a CLIP, and the names and shapes of its parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ClipError

HEAD_WIDTH = 64  # of every attention head in OpenAI's models; build_model in openai/CLIP clip/model.py
# Memory grows with the squares of these. OpenAI's largest: 577 tokens of an image, 336 pixels.
MAX_TOKENS = 8192  # of a text or an image
MAX_RESOLUTION = 4096  # pixels of an image's side


@dataclass(frozen=True)
class Architecture:
    """The sizes of a CLIP with a vision transformer."""

    embed_dim: int
    image_resolution: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    context_length: int
    vocab_size: int
    text_width: int
    text_layers: int
    text_heads: int

    def __str__(self) -> str:
        vision = f"ViT of {self.vision_layers} layers, width {self.vision_width}"
        pixels = f"{self.image_resolution} px in patches of {self.patch_size}"
        text = f"text of {self.text_layers} layers, width {self.text_width}, {self.context_length} tokens"
        return f"{vision}, {pixels}; {text}; features of width {self.embed_dim}"


def architecture_of(state: dict[str, np.ndarray]) -> Architecture:
    """Read all sizes from the shapes of a state dict, as build_model in openai/CLIP clip/model.py does.

    Raises
    ------
    ClipError
        Where a tensor that tells a size is missing or has another number of dimensions, and where a size is 0 or
        larger than MAX_TOKENS or MAX_RESOLUTION allow.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != ndim:
            found = f"of shape {state[name].shape}" if name in state else "missing"
            raise ClipError(
                f"{name} is {found}, expected {ndim} dimension{'s' * (ndim > 1)}: no CLIP with a vision transformer"
            )
        return state[name].shape

    def layers(tower: str) -> int:
        return len({name.split(".")[tower.count(".")] for name in state if name.startswith(tower)})

    vision_width, _, _, patch = shape("visual.conv1.weight", 4)
    tokens, context = shape("visual.positional_embedding", 2)[0], shape("positional_embedding", 2)[0]
    grid = round(max(0, tokens - 1) ** 0.5)
    vocabulary, text_width = shape("token_embedding.weight", 2)
    sizes = Architecture(
        embed_dim=shape("text_projection", 2)[1],
        image_resolution=patch * grid,
        patch_size=patch,
        vision_width=vision_width,
        vision_layers=layers("visual.transformer.resblocks."),
        vision_heads=max(1, vision_width // HEAD_WIDTH),
        context_length=context,
        vocab_size=vocabulary,
        text_width=text_width,
        text_layers=layers("transformer.resblocks."),
        text_heads=max(1, text_width // HEAD_WIDTH),
    )
    uneven = vision_width % sizes.vision_heads or text_width % sizes.text_heads
    if min(vars(sizes).values()) < 1 or uneven or max(tokens, context) > MAX_TOKENS or patch * grid > MAX_RESOLUTION:
        raise ClipError(f"sizes that no CLIP has ({sizes})")
    return sizes


def expected_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter of a model with these sizes; that of logit_scale is ()."""

    def block(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
        return {
            prefix + name: shape
            for name, shape in {
                "attn.in_proj_weight": (3 * width, width),
                "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width),
                "attn.out_proj.bias": (width,),
                "ln_1.weight": (width,),
                "ln_1.bias": (width,),
                "ln_2.weight": (width,),
                "ln_2.bias": (width,),
                "mlp.c_fc.weight": (4 * width, width),
                "mlp.c_fc.bias": (4 * width,),
                "mlp.c_proj.weight": (width, 4 * width),
                "mlp.c_proj.bias": (width,),
            }.items()
        }

    v, t = a.vision_width, a.text_width
    shapes = {
        "visual.class_embedding": (v,),
        "visual.conv1.weight": (v, 3, a.patch_size, a.patch_size),
        "visual.positional_embedding": ((a.image_resolution // a.patch_size) ** 2 + 1, v),
        "visual.ln_pre.weight": (v,),
        "visual.ln_pre.bias": (v,),
        "visual.ln_post.weight": (v,),
        "visual.ln_post.bias": (v,),
        "visual.proj": (v, a.embed_dim),
        "token_embedding.weight": (a.vocab_size, t),
        "positional_embedding": (a.context_length, t),
        "ln_final.weight": (t,),
        "ln_final.bias": (t,),
        "text_projection": (t, a.embed_dim),
        "logit_scale": (),
    }
    for layer in range(a.vision_layers):
        shapes.update(block(f"visual.transformer.resblocks.{layer}.", v))
    for layer in range(a.text_layers):
        shapes.update(block(f"transformer.resblocks.{layer}.", t))
    return shapes
