"""CLIP at work on photographs and prompts: progress bars, what cannot be read, and a store; what extract_feature and
predict share."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

import augment
import jclip
from fewshot import prompts
from fewshot.data import Photo
from fewshot.errors import TaskError
from fewshot.store import Store, key_of
from jclip import features, preprocess, runtime, tokenizer, weights
from jclip.errors import ClipError, Unreadable

FEW = 64  # so many photographs are read sooner than processes start
READERS = {
    "cpu": 2,
    "cuda": 16,
}  # processes: on a CPU reading costs a twentieth of what encoding does; a GPU waits for all there are
TRANSFORM = (
    2  # to be raised when the same photograph or sentence gets another row: by preprocess, augment, tokenizer or model
)


@dataclass(frozen=True)
class Encoder:
    """A model, its preprocessing and where it came from. D is the width of its features.

    With a store, rows that it holds are not computed again, and batches always have the same number of rows, so that a
    row's bits do not depend on what else was computed. With `strict`, the first photograph that cannot be read ends the
    work.
    """

    model: object
    preprocess: object
    weights_sha256: str
    device: str
    batch_size: int
    store: Store | None = None
    strict: bool = False
    precision: str = "float32"

    @classmethod
    def load(
        cls,
        path: Path,
        device: str = "auto",
        batch_size: int | None = None,
        store: Path | None = None,
        strict: bool = False,
        precision: str = "float32",
    ) -> Encoder:
        """From a weights file, or an official name; raises ClipError where it, the device or the precision cannot be
        used.

        batch_size : photographs at a time; features.IMAGE_BATCH says how many by default
        """
        path = jclip.weights_file(path)
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(weights.sha256, path)  # takes half as long as the loading, beside it
            model, preprocess = jclip.load(path, device, precision=precision)
        opened, device = Store(store, model.visual.output_dim) if store else None, runtime.use(device, precision)
        return cls(
            model,
            preprocess,
            digest.result(),
            device,
            batch_size or features.IMAGE_BATCH[device],
            opened,
            strict,
            precision,
        )

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
        most = features.TEXT_BATCH[self.device]
        batch_size = most if self.store else even(len(flat), most)

        def compute(places: Sequence[int]) -> Iterator[tuple[list[int], np.ndarray]]:
            with tqdm(total=len(places), desc="prompts", unit=" text", disable=None) as bar:
                for chosen, rows in features.text_features(self.model, [flat[place] for place in places], batch_size):
                    yield [places[i] for i in chosen], rows
                    bar.update(len(chosen))

        rows = self._rows([self._key("text", batch_size, sentence) for sentence in flat], compute)
        return features.prompt_ensemble(rows, [len(of_class) for of_class in sentences])

    def photos(self, photos: Sequence[Photo], label: str, split: str = "train") -> tuple[np.ndarray, dict[int, str]]:
        """Unit rows of n photographs as they are, float32 (n, D), and why some, by place, cannot be read: their rows
        are NaN.

        label : what the progress bar says
        split : "train" or "test", which keeps their rows apart in the store: the names may be the same
        """
        return self._encode([(photo, 0) for photo in photos], ("plain",), 0, label, split)

    def views(self, photos: Sequence[Photo], views: Sequence[str], seed: int) -> tuple[np.ndarray, dict[int, str]]:
        """The same of all views but the first, which is the plain photograph, float32 (n, V - 1, D)."""
        each = len(views) - 1
        rows, unreadable = self._encode(
            [(photo, number) for photo in photos for number in range(1, each + 1)], tuple(views), seed, "views", "train"
        )
        return rows.reshape(len(photos), each, self.width), {
            place // each: cause for place, cause in unreadable.items()
        }

    def _encode(
        self, items: list[tuple[Photo, int]], views: tuple[str, ...], seed: int, label: str, split: str
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Rows of (photograph, number of the view) pairs, and why some, by place, cannot be read."""
        keys = [self._photo_key(photo, views[number], number, seed, split) for photo, number in items]
        read = Reader(self.preprocess.resolution, views, seed)
        unreadable: dict[bytes, str] = {}

        def compute(places: Sequence[int]) -> Iterator[tuple[list[int], np.ndarray]]:
            causes, done = {}, 0
            workers = 0 if len(places) <= FEW else min(READERS[self.device], os.cpu_count() or 1)
            with tqdm(total=len(places), desc=label, unit=" photo", disable=None) as bar:
                for rows in features.image_features(
                    self.model, (items[place] for place in places), read, self.batch_size, workers, causes
                ):
                    here = places[done : done + len(rows)]
                    well = [i for i in range(len(rows)) if done + i not in causes]
                    for i in sorted(set(range(len(rows))).difference(well)):
                        unreadable[keys[here[i]]] = self._excused(items[here[i]][0], causes[done + i])
                    yield [here[i] for i in well], rows[well]
                    done += len(rows)
                    bar.update(len(rows))

        rows = self._rows(keys, compute)
        return rows, {place: unreadable[key] for place, key in enumerate(keys) if key in unreadable}

    def _rows(self, keys: list[bytes], compute: Callable) -> np.ndarray:
        """Rows by key from the store, else all computed here; NaN where none came."""
        if self.store:
            return self.store.rows(keys, compute)
        rows = np.full((len(keys), self.width), np.nan, np.float32)
        for places, computed in compute(range(len(keys))):
            rows[places] = computed
        return rows

    def _key(self, *of: object) -> bytes:
        on = self.device if self.precision == "float32" else f"{self.device} {self.precision}"
        return key_of(self.weights_sha256, TRANSFORM, on, *of)

    def _photo_key(self, photo: Photo, view: str, number: int, seed: int, split: str) -> bytes:
        try:
            status = os.stat(photo.path)
            found = [status.st_size, status.st_mtime_ns]
        except OSError:
            found = os.urandom(
                8
            ).hex()  # its reading says why; should it be there by then, no later run shall take its row
        drawn = [seed, number] if number else None
        return self._key("photo", self.batch_size, PIL.__version__, view, drawn, split, photo.name, found)

    def _excused(self, photo: Photo, cause: str) -> str:
        if self.strict:
            raise TaskError(f"{photo.path}: cannot be read as a photograph ({cause}); replace it or leave it out")
        return cause


