"""CLIP at work on photographs and prompts: one-line errors, progress bars; what extract_feature and predict share."""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
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
from jclip import features, preprocess, weights

FEW = 64  # so many photographs are read sooner than processes start
READERS = 2  # processes: reading costs a twentieth of what encoding does


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
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(weights.sha256, path)  # takes half as long as the loading, beside it
            model, preprocess = jclip.load(path, device)
        return cls(model, preprocess, digest.result(), batch_size)

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
        with tqdm(total=len(flat), desc="prompts", unit=" text", disable=None) as bar:
            rows = features.text_features(self.model, flat, bar.update)
        return features.prompt_ensemble(rows, [len(of_class) for of_class in sentences])

    def photos(self, paths: Sequence[Path], what: str) -> np.ndarray:
        """Unit rows of n photographs as they are, float32 (n, D); raises TaskError for one that cannot be read."""
        return self._encode(paths, Reader(self.preprocess.resolution), what)

    def views(self, photos: Sequence[Photo], views: Sequence[str], seed: int) -> np.ndarray:
        """Unit rows of all views but the first, which is the plain photograph, float32 (n, V - 1, D)."""
        items = [(photo, number) for photo in photos for number in range(1, len(views))]
        rows = self._encode(items, ViewReader(self.preprocess.resolution, tuple(views), seed), "views")
        return rows.reshape(len(photos), len(views) - 1, self.width)

    def _encode(self, items: Sequence, read: Callable, what: str) -> np.ndarray:
        rows, done = np.empty((len(items), self.width), np.float32), 0
        workers = 0 if len(items) <= FEW else min(READERS, os.cpu_count() or 1)
        with tqdm(total=len(items), desc=what, unit=" photo", disable=None) as bar:
            for batch in features.image_features(self.model, items, read, self.batch_size, workers):
                rows[done : done + len(batch)] = batch
                done += len(batch)
                bar.update(len(batch))
        return rows


@dataclass(frozen=True)
class Reader:
    """A photograph's path -> uint8 (resolution, resolution, 3), in whatever process."""

    resolution: int

    def __call__(self, path: Path) -> np.ndarray:
        return self.crop(path, lambda image: image)

    def crop(self, path: Path, view: Callable) -> np.ndarray:
        """What CLIP sees of a view of the photograph; raises TaskError where it cannot be read."""
        try:
            with Image.open(path) as image:
                return preprocess.crop(view(image), self.resolution)
        except FileNotFoundError:
            raise TaskError(f"{path}: no such photograph; mend the list or put the file there") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise TaskError(f"{path}: cannot be read as a photograph ({error}); replace it or leave it out") from None


@dataclass(frozen=True)
class ViewReader(Reader):
    """(photograph, number of the view) -> the same, of that view, with the randomness of its own."""

    views: tuple[str, ...]
    seed: int

    def __call__(self, item: tuple[Photo, int]) -> np.ndarray:
        photo, number = item
        rng = augment.view_rng(self.seed, photo.name, number)
        return self.crop(photo.path, lambda image: augment.VIEWS[self.views[number]](image, rng))
