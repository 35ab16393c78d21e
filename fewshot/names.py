"""Names of classes and files: which are allowed, and which are equal but for upper and lower case or encoding."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .errors import TaskError

# Characters that would break the lines of result.txt. File names that are not UTF-8 contain surrogates.
NOT_IN_NAMES = re.compile("[\0-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


def check_name(name: str, path: Path) -> None:
    """Raise TaskError if a name cannot stand in result.txt; the message names the path."""
    if NOT_IN_NAMES.search(name):
        raise TaskError(f"{path}: a name with control characters, a line break or not in UTF-8; rename it")


def composed(name: str) -> str:
    """Return a name with composed accents (NFC). macOS writes é as two characters, other systems and editors as one."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """Return a name normalised to NFC and case-folded; "Café" and "Cafe" stay different."""
    return composed(composed(name).casefold())


def find_equal_names(names: Sequence[str]) -> tuple[str, str] | None:
    """Return the first two names that are equal after Unicode normalisation (NFC) and case folding, or None."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(folded(name), name)
        if other != name:
            return other, name
    return None


def readable(name: str) -> str:
    """Return a name for a message; where accents are written as characters of their own, it says so."""
    return name if composed(name) == name else f"{name} (with accents as separate characters)"


class LabelFinder:
    """Looks up the label of a class by a folder's name.

    Parameters
    ----------
    classes : sequence of str
        The class names in the order of labels.
    """

    def __init__(self, classes: Sequence[str]):
        self._exact = {name: label for label, name in enumerate(classes)}
        self._folded: dict[str, list[str]] = {}
        for name in classes:
            self._folded.setdefault(folded(name), []).append(name)

    def get(self, name: str) -> int | None:
        """Return the label of the class of this name, or None.

        If there is no such class, the one whose name is equal after Unicode normalisation (NFC) and case folding is
        taken.

        Raises
        ------
        TaskError
            If several classes have such a name.
        """
        if name in self._exact:
            return self._exact[name]
        same = self._folded.get(folded(name), [])
        if len(same) > 1:
            raise TaskError(
                f"the folder {readable(name)} may mean the classes {' or '.join(map(readable, same))}; name it exactly "
                "like one of them"
            )
        return self._exact[same[0]] if same else None
