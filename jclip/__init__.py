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

__version__ = "0.1.0"

__all__ = ["ClipError", "available_models", "load", "tokenize", "weights_file"]

runtime.prepare()  # so that `import jittor` works wherever it stands below `import jclip`


def available_models() -> list[str]:
    """Names of the official models that `load` can download."""
    from .download import OFFICIAL

    return list(OFFICIAL)


def load(name_or_path, device: str = "auto", download_root: str | None = None, precision: str = "float32"):
    """Load CLIP.

    Parameters
    ----------
    name_or_path : a file in any of the formats of `jclip.weights`, or a name from `available_models()`, whose file is
        downloaded to ~/.cache/clip unless it is there
    device : "auto", "cpu" or "cuda"; auto takes CUDA where it works
    download_root : where official files are kept, instead of ~/.cache/clip
    precision : "float32", or "half" on CUDA: matrix products take and give float16, as in OpenAI's own code on CUDA

    Returns
    -------
    model : jclip.model.CLIP
    preprocess : turns a PIL image into a Var of shape (3, model.visual.input_resolution, …)

    Raises ClipError for an unknown name, a file that cannot be used, a device that is not there and a precision that it
    does not have.
    """
    from . import weights
    from .preprocess import Preprocess

    state = weights.read(weights_file(name_or_path, download_root))
    runtime.use(device, precision)
    from .model import build_model

    model = build_model(state, precision)
    return model, Preprocess(model.visual.input_resolution)


def weights_file(name_or_path, download_root: str | None = None) -> Path:
    """The file that `load` reads for the same arguments, downloaded where it is not there yet; `load` takes it, too.

    Raises ClipError where there is neither such a file nor such a name, and where the download fails.
    """
    from . import download

    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.as_posix() not in download.OFFICIAL:
        raise ClipError(
            f"no weights at {path}; expected a file or one of {', '.join(available_models())}. "
            "To make one: python convert_weights.py ViT-B/32"
        )
    return download.official(path.as_posix(), download_root or download.CACHE)


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False):
    """Token ids as a Jittor Var, int32 (n, context_length); `jclip.tokenizer.tokenize` says more."""
    from .tokenizer import tokenize

    return runtime.jittor().array(tokenize(texts, context_length, truncate)).stop_grad()
