"""Reads the config files that Hugging Face and open_clip put beside weights.

They say which activation and how many attention heads a model has, which the weights do not show.
"""

from __future__ import annotations

import logging
from pathlib import Path

from .. import bounded
from ..architecture import HEAD_WIDTH, Architecture
from ..errors import ClipError
from .layouts import is_hugging_face

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPENAI_ONLY = "input_resolution"  # a tensor that only OpenAI's own files have
SIZES = {  # section of a config -> its name of a size -> the name in Architecture
    "vision_config": {"hidden_size": "vision_width", "num_hidden_layers": "vision_layers", "patch_size": "patch_size"},
    "text_config": {"hidden_size": "text_width", "num_hidden_layers": "text_layers"},
    "vision_cfg": {"width": "vision_width", "layers": "vision_layers", "patch_size": "patch_size"},
    "text_cfg": {"width": "text_width", "layers": "text_layers"},
}
UNKNOWN_ACTIVATION = (
    "weights do not show their activation, and no config is beside them; OpenAI's QuickGELU is assumed. Most models "
    "that open_clip trained (LAION-2B, DataComp) use plain GELU, with which these features would be wrong"
)
OPEN_CLIP_TEXT = {"width": 512, "heads": 8}  # open_clip's defaults

_log = logging.getLogger("jclip")


def candidates(path: Path, state: dict) -> list[Path]:
    """Return the config files that may belong to a weights file.

    With OpenAI's names, a .pkl file is Jittor's, an .npz file numpy's, and OpenAI's own files have a tensor
    OPENAI_ONLY. Neither of the three has a config; one in the same folder belongs to another file.

    Parameters
    ----------
    path : Path, the weights file
    state : dict of str to array, the tensors by the names in the file

    Returns
    -------
    list of Path
        The files need not exist.
    """
    has_no_config = not is_hugging_face(state) and (path.suffix in (".pkl", ".npz") or OPENAI_ONLY in state)
    return [] if has_no_config else [path.with_name("config.json"), path.with_name(OPEN_CLIP_CONFIG)]


def check(configs: list[Path], path: Path, sizes: Architecture) -> None:
    """Check that no config asks for an activation or attention heads that jclip does not compute.

    If weights may have a config and none of a CLIP is there, it is logged that their activation is not known.

    Parameters
    ----------
    configs : list of Path, from `candidates`; missing and damaged files are ignored
    path : Path, the weights file, for the message
    sizes : Architecture of the weights; a config with other sizes belongs to other weights and is ignored

    Raises
    ------
    ClipError
        If a config does.
    """
    is_known = not configs
    for config in filter(Path.is_file, configs):
        try:
            content = bounded.json_value(bounded.content(config, bounded.JSON_BYTES).decode("utf-8"))
        except ValueError:
            continue
        if not isinstance(content, dict) or not _has_sizes(content, sizes):
            continue
        is_known = is_known or any(section in content for section in (*SIZES, "model_cfg"))
        if problem := _unsupported(content):
            raise ClipError(
                f"{path}: {config.name} says {problem}; jclip computes OpenAI's models only (QuickGELU, heads of width "
                f"{HEAD_WIDTH})"
            )
    if not is_known:
        _log.info("%s", bounded.one_line(f"{path}: {UNKNOWN_ACTIVATION}"))


def _has_sizes(config: dict, sizes: Architecture) -> bool:
    """Return whether all sizes that a config names are those of the weights."""
    towers = _section(config, "model_cfg") or config
    pairs = [
        (_section(towers, section).get(key), getattr(sizes, size))
        for section, names in SIZES.items()
        for key, size in names.items()
    ]
    return all(value == size for value, size in pairs if isinstance(value, int))


def _unsupported(config: dict) -> str | None:
    """Return the setting of a config that jclip does not compute, or None."""
    if isinstance(config.get("model_cfg"), dict):
        return _unsupported_in_open_clip(config["model_cfg"])
    for tower in (_section(config, "vision_config"), _section(config, "text_config")):
        if tower.get("hidden_act", "quick_gelu") != "quick_gelu":
            return f"hidden_act is {tower['hidden_act']}"
        if problem := _unsupported_heads(tower.get("hidden_size"), tower.get("num_attention_heads")):
            return problem
    return None


def _unsupported_in_open_clip(model: dict) -> str | None:
    """Return the same for the section model_cfg of open_clip's config."""
    if not model.get("quick_gelu", False):
        return "quick_gelu is off"
    head_width = _section(model, "vision_cfg").get("head_width", HEAD_WIDTH)
    if head_width != HEAD_WIDTH:
        return f"heads of width {head_width}"
    text = {**OPEN_CLIP_TEXT, **_section(model, "text_cfg")}
    return _unsupported_heads(text["width"], text["heads"])


def _unsupported_heads(width, heads) -> str | None:
    """Return a description of the heads if their width is not HEAD_WIDTH."""
    is_unsupported = isinstance(width, int) and isinstance(heads, int) and width != heads * HEAD_WIDTH
    return f"{heads} heads at width {width}" if is_unsupported else None


def _section(config: dict, name: str) -> dict:
    """Return a section of a config; {} if it is missing or no dict."""
    section = config.get(name)
    return section if isinstance(section, dict) else {}
