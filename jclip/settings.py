"""What weights do not show of their model: its activation, its attention heads, how its images are preprocessed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from .errors import ClipError
from .preprocess import FILTERS, RESIZE_MODES, PreprocessConfig

ACTIVATIONS = ("quickgelu", "gelu")  # OpenAI's, and the exact one (erf)
MAX_HEADS = 1024
MAX_SIZE = 4096  # pixels


@dataclass(frozen=True)
class ModelSettings:
    """Settings of a model beside its weights; the defaults are those of OpenAI's models.

    Attributes
    ----------
    activation : "quickgelu" or "gelu", of the MLPs in both towers
    vision_heads, text_heads : int or None
        Attention heads of a tower; None means that `architecture.usual_heads` knows them.
    preprocess : PreprocessConfig
    """

    activation: str = "quickgelu"
    vision_heads: int | None = None
    text_heads: int | None = None
    preprocess: PreprocessConfig = PreprocessConfig()

    def differences(self) -> dict:
        """Return what differs from OpenAI's models, as JSON takes it; {} for OpenAI's own."""
        return _differences(self)


OPENAI = ModelSettings()


def _differences(settings) -> dict:
    """Return the fields of a dataclass that do not have their default."""
    different = {f.name: getattr(settings, f.name) for f in fields(settings) if getattr(settings, f.name) != f.default}
    return {
        name: _differences(value) if isinstance(value, PreprocessConfig) else value for name, value in different.items()
    }


def checked(stated: dict, source: str) -> dict:
    """Return settings that a file states, by the names of ModelSettings, after a check of each.

    Parameters
    ----------
    stated : dict
        Any of the names of ModelSettings; "preprocess" is a dict of names of PreprocessConfig. Other names, and values
        that are None, are left out.
    source : str, the file, for the message

    Returns
    -------
    dict
        "preprocess" is a PreprocessConfig.

    Raises
    ------
    ClipError
        For a value that jclip does not compute.
    """
    known = {f.name: stated[f.name] for f in fields(ModelSettings) if stated.get(f.name) is not None}
    if known.get("activation", ACTIVATIONS[0]) not in ACTIVATIONS:
        raise ClipError(f"{source} says activation {_short(known['activation'])}; jclip computes {_or(ACTIVATIONS)}")
    for name in ("vision_heads", "text_heads"):
        if name in known and not _is_whole(known[name], 1, MAX_HEADS):
            raise ClipError(f"{source} says {name} {_short(known[name])}; expected a whole number up to {MAX_HEADS}")
    if "preprocess" in known:
        known["preprocess"] = _preprocess(known["preprocess"], source)
    return known


def _preprocess(stated, source: str) -> PreprocessConfig:
    """Return the PreprocessConfig of a dict; raise ClipError for a value that jclip does not compute."""
    if not isinstance(stated, dict):
        raise ClipError(f"{source}: the preprocessing is {_short(stated)}, expected names and values")
    known = {name: stated[name] for name in asdict(PreprocessConfig()) if stated.get(name) is not None}
    for name in ("mean", "std"):
        if name in known:
            known[name] = _channels(name, known[name], source)
    for name, allowed in {"interpolation": tuple(FILTERS), "resize_mode": RESIZE_MODES}.items():
        if known.get(name, allowed[0]) not in allowed:
            raise ClipError(f"{source} says {name} {_short(known[name])}; jclip computes {_or(allowed)}")
    for name, low, high in (("size", 1, MAX_SIZE), ("fill_color", 0, 255)):
        if name in known and not _is_whole(known[name], low, high):
            raise ClipError(f"{source} says {name} {_short(known[name])}; expected a whole number up to {high}")
    return PreprocessConfig(**known)


def _channels(name: str, values, source: str) -> tuple[float, ...]:
    """Return a mean or standard deviation as three floats; one number is that of all channels, as in open_clip."""
    listed = [values] * 3 if isinstance(values, (int, float)) else values
    is_three = isinstance(listed, (list, tuple)) and len(listed) == 3
    if not is_three or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e4 for value in listed
    ):
        raise ClipError(f"{source} says {name} {_short(values)}; expected three numbers in 0 to 1")
    if name == "std" and min(listed) < 1e-4:
        raise ClipError(f"{source} says std {_short(values)}; expected numbers above 0")
    return tuple(map(float, listed))


def _is_whole(value, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _or(names) -> str:
    return " or ".join(map(str, names))


def _short(value) -> str:
    return json.dumps(value, ensure_ascii=True)[:80]
