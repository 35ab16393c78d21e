"""Which classes and photographs a task has: the contest's lists, or plain folders."""
from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Iterator, NamedTuple

from .errors import TaskError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
UNKNOWN = -1


class Photo(NamedTuple):
    path: Path
    name: str  # below the data folder (training) or below the test folder, with forward slashes
    label: int  # UNKNOWN where nobody says


@dataclass(frozen=True)
class Task:
    classes: tuple[str, ...]  # a class's place is its label
    train: tuple[Photo, ...]
    test: tuple[Photo, ...]


def read_task(folder: Path, split: str = "B") -> Task:
    """The classes and photographs of a data folder; photographs are listed, not opened.

    Contest lists: classes_b.txt (split A: classes.txt) with lines "Animal_Bear 0", train.txt with lines
    "TrainSet/Animal/Bear/1.jpg 0", photographs in TestSetB (TestSetA). Plain folders: train/CLASS/* and test/*.
    A test folder's own folders, named as the classes, label what they hold. Raises TaskError for anything else.
    """
    folder = Path(folder)
    class_list = folder / {"A": "classes.txt", "B": "classes_b.txt"}[split]
    if class_list.is_file():
        classes = read_classes(class_list)
        train = _read_list(folder / "train.txt", folder, len(classes))
        return Task(classes, train, _test_photos(folder / f"TestSet{split}", classes))
    if (folder / "train").is_dir():
        return _read_folders(folder)
    found = f"holds {', '.join(sorted(os.listdir(folder))[:5]) or 'nothing'}" if folder.is_dir() else "does not exist"
    raise TaskError(f"{folder} {found}; expected {class_list.name}, train.txt and TestSet{split}/, or folders train/CLASS/* and test/*; "
                    "name the data folder with --data")


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names by label, from lines "name label"; labels are 0 to C - 1 in any order, names and labels all different."""
    names: dict[int, str] = {}
    for where, name, label in _lines(path):
        if label in names:
            raise TaskError(f"{where}: label {label} is {names[label]!r} already; give every class a label of its own")
        if name in names.values():
            raise TaskError(f"{where}: class {name!r} stands twice; name every class once")
        names[label] = name
    if not names:
        raise TaskError(f"{path}: empty; expected one line a class, such as 'Animal_Bear 0'")
    absent = next((label for label in range(len(names)) if label not in names), None)
    if absent is not None:
        raise TaskError(f"{path}: {len(names)} classes, but none has label {absent}; labels go from 0 to {len(names) - 1}")
    return tuple(names[label] for label in range(len(names)))


def photographs(path: Path) -> list[Path]:
    """A photograph itself, or all photographs in and below a folder, sorted as a person counts."""
    path = Path(path)
    if path.is_dir():
        found = _images_below(path)
        if not found:
            raise TaskError(f"{path}: no photographs in it ({', '.join(sorted(SUFFIXES))})")
        return found
    if not path.exists():
        raise TaskError(f"{path}: no such photograph or folder")
    return [path]


def natural_key(text: str) -> list:
    """Sort key that counts as a person does: image_2 before image_10."""
    parts = re.split(r"([0-9]+)", text)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _read_folders(folder: Path) -> Task:
    names = {p.name for part in ("train", "test") if (folder / part).is_dir() for p in (folder / part).iterdir() if p.is_dir()}
    classes = tuple(sorted(names, key=natural_key))
    if not classes:
        raise TaskError(f"{folder / 'train'}: no folders in it; expected one folder a class, with its photographs")
    train = [Photo(path, path.relative_to(folder).as_posix(), label)
             for label, name in enumerate(classes) if (folder / "train" / name).is_dir() for path in _images_below(folder / "train" / name)]
    return Task(classes, tuple(train), _test_photos(folder / "test", classes))


def _read_list(path: Path, folder: Path, classes: int) -> tuple[Photo, ...]:
    photos = []
    for where, name, label in _lines(path):
        if label >= classes:
            raise TaskError(f"{where}: label {label}, but there are {classes} classes (0 to {classes - 1}); mend the line or take another --split")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise TaskError(f"{where}: {name} leads out of {folder}; paths are below the data folder")
        photos.append(Photo(folder / name, name, label))
    return tuple(photos)


def _test_photos(folder: Path, classes: tuple[str, ...]) -> tuple[Photo, ...]:
    if not folder.is_dir():
        raise TaskError(f"no folder {folder}; expected the test photographs there")
    labels = {name: label for label, name in enumerate(classes)}
    photos = []
    for path in _images_below(folder):
        name = path.relative_to(folder)
        if name.as_posix().splitlines() != [name.as_posix()]:
            raise TaskError(f"{path}: its name holds a line break, but result.txt has one line a photograph; rename it")
        label = UNKNOWN if len(name.parts) == 1 else labels.get(name.parts[0])
        if label is None:
            raise TaskError(f"{path}: its folder is none of the {len(classes)} classes; put unlabelled photographs into {folder} itself")
        photos.append(Photo(path, name.as_posix(), label))
    if not photos:
        raise TaskError(f"{folder}: no photographs in it ({', '.join(sorted(SUFFIXES))})")
    return tuple(photos)


def _images_below(folder: Path) -> list[Path]:
    found = [Path(parent, file) for parent, _, files in os.walk(folder, onerror=_raise) for file in files if os.path.splitext(file)[1].lower() in SUFFIXES]
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def _raise(error: OSError) -> None:
    raise error  # a folder that cannot be listed would else be taken for an empty one


def _lines(path: Path) -> Iterator[tuple[str, str, int]]:
    """(place, name, label) of each line "name label" of a list; the name may hold spaces. Blank lines are passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TaskError(f"no {path}; expected a list with lines 'name label'") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch("[0-9]{1,9}", words[1]):
            raise TaskError(f"{path}:{number}: {line.strip()!r}; expected a name, a space and a label (a whole number from 0)")
        yield f"{path}:{number}", words[0].strip(), int(words[1])
