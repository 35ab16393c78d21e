"""extract_feature.py stopped at any moment and resumed, run twice at once, on changed inputs and on full disks."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import CLASSES, PROJECT, draw

import extract_feature
import jclip
import predict
import train_adapter
from fewshot import artifacts, encoder, prompts, store
from fewshot.errors import TaskError
from jclip import features, runtime
from jclip.architecture import Architecture, expected_shapes
from jclip.preprocess import normalised

OUTPUTS = ("text.npz", "support.npz", "val.npz", "test.npz")
ROWS_PER_PART, BATCH = 8, 4
SENTENCES = sum(map(len, prompts.read(CLASSES).sentences))
# rows of the `contest` fixture: training and test photographs, and the 3 views of 20 shots besides the plain one
TRAIN, TEST, VIEWS = 35, 13, 60
ALL = SENTENCES + TRAIN + TEST + VIEWS
# Runs extract_feature.py with small parts, logs how many rows were encoded, and sends itself a signal before the n-th
# call of fsync or replace.
DRIVER = f"""
import os, sys
import extract_feature
from fewshot import store
from jclip import features
moment, number, log, *argv = sys.argv[1:]
store.ROWS_PER_PART, calls = {ROWS_PER_PART}, iter(range(10**6))
def kill_before(function):
    def run(*arguments):
        if next(calls) == int(moment):
            os.kill(os.getpid(), int(number))
        return function(*arguments)
    return run
def count_rows(function):
    def run(*arguments):
        for encoded in function(*arguments):
            with open(log, "a") as file:
                print(len(encoded.rows), file=file)
            yield encoded
    return run
os.fsync, os.replace = kill_before(os.fsync), kill_before(os.replace)
features.image_features = count_rows(features.image_features)
features.text_features = count_rows(features.text_features)
sys.exit(extract_feature.main(argv))
"""


def outputs(folder):
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def drive(work, *arguments, moment=-1, number=0, output="output", check=True):
    """Run DRIVER in `work`, with signal `number` before call `moment`; return the CompletedProcess."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            DRIVER,
            str(moment),
            str(int(number)),
            work / "encoded.log",
            "--batch-size",
            str(BATCH),
            "--output",
            output,
            *arguments,
        ],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def encoded_rows(work):
    """Return how many rows the runs in `work` have encoded since the last call."""
    log = work / "encoded.log"
    count = sum(map(int, log.read_text().split())) if log.exists() else 0
    log.unlink(missing_ok=True)
    return count


