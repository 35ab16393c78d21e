"""The features of a few-shot task, as stored in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclip.paths import expand

from .artifacts import Split, Support, Text, check_together, read


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
    folder = expand(folder)
    text = read(folder / "text.npz", Text)
    no_shots = Support(
        np.zeros((0, 1, text.features.shape[1]), np.float32), np.zeros(0, np.int64), np.zeros(0, np.str_)
    )
    support = read(folder / "support.npz", Support) if (folder / "support.npz").exists() else no_shots
    val = read(folder / "val.npz", Split) if (folder / "val.npz").exists() else None
    check_together(text, support, *([] if val is None else [val]))
    return TaskFeatures(text, support, val)


def has_labels(split: Split | None) -> bool:
    """Return whether any row has a label."""
    return split is not None and bool((split.labels >= 0).any())
