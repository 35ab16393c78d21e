"""CLIP on Jittor, with the names and meanings of OpenAI's `clip`: load, tokenize, available_models.

import jclip as clip
import jittor as jt  # after jclip, which prepares the machine for it
from PIL import Image

model, preprocess = clip.load("ViT-B-32.pkl")
image = preprocess(Image.open("photo.jpg")).unsqueeze(0)
text = clip.tokenize(["a diagram", "a dog", "a cat"])
with jt.no_grad():  # faster, and no graph is kept
    logits_per_image, logits_per_text = model(image, text)
print(logits_per_image.softmax(dim=-1).numpy())
"""

from __future__ import annotations

from pathlib import Path

from . import runtime
from .errors import ClipError
from .paths import expand

__version__ = "0.1.0"

__all__ = ["ClipError", "available_models", "load", "tokenize", "weights_file"]

runtime.prepare()  # before the caller's own `import jittor`, which reads the environment


def available_models() -> list[str]:
    """Return the names of the official models that `load` can download."""
    from .download import OFFICIAL

    return list(OFFICIAL)


def load(name_or_path, device: str = "auto", download_root: str | None = None, precision: str = "float32"):
    """Load a CLIP model and the preprocessing of its images.

    Parameters
    ----------
    name_or_path : str or Path
        A weights file in any format that `jclip.weights.read` reads, or a name from `available_models()`. The file of
        an official model is downloaded unless it is in `download_root`.
    device : "auto", "cpu" or "cuda"
        "auto" takes CUDA where it works.
    download_root : str, Path or None
        The folder of official files; None means ~/.cache/clip.
    precision : "float32" or "half"
        "half" needs CUDA: the inputs and results of matrix products are float16, as in OpenAI's own code on CUDA.

    Returns
    -------
    model : jclip.model.CLIP
    preprocess : jclip.preprocess.Preprocess
        Turns a PIL image into a float32 Var of shape (3, resolution, resolution), where resolution is
        model.visual.input_resolution.

    Raises
    ------
    ClipError
        If the name is unknown, the file cannot be read or downloaded, or the device or precision is not available.
    """
    from . import weights
    from .preprocess import Preprocess

    state = weights.read(weights_file(name_or_path, download_root))
    runtime.use(device, precision)
    from .model import build_model  # imports Jittor, which `use` has checked

    model = build_model(state, precision)
    return model, Preprocess(model.visual.input_resolution)


def weights_file(name_or_path, download_root: str | None = None) -> Path:
    """Return the weights file that `load` reads for the same arguments, downloading it if necessary.

    Parameters
    ----------
    name_or_path : str or Path
        An existing file, which is returned as it is, or a name from `available_models()`.
    download_root : str, Path or None
        The folder of official files; None means ~/.cache/clip.

    Returns
    -------
    Path

    Raises
    ------
    ClipError
        If there is neither such a file nor such a model, or the download fails.
    """
    from . import download

    path = expand(name_or_path)
    if path.is_file():
        return path
    if path.as_posix() not in download.OFFICIAL:
        raise ClipError(
            f"no weights at {path}; expected a file or one of {', '.join(available_models())}. "
            "To make one: python convert_weights.py ViT-B/32"
        )
    return download.official(path.as_posix(), download_root or download.CACHE)


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False):
    """Return the token ids of texts as a Jittor Var, int32 (n, context_length).

    Parameters and errors are those of `jclip.tokenizer.tokenize`, which returns a numpy array.
    """
    from .tokenizer import tokenize

    return runtime.jittor().array(tokenize(texts, context_length, truncate)).stop_grad()
