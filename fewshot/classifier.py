"""A classifier of photographs: a CLIP encoder and an adapter for its features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import artifacts, prompts
from .encoder import Encoder
from .errors import TaskError


class Classifier(NamedTuple):
    """An encoder of photographs and an adapter for its rows."""

    encoder: Encoder
    adapter: artifacts.Adapter


def load_trained(path: Path, weights: Path | str, **options) -> Classifier:
    """Load CLIP, without its text tower, and the adapter that was trained on its features.

    Parameters
    ----------
    path : Path
        The file adapter.npz.
    weights : Path or str
        A weights file or an official name.
    **options
        Passed to `Encoder.load`.

    Raises
    ------
    TaskError
        If the adapter is missing or damaged, or was trained on features of other weights or of another width.
    ClipError
        As in `Encoder.load`.
    """
    adapter = artifacts.read(path, artifacts.Adapter)
    encoder = Encoder.load(weights, text_tower=False, **options)
    trained_on = adapter.meta.get("weights_sha256", encoder.weights_sha256)
    if trained_on != encoder.weights_sha256:
        raise TaskError(
            f"{path} was trained on features of other weights (SHA-256 {trained_on[:12]}…) than {weights} "
            f"({encoder.weights_sha256[:12]}…); name the weights of the adapter with --weights, or run "
            "extract_feature.py and train_adapter.py again"
        )
    if "weights_sha256" in adapter.meta and artifacts.settings_differ(adapter.meta, encoder.provenance):
        raise TaskError(
            f"{path} was trained on features of {weights} with another activation or preprocessing than the config "
            "beside it says now; run extract_feature.py and train_adapter.py again"
        )
    if adapter.text.shape[1] != encoder.width:
        raise TaskError(
            f"{path} was trained on features of width {adapter.text.shape[1]}, but {weights} makes width "
            f"{encoder.width}; name the weights of the adapter with --weights"
        )
    return Classifier(encoder, adapter)


def load_zero_shot(class_names: Sequence[str], weights: Path | str, **options) -> Classifier:
    """Load CLIP and make a zero-shot adapter from class names.

    Parameters
    ----------
    class_names : sequence of str
    weights : Path or str
        A weights file or an official name.
    **options
        Passed to `Encoder.load`.

    Raises
    ------
    TaskError
        If a class name is too long, or a file in prompts/ cannot be used.
    ClipError
        As in `Encoder.load`.
    """
    class_prompts = prompts.read(class_names)
    prompts.check_lengths(class_names, class_prompts, prompts.FOLDER, "shorten the name in --classes")
    encoder = Encoder.load(weights, **options)
    text = artifacts.Text(encoder.encode_prompts(class_prompts.sentences), np.array(class_names), encoder.scale)
    return Classifier(encoder, artifacts.Adapter.without_cache("zero-shot", text))
