"""The scripts, one after the other, as a user runs them, on drawn photographs and a tiny CLIP of random weights."""

import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import CLASSES, PROJECT, draw
from PIL import Image

import augment
from fewshot import artifacts
from fewshot.encoder import Encoder
from fewshot.rows import unit_rows
from jclip import weights
from jclip.features import unit
from tip_adapter_utils import predict_logits


def test_from_photographs_to_a_result_twice_the_same(work, run):
    results = []
    for _ in range(2):
        for script in ("extract_feature.py", "train_adapter.py", "predict.py"):
            done = run(script, cwd=work)
        results.append(
            {
                name: (work / name).read_bytes()
                for name in ("result.txt", "result.zip", "output/adapter.npz", "output/support.npz", "output/test.npz")
            }
        )
        shutil.rmtree(work / "output")
    assert results[0] == results[1]
    lines = [line.split() for line in results[0]["result.txt"].decode().splitlines()]
    assert [line[0] for line in lines] == [f"image_{i}.jpg" for i in range(1, 14)]
    assert all(len({*line[1:]}) == 5 and {*map(int, line[1:])} <= set(range(6)) for line in lines)
    with zipfile.ZipFile(work / "result.zip") as archive:
        assert archive.namelist() == ["result.txt"] and archive.read("result.txt") == results[0]["result.txt"]
    assert "top-1" not in done.stdout  # the labels are unknown


def test_what_extraction_writes(extracted):
    output, done = extracted
    text = artifacts.read(output / "text.npz", artifacts.Text)
    support = artifacts.read(output / "support.npz", artifacts.Support)
    val = artifacts.read(output / "val.npz", artifacts.Split)
    test = artifacts.read(output / "test.npz", artifacts.Split)
    artifacts.check_together(text, support, val, test)
    assert text.names.tolist() == CLASSES and text.scale == pytest.approx(50, rel=1e-5)
    assert support.features.shape == (20, 4, 32) and np.bincount(support.labels, minlength=6).tolist() == [
        4,
        4,
        4,
        0,
        4,
        4,
    ]
    assert len(val.names) == 15 and not set(val.names) & set(support.names)
    assert test.names.tolist() == [f"image_{i}.jpg" for i in range(1, 14)] and (test.labels == -1).all()
    assert support.meta["weights_sha256"] == weights.sha256(output.parent / "ViT-B-32.pkl")
    different = np.linalg.norm(support.features[:, :1] - support.features[:, 1:], axis=2)
    assert (different > 1e-4).all()  # every view differs from the plain photograph
    assert (
        "1 of 6 classes have no sentences of their own" in done.stderr
        and "Stanford-Cars_Volvo_C30" in done.stderr
        and "match no class" in done.stderr
    )


def test_features_are_those_of_the_library(extracted, contest):
    """A photograph's row is that of load, preprocess and encode_image; a class's is the mean of its sentences."""
    import jclip
    from fewshot import prompts
    from jclip import features, runtime

    model, preprocess = jclip.load(contest / "ViT-B-32.pkl", "cpu")
    test = artifacts.read(extracted[0] / "test.npz", artifacts.Split)
    text = artifacts.read(extracted[0] / "text.npz", artifacts.Text)
    with runtime.jittor().no_grad():
        row = model.encode_image(preprocess(Image.open(contest / "Dataset/TestSetB/image_7.jpg")).unsqueeze(0)).numpy()
        sentences = features.unit(model.encode_text(jclip.tokenize(prompts.read(CLASSES).sentences[1])).numpy())
    np.testing.assert_allclose(features.unit(row)[0], test.features[6], atol=1e-6)
    assert len(sentences) > 10
    np.testing.assert_allclose(features.unit(sentences.mean(axis=0)), text.features[1], atol=1e-6)


def test_options_of_extraction(work, run):
    run(
        "extract_feature.py",
        "--shots",
        2,
        "--select",
        "first",
        "--views",
        "plain,crop:2",
        "--max-train",
        5,
        "--max-val",
        1,
        "--batch-size",
        3,
        "--output",
        "deep/er",
        cwd=work,
    )
    support = artifacts.read(work / "deep/er/support.npz", artifacts.Support)
    val = artifacts.read(work / "deep/er/val.npz", artifacts.Split)
    assert support.features.shape == (10, 3, 32) and support.meta["views"] == ["plain", "crop", "crop"]
    assert np.bincount(val.labels, minlength=6).tolist() == [1, 1, 1, 0, 1, 1] and not set(val.names) & set(
        support.names
    )
    run("extract_feature.py", "--shots", 7, "--output", "deep/er", cwd=work)
    assert not (work / "deep/er/val.npz").exists()  # the old one held photographs that are shots now


