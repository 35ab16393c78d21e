"""Reads what files say about a model beside its weights: its activation, attention heads and preprocessing.

Such files are the configs of Hugging Face and open_clip, and the record that convert_weights.py leaves in weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from .. import bounded
from ..architecture import Architecture, usual_heads
from ..errors import ClipError
from ..settings import ModelSettings, checked
from .families import COMPUTED, HIDDEN_ACTS, hugging_face_tower, refused, section
from .layouts import is_hugging_face
from .preprocessor import hugging_face_preprocessing, open_clip_preprocessing

HUGGING_FACE, PREPROCESSOR, OPEN_CLIP = "config.json", "preprocessor_config.json", "open_clip_config.json"
OPENAI_ONLY = "input_resolution"  # a tensor that only OpenAI's own files have
SIZES = {  # section of a config -> its name of a size -> the name in Architecture
    "vision_config": {"hidden_size": "vision_width", "num_hidden_layers": "vision_layers", "patch_size": "patch_size"},
    "text_config": {"hidden_size": "text_width", "num_hidden_layers": "text_layers"},
    "vision_cfg": {"width": "vision_width", "layers": "vision_layers", "patch_size": "patch_size"},
    "text_cfg": {"width": "text_width", "layers": "text_layers"},
}
# the defaults of Hugging Face's CLIPVisionConfig and CLIPTextConfig and of open_clip's CLIPTextCfg: width, heads
HUGGING_FACE_DEFAULTS = {"vision": (768, 12), "text": (512, 8)}
OPEN_CLIP_TEXT = (512, 8)
OPEN_CLIP_HEAD_WIDTH = 64
UNKNOWN_ACTIVATION = (
    "weights do not show their activation, and no config of theirs is beside them{ignored}; OpenAI's QuickGELU is "
    "assumed. Most models that open_clip trained (LAION-2B, DataComp) use plain GELU, with which these features would "
    "be wrong: python convert_weights.py FILE --activation gelu makes weights that record it"
)

_log = logging.getLogger("jclip")


def candidates(path: Path, state: dict) -> list[Path]:
    """Return the config files that may belong to a weights file, those of its own layout first.

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
    if not is_hugging_face(state):
        if path.suffix in (".pkl", ".npz") or OPENAI_ONLY in state:
            return []
        return [path.with_name(name) for name in (OPEN_CLIP, HUGGING_FACE, PREPROCESSOR)]
    return [path.with_name(name) for name in (HUGGING_FACE, PREPROCESSOR, OPEN_CLIP)]


def settings(
    path: Path, sizes: Architecture, configs: list[Path], record: str | None, known: dict[str, str]
) -> ModelSettings:
    """Return the settings of a model, from all that states them.

    If nothing states the activation of weights that may have a config, it is logged that QuickGELU is assumed.

    Parameters
    ----------
    path : Path, the weights, for messages
    sizes : Architecture of the weights; a config with other sizes belongs to other weights and is ignored
    configs : list of Path, from `candidates`
    record : str or None
        What the file itself says, JSON as `weights.write` wrote it.
    known : dict from a source to the activation that it states, such as {"--activation": "gelu"}

    Raises
    ------
    ClipError
        If a config asks for what jclip does not compute, or two sources state different things.
    """
    ignored: list[str] = []
    stated = [(source, {"activation": activation}) for source, activation in known.items()]
    if own := recorded(record):
        stated.append(("its own record", checked(own, f"{path}: its own record")))
    for config, content in _configs(configs, sizes, ignored):
        if problem := refused(content):
            raise ClipError(f"{path}: {config.name} says {problem}; {COMPUTED}")
        is_own = any(source in (HUGGING_FACE, OPEN_CLIP) for source, _ in stated)
        try:
            found = _stated(config.name, content, sizes, is_own)
        except ClipError as error:
            raise ClipError(f"{path}: {config.name} {error}") from None
        stated.append((config.name, checked(found, f"{path}: {config.name}")))
    merged = _merged(path, stated)
    if "activation" not in merged and configs:
        reasons = f" ({'; '.join(ignored)})" if ignored else ""
        _log.info("%s", bounded.one_line(f"{path}: {UNKNOWN_ACTIVATION.format(ignored=reasons)}"))
    for tower, width in (("vision", sizes.vision_width), ("text", sizes.text_width)):
        if merged.get(f"{tower}_heads") == usual_heads(width, tower == "vision"):
            del merged[f"{tower}_heads"]
    return ModelSettings(**merged)


