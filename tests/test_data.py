"""Class lists, training lists and folders: how they are read, and the messages about bad ones."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshot import data
from fewshot.errors import TaskError


@pytest.fixture
def contest(tmp_path):
    """Make a tiny contest layout whose photographs are empty files, because no test opens them."""
    files = [
        "TrainSet/Animal/Bear/1.jpg",
        "TrainSet/Animal/Bear/2.jpg",
        "TrainSet/Food-101/hot_dog/a b.jpeg",
        "TestSetB/image_10.jpg",
        "TestSetB/image_2.JPEG",
        "TestSetB/image_1.png",
        "TestSetB/notes.txt",
        "TestSetA/image_1.jpg",
    ]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "classes_b.txt").write_text("Animal_Bear 0\nFood-101_hot_dog 1\nStanford-Cars_Volvo_C30 2")
    (tmp_path / "classes.txt").write_text("Animal_Bear 0\nFood-101_hot_dog 1\n")
    (tmp_path / "train.txt").write_text(
        "TrainSet/Animal/Bear/1.jpg 0\nTrainSet/Animal/Bear/2.jpg 0\nTrainSet/Food-101/hot_dog/a b.jpeg 1\n"
    )
    return tmp_path


def test_the_contest_layout(contest):
    task = data.read_task(contest, "B")
    assert task.classes == ("Animal_Bear", "Food-101_hot_dog", "Stanford-Cars_Volvo_C30")
    assert [(photo.name, photo.label) for photo in task.train] == [
        ("TrainSet/Animal/Bear/1.jpg", 0),
        ("TrainSet/Animal/Bear/2.jpg", 0),
        ("TrainSet/Food-101/hot_dog/a b.jpeg", 1),
    ]
    assert [(photo.name, photo.label) for photo in task.test] == [
        ("image_1.png", -1),
        ("image_2.JPEG", -1),
        ("image_10.jpg", -1),
    ]
    assert all(photo.path.is_file() for photo in task.train + task.test)
    assert [photo.name for photo in data.read_task(contest, "A").test] == ["image_1.jpg"]


def test_plain_folders(tmp_path):
    for file in [
        "train/dog 2/x.jpg",
        "train/dog 10/x.jpg",
        "train/cat/deep/er/x.jpg",
        "test/cat/1.jpg",
        "test/loose.jpg",
        "test/owl/1.jpg",
    ]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "train/owl").mkdir()
    task = data.read_task(tmp_path, "B")
    assert task.classes == ("cat", "dog 2", "dog 10", "owl")  # owl has test photographs only
    assert [(photo.name, photo.label) for photo in task.train] == [
        ("train/cat/deep/er/x.jpg", 0),
        ("train/dog 2/x.jpg", 1),
        ("train/dog 10/x.jpg", 2),
    ]
    assert [(photo.name, photo.label) for photo in task.test] == [("cat/1.jpg", 0), ("loose.jpg", -1), ("owl/1.jpg", 3)]


def test_test_folders_of_the_contest_layout_label_what_they_hold(contest):
    (contest / "TestSetB/Animal_Bear").mkdir()
    (contest / "TestSetB/Animal_Bear/1.jpg").touch()
    assert {photo.name: photo.label for photo in data.read_task(contest, "B").test}["Animal_Bear/1.jpg"] == 0
    (contest / "TestSetB/bear").mkdir()
    (contest / "TestSetB/bear/1.jpg").touch()
    with pytest.raises(TaskError, match="bear/1.jpg: its folder is none of the 3 classes"):
        data.read_task(contest, "B")


@pytest.mark.parametrize("line_end", ["\r\n", "\n\n", " \n", "\r", "\t\n"])
def test_lists_of_other_editors(contest, line_end):
    for name in ("classes_b.txt", "train.txt"):
        (contest / name).write_bytes(b"\xef\xbb\xbf" + (contest / name).read_text().replace("\n", line_end).encode())
    task = data.read_task(contest, "B")
    assert task.classes[2] == "Stanford-Cars_Volvo_C30" and task.train[2].name == "TrainSet/Food-101/hot_dog/a b.jpeg"


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("classes_b.txt", "a 0\nb 0\n", r"classes_b.txt:2: label 0 is 'a' already"),
        ("classes_b.txt", "a 0\na 1\n", r"classes_b.txt:2: class 'a' is listed twice"),
        ("classes_b.txt", "a 0\nb 2\n", "2 classes, but none has label 1"),
        ("classes_b.txt", "a 0\nb -1\n", r":2: 'b -1'; expected a name, a space and a label"),
        ("classes_b.txt", "a 0\nb\n", r":2: 'b'; expected"),
        ("classes_b.txt", "a 0\n1\n", r":2: '1'; expected"),
        ("classes_b.txt", "\n", "classes_b.txt: empty"),
        ("classes_b.txt", b"a\xff 0\n", "not UTF-8"),
        ("train.txt", "TrainSet/x.jpg 3\n", r"train.txt:1: label 3, but there are 3 classes \(0 to 2\)"),
        ("train.txt", "TrainSet/x.jpg 0\n\n../x.jpg 0\n", r"train.txt:3: ../x.jpg leads out of"),
        ("train.txt", "/etc/x.jpg 0\n", "leads out of"),
        ("train.txt", "C:\\photos\\x.jpg 0\n", "backslash"),
        (
            "train.txt",
            "TrainSet\\Animal\\Bear\\1.jpg 0\n",
            "train.txt:1: .*backslash; expected a path below the data folder with forward slashes",
        ),
        ("train.txt", "TrainSet/x.jpg\n", "expected a name, a space and a label"),
        ("train.txt", "TrainSet/Animal/Bear/1.jpg,0\n", "train.txt:1: .*expected a name, a space and a label"),
        (
            "train.txt",
            "TrainSet/Animal/Bear/1.jpg 0 0\n",
            "train.txt:1: 1 of 1 photographs are not in .*: TrainSet/Animal/Bear/1.jpg 0; put them there",
        ),
        ("train.txt", "TrainSet/Animal/Bear/1.jpg -1\n", "expected a name, a space and a label"),
        ("train.txt", "TrainSet/Animal/Bear/1.jpg 1e0\n", "expected a name, a space and a label"),
        ("train.txt", "TrainSet/Animal/Bear/1.jpg 99999999999999999999\n", "expected a name, a space and a label"),
        ("train.txt", "TrainSet/Animal/Bear/1.jpg Animal_Bear\n", "expected a name, a space and a label"),
        (
            "train.txt",
            "TrainSet/Animal/Bear/1.jpg 0\n\nTrainSet/Animal/Bear/1.jpg 0\n",
            "train.txt:3: TrainSet/Animal/Bear/1.jpg is already on line 1, with label 0; 1 of 2 lines ",
        ),
        (
            "train.txt",
            "TrainSet/Animal/Bear/1.jpg 0\n./TrainSet//Animal/Bear/1.jpg 1\nTrainSet/Animal/Bear/1.jpg 0\n",
            "train.txt:2: .* is already on line 1, with label 0; 2 of 3 lines ",
        ),
        (
            "train.txt",
            "TrainSet/Animal/Bear/1.jpg 0\nTrainSet/a.jpg 0\nb.jpg 0\nTrainSet/Animal/Bear/9.jpg "
            "1\nTrainSet/Animal/Bear/1.jpg/c.jpg 1\n",
            "train.txt:2: 4 of 5 photographs are not in .*: TrainSet/a.jpg, b.jpg, TrainSet/Animal/Bear/9.jpg, …; put "
            "them there",
        ),
        ("train.txt", "TrainSet/Animal/Bear 0\n", "1 of 1 photographs are not in"),  # a folder is no photograph
        ("train.txt", f"{'x' * 300}.jpg 0\n", "1 of 1 photographs are not in"),
        ("train.txt", f"{'é' * 300}/1.jpg 0\n", "1 of 1 photographs are not in"),
        ("train.txt", f"{'é/' * 2000}1.jpg 0\n", "1 of 1 photographs are not in"),
        (
            "train.txt",
            f"{'x' * 5000} 0\n",
            "train.txt:1: a line of 5002 characters, .* is too long .limit 4096.; expected a name",
        ),
        ("train.txt", "TrainSet/Animal/Bear/1.jpg 0\n".encode("utf-16"), "train.txt:1: not UTF-8 .*save it as UTF-8"),
        ("train.txt", "TrainSet/Animal/Bear/1.jpg 0\n".encode("utf-16-le"), "train.txt:1: .*UTF-16"),
        ("train.txt", "TrainSet/Animal/Bear/1.jpg 0\na\0b 0\n", "train.txt:2: .*NUL"),
        ("train.txt", "TrainSet/Animal/Bear/1.jpg 0\n\x1b[2Jb 0\n", "train.txt:2: .*control characters"),
        ("classes_b.txt", "a\tb 0\n", "classes_b.txt:1: .*control characters"),
        ("classes_b.txt", "Animal_Bear 0\n".encode("utf-16-be"), "classes_b.txt:1: .*UTF-16"),
        ("classes_b.txt", b"a 0\nb 1\n\xe4 2\n", "classes_b.txt:3: not UTF-8"),
        ("classes_b.txt", "a 1\nb 2\n", "none has label 0"),
    ],
)
def test_a_bad_list_names_file_line_and_remedy(contest, file, content, message):
    (contest / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TaskError, match=message) as raised:
        data.read_task(contest, "B")
    assert "\n" not in str(raised.value)


def test_missing_files_are_named(contest, tmp_path):
    with pytest.raises(TaskError, match="elsewhere does not exist; expected classes_b.txt.*--data"):
        data.read_task(tmp_path / "elsewhere", "B")
    (contest / "train.txt").unlink()
    with pytest.raises(TaskError, match="no .*train.txt"):
        data.read_task(contest, "B")
    (contest / "train.txt").touch()
    assert data.read_task(contest, "B").train == ()  # classes by their names alone are a task, too
    for photo in data.read_task(contest, "B").test:
        photo.path.unlink()
    with pytest.raises(TaskError, match="TestSetB: no photographs"):
        data.read_task(contest, "B")


# as many photographs as a tenth of the contest's, and as all of them
@pytest.mark.parametrize("photographs", [18_173, pytest.param(181_729, marks=pytest.mark.slow)])
def test_a_long_list_is_read_at_once_although_every_photograph_is_looked_for(contest, photographs):
    names = [f"TrainSet/{i % 374}/{i}.jpg" for i in range(photographs)]
    for folder in range(374):
        (contest / f"TrainSet/{folder}").mkdir()
    for name in names:
        os.close(os.open(contest / name, os.O_CREAT | os.O_WRONLY))
    (contest / "train.txt").write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(names)))
    start = time.perf_counter()
    assert len(data.read_task(contest, "B").train) == photographs
    seconds = time.perf_counter() - start
    print(f"{photographs} lines in {seconds:.2f} s")
    assert seconds < 15


def test_a_class_list_of_a_hundred_thousand_is_read_at_once(tmp_path):
    (tmp_path / "classes.txt").write_text("".join(f"class_{i} {i}\n" for i in range(100_000)))
    start = time.perf_counter()
    assert len(data.read_classes(tmp_path / "classes.txt")) == 100_000
    assert time.perf_counter() - start < 10


def test_links_are_followed_but_not_in_a_circle(contest, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "1.jpg").touch()
    (contest / "TestSetB/Animal_Bear").symlink_to(elsewhere)
    (contest / "TestSetB/linked.jpg").symlink_to(elsewhere / "1.jpg")
    assert {"Animal_Bear/1.jpg", "linked.jpg"} <= {photo.name for photo in data.read_task(contest, "B").test}
    (elsewhere / "back").symlink_to(elsewhere)
    with pytest.raises(TaskError, match="a link that leads back"):
        data.read_task(contest, "B")
    (elsewhere / "back").unlink()


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\x1b[2J.jpg", b"\xff.jpg"])
def test_a_name_that_would_break_the_result_is_refused_before_the_work(contest, name):
    with open(os.path.join(os.fsencode(contest / "TestSetB"), os.fsencode(name)), "w"):
        pass
    with pytest.raises(TaskError, match="rename it") as raised:
        data.read_task(contest, "B")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("folder", ["train/a\nb", "train/cat/a\nb", "train/cat/caf\udce9/er", "test/cat/a\nb"])
def test_a_folder_of_such_a_name_is_refused_too(tmp_path, folder):
    """The name of a photograph includes its folders."""
    for path in ("train/cat", "test/cat", folder):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        (tmp_path / path / "1.jpg").touch()
    with pytest.raises(TaskError, match="rename it") as raised:
        data.read_task(tmp_path, "B")
    assert str(raised.value).isprintable()


def test_what_is_hidden_is_no_photograph(contest, tmp_path_factory):
    """Hidden files and hidden folders are skipped: notebooks and file managers keep copies and thumbnails there."""
    plain = tmp_path_factory.mktemp("plain")
    for file in (
        "train/cat/1.jpg",
        "train/cat/.ipynb_checkpoints/1.jpg",
        "train/cat/deep/.x/y/1.jpg",
        "train/cat/._1.jpg",
        "test/1.jpg",
        "test/.thumbs/x.jpg",
        "test/cat/.thumbs/x.jpg",
    ):
        (plain / file).parent.mkdir(parents=True, exist_ok=True)
        (plain / file).touch()
    (plain / "train/cat/.loop").symlink_to(plain / "train")
    task = data.read_task(plain)
    assert [photo.name for photo in task.train] == ["train/cat/1.jpg"] and [photo.name for photo in task.test] == [
        "1.jpg"
    ]
    (contest / "TestSetB/.thumbs").mkdir()
    (contest / "TestSetB/.thumbs/x.jpg").touch()
    assert len(data.read_task(contest).test) == 3
    # a folder named by the user is listed
    assert data.photographs(contest / "TestSetB/.thumbs") == [contest / "TestSetB/.thumbs/x.jpg"]


def test_a_link_in_a_circle_hides_no_other_photograph_of_its_folder(contest):
    (contest / "TrainSet/Animal/Bear/circle").symlink_to("circle")
    assert len(data.read_task(contest).train) == 3


def test_a_pipe_is_no_photograph_to_classify(contest):
    os.mkfifo(contest / "TestSetB/image_3.jpg")  # opening it would wait for ever
    with pytest.raises(TaskError, match="no such photograph"):
        data.photographs(contest / "TestSetB/image_3.jpg")


def test_an_empty_folder_is_a_class_without_shots_and_one_of_other_files_a_mistake(tmp_path):
    for name in ("cat/1.jpg", "dog/.keep", ".cache/x.jpg"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    (tmp_path / "test").mkdir()
    (tmp_path / "test/1.jpg").touch()
    task = data.read_task(tmp_path, "B")
    assert task.classes == ("cat", "dog") and [photo.label for photo in task.train] == [0]
    (tmp_path / "train/dog/1.doc").touch()
    with pytest.raises(TaskError, match=r"train/dog: none of its files is a photograph .*1\.doc.*convert them"):
        data.read_task(tmp_path, "B")


def test_photographs_of_a_folder_or_a_single_one(contest):
    assert [path.name for path in data.photographs(contest / "TestSetB")] == [
        "image_1.png",
        "image_2.JPEG",
        "image_10.jpg",
    ]
    assert data.photographs(contest / "TestSetB/image_1.png") == [contest / "TestSetB/image_1.png"]
    with pytest.raises(TaskError, match="no such photograph or folder"):
        data.photographs(contest / "absent.jpg")
    odd = contest / "a\nb"
    odd.mkdir()
    (odd / "caf\udce9.jpg").touch()
    # predict.py only prints such names
    assert data.photographs(odd) == data.photographs(odd / "caf\udce9.jpg") == [odd / "caf\udce9.jpg"]


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_natural_order_counts(numbers):
    assert sorted((f"image_{n}.jpg" for n in numbers), key=data.natural_key) == [
        f"image_{n}.jpg" for n in sorted(numbers)
    ]


def test_natural_order_of_numbers_longer_than_python_reads():
    assert sorted(["1" * 9999, "2" * 9998, "x"], key=data.natural_key) == ["2" * 9998, "1" * 9999, "x"]


@given(st.lists(st.text(max_size=8), unique=True))
def test_natural_order_is_one_order_whatever_the_names(names):
    assert sorted(names, key=data.natural_key) == sorted(names, key=data.natural_key)
