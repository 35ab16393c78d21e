"""The config files beside weights, by Hugging Face and open_clip: they tell what the weights themselves cannot."""

from __future__ import annotations

from pathlib import Path

from .. import bounded
from ..architecture import HEAD_WIDTH, Architecture
from ..errors import ClipError
from .layouts import is_hugging_face

OPEN_CLIP_CONFIG = "open_clip_config.json"
RELEASED = "input_resolution"  # a tensor of OpenAI's own files alone
SIZES = {  # what the configs call the sizes of an Architecture, by section
    "vision_config": {"hidden_size": "vision_width", "num_hidden_layers": "vision_layers", "patch_size": "patch_size"},
    "text_config": {"hidden_size": "text_width", "num_hidden_layers": "text_layers"},
    "vision_cfg": {"width": "vision_width", "layers": "vision_layers", "patch_size": "patch_size"},
    "text_cfg": {"width": "text_width", "layers": "text_layers"},
}
OPEN_CLIP_TEXT = {"width": 512, "heads": 8}  # open_clip's defaults


def candidates(path: Path, state: dict) -> list[Path]:
    """Return the config files that may belong to a weights file, none where the file comes from elsewhere.

    Under OpenAI's names, .pkl and .npz are Jittor's and numpy's, and the release is OpenAI's own: none of them has a
    config.
    """
    foreign = not is_hugging_face(state) and (path.suffix in (".pkl", ".npz") or RELEASED in state)
    return [] if foreign else [path.with_name("config.json"), path.with_name(OPEN_CLIP_CONFIG)]


def check(configs: list[Path], path: Path, sizes: Architecture) -> None:
    """Raise ClipError where a config of these sizes asks for an activation or heads that jclip does not compute."""
    for config in filter(Path.is_file, configs):
        try:
            content = bounded.json_value(bounded.content(config, bounded.JSON_BYTES).decode("utf-8"))
        except ValueError:
            continue
        problem = _unsupported(content) if isinstance(content, dict) and _has_sizes(content, sizes) else None
        if problem:
            raise ClipError(
                f"{path}: {config.name} says {problem}; jclip computes OpenAI's models only (QuickGELU, heads of width "
                f"{HEAD_WIDTH})"
            )


def _has_sizes(config: dict, sizes: Architecture) -> bool:
    """Whether every size that a config tells is that of the weights; else it belongs to other weights in the folder."""
    towers = _section(config, "model_cfg") or config
    told = [
        (_section(towers, section).get(key), getattr(sizes, size))
        for section, names in SIZES.items()
        for key, size in names.items()
    ]
    return all(value == size for value, size in told if isinstance(value, int))


def _unsupported(config: dict) -> str | None:
    """Say what in a config jclip does not compute; None where there is nothing."""
    if isinstance(config.get("model_cfg"), dict):
        return _unsupported_by_open_clip(config["model_cfg"])
    for tower in (_section(config, "vision_config"), _section(config, "text_config")):
        if tower.get("hidden_act", "quick_gelu") != "quick_gelu":
            return f"hidden_act is {tower['hidden_act']}"
        if problem := _other_heads(tower.get("hidden_size"), tower.get("num_attention_heads")):
            return problem
    return None


def _unsupported_by_open_clip(model: dict) -> str | None:
    if not model.get("quick_gelu", False):
        return "quick_gelu is off"
    head_width = _section(model, "vision_cfg").get("head_width", HEAD_WIDTH)
    if head_width != HEAD_WIDTH:
        return f"heads of width {head_width}"
    text = {**OPEN_CLIP_TEXT, **_section(model, "text_cfg")}
    return _other_heads(text["width"], text["heads"])


def _other_heads(width, heads) -> str | None:
    is_other = isinstance(width, int) and isinstance(heads, int) and width != heads * HEAD_WIDTH
    return f"{heads} heads at width {width}" if is_other else None


def _section(config: dict, name: str) -> dict:
    section = config.get(name)
    return section if isinstance(section, dict) else {}