def test_a_test_photograph_is_the_mean_of_its_views(work, run):
    shutil.copytree(work / "Dataset", work / "mine")
    (work / "mine/TestSetB/broken.jpg").write_bytes(b"no photograph")
    extract = ("extract_feature.py", "--data", "mine", "--select", "first", "--views", "plain", "--output")
    run(*extract, "out", cwd=work)
    plain = artifacts.read(work / "out/test.npz", artifacts.Split)
    done = run(*extract, "out", "--test-views", "plain,mirror,crops", cwd=work)
    split = artifacts.read(work / "out/test.npz", artifacts.Split)
    assert f"encoded {6 * len(plain.names)}, " in done.stdout  # the plain ones are there
    assert list(split.meta["unreadable"]) == ["broken.jpg"] and split.names.tolist() == plain.names.tolist()
    assert split.meta["views"] == ["plain", "mirror", *augment.SQUARES] and "views" not in plain.meta

    encoder, name = Encoder.load(work / "ViT-B-32.pkl", "cpu"), plain.names[3]
    with Image.open(work / "mine/TestSetB" / name) as image:
        for i, view in enumerate(split.meta["views"]):
            augment.ALL_VIEWS[view](image, None).save(work / f"{i}.png")
    rows = encoder.encode_photos([work / f"{i}.png" for i in range(7)]).rows
    np.testing.assert_allclose(split.features[3], unit(rows.mean(axis=0)), atol=1e-6)
    assert not np.allclose(split.features[3], plain.features[3], atol=1e-4)

    run("train_adapter.py", "--method", "tip", "--output", "out", cwd=work)
    run("predict.py", "--output", "out", cwd=work)
    assert json.loads((work / "out/metrics.json").read_text())["test_views"] == split.meta["views"]
    run(*extract, "out", cwd=work)
    np.testing.assert_array_equal(artifacts.read(work / "out/test.npz", artifacts.Split).features, plain.features)
    run("predict.py", "--output", "out", cwd=work)
    assert not {"test", "test_views"} & set(json.loads((work / "out/metrics.json").read_text()))


def test_labelled_folders_and_the_figures(work, run, tmp_path):
    for label, name in enumerate(["red thing", "green thing", "blue thing"]):
        for i in range(5):
            draw(tmp_path / f"mine/train/{name}/{i}.png", label, i)
        for i in range(4):
            draw(tmp_path / f"mine/test/{name}/{i}.png", label, 50 + i)
    run("extract_feature.py", "--data", "mine", "--weights", "ViT-B-32.pkl", cwd=work)
    run("train_adapter.py", cwd=work)
    done = run("predict.py", cwd=work)
    figures = json.loads((work / "output/metrics.json").read_text())
    assert figures["test"]["n"] == 12 and f"top-1 {figures['test']['top1']:.1%}" in done.stdout
    assert (
        figures["test"]["top1"] >= 0.75
        and figures["val"]["n"] == 3
        and set(figures["test"]["per_class"]) == {"red thing", "green thing", "blue thing"}
    )
    first = (work / "result.txt").read_text().splitlines()[0]
    assert first.startswith("blue thing/0.png ") and len(first.rsplit(" ", 3)[1:]) == 3  # three classes, so not five


def test_photographs_from_the_command_line(trained, run):
    draw(trained / "red.png", 0, 200)
    done = run("predict.py", "red.png", cwd=trained)
    lines = done.stdout.splitlines()
    adapter, test = (
        artifacts.read(trained / "output/adapter.npz", artifacts.Adapter),
        artifacts.read(trained / "output/test.npz", artifacts.Split),
    )
    same_colour = test.names.tolist().index("image_6.jpg")
    assert (
        lines[0] == "red.png"
        and adapter.names[predict_logits(adapter, test.features[[same_colour]]).argmax()]
        == lines[1].split("%")[1].strip()
        and len(lines) == 6
    )
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 100.3
    done = run("predict.py", "Dataset/TestSetB", "red.png", "--topk", 1, cwd=trained)
    assert len(done.stdout.splitlines()) == 2 * 14 and done.stdout.splitlines()[2] == "Dataset/TestSetB/image_2.jpg"


