"""Class names of --classes: typed with the separators of several scripts, or read from a file."""

import pytest
from conftest import CLASSES, draw

from fewshot import class_names
from fewshot.errors import TaskError


@pytest.mark.parametrize(
    "text",
    [
        "cat,dog",
        "cat, dog,",
        " cat ,, dog ",
        "cat，dog",
        "cat、dog",
        "cat;dog",
        "cat；dog",
        "cat|dog",
        "cat｜dog",
        "cat\ndog\n",
        "cat\r\ndog",
        "cat\tdog",
        "cat，　dog、",  # with an ideographic space
    ],
)
def test_separators(text):
    assert class_names.parse(text) == ["cat", "dog"]


def test_names_keep_their_spaces_and_characters():
    names = ["猫", "hot dog", "T-shirt", "C#", "Rock & Roll", "a/b", "it's", "Straße", "Strasse"]
    assert class_names.parse("，".join(names)) == names


@pytest.mark.parametrize(
    "text, message",
    [
        ("cat", "'cat' is one class, and there is no such file; expected two or more"),
        ("cat dog", "'cat dog' is one class"),
        ("，cat、", "'cat' is one class"),
        ("names.txt", "'names.txt' is one class, and there is no such file"),
        ("", "holds no class; expected two or more"),
        (" ,，; ", "holds no class"),
        ("cat, dog, cat", "'cat' is listed twice; name every class once"),
        ("Hot_Dog、hot  dog", "'hot  dog' and 'Hot_Dog' are the same to CLIP"),
        ("café, cafe\u0301", "are the same to CLIP"),  # one character, or an accent of its own
        ("cat’s, cat's", "are the same to CLIP"),
        ("cat, d\x1bog", "control characters"),
    ],
)
def test_a_list_that_is_refused(text, message):
    with pytest.raises(TaskError, match=message):
        class_names.parse(text)


@pytest.mark.parametrize(
    "content, names",
    [
        ("cat\ndog\n", ["cat", "dog"]),
        ("\ufeffcat\r\ndog\r\n\r\n", ["cat", "dog"]),
        ("# pets\n cat \n\n  # more\ndog", ["cat", "dog"]),
        ("cat\rdog", ["cat", "dog"]),
        ("猫\n狗", ["猫", "狗"]),
        ("tench, Tinca tinca\nC# book\n", ["tench, Tinca tinca", "C# book"]),
        ("cat，dog, car\n", ["cat", "dog", "car"]),  # a single line
        ("Animal_Cat 1\nAnimal_Dog 0\n", ["Animal_Dog", "Animal_Cat"]),  # a class list
        ("digit 0\ndigit 1\n", ["digit 0", "digit 1"]),  # not a class list
        ("Boeing 737\nBoeing 747\n", ["Boeing 737", "Boeing 747"]),
    ],
)
def test_a_file_has_a_name_per_line(tmp_path, content, names):
    (tmp_path / "names.txt").write_bytes(content.encode())
    assert class_names.read(tmp_path / "names.txt") == names


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no class; expected two or more names, one per line"),
        (b"cat\n# dog\n", "holds one class"),
        (b"cat\ndog\nCat\n", "'Cat' and 'cat' are the same to CLIP"),
        ("猫\n狗\n".encode("gbk"), "names.txt:2: not UTF-8"),
        ("cat\ndog\n".encode("utf-16"), "names.txt:1: not UTF-8"),
        (b"cat\x00\ndog\n", "control characters"),
    ],
)
def test_a_file_that_is_refused(tmp_path, content, message):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(TaskError, match=message):
        class_names.read(tmp_path / "names.txt")


def shown(done) -> set[str]:
    return {line.split("%")[1].strip() for line in done.stdout.splitlines() if "%" in line}


def test_the_command_takes_both(tiny_weights, tmp_path, run):
    draw(tmp_path / "red.png", 0, 200)
    (tmp_path / "list").write_bytes("\ufeffcat\r\nhot dog\r\n".encode())
    (tmp_path / "classes_b.txt").write_text("".join(f"{name} {label}\n" for label, name in enumerate(CLASSES)))
    options = {"cwd": tmp_path}
    typed = run("predict.py", "red.png", "--classes", "猫、hot dog；cat", "--weights", tiny_weights, **options)
    assert shown(typed) == {"猫", "hot dog", "cat"}
    read = run("predict.py", "red.png", "--classes", "list", "--weights", tiny_weights, **options)
    assert shown(read) == {"cat", "hot dog"} and "list: 2 classes, from 'cat' to 'hot dog'" in read.stderr
    contest = run("predict.py", "red.png", "--classes=classes_b.txt", "--topk=9", "--weights", tiny_weights, **options)
    assert shown(contest) == set(CLASSES)


def test_one_class_is_one_clear_line(tmp_path, run):
    (tmp_path / "one.txt").write_text("cat\n")
    typed = run("predict.py", "red.png", "--classes", "cat dog", cwd=tmp_path, check=False)
    assert typed.returncode == 2 and typed.stdout == ""
    assert typed.stderr.splitlines()[-1].endswith("or a file with one name per line")
    read = run("predict.py", "red.png", "--classes", "one.txt", cwd=tmp_path, check=False)
    assert (read.returncode, read.stdout) == (1, "")
    assert read.stderr == "error: one.txt: holds one class; expected two or more names, one per line\n"


def test_a_list_longer_than_a_file_name(tmp_path, run):
    names = ", ".join(f"class {i}" for i in range(2000))
    done = run("predict.py", "absent.png", "--classes", names, cwd=tmp_path, check=False)
    assert done.stderr == "error: absent.png: no such photograph or folder\n"
