"""The classes and photographs of a task, read from the contest's lists or from plain folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jclip import bounded
from jclip.paths import expand, literal

from . import folders, layout
from .disk import Disk
from .errors import TaskError
from .folders import UNKNOWN
from .listing import natural_key
from .names import NOT_IN_NAMES, composed, readable

__all__ = ["UNKNOWN", "Photo", "Task", "natural_key", "photographs", "read_classes", "read_task", "read_test"]

MAX_LIST_BYTES = 256 << 20  # the contest's list has 7 million bytes
MAX_LINE = 4096  # characters of a line in a list
CLASS_LISTS = {"A": "classes.txt", "B": "classes_b.txt"}  # file name by contest split


class Photo(NamedTuple):
    """A photograph of a task."""

    folder: Path  # the data folder (training) or the test folder; the same object for all photographs, to save memory
    name: str  # path below the folder, with forward slashes
    label: int  # or UNKNOWN

    @property
    def path(self) -> Path:
        return self.folder / self.name


@dataclass(frozen=True)
class Task:
    """The class names in the order of labels, and the photographs of a few-shot task."""

    classes: tuple[str, ...]
    train: tuple[Photo, ...]
    test: tuple[Photo, ...]


def read_task(folder: Path, split: str = "B") -> Task:
    """List the classes and photographs of a data folder; only files of unknown suffixes are opened.

    Contest lists: classes_b.txt (split A: classes.txt) with lines "Animal_Bear 0", train.txt with lines
    "TrainSet/Animal/Bear/1.jpg 0", photographs in TestSetB (TestSetA). Plain folders: train/CLASS/* and test/*.
    Test photographs in a folder named like a class get the label of that class; accents may be written in another way
    (NFC, NFD), and upper and lower case may differ. A class may have no photographs: it is in the class list, or an
    empty folder in train.

    Parameters
    ----------
    folder : Path
    split : {"A", "B"}
        The split of the contest.

    Returns
    -------
    Task

    Raises
    ------
    TaskError
        If the layout is another one, a list cannot be used, or a photograph is missing or badly named.
    """
    folder = expand(folder)
    class_list = folder / CLASS_LISTS[split]
    if class_list.is_file():
        classes = read_classes(class_list)
        return Task(classes, _read_list(folder / "train.txt", folder, len(classes)), read_test(folder, classes, split))
    if (folder / "train").is_dir():
        classes, train = folders.read_train(folder / "train")
        test = folders.read_test(folder / "test", classes)
        folders.check_test_folders(folder / "test", classes)
        return Task(classes, _photos(folder, train), _photos(folder / "test", test))
    found = f"holds {', '.join(sorted(os.listdir(folder))[:5]) or 'nothing'}" if folder.is_dir() else "does not exist"
    below = layout.task_below(folder, (class_list.name, "train"))
    if below:
        raise TaskError(f"{folder} {found}; the data seem to lie in {below}: name it with --data {below}")
    raise TaskError(
        f"{folder} {found}; expected {class_list.name}, train.txt and TestSet{split}/, or folders train/CLASS/* and "
        "test/*; name the data folder with --data"
    )


def read_test(folder: Path, classes: Sequence[str], split: str = "B") -> tuple[Photo, ...]:
    """List only the test photographs of a data folder, as `read_task` does.

    Parameters
    ----------
    folder : Path
    classes : sequence of str
        The class names in the order of labels.
    split : {"A", "B"}
        The split of the contest.

    Returns
    -------
    tuple of Photo

    Raises
    ------
    TaskError
        If there is no test photograph, one is badly named, or its folder does not match any class.
    """
    folder = expand(folder)
    test = folder / (f"TestSet{split}" if (folder / CLASS_LISTS[split]).is_file() else "test")
    return _photos(test, folders.read_test(test, classes))


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the class names from lines "name label" and return them in the order of labels.

    Raises
    ------
    TaskError
        Unless the names are distinct and the labels are 0 to C - 1, in any order.
    """
    names: dict[int, str] = {}
    seen: set[str] = set()  # with composed accents
    for where, name, label in _lines(path):
        if label in names:
            raise TaskError(f"{where}: label {label} is {names[label]!r} already; give every class a label of its own")
        if composed(name) in seen:
            raise TaskError(f"{where}: class {readable(name)!r} is listed twice; name every class once")
        names[label] = name
        seen.add(composed(name))
    if not names:
        raise TaskError(f"{path}: empty; expected one line per class, such as 'Animal_Bear 0'")
    missing = next((label for label in range(len(names)) if label not in names), None)
    if missing is not None:
        raise TaskError(
            f"{path}: {len(names)} classes, but none has label {missing}; labels go from 0 to {len(names) - 1}"
        )
    return tuple(names[label] for label in range(len(names)))


def photographs(path: Path) -> list[Path]:
    """Return [path] for a photograph, or all photographs in and below a folder in natural order.

    Raises
    ------
    TaskError
        If there is no photograph.
    """
    path = expand(path)
    if path.is_dir():
        return [literal(path / name) for name in folders.photographs_in(path)]
    if not path.is_file():
        raise TaskError(f"{path}: no such photograph or folder")
    return [path]


def text_lines(path: Path, expected: str) -> Iterator[tuple[str, str]]:
    """Yield ("path:line", line) for each non-empty line of a UTF-8 text file, stripped.

    Parameters
    ----------
    path : Path
    expected : str
        What the file should be, for messages: "a list with lines 'name label'".

    Raises
    ------
    TaskError
        If the file is missing, too large or not in UTF-8.
    """
    try:
        content = bounded.content(path, MAX_LIST_BYTES)
    except FileNotFoundError:
        raise TaskError(f"no {path}; expected {expected}") from None
    except ValueError as error:
        raise TaskError(f"{path}: {error}, too large; expected {expected}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TaskError(f"{path}:{line}: not UTF-8 ({error}); save it as UTF-8") from None
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def _photos(folder: Path, labelled: Iterable[tuple[str, int]]) -> tuple[Photo, ...]:
    return tuple(Photo(folder, name, label) for name, label in labelled)


def _read_list(path: Path, folder: Path, n_classes: int) -> tuple[Photo, ...]:
    photos: list[Photo] = []
    first_line: dict[str, tuple[str, int]] = {}  # name -> its first line, and the label there
    repeated: list[tuple[str, str]] = []  # later line, name
    for where, name, label in _lines(path):
        if label >= n_classes:
            raise TaskError(
                f"{where}: label {label}, but there are {n_classes} classes (0 to {n_classes - 1}); correct the line "
                f"or choose another --split"
            )
        below = PurePosixPath(name)
        if below.is_absolute() or ".." in below.parts or "\\" in name:
            raise TaskError(
                f"{where}: {name} leads out of {folder}, or holds a backslash; expected a path below the data folder "
                f"with forward slashes"
            )
        name = str(below)
        if name in first_line:
            repeated.append((where, name))
            continue
        first_line[name] = where, label
        photos.append(Photo(folder, name, label))
    if repeated:
        where, name = repeated[0]
        line, label = first_line[name][0].rsplit(":", 1)[1], first_line[name][1]
        raise TaskError(
            f"{where}: {name} is already on line {line}, with label {label}; {len(repeated)} of "
            f"{len(repeated) + len(photos)} lines repeat a photograph; remove them"
        )
    return _match_to_disk(folder, photos, first_line)


def _match_to_disk(folder: Path, photos: list[Photo], first_line: dict[str, tuple[str, int]]) -> tuple[Photo, ...]:
    """Return the photographs of a list with their names on the disk; raise TaskError unless all exist.

    The names may differ in how accents are written: an editor composes them (NFC), macOS takes them apart (NFD).
    """
    disk = Disk(folder)
    names = [disk.find(photo.name) for photo in photos]
    missing = [photo.name for photo, name in zip(photos, names) if name is None]
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise TaskError(
            f"{first_line[missing[0]][0]}: {len(missing)} of {len(photos)} photographs are not in {folder}: {some}; "
            "put them there, or name the right folder with --data, or remove their lines from the list"
        )
    lines: dict[str, str] = {}  # name on the disk -> line
    for photo, name in zip(photos, names):
        line = first_line[photo.name][0]
        if lines.setdefault(name, line) != line:
            raise TaskError(
                f"{line}: {readable(photo.name)} is the photograph of {lines[name]}, with its accents written in "
                "another way; remove one of the lines"
            )
    return tuple(photo._replace(name=name) for photo, name in zip(photos, names))


def _lines(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield ("path:line", name, label) for each line "name label" of a list; a name may have spaces."""
    for where, line in text_lines(path, "a list with lines 'name label'"):
        words = line.rsplit(maxsplit=1)
        if NOT_IN_NAMES.search(" ".join(words)):
            raise TaskError(
                f"{where}: {line[:60]!r} holds NUL or control characters; the list is perhaps UTF-16 or not text; "
                "save it as UTF-8"
            )
        if len(line) > MAX_LINE:
            raise TaskError(
                f"{where}: a line of {len(line)} characters, which begins {line[:60]!r}, is too long (limit "
                f"{MAX_LINE}); expected a name, a space and a label"
            )
        if len(words) != 2 or not re.fullmatch("[0-9]{1,9}", words[1]):
            raise TaskError(f"{where}: {line!r}; expected a name, a space and a label (a whole number from 0)")
        yield where, words[0], int(words[1])