def recorded(record: str | None) -> dict:
    """Return the settings in a record of `weights.write`; {} if it is none."""
    try:
        content = bounded.json_value(record) if record else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def refusal(configs: list[Path]) -> str | None:
    """Return what a config says of a model that jclip does not compute, whatever its sizes, or None."""
    for config, content in _configs(configs, None, []):
        if problem := refused(content):
            return f"{config.name} says {problem}; {COMPUTED}"
    return None


def _configs(configs: list[Path], sizes: Architecture | None, ignored: list[str]) -> Iterator[tuple[Path, dict]]:
    """Yield the configs that can be read and have these sizes; say in `ignored` why others are not."""
    for config in filter(Path.is_file, configs):
        try:
            content = bounded.json_value(bounded.content(config, bounded.JSON_BYTES).decode("utf-8"))
        except ValueError:
            ignored.append(f"{config.name} is damaged")
            continue
        if not isinstance(content, dict):
            ignored.append(f"{config.name} is no config")
            continue
        if "model_cfg" not in content and ("vision_cfg" in content or "text_cfg" in content):
            content = {"model_cfg": content}  # as open_clip's own model_configs/*.json
        if sizes and not _has_sizes(content, sizes):
            ignored.append(f"{config.name} has other sizes")
        else:
            yield config, content


def _has_sizes(config: dict, sizes: Architecture) -> bool:
    """Return whether all sizes that a config names are those of the weights."""
    towers = section(config, "model_cfg") or config
    pairs = [
        (section(towers, name).get(key), getattr(sizes, size, None))
        for name, names in SIZES.items()
        for key, size in names.items()
    ]
    return all(value == size for value, size in pairs if isinstance(value, int))


def _stated(name: str, config: dict, sizes: Architecture, is_own: bool) -> dict:
    """Return the settings that a config states; `is_own` if another one has been found to be that of the weights."""
    if name == PREPROCESSOR:
        return {"preprocess": hugging_face_preprocessing(config, sizes.image_resolution, is_own)}
    if isinstance(config.get("model_cfg"), dict):
        return _open_clip(config, sizes)
    is_clip = any(hugging_face_tower(config, name) is not None for name in ("vision", "text"))
    return _hugging_face(config, sizes) if is_clip else {}


def _open_clip(config: dict, sizes: Architecture) -> dict:
    model = config["model_cfg"]
    head_width = section(model, "vision_cfg").get("head_width", OPEN_CLIP_HEAD_WIDTH)
    is_whole = isinstance(head_width, int) and 0 < head_width <= sizes.vision_width
    return {
        "activation": "quickgelu" if model.get("quick_gelu") else "gelu",
        "vision_heads": sizes.vision_width // head_width if is_whole else head_width,
        "text_heads": _heads(section(model, "text_cfg"), "width", "heads", OPEN_CLIP_TEXT, sizes.text_width),
        "preprocess": open_clip_preprocessing(section(config, "preprocess_cfg")),
    }


def _hugging_face(config: dict, sizes: Architecture) -> dict:
    towers = {tower: hugging_face_tower(config, tower) for tower in ("vision", "text")}
    widths = {"vision": sizes.vision_width, "text": sizes.text_width}
    acts = {(tower or {}).get("hidden_act", "quick_gelu") for tower in towers.values() if tower is not None}
    return {
        "activation": HIDDEN_ACTS[acts.pop()],  # `refused` has seen that there is one, and which
        **{
            f"{name}_heads": _heads(
                tower or {}, "hidden_size", "num_attention_heads", HUGGING_FACE_DEFAULTS[name], widths[name]
            )
            for name, tower in towers.items()
        },
    }


def _heads(tower: dict, width_key: str, heads_key: str, defaults: tuple[int, int], width: int):
    """Return the heads that a config states, or has by default if its width is that of the weights; else None."""
    if heads_key in tower:
        return tower[heads_key]
    is_default = tower.get(width_key, defaults[0]) == width and width % defaults[1] == 0
    return defaults[1] if is_default else None


def _merged(path: Path, stated: list[tuple[str, dict]]) -> dict:
    """Return what all sources state together; of different preprocessings, the first."""
    merged: dict = {}
    origin: dict[str, str] = {}
    for source, values in stated:
        for name, value in values.items():
            if name not in merged:
                merged[name], origin[name] = value, source
            elif name != "preprocess" and merged[name] != value:
                raise ClipError(
                    f"{path}: {origin[name]} says {name.replace('_', ' ')} {merged[name]}, {source} says {value}; "
                    "correct or remove the one that is wrong"
                )
    return merged
