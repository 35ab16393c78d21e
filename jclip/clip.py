"""OpenAI's functions `load`, `tokenize` and `available_models`, which `jclip` itself has as well."""

from __future__ import annotations

from pathlib import Path

from . import runtime
from .errors import ClipError
from .paths import expand

__all__ = ["available_models", "load", "tokenize"]


def available_models() -> list[str]:
    """Return the names of the official models that `load` can download."""
    from .download import OFFICIAL

    return list(OFFICIAL)


def load(
    name,
    device: str = "auto",
    jit: bool = False,
    download_root: str | None = None,
    precision: str = "float32",
    text_tower: bool = True,
):
    """Load a CLIP model and the preprocessing of its images.

    Parameters
    ----------
    name : str or Path
        A weights file or folder in any format that `jclip.weights.read` reads, or a name from `available_models()`. The
        file of an official model is downloaded unless it is in `download_root`.
    device : "auto", "cpu" or "cuda"
        "auto" takes CUDA where it works. PyTorch's spellings, such as "cuda:0" or a torch.device, are understood.
    jit : bool
        Without effect, as the result is the same in OpenAI's code; Jittor compiles in any case.
    download_root : str, Path or None
        The folder of official files; None means ~/.cache/clip.
    precision : "float32" or "half"
        "half" on CUDA: the inputs and results of matrix products are float16, as in OpenAI's own code. "half" on the
        CPU: the inputs are bfloat16, the results float32; the CPU needs AVX512-BF16, and ResNets have none.
    text_tower : bool
        Without it, the model only encodes images, is loaded sooner and takes less memory.

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

    if not isinstance(jit, bool):
        raise ClipError(f"load: jit is True or False, found {jit!r}; give a folder by its name, download_root=…")
    state, settings = weights.read_model(weights_file(name, download_root))
    runtime.use(device, precision)
    from .model import build_model  # imports Jittor, which `use` has checked

    model = build_model(state, precision, settings, text_tower)
    return model, Preprocess(model.visual.input_resolution, settings.preprocess)


def weights_file(name_or_path, download_root: str | None = None) -> Path:
    """Return the weights file or folder that `load` reads for the same arguments, downloading it if necessary.

    Parameters
    ----------
    name_or_path : str or Path
        An existing file or folder, which is returned as it is, or a name from `available_models()`.
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
    from .weights.foreign import unfinished

    path = expand(name_or_path)
    is_official = path.as_posix() in download.OFFICIAL
    if path.is_file() or (path.is_dir() and not is_official):
        return path
    if not is_official:
        raise ClipError(
            f"no weights at {path}{unfinished(path)}; expected a file, a folder or one of "
            f"{', '.join(available_models())}. To make one: python convert_weights.py ViT-B/32"
        )
    return download.official(path.as_posix(), download_root or download.CACHE)


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False):
    """Return the token ids of texts as a Jittor Var, int32 (n, context_length).

    Parameters and errors are those of `jclip.tokenizer.tokenize`, which returns a numpy array.
    """
    from .tokenizer import tokenize

    return runtime.jittor().array(tokenize(texts, context_length, truncate)).stop_grad()