def check_lengths(
    classes: Sequence[str],
    read: prompts.Prompts,
    folder: Path,
    shorter: str = f"give the class a shorter name in {prompts.NAMES}",
) -> None:
    """Raise TaskError at the first sentence that is too long, before a model is loaded; 5,000 sentences take 0.3 s."""
    for name, group, templates, sentences in zip(classes, read.groups, read.templates, read.sentences):
        for place, sentence in enumerate(sentences):
            try:
                tokenizer.tokenize(sentence)
            except ClipError as error:
                if place < templates:
                    file, remedy = prompts.TEMPLATES, f"shorten the template, or {shorter}"
                else:
                    file, remedy = f"{group}_prompt.json", "shorten it"
                tokens = str(error).partition(":")[0]  # how many there are, and how many there may be
                raise TaskError(
                    f"{folder / file}: class {name[:60]!r}: {tokens}: it begins {sentence[:60]!r}; {remedy}"
                ) from None


def even(n: int, most: int) -> int:
    """The size of the fewest batches that hold n, none of them above `most`, so that the last one lacks little."""
    batches = max(1, -(-n // most))
    return max(1, -(-n // batches))


@dataclass(frozen=True)
class Reader:
    """(photograph, number of the view) -> uint8 (resolution, resolution, 3), in whatever process."""

    resolution: int
    views: tuple[str, ...]
    seed: int

    def __call__(self, item: tuple[Photo, int]) -> np.ndarray:
        """What CLIP sees of the view; raises Unreadable. Damaged files make Pillow raise whatever it likes."""
        photo, number = item
        rng = augment.view_rng(self.seed, photo.name, number)
        try:
            status = os.stat(photo.path)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a file")  # a pipe would be waited for
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what Pillow could make sense of
                with Image.open(photo.path) as image:
                    return preprocess.crop(augment.VIEWS[self.views[number]](image, rng), self.resolution)
        except UnidentifiedImageError:
            raise Unreadable("not an image" if status.st_size else "empty") from None
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from None
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from None
