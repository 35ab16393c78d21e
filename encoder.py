"""CLIP at work on photographs and prompts: one-line errors, progress bars; what extract_feature and predict share."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

import augment
import jclip
from fewshot.data import Photo
from fewshot.errors import TaskError
from jclip import features, weights


@dataclass(frozen=True)
class Encoder:
    """A model, its preprocessing and where it came from. D is the width of its features."""

    model: object
    preprocess: object
    weights_sha256: str
    batch_size: int

    @classmethod
    def load(cls, path: Path, device: str, batch_size: int) -> "Encoder":
        """From a weights file; raises ClipError where it or the device cannot be used."""
        model, preprocess = jclip.load(path, device)
        return cls(model, preprocess, weights.sha256(path), batch_size)

    @property
    def width(self) -> int:
        return self.model.visual.output_dim

    @property
    def scale(self) -> float:
        """The factor on cosine similarities, exp(logit_scale): 100 in OpenAI's models."""
        return float(np.exp(self.model.logit_scale.numpy()).item())

    def prompts(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """One unit row a class, float32 (C, D): the ensemble of the class's sentences."""
        flat = [sentence for of_class in sentences for sentence in of_class]
        with tqdm(total=len(flat), desc="prompts", unit=" text") as bar:
            rows = features.text_features(self.model, flat, bar.update)
        return features.prompt_ensemble(rows, [len(of_class) for of_class in sentences])

    def photos(self, paths: Sequence[Path], what: str) -> np.ndarray:
        """Unit rows of n photographs as they are, float32 (n, D); raises TaskError for one that cannot be read."""
        return self._encode(paths, lambda path: self._pixels(path, lambda image: image), what)

    def views(self, photos: Sequence[Photo], views: Sequence[str], seed: int) -> np.ndarray:
        """Unit rows of all views but the first, which is the plain photograph, float32 (n, V - 1, D)."""
        def pixels(item):
            photo, number = item
            rng = augment.view_rng(seed, photo.name, number)
            return self._pixels(photo.path, lambda image: augment.VIEWS[views[number]](image, rng))

        items = [(photo, number) for photo in photos for number in range(1, len(views))]
        return self._encode(items, pixels, "views").reshape(len(photos), len(views) - 1, self.width)

    def _encode(self, items: Sequence, pixels: Callable, what: str) -> np.ndarray:
        rows, done = np.empty((len(items), self.width), np.float32), 0
        with tqdm(total=len(items), desc=what, unit=" photo", disable=None if len(items) > 1 else True) as bar:
            for batch in features.image_features(self.model, items, pixels, self.batch_size, os.cpu_count() or 1):
                rows[done : done + len(batch)] = batch
                done += len(batch)
                bar.update(len(batch))
        return rows

    def _pixels(self, path: Path, view: Callable) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return self.preprocess.pixels(view(image))
        except FileNotFoundError:
            raise TaskError(f"{path}: no such photograph; mend the list or put the file there") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise TaskError(f"{path}: cannot be read as a photograph ({error}); replace it or leave it out") from None
