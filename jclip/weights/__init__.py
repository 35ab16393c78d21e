"""Reads CLIP's weights from any of the usual formats into OpenAI's state dict.

folders.py finds the files, formats.py recognises the format by a file's content, checkpoints.py finds the CLIP in it,
layouts.py maps names to OpenAI's, such as visual.transformer.resblocks.0.attn.in_proj_weight, and the result must be
complete and have the right shapes. configs.py reads what the tensors do not show, such as the activation.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..architecture import architecture_of, expected_shapes
from ..errors import ClipError
from ..paths import expand
from ..settings import ModelSettings
from . import checkpoints, configs, families, folders, foreign, formats, layouts, unpickle

MAX_LISTED = 8  # names in an error message before "and n more"
RECORD = "meta"  # the name, beside the tensors, of a JSON text with the settings of the model


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the weights of one CLIP model from a file or folder; nothing in a file is executed.

    Formats are OpenAI's TorchScript archive, torch state dicts (zip or older format; plain, nested or beside others),
    safetensors of Hugging Face and open_clip, Jittor's .pkl, and .npz; folders are those of Hugging Face and open_clip.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    dict of str to array
        OpenAI's state dict, with the dtypes of the file.

    Raises
    ------
    ClipError
        As in `read_model`.
    """
    return read_model(path)[0]


def read_model(path: Path, activation: str | None = None) -> tuple[dict[str, np.ndarray], ModelSettings]:
    """Read weights as `read` does, and what they do not show of their model.

    The activation, the attention heads and the preprocessing are those that a config of open_clip or Hugging Face
    beside the file states, or the record of `write` in it. Without either they are OpenAI's, and where that may be
    wrong, it is logged.

    Parameters
    ----------
    path : str or Path
    activation : "gelu", "quickgelu" or None
        For weights without a config or record.

    Returns
    -------
    dict of str to array
    ModelSettings

    Raises
    ------
    ClipError
        If the file is missing, damaged or in another format; if tensors are missing, extra, misshapen or not finite,
        which the message lists; if the model is one that jclip does not compute, also according to a config of
        Hugging Face or open_clip beside the file; or if the activation given is another than that stated there.
    """
    path = expand(path)
    files, index = folders.find(path)
    state, record = _tensors(path, files, index)
    config_files = configs.candidates(files[0], state)
    known = {"--activation": activation} if activation else {}
    if configs.OPENAI_ONLY in state:
        known["OpenAI's own file"] = "quickgelu"
    names = list(state)
    try:
        state = layouts.openai_names(state)
        sizes = architecture_of(state, ModelSettings(vision_heads=1, text_heads=1))  # the heads are not known yet
    except (ValueError, ClipError) as error:
        raise ClipError(f"{path}: {_other(names, config_files) or f'{error}{_lacking(state, names)}'}") from None
    if expected_shapes(sizes).keys() != state.keys() and (other := _other(names, config_files)):
        raise ClipError(f"{path}: {other}")
    if sizes.vocab_size > families.MAX_VOCABULARY:
        raise ClipError(f"{path}: {sizes.vocab_size} token ids, those of another tokenizer; {families.COMPUTED}")
    _check(path, state, expected_shapes(sizes))
    settings = configs.settings(path, sizes, config_files, record, known)
    try:
        architecture_of(state, settings)
    except ClipError as error:
        raise ClipError(f"{path}: {error}; the config beside the weights says how many heads they have") from None
    return state, settings


def _other(names: list[str], config_files: list[Path]) -> str | None:
    """Return what a model is that jclip does not compute, by the names of its tensors or a config, or None."""
    family = families.family(names)
    return f"{family}; {families.COMPUTED}" if family else configs.refusal(config_files)


def _tensors(path: Path, files: list[Path], index: Path | None) -> tuple[dict[str, np.ndarray], str | None]:
    """Return the tensors of the CLIP in the files, by the names in them, and the record of its settings."""
    contents = {}
    for file in files:
        try:
            contents[file.name] = formats.read_content(file)
        except unpickle.DAMAGE as error:
            raise _damaged(file, error) from None
    try:
        content = folders.merged(index, contents) if index else contents.popitem()[1]
        state = checkpoints.tensors(content, path)
        formats.check_names_and_size(state, sum(file.stat().st_size for file in files))
    except ClipError:
        raise
    except unpickle.DAMAGE as error:
        raise _damaged(path, error) from None
    record = unpickle.to_array(content.get(RECORD)) if isinstance(content, dict) else None
    if isinstance(record, np.ndarray):
        record = str(record) if record.shape == () and record.dtype.kind == "U" else None
    return state, record if isinstance(record, str) else None


