"""The features of a few-shot task, as stored in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclip.paths import expand

from .artifacts import Adapter, Split, Support, Text, check_together, read


class TaskFeatures(NamedTuple):
    """The features from which a classifier is learned."""

    text: Text
    support: Support  # may hold no shots
    val: Split | None


def read_features(folder: Path) -> TaskFeatures:
    """Read text.npz, support.npz and val.npz, and check that they belong together.

    Parameters
    ----------
    folder : Path
        The output folder of extract_feature.py. Without support.npz there are no shots; without val.npz, val is None.

    Raises
    ------
    TaskError
        If text.npz is missing, a file is damaged, or two files do not belong together.
    """
    text = read(expand(folder) / "text.npz", Text)
    return TaskFeatures(text, *read_labelled(folder, text))


class Labelled(NamedTuple):
    """The labelled features of a task."""

    support: Support  # may hold no shots
    val: Split | None


def read_labelled(folder: Path, first: Text | Adapter, *last: Split) -> Labelled:
    """Read support.npz and val.npz, where they exist, and check that all belongs together.

    Parameters
    ----------
    folder : Path
    first : Text or Adapter
        What the files must belong to.
    *last : Split
        What was made later and must belong to them, such as the test rows.

    Raises
    ------
    TaskError
        If a file is damaged, or two of all these do not belong together.
    """
    folder, width = expand(folder), (first.text if isinstance(first, Adapter) else first.features).shape[1]
    support = Support(np.zeros((0, 1, width), np.float32), np.zeros(0, np.int64), np.zeros(0, np.str_))
    if (folder / "support.npz").exists():
        support = read(folder / "support.npz", Support)
    val = read(folder / "val.npz", Split) if (folder / "val.npz").exists() else None
    check_together(first, support, *([] if val is None else [val]), *last)
    return Labelled(support, val)


def has_labels(split: Split | None) -> bool:
    """Return whether any row has a label."""
    return split is not None and bool((split.labels >= 0).any())
