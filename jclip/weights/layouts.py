"""Maps the names of each layout of weights to those of OpenAI's state dict, by one table for each layout."""

from __future__ import annotations

import re

import numpy as np

# The first pattern that matches a whole name gives the new name; None drops the tensor deliberately.
OPENAI = [  # OpenAI's, open_clip's and JCLIP's names; open_clip puts a separate text tower under "text."
    (r"(?:input_resolution|context_length|vocab_size|(?:.+\.)?attn_mask)", None),
    (r"visual\..+\.num_batches_tracked", None),  # of a ResNet's batch norms, for their training
    (r"meta", None),  # in an .npz, a JSON string that says what made the file
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
HUGGING_FACE_BLOCK = [  # the rest of a name after "resblocks.0."
    (r"self_attn\.([qkv])_proj\.(weight|bias)", r"attn.in_proj_\2.\1"),  # joined by _openai_form
    (r"self_attn\.out_proj\.(.+)", r"attn.out_proj.\1"),
    (r"layer_norm([12])\.(.+)", r"ln_\1.\2"),
    (r"mlp\.fc1\.(.+)", r"mlp.c_fc.\1"),
    (r"mlp\.fc2\.(.+)", r"mlp.c_proj.\1"),
]
TRANSPOSED = ("visual.proj", "text_projection")  # linear layers in Hugging Face's layout


def is_hugging_face(state: dict) -> bool:
    """Return whether the tensors have Hugging Face's names."""
    return any(name.startswith("vision_model.") for name in state)


def openai_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of any layout with OpenAI's names and shapes.

    Parameters
    ----------
    state : dict of str to array
        With the names of OpenAI, open_clip, JCLIP or Hugging Face.

    Returns
    -------
    dict of str to array
        Unknown names stay as they are.

    Raises
    ------
    ValueError
        If two tensors would have the same name.
    """
    hugging_face = is_hugging_face(state)
    renamed: dict[str, np.ndarray] = {}
    for name, value in state.items():
        new = _rename(name, HUGGING_FACE if hugging_face else OPENAI)
        if hugging_face and new and ".resblocks." in f".{new}":
            block, layer, rest = re.fullmatch(r"(.*resblocks\.)([^.]*)\.?(.*)", new).groups()
            new = f"{block}{layer}.{_rename(rest, HUGGING_FACE_BLOCK)}"
        if new in renamed:
            raise ValueError(f"two tensors are {new}")
        if new is not None:
            renamed[new] = value
    return _openai_form(renamed) if hugging_face else renamed


def _rename(name: str, table: list) -> str | None:
    """Return the new name by the first pattern of `table` that matches, or None if the tensor is dropped."""
    for pattern, new in table:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(new) if new else None
    return name  # unknown; the error message will list it as extra


def _openai_form(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join Hugging Face's separate tensors of queries, keys and values, and transpose its projections."""
    for name in [name for name in state if name.endswith(".q")]:
        parts = [name[:-1] + letter for letter in "qkv"]
        complete = all(part in state and state[part].ndim for part in parts)
        if complete and len({state[part].shape for part in parts}) == 1:
            state[name[:-2]] = np.concatenate([state.pop(part) for part in parts])
    return {name: value.T if name in TRANSPOSED else value for name, value in state.items()}
