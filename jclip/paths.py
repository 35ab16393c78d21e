"""Paths as users write them: `~` and `~user` stand for home folders, also where no shell has expanded them.

A shell leaves `--output=~/out` as it is, and Python has no shell at all. Whatever takes a path from a user calls
`expand`; otherwise a folder with the name "~" is made, and removing that one is dangerous.
"""

from __future__ import annotations

import os
from pathlib import Path

from . import home
from .errors import ClipError


def expand(path: str | os.PathLike) -> Path:
    """Return a path with a leading `~` or `~user` replaced by the home folder; also an argparse type.

    A result never begins with `~`, so expanding it again changes nothing.

    Parameters
    ----------
    path : str or Path
        As in a shell, "./~name" is a file whose name begins with `~`, and so is "~name" if there is such a file and no
        such user.

    Raises
    ------
    ClipError
        If there is neither such a home folder nor such a file, or the user has no home folder.
    """
    text = os.fspath(path)
    expanded = os.path.expanduser(text) if text.startswith("~") else text
    user = text.partition("/")[0]
    if user == "~" and expanded.startswith("~"):
        raise home.missing()
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise ClipError(
            f"{text}: there is no home folder {user}; name the path in full, or write ./{text} for a name that begins "
            "with ~"
        )
    return literal(Path(expanded))


def literal(path: Path) -> Path:
    """Return a path that `expand` leaves alone: the same, made absolute if it begins with `~`."""
    return Path.cwd() / path if str(path).startswith("~") else path
