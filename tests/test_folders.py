"""Plain folders: what is a class, what is litter, what lies a level too deep; names with accents."""

import logging
import os
import unicodedata

import pytest

from fewshot import data
from fewshot.errors import TaskError

CAFE = "café"
APART = unicodedata.normalize("NFD", CAFE)  # as macOS writes it
LITTER = [
    *("__MACOSX", "__macosx", "lost+found", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", ".Trash-1000"),
    *("System Volume Information", ".ipynb_checkpoints", ".git", "__pycache__"),
]


def make(folder, *paths):
    """Make empty files, and folders for the paths that end in "/"; tests of listings open none of them."""
    for path in paths:
        if path.endswith("/"):
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
    return folder


def labels(photos):
    return {photo.name: photo.label for photo in photos}


def refusal(folder, split="B"):
    with pytest.raises(TaskError) as raised:
        data.read_task(folder, split)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def task(tmp_path):
    return make(tmp_path, "train/Green/1.jpg", "train/Red/1.jpg", "train/Red/2.jpg", "test/1.jpg", "test/2.jpg")


# ---- litter ----


@pytest.mark.parametrize("name", LITTER)
def test_folders_of_systems_and_programs_are_no_classes(task, name):
    expected = data.read_task(task)
    for place in ("", "train/", "train/Red/", "test/"):
        make(task, f"{place}{name}/x.jpg", f"{place}{name}/deeper/Red/._x.jpg")
    assert data.read_task(task) == expected
    assert [path.name for path in data.photographs(task / "train/Red")] == ["1.jpg", "2.jpg"]


def test_litter_in_the_contest_layout_is_skipped_too(tmp_path):
    make(tmp_path, "TrainSet/1.jpg", "TestSetB/1.jpg", "TestSetB/__MACOSX/._1.jpg", "TestSetB/@eaDir/1.jpg/x.jpg")
    (tmp_path / "classes_b.txt").write_text("a 0\n")
    (tmp_path / "train.txt").write_text("TrainSet/1.jpg 0\n")
    assert labels(data.read_task(tmp_path).test) == {"1.jpg": -1}


@pytest.mark.parametrize("file", ["desktop.ini", "Desktop.ini", "Thumbs.db", ".DS_Store", "Icon\r", ".keep"])
def test_a_folder_that_holds_only_litter_is_empty_and_a_remark_names_it(task, caplog, file):
    make(task, f"train/Blue/{file}", "train/Blue/@eaDir/1.jpg", f"train/Red/{file}", f"test/{file}")
    found = data.read_task(task)
    assert found.classes == ("Blue", "Green", "Red") and [photo.label for photo in found.train] == [1, 2, 2]
    (remark,) = [record.message for record in caplog.records]
    assert f"Blue/{file}".replace("\r", "\\r") in remark and "by their names alone" in remark


def test_a_test_folder_of_litter_alone_names_it(tmp_path):
    make(tmp_path, "train/Red/1.jpg", "test/Thumbs.db", "test/.DS_Store")
    assert refusal(tmp_path).endswith("test: no photographs in it, only .DS_Store, Thumbs.db")
    with pytest.raises(TaskError, match="no photographs in it, only .DS_Store, Thumbs.db"):
        data.photographs(tmp_path / "test")


# ---- folders of test/ ----


@pytest.mark.parametrize("extra", ["images/1.jpg", "images/deep/1.jpg", "my photos 2024/1.jpg"])
def test_a_folder_that_holds_all_test_photographs_holds_unlabelled_ones(tmp_path, caplog, extra):
    make(tmp_path, "train/Red/1.jpg", "train/Blue/", f"test/{extra}", "test/__MACOSX/1.jpg", "test/Red/")
    found = data.read_task(tmp_path)
    assert found.classes == ("Blue", "Red") and labels(found.test) == {extra: -1}
    assert "no class has this name; its 1 photographs are taken as unlabelled" in caplog.text
    assert data.read_test(tmp_path, found.classes) == found.test


@pytest.mark.parametrize("other", ["test/1.jpg", "test/Red/1.jpg", "test/pictures/1.jpg"])
def test_a_folder_beside_other_test_photographs_must_be_a_class(tmp_path, other):
    make(tmp_path, "train/Red/1.jpg", "train/Blue/", "test/images/1.jpg", other)
    message = refusal(tmp_path)
    assert f"{tmp_path}/test/images/1.jpg: its folder is none of the 2 classes" in message
    assert "misspelled" in message and "empty folder in train" in message
    with pytest.raises(TaskError, match="none of the 2 classes"):
        data.read_test(tmp_path, ("Blue", "Red"))


@pytest.mark.parametrize("folder", ["test/Owl/", "test/Owl/notes.txt", "test/Owl/deep/"])
def test_a_test_folder_without_photographs_is_no_new_class(task, folder):
    make(task, folder)
    assert "test/Owl: no photographs in it, and its name is none of the 2 classes" in refusal(task)
    make(task, "train/Owl/")
    assert data.read_task(task).classes == ("Green", "Owl", "Red")


def test_test_folders_of_classes_known_by_name_alone_have_labels(task):
    make(task, "train/Owl/", "test/Owl/1.jpg")
    found = data.read_task(task)
    assert found.classes == ("Green", "Owl", "Red") and labels(found.test)["Owl/1.jpg"] == 1


# ---- names ----


@pytest.mark.parametrize(
    "in_train, in_test",
    [("Red", "red"), ("red", "RED"), (CAFE, APART), (APART, CAFE), (CAFE, APART.upper()), ("straße", "STRASSE")],
)
def test_names_that_look_the_same_are_one_class(tmp_path, in_train, in_test):
    make(tmp_path, f"train/{in_train}/1.jpg", "train/zebra/1.jpg", f"test/{in_test}/1.jpg", "test/zebra/2.jpg")
    found = data.read_task(tmp_path)
    assert found.classes == tuple(sorted([in_train, "zebra"]))
    assert labels(found.test)[f"{in_test}/1.jpg"] == found.classes.index(in_train)
    assert all(photo.path.is_file() for photo in found.train + found.test)


@pytest.mark.parametrize("names", [("Red", "red"), (CAFE, APART), (APART, CAFE.upper())])
def test_two_class_folders_that_look_the_same_are_named_both(tmp_path, names):
    make(tmp_path, *[f"train/{name}/1.jpg" for name in names], "test/1.jpg")
    message = refusal(tmp_path)
    assert (
        all(f"{name}" in message for name in names)
        and "the same name except for upper and lower case, or how accents are encoded" in message
    )
    assert ("accents as separate characters" in message) == (APART in names)


def test_classes_of_a_list_that_differ_in_case_are_two_but_a_folder_must_say_which(tmp_path):
    make(tmp_path, "1.jpg", "TestSetB/polish/1.jpg")
    (tmp_path / "classes_b.txt").write_text("Polish 0\npolish 1\n")
    (tmp_path / "train.txt").write_text("1.jpg 0\n")
    assert labels(data.read_task(tmp_path).test) == {"polish/1.jpg": 1}
    make(tmp_path, "TestSetB/POLISH/1.jpg")
    assert "the folder POLISH may mean the classes Polish or polish" in refusal(tmp_path)


def test_a_class_of_a_list_stands_twice_if_only_its_accents_differ(tmp_path):
    (tmp_path / "classes_b.txt").write_text(f"{CAFE} 0\n{APART} 1\n", encoding="utf-8")
    assert "classes_b.txt:2: class" in refusal(tmp_path) and "(with accents as separate" in refusal(tmp_path)


@pytest.mark.parametrize("listed, on_disk", [(CAFE, APART), (APART, CAFE)])
@pytest.mark.parametrize("path", ["{0}.jpg", "a/{0}/1.jpg", "{0}/{0}/{0} 1.jpg", "a/{0}/b/{0}.jpg"])
def test_a_list_may_write_accents_in_another_way_than_the_disk(tmp_path, listed, on_disk, path):
    make(tmp_path, path.format(on_disk), "plain.jpg", "TestSetB/1.jpg")
    (tmp_path / "classes_b.txt").write_text("a 0\nb 1\n")
    (tmp_path / "train.txt").write_text(f"{path.format(listed)} 1\nplain.jpg 0\n", encoding="utf-8")
    found = data.read_task(tmp_path).train
    assert labels(found) == {path.format(on_disk): 1, "plain.jpg": 0} and all(photo.path.is_file() for photo in found)


def test_a_photograph_listed_in_both_ways_is_listed_twice(tmp_path):
    make(tmp_path, f"{APART}.jpg", "TestSetB/1.jpg")
    (tmp_path / "classes_b.txt").write_text("a 0\n")
    (tmp_path / "train.txt").write_text(f"{CAFE}.jpg 0\n{APART}.jpg 0\n", encoding="utf-8")
    assert "train.txt:2: " in refusal(tmp_path) and "train.txt:1, with its accents" in refusal(tmp_path)
    make(tmp_path, f"{CAFE}.jpg")  # now there are two photographs
    assert len(data.read_task(tmp_path).train) == 2


# ---- a level too deep ----


@pytest.mark.parametrize("inner", ["data", "a/b", "my archive/data"])
def test_a_data_folder_in_the_data_folder_is_named(tmp_path, inner):
    make(tmp_path, f"{inner}/train/Red/1.jpg", f"{inner}/test/1.jpg", "__MACOSX/data/train/x.jpg", "zoo/")
    assert f"name it with --data {tmp_path}/{inner}" in refusal(tmp_path)
    assert data.read_task(tmp_path / inner).classes == ("Red",)


def test_lists_in_a_folder_of_the_data_folder_are_named(tmp_path):
    make(tmp_path, "Dataset/classes_b.txt", "Dataset/TestSetB/1.jpg")
    assert f"name it with --data {tmp_path}/Dataset" in refusal(tmp_path)
    assert "expected classes.txt" in refusal(tmp_path, "A")


@pytest.mark.parametrize(
    "paths",
    [
        ["train/train/cat/1.jpg", "train/train/dog/1.jpg"],
        ["train/train/cat/1.jpg"],
        ["train/animal/cat/1.jpg", "train/animal/dog/1.jpg", "train/plant/rose/1.jpg"],
        ["train/animal/cat/1.jpg", "train/plant/rose/1.jpg"],
        ["train/animal/cat/1.jpg", "train/animal/dog/1.jpg"],
        ["train/a/cat/1.jpg", "train/a/other/1.jpg", "train/b/rose/1.jpg", "train/b/other/1.jpg", "train/b/oak/1.jpg"],
        ["train/train/animal/cat/1.jpg", "train/train/animal/dog/1.jpg"],
    ],
)
def test_class_folders_a_level_too_deep_are_named(tmp_path, paths):
    make(tmp_path, *paths, "test/1.jpg", "train/__MACOSX/x.jpg")
    message = refusal(tmp_path)
    first = paths[0].split("/")
    assert f"{first[1]}/{first[2]}" in message and f"move them up into {tmp_path}/train" in message
    assert "hold no photographs but folders of photographs" in message and "expected" in message


def test_a_whole_data_set_in_train_is_named(tmp_path):
    make(
        tmp_path, *[f"train/{part}/{name}/1.jpg" for part in ("train", "test") for name in ("cat", "dog")], "test/x.jpg"
    )
    assert f"name it with --data {tmp_path}/train" in refusal(tmp_path)


@pytest.mark.parametrize(
    "paths",
    [
        ["train/cat/2021/1.jpg", "train/cat/2022/1.jpg", "train/dog/2021/1.jpg", "train/dog/2022/1.jpg"],
        ["train/cat/images/1.jpg", "train/dog/images/1.jpg"],
        ["train/cat/deep/er/1.jpg", "train/dog/1.jpg"],
    ],
)
def test_folders_in_class_folders_may_divide_the_photographs(tmp_path, caplog, paths):
    make(tmp_path, *paths, "test/1.jpg")
    found = data.read_task(tmp_path)
    assert found.classes == ("cat", "dog") and len(found.train) == len(paths) and not caplog.records


def test_a_class_of_folders_beside_one_of_photographs_gets_a_remark(tmp_path, caplog):
    make(tmp_path, "train/animal/cat/1.jpg", "train/animal/dog/1.jpg", "train/rose/1.jpg", "test/1.jpg")
    assert data.read_task(tmp_path).classes == ("animal", "rose")
    assert "train/animal: holds only folders of photographs; all of these are taken as class 'animal'" in caplog.text


@pytest.mark.parametrize("below", ["test/test/Red/1.jpg", "test/images/red/1.jpg"])
def test_class_folders_a_level_too_deep_in_test_are_named(tmp_path, below):
    make(tmp_path, "train/Red/1.jpg", below)
    assert "holds folders that are" in refusal(tmp_path) and f"move them up into {tmp_path}/test" in refusal(tmp_path)


def test_photographs_beside_the_class_folders_are_counted(task, caplog):
    make(task, "train/loose 10.jpg", "train/loose 2.png", "train/labels.csv", "train/Red/notes.csv")
    with caplog.at_level(logging.WARNING, "fewshot"):
        assert len(data.read_task(task).train) == 3
    assert "2 photographs lie beside the class folders and are left out: loose 2.png, loose 10.jpg" in caplog.text
    assert "2 files cannot be read as photographs and are left out: 2 .csv" in caplog.text


def test_a_folder_that_cannot_be_searched_hides_no_message(tmp_path, monkeypatch):
    make(tmp_path, "other/")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("other"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "holds other; expected classes_b.txt" in refusal(tmp_path)
