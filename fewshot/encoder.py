"""CLIP at work on photographs and prompts, with progress bars, a store of rows, and failures as data."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

import augment
import jclip
from jclip import features, preprocess, runtime, tokenizer, weights
from jclip.errors import ClipError, Unreadable
from jclip.features import Encoded

from . import prompts
from .data import UNKNOWN, Photo
from .errors import TaskError
from .store import Store, key_of

FEW = 64  # this many photographs are read sooner than reading processes start
# Reading processes by device: on a CPU, reading costs a twentieth of encoding; a GPU waits for as many as there are.
READERS = {"cpu": 2, "cuda": 16}
# Raise it when the code gives the same photograph or sentence another row: preprocess, augment, tokenizer or model.
FEATURES_VERSION = 2


@dataclass(frozen=True)
class Encoder:
    """A CLIP that turns photographs and sentences into unit rows of width D.

    With a store, rows that it has are not computed again, and all batches have the same size, so that the bits of a row
    do not depend on what else was computed.

    Attributes
    ----------
    model : jclip.model.CLIP
    preprocess : jclip.preprocess.Preprocess
    weights_sha256 : str
        Of the weights file, as sha256sum prints it.
    device : "cpu" or "cuda"
    batch_size : int
        Photographs computed at a time.
    store : Store, optional
    strict : bool
        Whether the first photograph that cannot be read raises TaskError.
    precision : "float32" or "half"
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
        path: Path | str,
        device: str = "auto",
        batch_size: int | None = None,
        store: Path | None = None,
        strict: bool = False,
        precision: str = "float32",
    ) -> Encoder:
        """Load CLIP from a file or by an official name such as "ViT-B/32".

        Parameters
        ----------
        path : Path or str
        device : "auto", "cpu" or "cuda"
        batch_size : int, optional
            By default `jclip.features.IMAGE_BATCH` of the device.
        store : Path, optional
            The folder of the store.
        strict : bool
        precision : "float32" or "half"

        Raises
        ------
        ClipError
            Where the weights, the device or the precision cannot be used.
        """
        path = jclip.weights_file(path)
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(weights.sha256, path)  # takes half as long as loading, at the same time
            model, preprocess = jclip.load(path, device, precision=precision)
        opened, device = Store(store, model.visual.output_dim) if store else None, runtime.use(device, precision)
        batch_size = batch_size or features.IMAGE_BATCH[device]
        return cls(model, preprocess, digest.result(), device, batch_size, opened, strict, precision)

    @property
    def width(self) -> int:
        """D."""
        return self.model.visual.output_dim

    @property
    def scale(self) -> float:
        """The logit scale, exp(logit_scale): 100 in OpenAI's models."""
        return float(np.exp(self.model.logit_scale.numpy()).item())

    def prompts(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """Encode classes by their sentences.

        Parameters
        ----------
        sentences : sequence of sequences of str
            The sentences of each of C classes.

        Returns
        -------
        float32 array of shape (C, D)
            The ensemble of each class's sentences (`jclip.features.prompt_ensemble`), unit rows.

        Raises
        ------
        ClipError
            For a sentence that is too long.
        """
        flat = [sentence for of_class in sentences for sentence in of_class]
        most = features.TEXT_BATCH[self.device]
        batch_size = most if self.store else balanced_batch_size(len(flat), most)
        keys = [self._key("text", batch_size, sentence) for sentence in flat]
        missing, rows = self._missing(keys)
        with tqdm(total=len(missing), desc="prompts", unit=" text", disable=None if missing else True) as bar:
            for encoded in features.text_features(self.model, [flat[i] for i in missing], batch_size):
                self._keep(keys, [missing[i] for i in encoded.indices], encoded.rows, rows)
                bar.update(len(encoded.rows))
        rows = self.store.get(keys) if self.store else rows
        return features.prompt_ensemble(rows, [len(of_class) for of_class in sentences])

    def photos(self, photos: Sequence[Photo | Path | str], desc: str = "photographs", split: str = "train") -> Encoded:
        """Encode photographs as they are.

        Parameters
        ----------
        photos : sequence of Photo, Path or str
        desc : str
            The words before the progress bar.
        split : "train" or "test"
            Keeps the rows of both apart in the store, where their names may be the same.

        Returns
        -------
        Encoded
            rows float32 (n, D), and why some photographs, by index, cannot be read.

        Raises
        ------
        TaskError
            Where the encoder is strict and a photograph cannot be read.
        """
        return self._encode([(_as_photo(photo), 0) for photo in photos], ("plain",), 0, desc, split)

    def views(self, photos: Sequence[Photo], views: Sequence[str], seed: int) -> Encoded:
        """Encode all views of n photographs but the first, which is the plain photograph.

        Parameters
        ----------
        photos : sequence of Photo
        views : sequence of str
            V names of `augment.VIEWS`.
        seed : int

        Returns
        -------
        Encoded
            rows float32 (n, V - 1, D), and why some photographs, by index, cannot be read.
        """
        each = len(views) - 1
        items = [(photo, number) for photo in photos for number in range(1, each + 1)]
        rows, failures = self._encode(items, tuple(views), seed, "views", "train")
        return Encoded(
            rows.reshape(len(photos), each, self.width), {index // each: cause for index, cause in failures.items()}
        )

    def _encode(
        self, items: list[tuple[Photo, int]], views: tuple[str, ...], seed: int, desc: str, split: str
    ) -> Encoded:
        """Encode (photograph, number of the view) pairs."""
        keys = [self._photo_key(photo, views[number], number, seed, split) for photo, number in items]
        missing, rows = self._missing(keys)
        failures: dict[int, str] = {}
        done = 0
        with tqdm(total=len(missing), desc=desc, unit=" photo", disable=None if missing else True) as bar:
            for encoded in self._batches([items[i] for i in missing], Reader(self.preprocess.resolution, views, seed)):
                indices = missing[done : done + len(encoded.rows)]
                for i, cause in encoded.failures.items():
                    failures[indices[i]] = self._check_failure(items[indices[i]][0], cause)
                readable = [i for i in range(len(indices)) if i not in encoded.failures]
                self._keep(keys, [indices[i] for i in readable], encoded.rows[readable], rows)
                done += len(indices)
                bar.update(len(indices))
        return Encoded(self.store.get(keys) if self.store else rows, failures)

    def _batches(self, items: list[tuple[Photo, int]], reader: Reader) -> Iterator[Encoded]:
        workers = 0 if len(items) <= FEW else min(READERS[self.device], os.cpu_count() or 1)
        return features.image_features(self.model, items, reader, self.batch_size, workers) if items else iter(())

    def _missing(self, keys: list[bytes]) -> tuple[list[int], np.ndarray]:
        """Return the indices of rows to compute, and rows of NaN to put them into where there is no store."""
        if self.store:
            return self.store.missing(keys), np.zeros((0, self.width), np.float32)
        return list(range(len(keys))), np.full((len(keys), self.width), np.nan, np.float32)

    def _keep(self, keys: list[bytes], indices: list[int], computed: np.ndarray, rows: np.ndarray) -> None:
        """Put computed rows into the store under their keys, or into `rows` where there is none."""
        if self.store:
            self.store.put([keys[i] for i in indices], computed)
        else:
            rows[indices] = computed

    def _key(self, *of: object) -> bytes:
        on = self.device if self.precision == "float32" else f"{self.device} {self.precision}"
        return key_of(self.weights_sha256, FEATURES_VERSION, on, *of)

    def _photo_key(self, photo: Photo, view: str, number: int, seed: int, split: str) -> bytes:
        try:
            status = os.stat(photo.path)
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:
            stamp = os.urandom(8).hex()  # reading says why; if it works by then, no later run shall find the row
        drawn = [seed, number] if number else None
        return self._key("photo", self.batch_size, PIL.__version__, view, drawn, split, photo.name, stamp)

    def _check_failure(self, photo: Photo, cause: str) -> str:
        if self.strict:
            raise TaskError(f"{photo.path}: cannot be read as a photograph ({cause}); replace it or leave it out")
        return cause


def _as_photo(photo: Photo | Path | str) -> Photo:
    return photo if isinstance(photo, Photo) else Photo(Path(), str(photo), UNKNOWN)


def check_lengths(
    class_names: Sequence[str],
    read: prompts.Prompts,
    folder: Path,
    shorter: str = f"give the class a shorter name in {prompts.NAMES}",
) -> None:
    """Raise TaskError at the first sentence that is too long for CLIP, before a model is loaded.

    5,000 sentences take 0.3 s.

    Parameters
    ----------
    class_names : sequence of str
    read : Prompts
        The sentences of these classes, from `folder`.
    folder : Path
    shorter : str
        What to do about a name that is too long.
    """
    for name, group, templates, sentences in zip(class_names, read.groups, read.templates, read.sentences):
        for index, sentence in enumerate(sentences):
            try:
                tokenizer.tokenize(sentence)
            except ClipError as error:
                if index < templates:
                    file, remedy = prompts.TEMPLATES, f"shorten the template, or {shorter}"
                else:
                    file, remedy = f"{group}_prompt.json", "shorten it"
                tokens = str(error).partition(":")[0]  # how many there are, and how many there may be
                raise TaskError(
                    f"{folder / file}: class {name[:60]!r}: {tokens}: it begins {sentence[:60]!r}; {remedy}"
                ) from None


def balanced_batch_size(n: int, most: int) -> int:
    """Return the size of the fewest batches of at most `most` that hold n, so that the last is nearly full."""
    batches = max(1, -(-n // most))
    return max(1, -(-n // batches))


@dataclass(frozen=True)
class Reader:
    """Turns (photograph, number of the view) into the pixels that CLIP sees, in any process."""

    resolution: int
    views: tuple[str, ...]
    seed: int

    def __call__(self, item: tuple[Photo, int]) -> np.ndarray:
        """Return uint8 pixels (resolution, resolution, 3); raise Unreadable with the cause.

        For a damaged file Pillow may raise any exception.
        """
        photo, number = item
        rng = augment.view_rng(self.seed, photo.name, number)
        try:
            status = os.stat(photo.path)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a file")  # reading a pipe would wait for ever
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about flaws that Pillow could mend
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