@pytest.fixture(scope="session")
def undisturbed(contest, tmp_path_factory):
    """Return the output of a run that was never stopped, and how many rows it encoded."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name in ("Dataset", "ViT-B-32.pkl"):
        (folder / name).symlink_to(contest / name)
    drive(folder)
    return folder / "output", encoded_rows(folder)


def check_resumed(work, undisturbed, kills):
    """Stop one run after the other as kills = [(moment, signal), ...] says, let the last end, and compare its files."""
    for moment, number in kills:
        done = drive(work, moment=moment, number=number, check=False)
        assert done.returncode in (130 if number == signal.SIGINT else -number, 0), done.stderr
        assert "Traceback" not in done.stderr
    done = drive(work)
    total = encoded_rows(work)
    assert outputs(work / "output") == outputs(undisturbed[0])
    lost = max(ROWS_PER_PART, SENTENCES) + BATCH  # all sentences are one batch, which is larger than a part here
    assert undisturbed[1] <= total <= undisturbed[1] + len(kills) * lost
    assert not list(work.glob("output/**/.*.part"))


def test_stopped_by_any_signal_it_resumes_to_the_same_bytes(work, undisturbed):
    rng = random.Random(1)
    check_resumed(
        work,
        undisturbed,
        [(rng.randrange(4, 14), number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", range(0, 60, 2))
def test_stopped_at_every_moment_it_resumes_to_the_same_bytes(work, undisturbed, moment, number):
    check_resumed(work, undisturbed, [(moment + (number != signal.SIGKILL), number)])


def linked_photographs(folder, n):
    """Make a data folder of n training and n // 4 test photographs in 4 classes, links to 20 that are drawn."""
    for label in range(4):
        for i in range(5):
            draw(folder / f"drawn/{label}/{i}.jpg", label, i)
    for i in range(n + n // 4):
        path = folder / (f"train/class {i % 4}/{i}.jpg" if i < n else f"test/{i}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(folder / f"drawn/{i % 4}/{i % 5}.jpg")
    return folder


def kill_from_outside(work, data, seconds, number):
    """Start a run with reading processes, send it a signal after `seconds`, and return whether that stopped it."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "-1", "0", work / "encoded.log", "--data", data],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode in (0, 130, -number), errors
    return process.returncode != 0


@pytest.mark.parametrize("n, kills", [(300, 1), pytest.param(2000, 40, marks=pytest.mark.slow)])
def test_killed_from_outside_while_processes_read(work, n, kills, tmp_path_factory):
    """Each run resumes the one before and is killed at a random time, until the last may end."""
    data, rng = linked_photographs(tmp_path_factory.mktemp("data"), n), random.Random(kills)
    killed = 0
    while killed < kills:
        number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        if kill_from_outside(work, data, rng.uniform(1.5, 4), number):
            killed += 1
        else:  # it had ended: start again with nothing stored; the quick test accepts that
            shutil.rmtree(work / "output")
            (work / "encoded.log").unlink()
            killed += kills == 1
    drive(work, "--data", data, "--batch-size", "32")
    total = encoded_rows(work)
    drive(work, "--data", data, "--batch-size", "32", output="fresh")
    assert outputs(work / "output") == outputs(work / "fresh")
    assert total <= encoded_rows(work) + kills * (ROWS_PER_PART + 32)


# ---- what a row depends on ----


@pytest.fixture(scope="module")
def model(tiny_weights):
    return jclip.load(tiny_weights, "cpu")[0]


class RandomPixels:
    """Reads item i as random pixels that depend on i alone."""

    def __call__(self, i):
        return np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.mark.parametrize("batch_size", [2, 7, 32])
def test_a_photographs_row_does_not_depend_on_its_index_or_batch(model, batch_size):
    """The row has the same bits alone, in any order, and in a batch that is not full."""
    rng = np.random.default_rng(batch_size)
    rows = np.concatenate(
        [encoded.rows for encoded in features.image_features(model, range(70), RandomPixels(), batch_size)]
    )
    for chosen in (rng.permutation(70), rng.permutation(70)[:21], [69], rng.integers(0, 70, 50)):
        images = list(map(int, chosen))
        again = np.concatenate(
            [encoded.rows for encoded in features.image_features(model, images, RandomPixels(), batch_size)]
        )
        np.testing.assert_array_equal(again, rows[chosen])


def test_a_sentences_row_does_not_depend_on_its_index_or_batch(model):
    """The length of the longest sentence in its batch does not change it either."""
    texts = [f"a photo of a {'very ' * (i % 50)}big bear, {i}" for i in range(150)]

    def rows_of(chosen):
        rows = np.empty((len(chosen), 32), np.float32)
        for indices, batch in features.text_features(model, [texts[i] for i in chosen]):
            rows[indices] = batch
        return rows

    rows, rng = rows_of(range(150)), np.random.default_rng(0)
    for chosen in (rng.permutation(150), rng.permutation(150)[:70], [0], [49], rng.integers(0, 150, 65)):
        np.testing.assert_array_equal(rows_of(chosen), rows[chosen])


@pytest.mark.slow
def test_rows_of_the_real_size_do_not_depend_on_their_index_or_batch():
    """Checks the whole ViT-B/32 with random weights."""
    from jclip.model import build_model

    a = Architecture(
        embed_dim=512,
        image_resolution=224,
        patch_size=32,
        vision_width=768,
        vision_layers=12,
        vision_heads=12,
        context_length=77,
        vocab_size=49408,
        text_width=512,
        text_layers=12,
        text_heads=8,
    )
    rng, jt = np.random.default_rng(0), runtime.jittor()
    model = build_model(
        {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in expected_shapes(a).items()}
    )
    pixels = normalised(rng.integers(0, 256, (40, 224, 224, 3), np.uint8))
    with jt.no_grad():
        rows = np.concatenate(
            [model.encode_image(jt.array(pixels[:32])).numpy(), model.encode_image(jt.array(pixels[8:])).numpy()[-8:]]
        )
        for _ in range(5):
            chosen = rng.integers(0, 40, 32)
            np.testing.assert_array_equal(model.encode_image(jt.array(pixels[chosen])).numpy(), rows[chosen])


# ---- changed inputs ----


@pytest.fixture
def extract(work, contest, extracted, monkeypatch, capfd):
    """Give extract(*arguments), which runs extract_feature.py on a copy of `extracted` and returns (encoded, kept)."""
    (work / "Dataset").unlink()
    shutil.copytree(contest / "Dataset", work / "Dataset")  # with the photographs' times
    shutil.copytree(extracted[0], work / "output")
    shutil.copytree(PROJECT / "prompts", work / "prompts")
    monkeypatch.chdir(work)

    def extract(*arguments):
        code = extract_feature.main(["--prompts", "prompts", *map(str, arguments)])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        words = captured.out.splitlines()[-1].replace(",", "").split()
        return int(words[words.index("encoded") + 1]), int(words[words.index("kept") + 1])

    return extract


def other_weights(work):
    from jclip import weights

    state = weights.read(work / "ViT-B-32.pkl")
    state["logit_scale"] = np.float32(1)
    (work / "ViT-B-32.pkl").unlink()
    with open(work / "ViT-B-32.pkl", "wb") as file:
        weights.write(state, file)


def another_sentence(work):
    path = work / "prompts/Animal_prompt.json"
    sentences = json.loads(path.read_text())
    sentences["Bee"][0] += " It hums."
    path.write_text(json.dumps(sentences))


def another_class(work):
    path = work / "Dataset/classes_b.txt"
    path.write_text(path.read_text().replace("no group", "another name"))


def another_test_photograph(work):
    draw(work / "Dataset/TestSetB/image_5.jpg", 2, 3)


def another_val_photograph(work):
    val = artifacts.read(work / "output/val.npz", artifacts.Split)
    draw(work / "Dataset" / str(val.names[0]), int(val.labels[0]), 77)


def one_more_test_photograph(work):
    draw(work / "Dataset/TestSetB/image_14.jpg", 2, 3)


# change: (function, arguments, rows encoded because of it; None where other shots are selected)
CHANGES = {
    "nothing": (lambda work: None, [], 0),
    "touched": (lambda work: os.utime(work / "Dataset/TestSetB/image_5.jpg"), [], 1),
    "weights": (other_weights, [], ALL),
    "prompts": (another_sentence, [], 1),
    "class list": (another_class, [], 1),
    "test photograph": (another_test_photograph, [], 1),
    "training photograph": (another_val_photograph, [], None),
    "test list": (one_more_test_photograph, [], 1),
    "views": (lambda work: None, ["--views", "plain,flip,jitter,crop:2"], 20),
    "fewer views": (lambda work: None, ["--views", "plain,flip"], 0),
    "shots": (lambda work: None, ["--shots", 2], None),
    "seed": (lambda work: None, ["--seed", 2], VIEWS),
    "batch size": (lambda work: None, ["--batch-size", 8], TRAIN + TEST + VIEWS),
    "--force": (lambda work: None, ["--force"], ALL),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_is_encoded_anew_and_nothing_else(work, extract, change):
    """The files are the same as those of a run that never saw the old inputs."""
    apply, arguments, expected = CHANGES[change]
    apply(work)
    computed, kept = extract(*arguments)
    if expected is None:
        assert 0 < computed < VIEWS + 2 and kept >= SENTENCES + TEST
    else:
        assert computed == expected
    assert computed + kept == sum(extract(*arguments, "--output", "fresh"))
    assert outputs(work / "output") == outputs(work / "fresh")


def test_another_transform_encodes_all_anew(extract, monkeypatch):
    monkeypatch.setattr(encoder, "FEATURES_VERSION", encoder.FEATURES_VERSION + 1)
    assert extract() == (ALL, 0)


def test_a_trial_costs_nothing_of_what_was_there(work, extract):
    """After runs on few photographs and with other weights, the first command still finds all its rows."""
    weights = (work / "ViT-B-32.pkl").resolve()
    extract("--max-train", 2, "--views", "plain")
    other_weights(work)
    extract("--max-train", 2, "--views", "plain")
    (work / "ViT-B-32.pkl").unlink()
    (work / "ViT-B-32.pkl").symlink_to(weights)
    assert extract() == (0, ALL)


def test_every_photograph_is_encoded_once(extract, monkeypatch):
    """Also those that are encoded to select the shots by, and then used."""
    encoded, put = [], store.Store.put
    monkeypatch.setattr(store.Store, "put", lambda self, keys, rows: encoded.extend(keys) or put(self, keys, rows))
    extract("--force")
    assert len(encoded) == len(set(encoded)) == ALL


def test_the_store_does_not_grow_for_ever(work, extract, monkeypatch):
    monkeypatch.setattr(store, "SPARE", 0)
    monkeypatch.setattr(store, "ROWS_PER_PART", ROWS_PER_PART)
    for seed in (2, 3):
        extract("--seed", seed)
    items = [len(np.load(path)) for path in (work / "output/store").iterdir()]
    assert sum(items) == ALL and sorted(items)[1:] == [ROWS_PER_PART] * (len(items) - 1)


def test_a_failed_run_leaves_the_files_of_the_last_one(work, extract):
    before = outputs(work / "output")
    shutil.rmtree(work / "Dataset/TestSetB")
    (work / "Dataset/TestSetB").mkdir()
    (work / "Dataset/TestSetB/x.jpg").write_text("no photograph")
    assert extract_feature.main(["--seed", "2"]) == 1 and outputs(work / "output") == before


@pytest.mark.parametrize("moment", range(14))
def test_killed_while_writing_the_files_belong_together_or_are_refused(tmp_path, moment):
    """Replacing files of another selection and being killed at any step never leaves a mixture that loads."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, selection, names in ((old, "1", "abcd"), (new, "2", "bcad")):
        folder.mkdir()
        rows = np.eye(4, dtype=np.float32)
        meta = {"selection_sha256": selection}
        artifacts.write(
            folder / "support.npz", artifacts.Support(rows[:2, None], np.arange(2), np.array(list(names[:2])), meta)
        )
        artifacts.write(folder / "val.npz", artifacts.Split(rows[2:], np.arange(2), np.array(list(names[2:])), meta))
        artifacts.write(folder / "text.npz", artifacts.Text(rows, np.array(list("wxyz")), 100.0))
    code = """
import os, sys
from pathlib import Path
from fewshot import artifacts as a
old, new, moment, calls = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), iter(range(99))
def kill_before(function):
    def run(*arguments, **options):
        if next(calls) == moment:
            os.kill(os.getpid(), 9)
        return function(*arguments, **options)
    return run
content = {old / "text.npz": a.read(new / "text.npz", a.Text),
           old / "support.npz": a.read(new / "support.npz", a.Support),
           old / "val.npz": a.read(new / "val.npz", a.Split) if moment % 2 else None}
os.fsync, os.replace, Path.unlink = kill_before(os.fsync), kill_before(os.replace), kill_before(Path.unlink)
a.write_together(content)
"""
    subprocess.run([sys.executable, "-c", code, str(old), str(new), str(moment)], cwd=PROJECT)
    loaded = [artifacts.read(old / "text.npz", artifacts.Text), artifacts.read(old / "support.npz", artifacts.Support)]
    if (old / "val.npz").exists():
        loaded.append(artifacts.read(old / "val.npz", artifacts.Split))
    try:
        artifacts.check_together(*loaded)
    except TaskError as error:
        assert "different selection" in str(error)
    else:
        names = [*loaded[1].names, *(loaded[2].names if len(loaded) == 3 else [])]
        assert len(set(names)) == len(names)
        # without val.npz, support.npz can only be the new one
        assert len(loaded) == 3 or loaded[1].meta["selection_sha256"] == "2"


# ---- two runs at once ----


def test_of_two_runs_into_one_folder_only_one_goes_on(work):
    runs = [
        subprocess.Popen(
            [sys.executable, PROJECT / "extract_feature.py"],
            cwd=work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    stderrs = [process.communicate(timeout=100)[1] for process in runs]
    assert sorted(process.returncode for process in runs) == [0, 1, 1]
    for process, errors in zip(runs, stderrs):
        if process.returncode:
            assert [line for line in errors.splitlines() if line.startswith("error: ")] == [
                "error: output: another run is at work in it; wait until it has ended, or name another folder with "
                "--output"
            ]


@contextmanager
def locked_by_another(folder):
    """Lock the folder in another process while the block runs; when that is killed, a child of it lives on."""
    code = """
import os, sys, time
from pathlib import Path
from fewshot import cli
with cli.locked(Path(sys.argv[1])):
    if os.fork():
        print("locked", flush=True)
    time.sleep(20)
"""
    process = subprocess.Popen([sys.executable, "-c", code, folder], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "locked\n"
        yield
    finally:
        process.kill()
        process.wait()


def test_a_run_under_lock_is_left_alone_and_leftovers_go(work, extract, capfd):
    leftovers = [work / "output/.test.npz.abc.part", work / "output/store/.x.npy.abc.part"]
    before = outputs(work / "output")
    with locked_by_another(work / "output"):
        for path in leftovers:
            path.write_text("half")
        assert extract_feature.main(["--seed", "2"]) == 1 and "another run is at work" in capfd.readouterr().err
    assert all(path.exists() for path in leftovers) and outputs(work / "output") == before
    extract()
    assert not any(path.exists() for path in leftovers)


def test_predict_that_writes_metrics_needs_the_lock(work, monkeypatch, capfd):
    """With labelled test photographs it writes metrics.json, so that no other run may use the folder."""
    for label in range(2):
        for i in range(6):
            draw(work / f"mine/{'train' if i < 4 else 'test'}/class {label}/{i}.png", label, i)
    monkeypatch.chdir(work)
    assert extract_feature.main(["--data", "mine"]) == 0 and train_adapter.main(["--method", "tip"]) == 0
    before = (work / "output/metrics.json").read_bytes()
    with locked_by_another(work / "output"):
        assert predict.main([]) == 1 and "another run is at work" in capfd.readouterr().err
    assert (work / "output/metrics.json").read_bytes() == before
    assert predict.main([]) == 0 and (work / "output/metrics.json").read_bytes() != before


# ---- disks that are full, folders that cannot be written ----


def mount(path, *options):
    """Mount at `path`; skip the test where that is not allowed."""
    path.mkdir(exist_ok=True)
    if os.geteuid() or subprocess.run(["mount", *options, path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")


@pytest.mark.parametrize("size", ["4k", "24k", "36k"])
def test_a_full_disk_is_one_line_and_leaves_old_results(work, extract, capfd, size):
    mount(work / "small", "-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        assert extract_feature.main(["--output", "small"]) == 1
        errors = capfd.readouterr().err
        assert (
            errors.splitlines()[-1].startswith("error: small/")
            and errors.endswith(": No space left on device\n")
            and "Traceback" not in errors
        )
        assert not list((work / "small").glob("*.npz")) and not list((work / "small").glob("**/.*.part"))
    finally:
        subprocess.run(["umount", "--lazy", work / "small"], check=True)


def test_a_disk_that_gets_full_leaves_the_old_files(work, extract, capfd):
    mount(work / "small", "-t", "tmpfs", "-o", "size=200k", "tmpfs")
    try:
        extract("--output", "small")
        before = outputs(work / "small")
        free = os.statvfs(work / "small")
        (work / "small/filler").write_bytes(bytes(free.f_bavail * free.f_bsize - 12288))
        capfd.readouterr()
        assert extract_feature.main(["--output", "small", "--views", "plain", "--shots", "1"]) == 1
        assert capfd.readouterr().err.endswith(": No space left on device\n") and outputs(work / "small") == before
        (work / "small/filler").unlink()
        assert extract("--output", "small", "--views", "plain", "--shots", "1")[0] == 0
    finally:
        subprocess.run(["umount", "--lazy", work / "small"], check=True)


def test_a_limit_on_file_sizes_is_one_line(trained, run):
    """This tests what a full disk does where nothing can be mounted."""
    before = (trained / "output/test.npz").read_bytes()
    code = """
import resource, sys, extract_feature
from jclip import runtime
runtime.jittor()  # which writes files of its own
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
sys.exit(extract_feature.main(["--views", "plain"]))  # whose rows are all there
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=trained,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (
        done.returncode == 1
        and done.stderr.splitlines()[-1].endswith(": File too large")
        and "Traceback" not in done.stderr
    )
    assert (trained / "output/test.npz").read_bytes() == before


def test_result_and_zip_are_of_one_run_or_none_is_written(trained, monkeypatch, capfd):
    monkeypatch.chdir(trained)
    mount(trained / "small", "-t", "tmpfs", "-o", "size=8k", "tmpfs")
    try:
        assert predict.main(["--result", "small/result.txt"]) == 0
        before = {path.name: path.read_bytes() for path in (trained / "small").iterdir()}
        capfd.readouterr()
        # old and new do not fit beside each other
        assert predict.main(["--result", "small/result.txt", "--topk", "2"]) == 1
        assert capfd.readouterr().err.endswith(": No space left on device\n")
        assert {path.name: path.read_bytes() for path in (trained / "small").iterdir()} == before and len(before) == 2
    finally:
        subprocess.run(["umount", "--lazy", trained / "small"], check=True)


@pytest.mark.parametrize(
    "main, arguments, path",
    [
        (extract_feature.main, [], "output/.lock"),
        (train_adapter.main, ["--method", "tip"], "output/"),
        (predict.main, ["--result", "output/r.txt"], "output/r.txt"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(trained, monkeypatch, capfd, main, arguments, path):
    monkeypatch.chdir(trained)
    mount(trained / "output", "--bind", trained / "output")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", trained / "output"], check=True)
        assert main(arguments) == 1
        error = capfd.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {path}") and error.endswith(": Read-only file system")
    finally:
        subprocess.run(["umount", "--lazy", trained / "output"], check=True)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_photographs(work, tmp_path_factory):
    peaks = {}
    for n in (2000, 20000):
        data = linked_photographs(tmp_path_factory.mktemp("data"), n * 4 // 5)
        code = (
            "import re, sys, extract_feature; code = extract_feature.main(sys.argv[1:]); "
            "print(re.search(r'VmHWM:\\s+([0-9]+)', open('/proc/self/status').read())[1]); sys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "--data", data, "--output", str(n), "--select", "first"],
            cwd=work,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        peaks[n] = int(done.stdout.split()[-1])
    print(peaks)
    assert peaks[20000] <= 1.15 * peaks[2000], peaks
