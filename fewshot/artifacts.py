"""The .npz files that the commands exchange, checked when read and written atomically; docs/design.md lists them.

Letters: C classes, N shots, V views, D feature width, M rows of a split.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np

from jclip import bounded
from jclip.paths import expand

from .errors import TaskError
from .files import atomic_write_all
from .names import NOT_IN_NAMES

DEFAULT_SCALE = 100.0  # exp(logit_scale) of all OpenAI models
NORM_TOLERANCE = 1e-2  # allowed deviation of a row's L2 norm from 1; wide enough for rows stored as float16


def _array(dims: str, type_code: str, unit: bool = False, default=None, optional: bool = False):
    """Return a dataclass field that is stored as an array of the .npz.

    dims : letters of its axes; type_code : "f" float32, "i" int64 or "U" text; unit : whether its rows have unit norm.
    If the file lacks the array: with `default`, that value is used; with `optional`, None; otherwise reading raises
    TaskError.
    """
    metadata = {"dims": dims, "type_code": type_code, "unit": unit, "default": default, "optional": optional}
    return field(metadata=metadata, default=None) if optional else field(metadata=metadata)


@dataclass(frozen=True)
class Text:
    """text.npz: one text feature for each class."""

    features: np.ndarray = _array("CD", "f", unit=True)
    names: np.ndarray = _array("C", "U")
    scale: float = _array("", "f", default=DEFAULT_SCALE)
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Support:
    """support.npz: V views of each shot, view 0 the plain photograph."""

    features: np.ndarray = _array("NVD", "f", unit=True)
    labels: np.ndarray = _array("N", "i")
    names: np.ndarray = _array("N", "U")
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """val.npz or test.npz: rows with labels, -1 if the class is unknown."""

    features: np.ndarray = _array("MD", "f", unit=True)
    labels: np.ndarray = _array("M", "i")
    names: np.ndarray = _array("M", "U")
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """adapter.npz: everything that f·weightᵀ + bias + alpha·exp(−beta·(1 − f·keysᵀ))·values needs.

    Fine-tuned keys are not of unit norm. A missing weight is scale·text, a missing bias 0.
    """

    method: str = _array("", "U")
    names: np.ndarray = _array("C", "U")
    text: np.ndarray = _array("CD", "f", unit=True)
    scale: float = _array("", "f")
    keys: np.ndarray = _array("ND", "f")
    values: np.ndarray = _array("NC", "f")
    alpha: float = _array("", "f")
    beta: float = _array("", "f")
    meta: dict = field(default_factory=dict)
    weight: np.ndarray | None = _array("CD", "f", default=None, optional=True)
    bias: np.ndarray | None = _array("C", "f", default=None, optional=True)

    @classmethod
    def without_cache(cls, method: str, text: Text, weight=None, bias=None) -> Adapter:
        """Return an adapter without keys, the linear classifier f·weightᵀ + bias: by default the zero-shot one.

        weight : float32 (C, D), default scale·text; bias : float32 (C,), default 0
        """
        n_classes, width = text.features.shape
        keys, values = np.zeros((0, width), np.float32), np.zeros((0, n_classes), np.float32)
        return cls(method, text.names, text.features, text.scale, keys, values, 0.0, 0.0, {}, weight, bias)

    def __post_init__(self):
        if self.weight is None:
            object.__setattr__(self, "weight", self.scale * self.text)
        if self.bias is None:
            object.__setattr__(self, "bias", np.zeros(len(self.text), np.float32))


MADE_BY = {
    Text: "extract_feature.py",
    Support: "extract_feature.py",
    Split: "extract_feature.py",
    Adapter: "train_adapter.py",
}
Artifact = TypeVar("Artifact", Text, Support, Split, Adapter)


def write(path: Path, artifact: Text | Support | Split | Adapter) -> None:
    """Write one artifact atomically; equal content gives equal bytes."""
    write_together({path: artifact})


def write_together(content: Mapping[Path, Text | Support | Split | Adapter | None]) -> None:
    """Write the artifact of each path, all files or none; the value None removes the file.

    Raises
    ------
    OSError
        If the disk is full; all old files are then unchanged.
    """
    new = {path: artifact for path, artifact in content.items() if artifact is not None}
    with atomic_write_all(list(new)) as files:
        for file, artifact in zip(files, new.values()):
            arrays = {
                f.name: np.asarray(getattr(artifact, f.name), _DTYPES[f.metadata["type_code"]])
                for f in _array_fields(type(artifact))
            }
            _savez(file, {**arrays, "meta": np.array(json.dumps(artifact.meta, sort_keys=True))})
    for path in content.keys() - new.keys():
        expand(path).unlink(missing_ok=True)


def read(path: Path, kind: type[Artifact]) -> Artifact:
    """Read an artifact and check it; rows whose norm differs from 1 by rounding are normalised.

    Parameters
    ----------
    path : Path
    kind : Text, Support, Split or Adapter

    Raises
    ------
    TaskError
        If the file is missing, damaged or of another kind.
    """
    path = expand(path)
    if not path.is_file():
        raise TaskError(f"no {path}; run {MADE_BY[kind]} first, or name its folder with --output")
    with open(path, "rb") as file:
        try:
            stored = bounded.npz(file)
            meta = bounded.json_value(str(stored.pop("meta", "{}")))
        except bounded.DAMAGE as error:
            raise TaskError(
                f"{path}: damaged, or not a {kind.__name__.lower()} file of this program "
                f"({str(error) or type(error).__name__}); run {MADE_BY[kind]} again"
            ) from None
    _check_meta(path, meta, kind)
    sizes: dict[str, int] = {}
    values = {f.name: _check_array(path, f, stored.get(f.name), sizes) for f in _array_fields(kind)}
    if "C" in sizes and len(set(values["names"].tolist())) < max(1, sizes["C"]):
        raise TaskError(f"{path}: there are no classes, or two of one name; run {MADE_BY[kind]} again")
    return kind(**values, meta=meta)


def _check_meta(path: Path, meta, kind) -> None:
    if not isinstance(meta, dict):
        raise TaskError(f"{path}: meta is {type(meta).__name__}, expected a JSON object; run {MADE_BY[kind]} again")
    wrong = next((key for key, value in meta.items() if key.endswith("_sha256") and not isinstance(value, str)), None)
    if wrong is not None:
        raise TaskError(
            f"{path}: {wrong} in meta is {type(meta[wrong]).__name__}, expected text; run {MADE_BY[kind]} again"
        )
    unreadable = meta.get("unreadable", {})
    if (
        not isinstance(unreadable, dict)
        or not all(isinstance(cause, str) for cause in unreadable.values())
        or any(map(NOT_IN_NAMES.search, unreadable))
    ):
        raise TaskError(
            f"{path}: unreadable in meta is not an object {{photograph name: cause}}; run {MADE_BY[kind]} again"
        )


def check_together(*artifacts) -> None:
    """Raise TaskError unless the artifacts can belong to one task; give them in the order in which they were made.

    All features must have the same width, and all labels must be classes of the Text or Adapter. A fingerprint (a key
    of `meta` that ends in _sha256) must be equal in all artifacts that record it.
    """
    for earlier, later in combinations(artifacts, 2):
        _check_pair(earlier, later)


def _check_pair(earlier, later) -> None:
    names = type(earlier).__name__.lower(), type(later).__name__.lower()
    if _width(earlier) != _width(later):
        raise TaskError(
            f"{names[0]} has features of width {_width(earlier)}, {names[1]} of width {_width(later)}: they come from "
            "different weights; run extract_feature.py again"
        )
    if "weights_sha256" in earlier.meta.keys() & later.meta.keys() and settings_differ(earlier.meta, later.meta):
        raise TaskError(
            f"{names[0]} and {names[1]} are made with different settings of one model (activation, preprocessing); its "
            f"config has changed; run {MADE_BY[type(later)]} again"
        )
    for key in sorted(key for key in earlier.meta.keys() & later.meta.keys() if key.endswith("_sha256")):
        if earlier.meta[key] != later.meta[key]:
            maker = MADE_BY[Adapter] if isinstance(earlier, Adapter) else MADE_BY[type(later)]
            raise TaskError(
                f"{names[0]} and {names[1]} were made from different {key[: -len('_sha256')]} "
                f"({str(earlier.meta[key])[:12]}… and {str(later.meta[key])[:12]}…); run {maker} again"
            )
    if isinstance(earlier, (Text, Adapter)) and isinstance(later, (Support, Split)):
        lowest = 0 if isinstance(later, Support) else -1
        wrong = later.labels[(later.labels < lowest) | (later.labels >= len(earlier.names))]
        if len(wrong):
            raise TaskError(
                f"{names[1]} holds label {wrong[0]}, but there are {len(earlier.names)} classes; labels go from 0 to "
                f"{len(earlier.names) - 1}"
            )


def settings_differ(one: dict, other: dict) -> bool:
    """Return whether two `meta` of features of one weights file record different settings of its model.

    OpenAI's are not recorded.
    """
    same_weights = one.get("weights_sha256") == other.get("weights_sha256")
    return same_weights and one.get("settings_sha256") != other.get("settings_sha256")


def _check_array(path: Path, f, array, sizes: dict[str, int]):
    """Return an array of a file, checked against its field; `sizes` collects the lengths of the axes by letter."""
    dims, type_code = f.metadata["dims"], f.metadata["type_code"]
    if array is None:
        if f.metadata["default"] is None and not f.metadata["optional"]:
            raise TaskError(f"{path}: holds no array {f.name!r}")
        return f.metadata["default"]
    if array.dtype.kind not in {"f": "fiu", "i": "iu", "U": "U"}[type_code]:
        raise TaskError(f"{path}: {f.name} is of dtype {array.dtype}, expected {_NAMES[type_code]}")
    shape = dict(zip(dims, array.shape))
    if array.ndim != len(dims) or any(sizes.setdefault(letter, n) != n for letter, n in shape.items()):
        expected = ", ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in dims)
        raise TaskError(f"{path}: {f.name} is of shape {array.shape}, expected ({expected})")
    if array.dtype.kind == "u" and type_code == "i" and array.size and array.max() > np.iinfo(np.int64).max:
        raise TaskError(f"{path}: {f.name} holds {array.max()}, which does not fit int64")
    with np.errstate(over="ignore"):  # values too large for float32 become infinity, which is rejected below
        array = np.require(array, _DTYPES[type_code], ["C_CONTIGUOUS", "ALIGNED"])
    if type_code == "f" and not np.isfinite(array).all():
        raise TaskError(f"{path}: {f.name} holds NaN or infinity")
    if type_code == "U":
        _check_text(path, f.name, array)
    if f.metadata["unit"]:
        array = _unit(path, f.name, array)
    return array if dims else array.item()


def _check_text(path: Path, name: str, array: np.ndarray) -> None:
    """Raise TaskError for names that would break the lines of result.txt or the terminal."""
    wrong = next((text for text in array.ravel().tolist() if NOT_IN_NAMES.search(text)), None)
    if wrong is not None:
        raise TaskError(
            f"{path}: {name} holds {wrong!r}; expected names without line ends and other control characters"
        )


def _unit(path: Path, name: str, rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    deviation = np.abs(norms - 1)
    if deviation.size and deviation.max() > NORM_TOLERANCE:
        raise TaskError(
            f"{path}: {name} has a row of L2 norm {norms.flat[deviation.argmax()]:.4g}, expected 1; normalise the rows"
        )
    return rows if not deviation.size or deviation.max() < 1e-5 else rows / norms


_DTYPES = {"f": np.float32, "i": np.int64, "U": np.str_}
_NAMES = {"f": "float32", "i": "int64", "U": "text"}


def _array_fields(kind) -> list:
    return [f for f in fields(kind) if "dims" in f.metadata]


def _savez(file, arrays: dict[str, np.ndarray]) -> None:
    """Write the same bytes as numpy.savez, which ends in a traceback if the disk is full."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _width(artifact) -> int:
    return (artifact.text if isinstance(artifact, Adapter) else artifact.features).shape[-1]
