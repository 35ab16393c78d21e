"""result.txt: one line per test photograph with its name and the labels of its likeliest classes, best first."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fewshot.data import natural_key
from fewshot.files import atomic_write_all
from fewshot.rows import softmax

from .metrics import top_classes


def lines(names: Iterable[str], unreadable: Iterable[str], logits: np.ndarray, k: int) -> list[str]:
    """Return the lines of result.txt in natural order of the names.

    An unreadable photograph gets the classes that are likeliest over all other photographs (`prior`).

    Parameters
    ----------
    names : iterable of str
        Names of the M photographs with logits.
    unreadable : iterable of str
        Names of the unreadable photographs.
    logits : array of shape (M, C)
    k : int
        Number of classes per line.
    """
    predictions = list(zip(names, top_classes(logits, k)))
    predictions += [(name, prior(logits, k)) for name in unreadable]
    predictions.sort(key=lambda prediction: natural_key(prediction[0]))
    return [" ".join([name, *map(str, labels)]) + "\n" for name, labels in predictions]


def prior(logits: np.ndarray, k: int) -> np.ndarray:
    """Return the k classes with the highest mean probability over the rows of logits (M, C), best first."""
    return top_classes(softmax(logits).mean(axis=0, keepdims=True), k)[0]


def write(path: Path, result: Iterable[str]) -> None:
    """Write result.txt and a .zip of it in the same folder; equal lines give equal bytes."""
    content = "".join(result).encode("utf-8")
    with atomic_write_all([path, zip_path(path)]) as (text, zipped):
        text.write(content)
        with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(path.name), content, zipfile.ZIP_DEFLATED)  # ZipInfo has a fixed date


def zip_path(path: Path) -> Path:
    """Return the path of the .zip of result.txt."""
    return path.with_suffix(".zip")
