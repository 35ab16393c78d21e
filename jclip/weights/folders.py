"""Finds the files of weights: one file, or the shards of Hugging Face, which an index lists."""

from __future__ import annotations

import re
from pathlib import Path

from .. import bounded
from ..errors import ClipError
from . import foreign

INDEX = ".index.json"
# In a folder, the first of these is read; Hugging Face and open_clip give weights these names.
NAMES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "open_clip_model.safetensors",
    f"open_clip_model.safetensors{INDEX}",
    "open_clip_pytorch_model.bin",
    f"open_clip_pytorch_model.bin{INDEX}",
)
HASH = re.compile(r"[0-9A-Za-z]{1,80}")  # of a snapshot in the cache of Hugging Face's hub
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz")
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.[a-z]+)")


def find(path: Path) -> tuple[list[Path], Path | None]:
    """Return the files that weights are read from.

    Parameters
    ----------
    path : Path
        A file, an index of shards, or a folder with either, such as one of Hugging Face, or of its hub's cache.

    Returns
    -------
    files : list of Path
        One file, or the shards in the order of their names.
    index : Path or None
        The index of the shards.

    Raises
    ------
    ClipError
        If there are no weights, or several, or an index is damaged or lists a file that does not exist.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise ClipError(
            f"no weights at {path}{foreign.unfinished(path)}; make them with: python convert_weights.py ViT-B/32"
        )
    if path.name.endswith(INDEX):
        return sorted({path.with_name(name) for name in shards(path).values()}), path
    shard = SHARD.fullmatch(path.name)
    if shard and int(shard[2]) > 1:
        raise ClipError(f"{path}: one of {int(shard[2])} parts of the weights; give the folder of all of them")
    return [path], None


def merged(index: Path, contents: dict[str, object]) -> dict:
    """Return the tensors of all shards in one dict.

    Parameters
    ----------
    index : Path
    contents : dict from the name of a shard to its content

    Raises
    ------
    ClipError
        If a shard does not have the tensors that the index says, or two have one of the same name.
    """
    state: dict = {}
    for name, content in contents.items():
        lacking = [
            tensor
            for tensor, shard in shards(index).items()
            if shard == name and not (isinstance(content, dict) and tensor in content)
        ]
        if lacking or not isinstance(content, dict) or state.keys() & content.keys():
            what = (
                f"lacks {lacking[0]}, which {index.name} says it has" if lacking else "repeats tensors of another part"
            )
            raise ClipError(f"{index.with_name(name)}: {what}; download all parts of the weights anew")
        state.update(content)
    return state


def shards(index: Path) -> dict[str, str]:
    """Return the name of the file that has each tensor, as an index of shards says.

    Raises ClipError if the index is damaged, or lists what is no file beside it.
    """
    try:
        content = bounded.json_value(bounded.content(index, bounded.JSON_BYTES).decode("utf-8"))
        names = content["weight_map"]
        if not names or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("its weight_map names no files")
    except (*bounded.DAMAGE, AttributeError) as error:
        reason = str(error) or type(error).__name__
        raise ClipError(f"{index}: no index of the parts of weights ({reason}); download it again") from None
    for name in sorted(set(names.values())):
        if not name or Path(name).name != name or "\\" in name or not index.with_name(name).is_file():
            raise ClipError(
                f"{index}: it lists {name!r}, which is no file beside it; download all parts of the weights"
            )
    return names


def _in_folder(folder: Path) -> Path:
    """Return the weights file or index in a folder."""
    named = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if named:
        return named
    if snapshot := _snapshot(folder):
        return _in_folder(snapshot)
    missing = next((folder / name for name in NAMES if (folder / name).is_symlink()), None)
    if missing:
        raise ClipError(f"{missing}: a link to a file that does not exist; download the weights again")
    present = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(present) == 1:
        return present[0]
    found = ", ".join(path.name for path in present[:8]) or "none"
    remedy = "give one of them" if present else "give a file"
    raise ClipError(
        f"{folder}: a folder without {NAMES[0]}, {NAMES[2]} or an index of their parts; weights files in it: {found}; "
        f"{remedy}"
    )


def _snapshot(folder: Path) -> Path | None:
    """Return the snapshot in a folder models--OWNER--NAME of the hub's cache that refs/main names, or the only one.

    Raises ClipError if there are several, and refs/main names none of them.
    """
    snapshots = sorted(path for path in (folder / "snapshots").glob("*") if path.is_dir())
    try:
        main = bounded.content(folder / "refs/main", 1 << 10).decode("ascii", "replace").strip()
    except (OSError, ValueError):
        main = ""
    named = [path for path in snapshots if HASH.fullmatch(main) and path.name == main]
    if len(snapshots) > 1 and not named:
        names = ", ".join(path.name for path in snapshots[:8])
        raise ClipError(
            f"{folder}: {len(snapshots)} snapshots, and refs/main names none; give one of snapshots/: {names}"
        )
    return next(iter(named or snapshots), None)
