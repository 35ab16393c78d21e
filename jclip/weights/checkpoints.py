"""Finds the tensors of a CLIP in what training programs save: nested, beside others, under longer names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import bounded
from ..errors import ClipError
from . import unpickle

MAX_DEPTH = 8  # of dicts and lists; PyTorch Lightning nests state dicts of optimizers 5 deep
# Parts of a name that wrappers of PyTorch add: DataParallel, torch.compile, FSDP, activation checkpointing.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What stands before the names of a CLIP's image tower, of OpenAI's or Hugging Face's, in a larger model.
PREFIX = re.compile(r"((?:[^.]+\.)*?)(?:visual|vision_model)\..+", re.DOTALL)
# Where several CLIPs are in one file: the keys whose CLIP is read first, and words of those that are read last.
PREFERRED = ("state_dict", "model_state_dict", "model", "network", "params", "weights", "clip", "student", "ema")
SECONDARY = re.compile(r"ema|teacher|momentum|shadow|swa|average|optim|target", re.IGNORECASE)
SIZES = ("input_resolution", "context_length", "vocab_size")  # whole numbers among the tensors of OpenAI's files
MAX_NAMED = 5  # names in a message

_log = logging.getLogger("jclip")


def tensors(content, path: Path) -> dict[str, np.ndarray]:
    """Return the state dict of the CLIP in a file's content.

    What is left out, a second CLIP or the tensors of other parts of a model, is logged.

    Parameters
    ----------
    content : nested dicts, lists, arrays and ModuleStubs
    path : Path, for the messages

    Returns
    -------
    dict of str to array
        Names as in the file, without those of wrappers and without what stands before all of them. If there is no CLIP
        in it, the largest dict of tensors.

    Raises
    ------
    ValueError
        If there are no tensors.
    ClipError
        If there are several CLIPs, and nothing says which is meant.
    """
    if isinstance(content, unpickle.ModuleStub):
        return _without_prefix(content.tensors(), path)
    if not isinstance(content, (dict, list, tuple)):
        raise ValueError(f"holds a {type(content).__name__}, expected names and tensors")
    state_dicts = list(_state_dicts(content))
    clips = [(keys, arrays) for keys, state in state_dicts if _prefixes(arrays := _arrays(state))]
    if not clips:
        return _largest(state_dicts)
    clips.sort(key=lambda found: _rank(found[0]))
    if len(clips) > 1:
        names = _named([".".join(keys) or "the file itself" for keys, _ in clips])
        _report(path, f"there are {len(clips)} CLIPs in it, under {names}; the first is read")
    return _without_prefix(clips[0][1], path)


def _state_dicts(content) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Yield every dict in nested dicts and lists once, with the keys that lead to it, the outermost first."""
    level, seen = [((), content, ())], {id(content)}
    for _ in range(MAX_DEPTH):
        inner = []
        for keys, value, parents in level:
            if isinstance(value, dict):
                yield keys, {name: unpickle.to_array(item) for name, item in value.items()}
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for name, item in items:
                if not isinstance(item, (dict, list, tuple)):
                    continue
                if id(item) in parents or item is value:
                    raise ValueError("holds a dict that holds itself, a recursion without end")
                if id(item) not in seen:
                    seen.add(id(item))
                    inner.append(((*keys, str(name)), item, (*parents, id(value))))
        level = inner


def _rank(keys: tuple[str, ...]) -> tuple:
    """Return what orders the CLIPs of a file: the one to read is the smallest."""
    last = keys[-1] if keys else ""
    preference = PREFERRED.index(last) if last in PREFERRED else len(PREFERRED)
    return any(SECONDARY.search(key) for key in keys), preference, len(keys)


def _arrays(state: dict) -> dict[str, np.ndarray]:
    """Return the tensors of a state dict.

    Numbers such as an epoch, which some programs save among the tensors, are left out; a float may be the logit scale.
    """
    arrays = {}
    for name, value in state.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, float) and name.endswith("logit_scale"):
            value = np.asarray(value)
        if isinstance(value, np.ndarray) and (value.ndim or value.dtype.kind == "f" or name.endswith(SIZES)):
            arrays[name] = value
    return arrays


def _prefixes(state: dict[str, np.ndarray]) -> list[str]:
    """Return what stands before names of image towers, each once, the likeliest to be read first."""
    named = {match[1] for match in map(PREFIX.fullmatch, state) if match}
    return sorted(named, key=lambda prefix: (bool(SECONDARY.search(prefix)), len(prefix), prefix))


def _without_prefix(state: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of one CLIP without what stands before their names; the others are logged."""
    prefixes = _prefixes(state)
    prefix = prefixes[0] if prefixes else ""
    equal = [other for other in prefixes if not SECONDARY.search(other)] or prefixes
    if prefix and len(equal) > 1:
        raise ClipError(f"{path}: several CLIPs, under {_named(equal)}; save the state dict of one of them")
    others = [name for name in state if not name.startswith(prefix)]
    if others:
        are = "others are" if len(others) > 1 else "other is"
        _report(path, f"the tensors under {prefix[:-1]!r} are read; {len(others)} {are} not: {_named(others)}")
    plain: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if name.startswith(prefix):
            short = WRAPPERS.sub("", name[len(prefix) :])
            if short in plain:
                raise ValueError(f"two tensors are {short}")
            plain[short] = value
    return plain


def _largest(state_dicts: list) -> dict[str, np.ndarray]:
    """Return the dict with the most tensors of a file without a CLIP; raise ValueError if there are none."""
    counts = [sum(isinstance(value, np.ndarray) for value in state.values()) for _, state in state_dicts]
    if not any(counts):
        raise ValueError("holds no tensors")
    state = state_dicts[counts.index(max(counts))][1]
    other = next((name for name, value in state.items() if not isinstance(value, (np.ndarray, int, float))), None)
    if other is not None:
        raise ValueError(f"holds no CLIP; {other!r} is a {type(state[other]).__name__}, expected a tensor")
    return {str(name): np.asarray(value) for name, value in state.items()}


def _named(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + ", …" * (len(names) > MAX_NAMED)


def _report(path: Path, message: str) -> None:
    _log.info("%s", bounded.one_line(f"{path}: {message}"))
