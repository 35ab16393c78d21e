"""Compares what a model computes with numbers that others have published for it: published.json, with their sources.

convert_weights.py does so for OpenAI's official files, bench/acceptance.py for any file. If the numbers fit, the whole
chain is right: reading of the weights, tokens, preprocessing, both towers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import download, features
from .errors import ClipError

TABLE = Path(__file__).with_name("published.json")
# What an entry of the table publishes
KINDS = ("text features", "text norms", "image features", "image norm", "cosines", "logits", "probabilities")


class Row(NamedTuple):
    """A published result beside ours."""

    what: str  # what was computed, and of what
    count: int  # of numbers
    off: float  # the largest difference
    tolerance: float
    source: str

    @property
    def is_right(self) -> bool:
        return self.off <= self.tolerance


def read_table(path: Path | None = None) -> dict[str, list[dict]]:
    """Return the entries of a table, by default TABLE, by the official name of the model.

    An entry has a kind of KINDS, the texts and perhaps the image that it is of, the published values, a tolerance and a
    source. "unit" says that features are of unit norm. Values may be the first few of a row.
    """
    return json.loads((path or TABLE).read_text(encoding="utf-8"))


def compare(model, preprocess, entries: Sequence[dict], images: Sequence[Path] = ()) -> list[Row]:
    """Compute the published results and say how far off they are.

    Parameters
    ----------
    model, preprocess : as `jclip.load` returns them
    entries : sequence of dict, from `read_table`
    images : sequence of Path
        Image files; entries of an image are left out unless a file has its name.

    Returns
    -------
    list of Row
    """
    files = {path.name.lower(): path for path in images}
    rows = []
    for entry in entries:
        if "image" in entry and entry["image"].lower() not in files:
            continue
        image = files[entry["image"].lower()] if "image" in entry else None
        computed = _computed(model, preprocess, entry, image)
        expected = np.array(entry["values"], np.float64)
        off = float(np.abs(computed[..., : expected.shape[-1]] - expected).max())
        of = [entry["image"]] if image else []
        of += [repr(text) for text in entry.get("texts", ())][:3] + ["…"] * (len(entry.get("texts", ())) > 3)
        what = f"{entry['kind']} of {', '.join(of)}"
        rows.append(Row(what, expected.size, off, entry["tolerance"], entry["source"]))
    return rows


def _computed(model, preprocess, entry: dict, image: Path | None) -> np.ndarray:
    """Return what an entry publishes, from its texts and image."""
    kind = entry["kind"]
    if kind.startswith("image"):
        rows = _image_rows(model, preprocess, image)
        return np.linalg.norm(rows, axis=1) if kind == "image norm" else _scaled(rows, entry)[0]
    texts = _text_rows(model, entry["texts"])
    if kind == "text norms":
        return np.linalg.norm(texts, axis=1)
    if kind == "text features":
        return _scaled(texts, entry)
    cosines = features.unit(_image_rows(model, preprocess, image)) @ features.unit(texts).T
    if kind == "cosines":
        return cosines[0]
    logits = float(np.exp(model.logit_scale.numpy()).item()) * cosines[0].astype(np.float64)
    if kind == "logits":
        return logits
    probabilities = np.exp(logits - logits.max())
    return probabilities / probabilities.sum()


def _scaled(rows: np.ndarray, entry: dict) -> np.ndarray:
    return features.unit(rows) if entry.get("unit") else rows


def _text_rows(model, texts: Sequence[str]) -> np.ndarray:
    from .runtime import jittor
    from .tokenizer import tokenize

    with jittor().no_grad():
        return model.encode_text(tokenize(list(texts), model.context_length)).numpy()


def _image_rows(model, preprocess, path: Path) -> np.ndarray:
    from .opening import opened
    from .runtime import jittor

    with opened(path, preprocess.resolution) as image, jittor().no_grad():
        return model.encode_image(preprocess(image).unsqueeze(0)).numpy()


def official_name(path: Path) -> str | None:
    """Return the name of the official model whose file this is, by its SHA-256, or None."""
    from .weights import sha256

    if not path.is_file():
        return None
    digest = sha256(path)
    return next((name for name, (known, _) in download.OFFICIAL.items() if known == digest), None)


def check_official(path: Path) -> str | None:
    """Compare what is computed with an official file with the published numbers that need no image.

    Parameters
    ----------
    path : Path, a weights file

    Returns
    -------
    str or None
        A line that says how far off the numbers are; None for a file that is not official.

    Raises
    ------
    ClipError
        If they are off by more than their tolerance: this program or this machine computes something else.
    """
    from . import load

    name = official_name(path)
    entries = read_table().get(name, [])
    if not entries:
        return name and f"{path} is OpenAI's {name}; there are no published numbers to compare it with"
    rows = compare(*load(path, "cpu"), entries)
    wrong = next((row for row in rows if not row.is_right), None)
    if wrong:
        raise ClipError(
            f"{path} is OpenAI's {name}, but what is computed with it is not what was published: {wrong.what} off by "
            f"{wrong.off:.1e}, expected at most {wrong.tolerance:.0e} ({wrong.source}); nothing is written. python -m "
            f"bench.acceptance {path} prints all numbers; please report them"
        )
    closest = max(rows, key=lambda row: row.off / row.tolerance)
    return (
        f"{path} is OpenAI's {name}: {sum(row.count for row in rows)} published numbers are met, the worst off by "
        f"{closest.off:.1e} (allowed {closest.tolerance:.0e}: {closest.what})"
    )
