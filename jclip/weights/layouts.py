"""The names of each layout of weights, one table each, and how they become those of OpenAI's state dict."""

from __future__ import annotations

import re

import numpy as np

# A pattern on the left becomes the name on the right; None: deliberately dropped. The first that fits counts.
OPENAI = [  # OpenAI's, open_clip's and JCLIP's names; open_clip puts a separate text tower under "text."
    (r"(?:input_resolution|context_length|vocab_size|(?:.+\.)?attn_mask)", None),
    (r"meta", None),  # where an .npz says what made it
    (r"text\.(?:(?!text_projection\.)(.+))", r"\1"),
    (r"(.+)", r"\1"),
]
HUGGING_FACE = [
    (r".+\.position_ids", None),
    (r"logit_scale", "logit_scale"),
    (r"visual_projection\.weight", "visual.proj"),
    (r"text_projection\.weight", "text_projection"),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.(.+)", r"visual.ln_pre.\1"),
    (r"vision_model\.post_layernorm\.(.+)", r"visual.ln_post.\1"),
    (r"vision_model\.encoder\.layers\.(.+)", r"visual.transformer.resblocks.\1"),
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.(.+)", r"ln_final.\1"),
    (r"text_model\.encoder\.layers\.(.+)", r"transformer.resblocks.\1"),
]
HUGGING_FACE_BLOCK = [  # the rest of a name behind "resblocks.0."
    (r"self_attn\.([qkv])_proj\.(weight|bias)", r"attn.in_proj_\2.\1"),  # joined below
    (r"self_attn\.out_proj\.(.+)", r"attn.out_proj.\1"),
    (r"layer_norm([12])\.(.+)", r"ln_\1.\2"),
    (r"mlp\.fc1\.(.+)", r"mlp.c_fc.\1"),
    (r"mlp\.fc2\.(.+)", r"mlp.c_proj.\1"),
]
TRANSPOSED = ("visual.proj", "text_projection")  # Hugging Face keeps them as linear layers


def is_hugging_face(state: dict) -> bool:
    return any(name.startswith("vision_model.") for name in state)


def is_resnet(state: dict) -> bool:
    return any(name.startswith("visual.layer1.") for name in state)


def openai_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of any layout under OpenAI's names and in OpenAI's form; unknown names stay as they are.

    Raises ValueError where two tensors would have one name.
    """
    hugging_face = is_hugging_face(state)
    renamed: dict[str, np.ndarray] = {}
    for name, value in state.items():
        new = _renamed(name, HUGGING_FACE if hugging_face else OPENAI)
        if hugging_face and new and ".resblocks." in f".{new}":
            block, layer, rest = re.fullmatch(r"(.*resblocks\.)([^.]*)\.?(.*)", new).groups()
            new = f"{block}{layer}.{_renamed(rest, HUGGING_FACE_BLOCK)}"
        if new in renamed:
            raise ValueError(f"two tensors are {new}")
        if new is not None:
            renamed[new] = value
    return _joined(renamed) if hugging_face else renamed


def _renamed(name: str, table: list) -> str | None:
    for pattern, new in table:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(new) if new else None
    return name  # unknown: it will be listed as extra


def _joined(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join separate matrices of queries, keys and values, and transpose the projections, as OpenAI keeps them."""
    for name in [name for name in state if name.endswith(".q")]:
        parts = [name[:-1] + letter for letter in "qkv"]
        complete = all(part in state and state[part].ndim for part in parts)
        if complete and len({state[part].shape for part in parts}) == 1:
            state[name[:-2]] = np.concatenate([state.pop(part) for part in parts])
    return {name: value.T if name in TRANSPOSED else value for name, value in state.items()}