def test_zero_shot_needs_no_training_and_no_data(tiny_weights, tmp_path, run):
    draw(tmp_path / "red.png", 0, 200)
    done = run("predict.py", "red.png", "--classes", "cat, dog ,hot dog", "--weights", tiny_weights, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert {line.split("%")[1].strip() for line in lines[1:]} == {"cat", "dog", "hot dog"}
    assert sum(float(line.split("%")[0]) for line in lines[1:]) == pytest.approx(100, abs=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["red.png"]


def test_prediction_needs_neither_photographs_nor_weights(trained, run):
    (trained / "Dataset").unlink()
    (trained / "ViT-B-32.pkl").unlink()
    run("train_adapter.py", cwd=trained)
    run("predict.py", "--result", "mine.txt", "--topk", 2, cwd=trained)
    assert len((trained / "mine.txt").read_text().splitlines()[0].split()) == 3 and (trained / "mine.zip").exists()


def edit(path, change):
    """Apply change(arrays, meta) to a saved artifact."""
    content = dict(np.load(path))
    meta = json.loads(str(content["meta"]))
    change(content, meta)
    np.savez(path, **{**content, "meta": np.array(json.dumps(meta))})


def of_other_weights(content, meta):
    meta["weights_sha256"] = "0" * 64


def of_another_width(content, meta):
    meta.pop("weights_sha256")
    for name in ("text", "weight", "keys"):
        content[name] = unit_rows(content[name][:, :8])


@pytest.mark.parametrize(
    "damage, script, arguments, message",
    [
        (lambda f: (f / "Dataset").unlink(), "extract_feature.py", [], "Dataset does not exist"),
        (
            lambda f: (f / "ViT-B-32.pkl").unlink(),
            "extract_feature.py",
            [],
            "no weights at ViT-B-32.pkl; .*convert_weights.py",
        ),
        (lambda f: None, "extract_feature.py", ["--split", "A"], "expected classes.txt"),
        (lambda f: None, "extract_feature.py", ["--output", "ViT-B-32.pkl"], "ViT-B-32.pkl: File exists"),
        (lambda f: shutil.rmtree(f / "output"), "train_adapter.py", [], "no output/text.npz; run extract_feature.py"),
        (
            lambda f: (f / "output/adapter.npz").unlink(),
            "predict.py",
            [],
            "no output/adapter.npz; run train_adapter.py",
        ),
        (lambda f: (f / "output/test.npz").write_bytes(b"PK"), "predict.py", [], "output/test.npz: damaged"),
        (lambda f: edit(f / "output/test.npz", of_other_weights), "predict.py", [], "made from different weights"),
        (lambda f: edit(f / "output/val.npz", of_other_weights), "train_adapter.py", [], "made from different weights"),
        (
            lambda f: edit(f / "output/val.npz", lambda c, m: m.update(selection_sha256="other")),
            "train_adapter.py",
            [],
            "made from different selection",
        ),
        (
            lambda f: edit(f / "output/adapter.npz", of_other_weights),
            "predict.py",
            ["Dataset/TestSetB"],
            "trained on features of other weights",
        ),
        (lambda f: None, "predict.py", ["absent.jpg"], "absent.jpg: no such photograph"),
        (
            lambda f: (f / "x.jpg").write_text("no picture"),
            "predict.py",
            ["x.jpg"],
            "x.jpg: cannot be read as a photograph",
        ),
        (
            lambda f: edit(f / "output/adapter.npz", of_another_width),
            "predict.py",
            ["Dataset/TestSetB"],
            "features of width 8, but ViT-B-32.pkl makes width 32",
        ),
        (
            lambda f: edit(f / "output/test.npz", lambda c, m: m.update(unreadable=["x.jpg"])),
            "predict.py",
            [],
            "unreadable in meta",
        ),
        (
            lambda f: edit(f / "output/test.npz", lambda c, m: m.update(unreadable={"x\ny": "broken"})),
            "predict.py",
            [],
            "unreadable in meta",
        ),
        (lambda f: None, "predict.py", ["--result", "no/where.txt"], "no/"),
        (
            lambda f: (f / "ViT-B-32.pkl").unlink(),
            "predict.py",
            ["Dataset/TestSetB", "--classes", "cat," + "very " * 80],
            "87 tokens.*shorten the name in --classes",
        ),
        (lambda f: (f / "output/metrics.json").write_text("{"), "predict.py", ["--result", "r.txt"], ""),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(trained, run, damage, script, arguments, message):
    import re

    damage(trained)
    done = run(script, *arguments, cwd=trained, check=False)
    if not message:  # unlabelled test photographs leave metrics.json alone
        assert done.returncode == 0
        return
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and re.search(message, errors[0]), done.stderr
    assert "Traceback" not in done.stderr and not (trained / "result.txt").exists()


def test_a_sheet_needs_only_the_test_photographs_and_its_failure_keeps_the_result(work, trained, contest, run):
    (trained / "Dataset").unlink()
    (trained / "Dataset").mkdir()
    edit(trained / "output/test.npz", lambda content, meta: content.update(labels=np.arange(13) % 6))
    assert run("predict.py", "--sheet", "sheet.png", cwd=trained, check=False).returncode == 1
    assert len((trained / "result.txt").read_text().splitlines()) == 13 and not (trained / "sheet.png").exists()
    assert json.loads((trained / "output/metrics.json").read_text())["test"]["n"] == 13
    for name in ("TestSetB", "classes_b.txt"):
        (trained / "Dataset" / name).symlink_to(contest / "Dataset" / name)
    assert "sheet.png: 13 photographs" in run("predict.py", "--sheet", "sheet.png", cwd=trained).stdout
    assert Image.open(trained / "sheet.png").format == "PNG"


def test_rows_of_one_name_have_a_line_each(trained, run):
    edit(
        trained / "output/test.npz",
        lambda content, meta: content.update(names=np.array(["1.jpg", "2.jpg"])[np.arange(13) % 2]),
    )
    run("predict.py", cwd=trained)
    assert (
        sorted(line.split()[0] for line in (trained / "result.txt").read_text().splitlines())
        == ["1.jpg"] * 7 + ["2.jpg"] * 6
    )


def test_it_works_without_a_stdout(trained):
    done = subprocess.run(
        f"'{sys.executable}' '{PROJECT / 'predict.py'}' >&-", shell=True, cwd=trained, stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and (trained / "result.txt").exists()


def test_a_pipe_closed_by_its_reader_is_no_error(trained):
    process = subprocess.Popen(
        [sys.executable, PROJECT / "predict.py", *["Dataset/TestSetB"] * 200],
        cwd=trained,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "Dataset/TestSetB/image_1.jpg\n"
    process.stdout.close()  # as `| head -1` does
    errors = process.stderr.read()
    assert process.wait(100) == 1 and "error" not in errors and "Exception" not in errors


def test_a_broken_photograph_is_named(work, contest, run):
    (work / "Dataset").unlink()
    shutil.copytree(contest / "Dataset", work / "Dataset")
    broken = work / "Dataset/TrainSet/Animal_Bee/3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    done = run("extract_feature.py", "--strict", cwd=work, check=False)
    assert (
        done.returncode == 1
        and "TrainSet/Animal_Bee/3.jpg: cannot be read as a photograph" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("extract_feature.py", ["--shots", "0"]),
        ("extract_feature.py", ["--select", "best"]),
        ("train_adapter.py", ["--method", "magic"]),
        ("predict.py", ["--classes", "cat"]),
        ("predict.py", ["x.jpg", "--classes", "cat,cat"]),
        ("predict.py", ["x.jpg", "--classes", ""]),
        ("predict.py", ["--sheet", "x.pdf"]),
        ("extract_feature.py", ["--views", "flip"]),
        ("extract_feature.py", ["--seed", "-1"]),
        ("train_adapter.py", ["--seed", "5000000000"]),
        ("predict.py", ["--topk", "x"]),
        ("predict.py", ["--result", "r.zip"]),
        ("train_adapter.py", ["--lr", "-1"]),
    ],
)
def test_wrong_arguments_end_with_2(run, tmp_path, script, arguments):
    assert run(script, *arguments, cwd=tmp_path, check=False).returncode == 2


@pytest.mark.parametrize("script", ["convert_weights.py", "extract_feature.py", "train_adapter.py", "predict.py"])
def test_help_does_not_wait_for_jittor(run, tmp_path, script):
    done = run(script, "--help", cwd=tmp_path, env={"PATH": ""})  # without a compiler Jittor could not be imported
    assert done.stdout.startswith("usage: ") and done.stderr == ""


def test_real_photographs(shared, tiny_weights, tmp_path, run):
    (tmp_path / "Dataset").symlink_to(shared / "data/photos")
    run("extract_feature.py", "--weights", tiny_weights, "--max-train", 8, cwd=tmp_path)
    run("train_adapter.py", cwd=tmp_path)
    run("predict.py", cwd=tmp_path)
    lines = [line.split() for line in (tmp_path / "result.txt").read_text().splitlines()]
    names = [line.split()[0] for line in (shared / "data/photos/truth.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == sorted(names, key=lambda name: int(name.split("_")[1].split(".")[0])) and len(
        lines
    ) == 198
    assert all(len(set(line[1:])) == 5 and set(map(int, line[1:])) <= set(range(22)) for line in lines)
