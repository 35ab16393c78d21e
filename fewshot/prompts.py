"""The sentences (prompts) of each class, made from class names and the files in prompts/.

The group of a class is the beginning of its name that templates.json lists: "Animal" for Animal_Polar_Bear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jclip import bounded, tokenizer
from jclip.errors import TooLong
from jclip.paths import expand

from .errors import TaskError

if TYPE_CHECKING:
    from .artifacts import Adapter, Text

FOLDER = Path(__file__).parent.parent / "prompts"
TEMPLATES, NAMES = "templates.json", "names.json"
DEFAULT = "default"  # the group of class names that start with no group name


class Prompts(NamedTuple):
    """The sentences of C classes."""

    sentences: list[list[str]]  # per class, filled templates first
    groups: list[str]  # per class
    n_templates: list[int]  # per class, the number of sentences from templates
    without_entry: list[str]  # classes without an entry in the prompt file of their group
    unmatched: list[str]  # entries of prompt files that match no class, "file: name"


def read(class_names: Sequence[str], folder: Path = FOLDER) -> Prompts:
    """Return the sentences of each class: the filled templates of its group, then its sentences in GROUP_prompt.json.

    Templates are filled with the entry of the class in names.json, such as {"Thu-dog_Shiba_Dog": "Shiba Inu"}, or else
    with the class name without the group and with spaces for underscores.

    Parameters
    ----------
    class_names : sequence of str
        As in the class list, such as "Animal_Polar_Bear".
    folder : Path
        The folder of templates.json, names.json and GROUP_prompt.json.

    Returns
    -------
    Prompts

    Raises
    ------
    TaskError
        If a file in `folder` cannot be used.
    """
    folder = expand(folder)
    templates = read_templates(folder)
    group_and_rest = [split_group(name, templates) for name in class_names]
    pairs = set(group_and_rest)
    files = {group: _read_prompts(folder / f"{group}_prompt.json") for group in {group for group, _ in group_and_rest}}
    display = _read_names(folder / NAMES)
    sentences = [
        [template.replace("{}", display.get(name, rest)) for template in templates[group]] + files[group].get(rest, [])
        for name, (group, rest) in zip(class_names, group_and_rest)
    ]
    return Prompts(
        sentences,
        [group for group, _ in group_and_rest],
        [len(templates[group]) for group, _ in group_and_rest],
        [name for name, (group, rest) in zip(class_names, group_and_rest) if files[group] and rest not in files[group]],
        [
            f"{group}_prompt.json: {rest}"
            for group in sorted(files)
            for rest in files[group]
            if (group, rest) not in pairs
        ],
    )


def check_lengths(
    class_names: Sequence[str],
    class_prompts: Prompts,
    folder: Path,
    remedy: str = f"give the class a shorter name in {NAMES}",
) -> None:
    """Raise TaskError for the first sentence that is too long for CLIP.

    This needs no model and takes 0.3 s for 5,000 sentences.

    Parameters
    ----------
    class_names : sequence of str
    class_prompts : Prompts
        The sentences of these classes, from `folder`.
    folder : Path
    remedy : str
        What the message suggests if the class name is too long.
    """
    for name, group, n_templates, sentences in zip(
        class_names, class_prompts.groups, class_prompts.n_templates, class_prompts.sentences
    ):
        for index, sentence in enumerate(sentences):
            try:
                tokenizer.tokenize(sentence)
            except TooLong as error:
                if index < n_templates:
                    file, advice = TEMPLATES, f"shorten the template, or {remedy}"
                else:
                    file, advice = f"{group}_prompt.json", "shorten it"
                raise TaskError(
                    f"{folder / file}: class {name[:60]!r}: text of {error.n_tokens} tokens is too long for a context "
                    f"of {error.context_length}: it begins {sentence[:60]!r}; {advice}"
                ) from None


def class_groups(artifact: Text | Adapter) -> list[str]:
    """Return the group of each class of a Text or Adapter.

    It is taken from artifact.meta["groups"] if that fits, otherwise from the names and prompts/templates.json.

    Raises
    ------
    TaskError
        If templates.json is needed and cannot be used.
    """
    recorded = artifact.meta.get("groups")
    if isinstance(recorded, list) and len(recorded) == len(artifact.names):
        return [str(group) for group in recorded]
    templates = read_templates()
    return [split_group(name, templates)[0] for name in artifact.names]


def display_names(artifact: Text | Adapter) -> list[str]:
    """Return the class names of a Text or Adapter without their group and with spaces for underscores."""
    return [split_group(name, [group])[1] for name, group in zip(artifact.names, class_groups(artifact))]


def split_group(name: str, groups: Iterable[str]) -> tuple[str, str]:
    """Split "Animal_Polar_Bear" into ("Animal", "Polar Bear"): the longest matching group, and the rest of the name."""
    matching = (group for group in groups if name.startswith(group + "_") and len(name) > len(group) + 1)
    group = max(matching, key=len, default=None)
    rest = name if group is None else name[len(group) + 1 :]
    return group or DEFAULT, " ".join(rest.replace("_", " ").split())


def read_templates(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Read the templates of each group from templates.json; a template is a sentence with one "{}" for the name.

    Raises
    ------
    TaskError
        If the file cannot be used.
    """
    path = expand(folder) / TEMPLATES
    templates = {group: [value] if isinstance(value, str) else value for group, value in _json_object(path).items()}
    for group, sentences in templates.items():
        if not group or set(group) & set("/\\\0"):  # it becomes part of a file name
            raise TaskError(
                f'{path}: {group!r} is not a valid group name; expected the beginning of class names, such as "Animal"'
            )
        if not _are_sentences(sentences) or any(
            sentence.count("{}") != 1 or sentence.count("{") + sentence.count("}") != 2 for sentence in sentences
        ):
            raise TaskError(
                f'{path}: {group!r}: expected a sentence or a list of them with one {{}} each, such as "a photo of a '
                f'{{}}."'
            )
    if DEFAULT not in templates:
        raise TaskError(f'{path}: no "{DEFAULT}"; expected templates for classes without a group')
    return templates


def _read_prompts(path: Path) -> dict[str, list[str]]:
    if not path.exists():
        return {}
    prompts = _json_object(path)
    for name, sentences in prompts.items():
        if not _are_sentences(sentences):
            raise TaskError(f'{path}: {name!r}: expected a list of sentences, such as ["A bear has round ears."]')
    return prompts


def _read_names(path: Path) -> dict[str, str]:
    names = _json_object(path) if path.exists() else {}
    for name, display in names.items():
        if not isinstance(display, str) or not display.strip():
            raise TaskError(f'{path}: {name!r}: expected the name as people say it, such as "Shiba Inu"')
    return names


def _are_sentences(value) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(sentence, str) and sentence.strip() for sentence in value)
    )


def _json_object(path: Path) -> dict:
    try:
        content = bounded.json_value(bounded.content(path, bounded.JSON_BYTES).decode("utf-8-sig"))
    except FileNotFoundError:
        raise TaskError(f"no {path}; it belongs to this program, restore it") from None
    except ValueError as error:
        raise TaskError(f"{path}: not JSON in UTF-8 as this program reads it ({error}); correct the file") from None
    if not isinstance(content, dict):
        raise TaskError(f"{path}: holds a {type(content).__name__}, expected an object with names as keys")
    return content
