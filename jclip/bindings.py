"""Keeps the C++ that makes Jittor known to Python, in Jittor's cache.

Jittor writes it at each import, and for that reads 150 of its headers character by character: half of the import's
time. What it writes for a header depends on nothing but the header's text and name, and on Jittor's own code.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import wraps
from pathlib import Path

from . import jittor_cache
from .files import atomic_write

MODULE = "jittor.pyjt_compiler"


def keep(module) -> None:
    """Replace `compile_src` of MODULE, which writes C++ for a header, by one that first looks for what is kept.

    `compile` of the module, which asks for all headers, puts what is new into the file at its end.
    """
    file = _file(module)
    kept, write, write_all = _read(file), module.compile_src, module.compile
    known = len(kept)

    @wraps(write)
    def compile_src(src: str, header: str, basename: str) -> str | None:
        key = hashlib.sha256("\0".join((header, basename, src)).encode()).hexdigest()
        if key not in kept:
            kept[key] = write(src, header, basename)
        return kept[key]

    @wraps(write_all)
    def compile(*arguments):
        names = write_all(*arguments)
        if len(kept) > known:
            _save(file, kept)
        return names

    module.compile_src, module.compile = compile_src, compile


def _file(module) -> Path:
    """Return the file for what this version of the module writes."""
    code = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    return jittor_cache.folder() / "jclip" / f"bindings-{code[:16]}.json"


def _read(file: Path) -> dict[str, str | None]:
    """Return the C++ for headers, by a hash of what it was written from."""
    try:
        kept = json.loads(file.read_bytes())
    except (OSError, ValueError):  # none yet, or damaged: it is written again
        return {}
    return kept if isinstance(kept, dict) else {}


def _save(file: Path, kept: dict[str, str | None]) -> None:
    """Replace the file; where that fails, the next import takes longer."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as new:
            new.write(json.dumps(kept).encode())
