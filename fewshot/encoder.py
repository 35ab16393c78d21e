"""Features of photographs and prompts from CLIP, with progress bars and a store of rows.

Unreadable photographs are returned, not raised.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL

import augment
import jclip
from jclip import bounded, features, levels, opening, preprocess, runtime, weights
from jclip.features import Encoded, EncodedTexts
from jclip.paths import expand
from jclip.progress import Progress, track
from jclip.settings import ModelSettings

from .data import UNKNOWN, Photo
from .errors import TaskError
from .store import Store, make_key

logger = logging.getLogger("fewshot")

PLAIN = ("plain",)  # the one view of a photograph as it is
MAX_SEQUENTIAL = 64  # up to this many photographs are read without extra processes, which take longer to start
# Maximum number of reading processes by device. On a CPU, reading takes a twentieth of the time of encoding; a GPU is
# faster than its readers.
MAX_READERS = {"cpu": 2, "cuda": 16}
# Increase it when a change of preprocess, augment, tokenizer or model changes the row of a photograph or sentence.
FEATURES_VERSION = 2
# The same for half precision on the CPU alone.
CPU_HALF_VERSION = 2
# The same for greyscale photographs of more than 8 bits alone (jclip/levels.py).
LEVELS_VERSION = 1


@dataclass(frozen=True)
class Encoder:
    """A CLIP that turns photographs and sentences into unit rows of width D.

    With a store, rows in the store are not computed again. All batches then have the same size, so that a row is
    bitwise independent of the other rows in the run.

    Attributes
    ----------
    model : jclip.model.CLIP
    preprocess : jclip.preprocess.Preprocess
    weights_sha256 : str
        Hexadecimal SHA-256 of the weights file.
    device : "cpu" or "cuda"
    batch_size : int
        Photographs per batch.
    store : Store, optional
    strict : bool
        Whether the first photograph that cannot be read raises TaskError.
    precision : "float32" or "half"
    settings : ModelSettings
        What the weights do not show of the model, such as its activation and preprocessing.
    """

    model: object
    preprocess: object
    weights_sha256: str
    device: str
    batch_size: int
    store: Store | None = None
    strict: bool = False
    precision: str = "float32"
    settings: ModelSettings = ModelSettings()
    _logged_levels: list[str] = field(default_factory=list, repr=False, compare=False)  # the remark, once logged

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: str = "auto",
        batch_size: int | None = None,
        store: Path | None = None,
        strict: bool = False,
        precision: str = "float32",
        text_tower: bool = True,
    ) -> Encoder:
        """Load CLIP from a file or by an official name such as "ViT-B/32".

        Parameters
        ----------
        path : Path or str
        device : "auto", "cpu" or "cuda"
        batch_size : int, optional
            Default: `jclip.features.IMAGE_BATCH` of the device.
        store : Path, optional
            The folder of the store.
        strict : bool
        precision : "float32" or "half"
        text_tower : bool
            Without it, the encoder has no prompts, and starts sooner.

        Raises
        ------
        ClipError
            Where the weights, the device or the precision cannot be used.
        """
        path = jclip.weights_file(path)
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(weights.sha256, path)  # in parallel with loading, which takes twice as long
            model, preprocess = jclip.load(path, device, precision=precision, text_tower=text_tower)
        opened, device = Store(store, model.visual.output_dim) if store else None, runtime.use(device, precision)
        batch_size = batch_size or features.IMAGE_BATCH[device]
        digest = digest.result()
        return cls(model, preprocess, digest, device, batch_size, opened, strict, precision, model.settings)

    @property
    def provenance(self) -> dict[str, str]:
        """What is recorded beside features: the fingerprint of the weights, and of settings other than OpenAI's."""
        different = self.settings.differences()
        digest = hashlib.sha256(json.dumps(different, sort_keys=True).encode()).hexdigest()
        return {"weights_sha256": self.weights_sha256, **({"settings_sha256": digest} if different else {})}

    @property
    def width(self) -> int:
        """The feature width D."""
        return self.model.visual.output_dim

    @property
    def scale(self) -> float:
        """The logit scale, exp(logit_scale): 100 in OpenAI's models."""
        return float(np.exp(self.model.logit_scale.numpy()).item())

    def encode_prompts(self, sentences: Sequence[Sequence[str]]) -> np.ndarray:
        """Encode the sentences of classes and return one text feature per class.

        Parameters
        ----------
        sentences : sequence of sequences of str
            The sentences of each of C classes.

        Returns
        -------
        float32 array of shape (C, D)
            Unit rows, the prompt ensemble of each class (`jclip.features.prompt_ensemble`).

        Raises
        ------
        ClipError
            For a sentence that is too long.
        """
        flat = [sentence for class_sentences in sentences for sentence in class_sentences]
        max_size = features.TEXT_BATCH[self.device]
        batch_size = max_size if self.store else balanced_batch_size(len(flat), max_size)
        keys = [self._key("text", batch_size, sentence) for sentence in flat]
        missing, rows = self._missing(keys)
        with Progress(len(missing), "prompts", " text") as progress:
            for encoded in self._encode_texts([flat[i] for i in missing], batch_size):
                self._keep(keys, [missing[i] for i in encoded.indices], encoded.rows, rows)
                progress.update(len(encoded.rows), self._note())
        rows = self.store.get(keys) if self.store else rows
        return features.prompt_ensemble(rows, [len(class_sentences) for class_sentences in sentences])

    def encode_photos(
        self, photos: Sequence[Photo | Path | str], desc: str = "photographs", photo_set: str = "train"
    ) -> Encoded:
        """Encode photographs without augmentation.

        Parameters
        ----------
        photos : sequence of Photo, Path or str
        desc : str
            Description of the progress bar.
        photo_set : "train" or "test"
            Part of the key in the store, since training and test photographs may have the same names.

        Returns
        -------
        Encoded
            rows, float32 (n, D), and failures, {index of an unreadable photograph: cause}. The row of an unreadable
            photograph is NaN.

        Raises
        ------
        TaskError
            Where the encoder is strict and a photograph cannot be read.
        """
        return self._encode([(_as_photo(photo), 0) for photo in photos], PLAIN, 0, desc, photo_set)

    def encode_means(self, photos: Sequence[Photo], views: Sequence[str], desc: str, photo_set: str) -> Encoded:
        """Encode views of photographs that are not random, and return the unit mean of each photograph's.

        Parameters
        ----------
        photos : sequence of Photo
        views : sequence of str
            Names of `augment.ALL_VIEWS`; a single one is returned as it is.
        desc, photo_set : as of `encode_photos`

        Returns
        -------
        Encoded
            As of `encode_photos`.

        Raises
        ------
        TaskError
            Where the encoder is strict and a photograph cannot be read.
        """
        views = tuple(views)
        if len(views) == 1:
            return self._encode([(photo, 0) for photo in photos], views, 0, desc, photo_set)
        total, failures = np.zeros((len(photos), self.width), np.float32), {}
        for number, view in enumerate(views):
            left = [i for i in range(len(photos)) if i not in failures]
            items = [(photos[i], number) for i in left]
            rows, failed = self._encode(items, views, 0, f"{desc}, {view}", photo_set)
            total[left] += rows
            failures.update({left[i]: cause for i, cause in failed.items()})
        total[list(failures)] = np.nan
        return Encoded(features.unit(total), failures)

    def encode_views(self, photos: Sequence[Photo], views: Sequence[str], seed: int) -> Encoded:
        """Encode views 1 to V - 1 of n photographs; view 0 is the plain photograph.

        Parameters
        ----------
        photos : sequence of Photo
        views : sequence of str
            V names of `augment.VIEWS`; the first is "plain".
        seed : int

        Returns
        -------
        Encoded
            rows, float32 (n, V - 1, D), and failures, {index of an unreadable photograph: cause}. The row of a view
            that cannot be made is NaN.

        Raises
        ------
        TaskError
            Where the encoder is strict and a photograph cannot be read.
        """
        n_views = len(views) - 1
        items = [(photo, number) for photo in photos for number in range(1, n_views + 1)]
        rows, failures = self._encode(items, tuple(views), seed, "views", "train")
        return Encoded(
            rows.reshape(len(photos), n_views, self.width),
            {index // n_views: cause for index, cause in failures.items()},
        )

    def _encode(
        self, items: list[tuple[Photo, int]], views: tuple[str, ...], seed: int, desc: str, photo_set: str
    ) -> Encoded:
        """Encode (photograph, index of the view) pairs and return their rows and failures."""
        keys = [
            self._photo_key(photo, views[number], number, seed, photo_set)
            for photo, number in track(items, f"{desc}, sizes and times", " photo", leave=False)
        ]
        missing, rows = self._missing(keys)
        failures: dict[int, str] = {}
        reader = PixelReader(self.preprocess.resolution, views, seed, self.settings.preprocess)
        with Progress(len(missing), desc, " photo") as progress:
            for batch, encoded in self._encode_items([items[i] for i in missing], reader):
                indices = [missing[i] for i in batch]
                for i, cause in encoded.failures.items():
                    failures[indices[i]] = self._check_failure(items[indices[i]][0], cause)
                readable = [i for i in range(len(indices)) if i not in encoded.failures]
                self._keep(keys, [indices[i] for i in readable], encoded.rows[readable], rows)
                progress.update(len(indices), self._note())
        if not self.store:
            return Encoded(rows, failures)
        causes = {keys[index]: cause for index, cause in failures.items()}  # of equal keys only the first was read
        return Encoded(self.store.get(keys), {i: causes[key] for i, key in enumerate(keys) if key in causes})

    def close(self) -> None:
        """Free what computes, if that is more than a part of this process."""

    # The next three methods are what computes; fewshot/cluster has others, whose batches come in any order.

    def _encode_items(
        self, items: list[tuple[Photo, int]], reader: PixelReader
    ) -> Iterator[tuple[Sequence[int], Encoded]]:
        """Yield the indices of some of the items and their rows, until each had its turn."""
        workers = 0 if len(items) <= MAX_SEQUENTIAL else min(MAX_READERS[self.device], os.cpu_count() or 1)
        done = 0
        if items:
            for encoded in features.image_features(self.model, items, reader, self.batch_size, workers):
                yield range(done, done + len(encoded.rows)), encoded
                done += len(encoded.rows)

    def _encode_texts(self, texts: list[str], batch_size: int) -> Iterator[EncodedTexts]:
        return features.text_features(self.model, texts, batch_size)

    def _note(self) -> str:
        """Return what the progress shows behind its numbers."""
        return ""

    def _missing(self, keys: list[bytes]) -> tuple[list[int], np.ndarray]:
        """Return the indices of the rows to compute, and an array of NaN rows to fill if there is no store."""
        if self.store:
            return self.store.missing(keys), np.zeros((0, self.width), np.float32)
        return list(range(len(keys))), np.full((len(keys), self.width), np.nan, np.float32)

    def _keep(self, keys: list[bytes], indices: list[int], computed: np.ndarray, rows: np.ndarray) -> None:
        """Put computed rows into the store under their keys, or into `rows` if there is no store."""
        if self.store:
            self.store.put([keys[i] for i in indices], computed)
        else:
            rows[indices] = computed

    def _key(self, *values: object) -> bytes:
        device = self.device if self.precision == "float32" else f"{self.device} {self.precision}"
        device += f" {CPU_HALF_VERSION}" if device == "cpu half" else ""
        different = self.settings.differences()
        settings = ["settings", different] if different else []  # the keys of OpenAI's models are older
        return make_key(self.weights_sha256, FEATURES_VERSION, device, *values, *settings)

    def _photo_key(self, photo: Photo, view: str, number: int, seed: int, photo_set: str) -> bytes:
        try:
            status = os.stat(photo.path)
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:
            # os.stat failed, so the row gets a key that no other run can have, even if the file can be read a moment
            # later.
            stamp = os.urandom(8).hex()
        random_inputs = [seed, number] if view in augment.RANDOM else None
        inputs = self.batch_size, PIL.__version__, view, random_inputs, photo_set, photo.name, stamp
        return self._key("photo", *inputs, *self._reader(photo.path))

    def _reader(self, path: Path) -> list:
        """Return what a photograph's key needs beside Pillow's version; nothing for nearly all photographs."""
        if path.suffix.lower() in opening.HEIF_SUFFIXES:
            return ["pillow-heif", opening.register_heif()]
        if not opening.is_deep(path):
            return []
        if not self._logged_levels:
            remark = f"{path}: more than 8 bits of grey; they are scaled to 8, as those of every such photograph"
            logger.info(bounded.one_line(remark))
            self._logged_levels.append(remark)
        return ["levels", LEVELS_VERSION]

    def _check_failure(self, photo: Photo, cause: str) -> str:
        if self.strict:
            raise TaskError(f"{photo.path}: cannot be read as a photograph ({cause}); replace it or leave it out")
        return cause


def _as_photo(photo: Photo | Path | str) -> Photo:
    return photo if isinstance(photo, Photo) else Photo(Path(), str(expand(photo)), UNKNOWN)


def balanced_batch_size(n: int, max_size: int) -> int:
    """Return the batch size that splits n items evenly into the fewest batches of at most `max_size`."""
    batches = max(1, -(-n // max_size))
    return max(1, -(-n // batches))


@dataclass(frozen=True)
class PixelReader:
    """A picklable function from (photograph, index of the view) to the input pixels of CLIP."""

    resolution: int
    views: tuple[str, ...]
    seed: int
    config: preprocess.PreprocessConfig = preprocess.OPENAI

    def __call__(self, item: tuple[Photo, int]) -> np.ndarray:
        """Return uint8 pixels (resolution, resolution, 3), or raise Unreadable with the cause."""
        photo, number = item
        return self.pixels(photo.path, photo.name, number)

    def pixels(self, path: Path | str, name: str, number: int) -> np.ndarray:
        """Do so for a file that may have another name than the photograph, from which the view's randomness comes."""
        rng = augment.view_rng(self.seed, name, number)
        with opening.opened(path, self.config.size or self.resolution) as image:
            view = augment.ALL_VIEWS[self.views[number]](levels.eight_bits(image), rng)
            return preprocess.crop(view, self.resolution, self.config)
