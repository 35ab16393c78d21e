"""Extraction on many machines: an Encoder whose rows are computed by workers of a Ray cluster.

The driver, the process that the user starts, keeps the store and writes all files; it needs no Jittor. Importing this
package imports Ray, which is an extra: requirements-cluster.txt.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if "ray" not in sys.modules and os.path.exists(os.path.expanduser("~/.ray/auth_token")):
    # What Ray itself does for a cluster on this machine, but not for one of an address. Read when Ray is imported.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
try:
    import ray
except ImportError:
    from ..errors import TaskError

    raise TaskError("--cluster needs Ray; run: pip install -r requirements-cluster.txt") from None

import jclip
from jclip import features, pillow, weights
from jclip.architecture import architecture_of
from jclip.features import Encoded, EncodedTexts
from jclip.preprocess import Preprocess
from jclip.tokenizer import tokenize

from ..data import Photo
from ..encoder import Encoder, PixelReader
from ..errors import TaskError
from ..store import Store
from . import machines
from .files import file_to_probe, size_of
from .messages import Setup, Work, facts
from .pool import Pool
from .worker import Worker

logger = logging.getLogger("fewshot")


@dataclass(frozen=True)
class RemoteModel:
    """What the driver knows of the model that the workers have."""

    pool: Pool
    width: int
    scale: float
    context_length: int


@dataclass(frozen=True)
class ClusterEncoder(Encoder):
    """An Encoder without a model of its own; `model` is a RemoteModel. Its rows have the keys that an Encoder's have.

    On processors of one kind, the bits of a row depend on its photograph, the batch size and the number of processors
    of a worker, not on which worker has computed it.
    """

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: str = "auto",
        batch_size: int | None = None,
        store: Path | None = None,
        strict: bool = False,
        precision: str = "float32",
        cluster: str = machines.LOCAL,
        workers: int | None = None,
        worker: type = Worker,
    ) -> ClusterEncoder:
        """Start workers that load CLIP from a file or by an official name; `close` ends them.

        Parameters
        ----------
        path, device, batch_size, store, strict, precision
            As for `Encoder.load`. With the device "auto", CUDA is taken if a machine of the cluster has a GPU.
        cluster : str
            "local" starts Ray on this machine; "auto" takes the cluster that runs here, HOST:PORT that of an address.
        workers : int, optional
            How many; see `machines.plan`.
        worker : class
            `Worker`, or a subclass of it.

        Raises
        ------
        ClipError
            Where the weights cannot be used.
        TaskError
            Where the cluster cannot be used.
        """
        path = jclip.weights_file(path).absolute()
        digest = weights.sha256(path)
        state, settings = weights.read_model(path)
        sizes, shared = architecture_of(state, settings), facts(state, settings)
        scale = float(np.exp(np.asarray(state["logit_scale"], np.float32).reshape(1)).item())  # as a model's
        del state
        machines.connect(cluster)
        try:
            plan = machines.plan(workers, device)
            if precision == "half" and plan.device == "cpu":
                raise TaskError("--precision half on a cluster needs GPUs; run with --precision float32")
            batch_size = batch_size or features.IMAGE_BATCH[plan.device]
            opened = Store(store, sizes.embed_dim) if store else None
            setup = Setup(str(path), digest, plan.device, precision, batch_size, plan.cpus, pillow.settings())
            pool = Pool(plan, setup, shared, lambda: weights.read_model(path), worker)
        except BaseException:
            ray.shutdown()
            raise
        logger.info("%s", _description(plan, workers))
        model = RemoteModel(pool, sizes.embed_dim, scale, sizes.context_length)
        preprocess = Preprocess(sizes.image_resolution, settings.preprocess)
        return cls(model, preprocess, digest, plan.device, batch_size, opened, strict, precision, settings)

    @property
    def width(self) -> int:
        """The feature width D."""
        return self.model.width

    @property
    def scale(self) -> float:
        """The logit scale."""
        return self.model.scale

    def close(self) -> None:
        """End the workers and leave the cluster, or stop it if it was started for this encoder."""
        self.model.pool.close()
        ray.shutdown()

    def _encode_items(
        self, items: list[tuple[Photo, int]], reader: PixelReader
    ) -> Iterator[tuple[Sequence[int], Encoded]]:
        if items:
            probe = file_to_probe(photo.path.absolute() for photo, _ in items)
            yield from self.model.pool.run(self._works(items, reader), probe)

    def _works(self, items: list[tuple[Photo, int]], reader: PixelReader) -> Iterator[Work]:
        folders: dict[Path, Path] = {}  # a photograph's path may be relative, and a worker is in another folder
        for start in range(0, len(items), self.batch_size):
            indices = list(range(start, min(start + self.batch_size, len(items))))
            absolute = [
                (photo._replace(folder=folders.setdefault(photo.folder, photo.folder.absolute())), number)
                for photo, number in items[start : start + self.batch_size]
            ]
            sizes = [size_of(photo.path) for photo, _ in absolute]
            yield Work(0, indices, absolute, sizes, reader)

    def _encode_texts(self, texts: list[str], batch_size: int) -> Iterator[EncodedTexts]:
        tokens = tokenize(texts, self.model.context_length)
        works = (
            Work(0, indices.tolist(), [], [], None, [texts[i] for i in indices], batch_size)
            for indices in features.batches_by_length(tokens, batch_size)
        )
        for indices, encoded in self.model.pool.run(works, None) if texts else ():
            yield EncodedTexts(np.array(indices), encoded.rows)

    def _note(self) -> str:
        n = self.model.pool.n_active
        return f"{n} worker{'s' * (n != 1)}"


def _description(plan: machines.Plan, asked: int | None) -> str:
    """Say which workers there will be."""
    each = f"a GPU and {plan.cpus} CPUs" if plan.device == "cuda" else f"{plan.cpus} CPU{'s' * (plan.cpus != 1)}"
    more = f"; {asked} were asked for, and there is no room for more" if asked and asked > plan.workers else ""
    return f"Ray {ray.__version__}: {plan.workers} worker{'s' * (plan.workers != 1)} with {each} each{more}"