def _damaged(path: Path, error: Exception) -> ClipError:
    what = foreign.describe(path) or "damaged, or no weights of a known format"
    return ClipError(f"{path}: {what} ({str(error) or type(error).__name__})")


def _lacking(state: dict[str, np.ndarray], names: list[str]) -> str:
    """Return what a model that is no CLIP lacks, for the end of a message, with the names in the file."""
    has_text = any(name.startswith(("transformer.", "token_embedding.")) for name in state)
    if not any(name.startswith(("visual.transformer.", "visual.layer")) for name in state):
        lacking = "no CLIP with a vision transformer or ResNet"
    elif not has_text:
        lacking = "an image tower without a text tower"
    else:
        return ""
    return f": {lacking}; its tensors are named {_join(names)}" if names else f": {lacking}"


def write(state: dict[str, np.ndarray], file: BinaryIO, settings: dict | None = None) -> None:
    """Write weights as float32 in the format of jt.save, which jt.load and JCLIP read.

    The format is a pickle, its SHA-1 and Jittor's magic word.

    Parameters
    ----------
    state : dict of str to array
    file : binary file
    settings : dict, optional
        What `ModelSettings.differences` returns; it is recorded under the name RECORD, and nothing is if it is empty.
    """
    digest = hashlib.sha1()

    class HashingWriter:
        def write(self, part):
            digest.update(part)
            return file.write(part)

    pickler = pickle.Pickler(HashingWriter(), 4)
    pickler.fast = True  # no memo, which would keep a copy of every array until the end
    record = {RECORD: json.dumps(settings, sort_keys=True)} if settings else {}
    arrays = {name: np.ascontiguousarray(value, np.float32).reshape(value.shape) for name, value in state.items()}
    pickler.dump({**arrays, **record})
    file.write(digest.digest() + unpickle.JITTOR_MAGIC)


def sha256(path: Path) -> str:
    """Return the SHA-256 of weights in hexadecimal: of the file that `read` reads, as the command sha256sum prints it.

    Where `read` reads several files, the shards of Hugging Face, it is the SHA-256 of the lines that sha256sum prints
    for them in the order of their names: `cd FOLDER && sha256sum model-*.safetensors | sha256sum`.

    Parameters
    ----------
    path : str or Path
        A file or a folder, as for `read`.

    Raises
    ------
    ClipError
        If there are no weights.
    """
    files, index = folders.find(expand(path))
    if index is None:
        return _file_sha256(files[0])
    lines = "".join(f"{_file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def _check(path: Path, state: dict[str, np.ndarray], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise a ClipError that lists the tensors that are missing, extra, misshapen, not floating point or not finite."""
    for name, value in state.items():  # Jittor has no 0-d arrays and saves them with shape (1,)
        if value.shape == (1,) and expected.get(name) == ():
            state[name] = value.reshape(())
    present = [name for name in expected if name in state]
    floats = [name for name in present if state[name].dtype.kind == "f"]
    problems = {
        "missing": [name for name in expected if name not in state],
        "extra": [name for name in state if name not in expected],
        "misshapen": [
            f"{name} {state[name].shape}, expected {expected[name]}"
            for name in present
            if state[name].shape != expected[name]
        ],
        "not floating point": [f"{name} ({state[name].dtype})" for name in present if name not in floats],
        "NaN or infinite": [name for name in floats if not _is_finite(state[name])],
        "negative variance": [name for name in floats if name.endswith(".running_var") and (state[name] < 0).any()],
    }
    lines = [f"{problem}: {_join(names)}" for problem, names in problems.items() if names]
    if lines:
        raise ClipError(f"{path}: not the weights of one CLIP; {'; '.join(lines)}")


def _is_finite(value: np.ndarray) -> bool:
    if value.dtype != np.float16:
        return bool(np.isfinite(value).all())
    exponents = value.view(np.uint16) & 0x7C00  # all ones of an infinite number or a NaN; six times as fast
    return bool(exponents.max(initial=0) < 0x7C00)


def _join(names: list[str]) -> str:
    """Join names by commas, the first MAX_LISTED of them."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
