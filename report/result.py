"""result.txt: a line for each test photograph, its name and the labels of its likeliest classes, best first."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fewshot.data import natural_key
from fewshot.files import written_together
from fewshot.rows import softmax

from .metrics import top_classes


def lines(names: Iterable[str], unreadable: Iterable[str], logits: np.ndarray, k: int) -> list[str]:
    """Return the lines of result.txt in the natural order of the names.

    A photograph that cannot be read gets the classes that are likeliest over all others (`prior`).

    Parameters
    ----------
    names : iterable of str
        Of the M photographs with logits.
    unreadable : iterable of str
        Names of photographs that could not be read.
    logits : array of shape (M, C)
    k : int
        Classes of each photograph.
    """
    answers = list(zip(names, top_classes(logits, k)))
    answers += [(name, prior(logits, k)) for name in unreadable]
    answers.sort(key=lambda answer: natural_key(answer[0]))
    return [" ".join([name, *map(str, labels)]) + "\n" for name, labels in answers]


def prior(logits: np.ndarray, k: int) -> np.ndarray:
    """Return the k classes, best first, with the highest mean probability over all photographs; logits (M, C)."""
    return top_classes(softmax(logits).mean(axis=0, keepdims=True), k)[0]


def write(path: Path, result: Iterable[str]) -> None:
    """Write result.txt, and beside it a .zip of it; the same lines give the same bytes."""
    content = "".join(result).encode("utf-8")
    with written_together([path, zip_path(path)]) as (text, zipped):
        text.write(content)
        with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(path.name), content, zipfile.ZIP_DEFLATED)  # ZipInfo's date is fixed


def zip_path(path: Path) -> Path:
    """Return the path of the .zip beside result.txt."""
    return path.with_suffix(".zip")
