"""What Jittor 1.3.11 needs on systems newer than itself: Python 3.13, numpy 2, g++ 15, and later ones.

Each remedy acts only where it is needed, so that elsewhere Jittor is compiled by the same commands as without it. The
files of Jittor are not changed.

===========================  ===================================  ==========================================
new                          what breaks in Jittor                remedy
===========================  ===================================  ==========================================
numpy 2                      reads and calls what has moved       numpy.h, found before Jittor's own header
g++ 15                       `<cstdint>` is no longer included    the flag -includecstdint
g++ 15                       an error in a template of no use     the flag -Wno-template-body
Python 3.13 (PEP 667)        `exec("import x"); locals()["x"]`    a `locals` of the module's own
Python 3.14                  processes import the main script     processes are forked, as before
===========================  ===================================  ==========================================
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

from .. import home
from ..errors import ClipError
from ..files import atomic_write

PYTHON = sys.version_info[:2]
MODULES = ("jittor_utils", "jittor.compiler")  # those that `before_import` and `after_import` change
HEADER = Path(__file__).with_name("numpy.h")
# One word each, because Jittor takes a separate `cstdint` for a source file.
GCC15 = ("-includecstdint", "-Wno-template-body")


def compiler_flags(cache: Path) -> list[str]:
    """Return the flags that Jittor's compiler needs beside Jittor's own, for this numpy and compiler.

    With numpy 2, the header is written into a folder of `cache` that is named by its content: Jittor does not notice
    when a header changes, but compiles again when a flag does.

    Raises
    ------
    ClipError
        If the header cannot be written.
    """
    flags = []
    if int(np.__version__.partition(".")[0]) >= 2:
        flags.append(f'-I"{_write_header(cache)}"')
    return [*flags, *gcc_flags()]


def gcc_flags() -> tuple[str, ...]:
    """Return those of `compiler_flags` that the compiler needs, whatever numpy is."""
    return GCC15 if _gcc_version() >= 15 else ()


def _write_header(cache: Path) -> Path:
    """Write numpy.h as `cache`/jclip/<hash>/pyjt/numpy.h, unless it is there; return the folder <hash>."""
    content = HEADER.read_bytes()
    folder = cache / "jclip" / hashlib.sha256(content).hexdigest()[:16]
    header = folder / "pyjt/numpy.h"
    try:
        if not header.is_file() or header.read_bytes() != content:
            header.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(header) as file:
                file.write(content)
    except OSError as error:
        raise home.not_writable(header, error) from None
    return folder


def compiler() -> str:
    """Return the path of the compiler that Jittor uses, "" if there is none."""
    return os.environ.get("cc_path") or shutil.which("g++") or shutil.which("clang++") or ""


@cache
def compiler_version(path: str) -> str:
    """Return the version that Jittor reads from a compiler's output, such as "12.2.0", or "" if it does not run."""
    try:
        done = subprocess.run([path, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return ""
    return (re.findall(r"\d+\.\d+\.\d+", done.stdout) or re.findall(r"\d+\.\d+", done.stdout) or [""])[-1]


def _gcc_version() -> int:
    """Return the major version of the g++ with which Jittor compiles, or 0 if it is another compiler."""
    name = os.path.basename(compiler())
    return int(compiler_version(compiler()).partition(".")[0] or 0) if "g++" in name and "clang" not in name else 0


def before_import(module) -> None:
    """Change a module of MODULES before its code runs."""
    if PYTHON >= (3, 13):
        module.locals = lambda: sys.modules  # what it looks up there is a module that it has just imported


def after_import(module) -> None:
    """Change a module of MODULES after its code has run."""
    if PYTHON >= (3, 14) and hasattr(module, "Pool") and hasattr(os, "fork"):
        # Other processes than forked ones would import the main script, and then wait for Jittor's lock for ever.
        module.Pool = multiprocessing.get_context("fork").Pool


def check_arrays(jt, advice: str) -> None:
    """Raise ClipError with `advice` if an array does not come back from Jittor as it went.

    With a core that was compiled for numpy 1, numpy 2 gets garbage without a word.
    """
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    try:
        is_intact = np.array_equal(jt.array(array).numpy(), array)
    except Exception:  # Jittor raises RuntimeError, but what it reads there is garbage
        is_intact = False
    if not is_intact:
        raise ClipError(f"Jittor {jt.__version__} does not work with numpy {np.__version__}: {advice}")
