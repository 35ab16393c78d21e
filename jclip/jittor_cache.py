"""The folder in which Jittor keeps what it has compiled: where it is, whether it can be used, what is in it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from . import compat, home
from .errors import ClipError
from .paths import expand

# Jittor writes its folder into shell commands, some without quotes, and into lists of the linker. Spaces it can handle.
FORBIDDEN = "\"'$`\\\n\t,:()&;<>|"


def variables() -> dict[str, str]:
    """Return the environment variables with which Jittor finds a folder that it can write, beside those that are set.

    Jittor makes .cache/jittor in HOME, even if JITTOR_HOME names another folder. Where it cannot, JITTOR_HOME serves
    for both.

    Raises
    ------
    ClipError
        If no folder can be written.
    """
    try:
        _make_cache(expand("~"))
        return {}
    except ClipError:
        if not os.environ.get("JITTOR_HOME"):
            raise
        _make_cache(Path(os.environ["JITTOR_HOME"]), "JITTOR_HOME")
        return {"HOME": os.environ["JITTOR_HOME"]}


def folder() -> Path:
    """Return the folder in which Jittor keeps what it has compiled.

    Raises
    ------
    ClipError
        If no folder can be written, or the folder's name has characters that Jittor cannot handle.
    """
    users_home = Path(os.path.abspath(variables().get("HOME") or expand("~")))
    jittor_home = Path(os.path.abspath(os.environ.get("JITTOR_HOME") or _noted(users_home)))
    chosen = jittor_home / ".cache/jittor"
    for character in FORBIDDEN:
        if character in str(chosen):
            raise ClipError(
                f"Jittor cannot compile in {chosen}, because of the {character!r} in its name; set HOME (and "
                "JITTOR_HOME, if you use it) to a folder without such a character, e.g. HOME=/tmp/me"
            )
    _make_cache(jittor_home, "HOME" if jittor_home == users_home else "JITTOR_HOME")
    return chosen


def _noted(users_home: Path) -> Path:
    """Return the last JITTOR_HOME that Jittor has been given, which it notes in HOME, or HOME itself."""
    try:
        return Path(json.loads((users_home / ".cache/jittor/config.json").read_text())["JITTOR_HOME"])
    except (OSError, ValueError, LookupError, TypeError):
        return users_home


def _make_cache(folder: Path, variable: str = "HOME") -> None:
    """Make Jittor's folder in that of `variable`; raise ClipError if that fails, or if it is of another user."""
    folder = folder / ".cache/jittor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        locks = list(folder.glob("*/" * 6 + "jittor.lock"))  # one for each combination of versions
        if locks and not any(os.access(lock, os.W_OK) for lock in locks):
            open(locks[0], "a").close()  # says why
    except OSError as error:
        raise home.not_writable(folder, error, variable) from None


def compiler_flags() -> str:
    """Return the value that the environment variable cc_flags needs while Jittor is imported, or "".

    Raises
    ------
    ClipError
        If numpy 2 needs a header that cannot be written.
    """
    users = os.environ.get("cc_flags", "")
    return " ".join([*filter(None, [users]), *(f for f in compat.compiler_flags(folder()) if f not in users)])


def has_core(nvcc: str) -> bool:
    """Return whether the cache has a core that was compiled as it would be now: with `nvcc`, for the CPU if that is "".

    With CUDA it lies in one more folder, such as cu13.0.88_sm_90. Beside it, a .key file holds the command that linked
    it, which names the compiler's flags and the folder of CUDA.
    """
    cuda = Path(shutil.which(nvcc) or nvcc).parent.parent
    flags = shlex.split(compiler_flags())
    for below in ("", "*/"):
        for command in folder().glob(f"{_core_folders()}/{below}jittor_core*.so.key"):
            text = command.read_text(errors="replace")
            is_for_nvcc = f'"{cuda}/lib64"' in text if nvcc else "-DHAS_CUDA" not in text
            if is_for_nvcc and all(flag in text.replace('"', "") for flag in flags):
                return True
    return False


def count_objects(since: float) -> int:
    """Return the number of source files of Jittor that were compiled after a time, in seconds of `time.time`."""
    objects = folder().glob(f"{_core_folders()}/**/obj_files/*.o")
    return sum(file.stat().st_mtime >= since for file in objects)


def _core_folders() -> str:
    """Return a pattern of the folders in which this Jittor keeps its core, relative to `folder`.

    They are nested: the versions of Jittor, the compiler and Python, the operating system, the CPU, the installation of
    Jittor, and the variable cache_name, in its absence the git branch of the folder in which Jittor is installed.
    """
    spec = importlib.util.find_spec("jittor_utils")
    origin = spec.origin if spec else ""
    installation = hashlib.md5(origin.encode()).hexdigest()[:4]
    name = os.environ.get("cache_name") or _branch(Path(origin).parent)
    version = compat.compiler_version(compat.compiler())
    return f"jt*/*{version}/py{platform.python_version()}/*/*/{installation}/{name}"


def _branch(directory: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "branch"], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:  # there is no git
        return "default"
    branches = [line[2:] for line in done.stdout.splitlines() if line.startswith("* ")]
    return re.sub(r"[ (){}]", "_", branches[0]) if branches else "default"


def fails_once() -> bool:
    """Return whether Jittor's next import will fail, and the one after it succeed.

    Where it installs oneDNN, it runs an example in a folder whose name it does not quote, such as one with a space.
    """
    is_to_install = os.environ.get("use_mkl", "1") == "1" and not any(folder().glob("mkl/*/lib/libmkldnn.so"))
    return is_to_install and shlex.quote(str(folder())) != str(folder())
