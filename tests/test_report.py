"""predict.py --report: what the page and its data hold, that planted faults are found, and that names stay names."""

import base64
import csv
import io
import json
import re
import sys

import numpy as np
import pytest
import report_task
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from report_task import COPIED, COPY, MISLABELLED, PAIR, TEST

import predict
from fewshot import artifacts
from fewshot.rows import shot_rows, softmax
from report import copies, label_next, metrics, page, pictures, publish, signatures, suspects
from tip_adapter_utils import predict_logits


def report(task, folder, *options):
    """Run predict.py --report; return the text of the page and the content of the .json file."""
    path = folder / "report.html"
    arguments = ["--output", task.output, "--data", task.data, "--result", folder / "result.txt", "--report", path]
    assert predict.main([*map(str, arguments), *options]) == 0
    return path.read_text(encoding="utf-8"), json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return report_task.make(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def written(task, tmp_path_factory):
    return report(task, tmp_path_factory.mktemp("written"))


def pictures_of(html):
    blocks = re.findall(r'<script type="application/json" id="pictures-\d+">(.*?)</script>', html, re.DOTALL)
    return [picture for block in blocks for picture in json.loads(block)]


def data_of(html):
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_planted_faults_come_first(written):
    data = written[1]
    wrong = data["suspects"]["labels"][0]
    assert (wrong["set"], wrong["row"], wrong["label"], wrong["predicted"]) == ("shots", MISLABELLED, 1, 0)
    copy = data["suspects"]["copies"]["train_and_test"]
    assert [(pair["first"]["row"], pair["second"]["set"], pair["second"]["row"]) for pair in copy] == [
        (COPY, "shots", COPIED)
    ]
    pair = data["splits"]["test"]["confused"][0]
    assert (pair["is"], pair["taken_for"], pair["n"]) == PAIR
    assert {photo["row"] for photo in pair["photographs"]} == {PAIR[0] * TEST + i for i in range(PAIR[2])}


def test_clean_data_have_no_findings():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 48))
    of_train, of_test = np.arange(6).repeat(8), np.arange(6).repeat(4)

    def around(labels):
        rows = centres[labels] + rng.normal(size=(len(labels), 48))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    text = artifacts.Text(around(np.arange(6)), np.array(list("abcdef")), 20.0)
    support = artifacts.Support(around(of_train)[:, None], of_train, np.array([f"{i}" for i in range(48)]))
    test = artifacts.Split(around(of_test), of_test, np.array([f"{i}" for i in range(24)]))
    train, adapter = suspects.training(support, None), artifacts.Adapter.without_cache("zero-shot", text)
    assert suspects.labels(train, adapter) == [] and suspects.names(train, adapter) == []
    near = copies.find(train, test)
    assert near["across_classes"] == near["train_and_test"] == []
    assert near["nearest"]["train_and_test"]["ratio"] > copies.COPY_RATIO and near["compared"]["opened_test"] == 0
    assert not any(found["odd"] for found in suspects.classes(train, adapter))


def test_copies_across_classes_and_a_class_of_nothing_in_common():
    rng = np.random.default_rng(1)
    centres, labels = 2 * rng.normal(size=(5, 48)), np.arange(5).repeat(6)
    rows = centres[labels] + rng.normal(size=(30, 48))
    rows[6:12] = 2 * rng.normal(size=(6, 48))  # class 1: anything
    rows[20] = rows[2] + 0.02 * rng.normal(size=48)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    train = suspects.training(artifacts.Support(rows[:, None], labels, np.array(list(map(str, labels)))), None)
    no_test = artifacts.Split(np.zeros((0, 48), np.float32), np.zeros(0, np.int64), np.zeros(0, np.str_))
    (pair,) = copies.find(train, no_test)["across_classes"]
    assert (pair["first"]["row"], pair["second"]["row"]) == (2, 20)
    text = artifacts.Text(rows[::6], np.array(list("abcde")), 20.0)
    found = suspects.classes(train, artifacts.Adapter.without_cache("zero-shot", text))
    assert found[0]["class"] == 1 and found[0]["odd"] and not any(entry["odd"] for entry in found[2:])


def scene(seed):
    """Return a picture of a few coloured ellipses."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (240, 180), tuple(rng.integers(0, 256, 3).tolist()))
    for _ in range(9):
        x, y, width, height = (rng.random(4) * (200, 150, 70, 60)).tolist()
        ImageDraw.Draw(image).ellipse((x, y, x + width + 20, y + height + 20), tuple(rng.integers(0, 256, 3).tolist()))
    return image


CHANGES = {
    "half the size": lambda image: image.resize((120, 90)),
    "another shape": lambda image: image.resize((236, 170)),
    "mirrored": ImageOps.mirror,
    "3 % cut off": lambda image: image.crop((7, 5, 233, 175)),
    "a corner cut off": lambda image: image.crop((7, 5, 240, 180)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "much compressed": lambda image: image,
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_by_their_pixels(change, tmp_path):
    """Features that say nothing; the copy is a JPEG of the 5th of 12 photographs."""
    paths = {row: tmp_path / f"{row}.png" for row in range(12)}
    for row, path in paths.items():
        scene(row).save(path)
    others = {row: tmp_path / f"other_{row}.png" for row in range(3)}
    for row, path in others.items():
        scene(100 + row).save(path)
    CHANGES[change](scene(5)).save(tmp_path / "copy.jpg", quality=30 if change == "much compressed" else 70)
    Image.new("RGB", (50, 50), "white").save(tmp_path / "plain.png")
    others.update({3: tmp_path / "copy.jpg", 4: tmp_path / "plain.png", 5: tmp_path / "missing.png"})
    paths[12] = tmp_path / "plain.png"  # two plain pictures are no copies
    features = np.eye(32, dtype=np.float32)
    support = artifacts.Support(features[:13, None], np.arange(13) % 2, np.array([f"{i}" for i in range(13)]))
    test = artifacts.Split(features[13:19], np.full(6, -1), np.array([f"t{i}" for i in range(6)]))
    pixels = copies.Pixels(signatures.read(others), signatures.read(paths))
    found = copies.find(suspects.training(support, None), test, pixels)
    (pair,) = found["train_and_test"]
    assert (pair["first"]["row"], pair["second"]["row"], pair["found_by"]) == (3, 5, ["pixels"])
    assert found["across_classes"] == [] and found["nearest"]["across_classes"]["found_by"] == []
    assert found["compared"] == {"train": 13, "test": 6, "opened_train": 13, "opened_test": 5}


def test_a_copy_of_a_validation_photograph_is_found_and_shown(tmp_path):
    """No CLIP could know: the features are random."""
    task = report_task.make(tmp_path / "task")
    val = artifacts.read(task.output / "val.npz", artifacts.Split)
    scene(1).save(task.data / str(val.names[3]))
    copy = artifacts.read(task.output / "test.npz", artifacts.Split).names[30]
    scene(1).resize((200, 150)).save(task.data / "test" / str(copy), quality=70)
    html, data = report(task, tmp_path)
    found = data["suspects"]["copies"]["train_and_test"]
    assert [(pair["first"]["row"], pair["second"]["set"], pair["second"]["row"]) for pair in found] == [
        (30, "val", 3),
        (COPY, "shots", COPIED),
    ]
    assert [pair["found_by"] for pair in found] == [["pixels"], ["features"]]
    assert data_of(html)["pictures"]["val"] == [3]


def test_a_name_that_clip_does_not_know_is_found(task, tmp_path):
    text = artifacts.read(task.output / "text.npz", artifacts.Text)
    support = artifacts.read(task.output / "support.npz", artifacts.Support)
    features = text.features.copy()
    features[2] = -features[2]
    adapter = artifacts.Adapter.without_cache("zero-shot", artifacts.Text(features, text.names, 20.0))
    (found,) = suspects.names(suspects.training(support, None), adapter)
    assert found["class"] == 2 and found["top1"] == 0 and found["rank"] == 4


def test_classes_of_one_text_share_its_ranks():
    """Two classes with the same text: no photograph is nearer to one of them."""
    rows = np.eye(4, dtype=np.float32)
    text = artifacts.Text(rows[[0, 1, 1, 1]], np.array(list("abcd")), 20.0)
    support = artifacts.Support(rows[[0, 1, 1, 1]][:, None], np.arange(4), np.array(list("abcd")))
    found = suspects.names(suspects.training(support, None), artifacts.Adapter.without_cache("zero-shot", text))
    assert [(entry["class"], entry["rank"]) for entry in found] == [(2, 2.0), (3, 2.0)]  # of ranks 1, 2 and 3


def test_all_odd_classes_are_listed(monkeypatch):
    """Odd ones come first, even where their cohesion is not among the lowest."""
    monkeypatch.setattr(suspects, "SPREAD", 100)  # odd only where another class is nearer
    rng = np.random.default_rng(0)
    labels, centres = np.arange(12).repeat(8), 3 * rng.normal(size=(12, 32))
    rows = centres[labels] + rng.normal(size=(96, 32)) * np.linspace(2, 1, 12)[labels][:, None]
    rows[88:] = rows[80:88] + 0.01 * rng.normal(size=(8, 32))  # class 11: the photographs of class 10, moved a little
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    train = suspects.training(artifacts.Support(rows[:, None], labels, labels.astype(str)), None)
    adapter = artifacts.Adapter.without_cache("zero-shot", artifacts.Text(rows[::8], np.arange(12).astype(str), 20.0))
    found = suspects.classes(train, adapter)
    assert [entry["class"] for entry in found if entry["odd"]] == [entry["class"] for entry in found[:2]]
    assert {10, 11} == {entry["class"] for entry in found[:2]} and min(found, key=lambda e: e["cohesion"])["class"] < 10


def test_labels_in_doubt_come_with_shots_of_both_classes(written):
    wrong = written[1]["suspects"]["labels"][0]
    shots = written[1]["shots"]
    for key, label in (("near_predicted", 0), ("near_label", 1)):
        rows = [row for row, _ in wrong[key]]
        assert rows and MISLABELLED not in rows and {shots[row][1] for row in rows} == {label}
        assert [value for _, value in wrong[key]] == sorted((value for _, value in wrong[key]), reverse=True)


def test_confidence_and_confused_pairs_add_up(task, written):
    scores, photos = written[1]["splits"]["test"], written[1]["photographs"]
    sure = [photo for photo in photos if photo["top"][0][1] >= 0.9]
    assert scores["trust"]["sure"] == {"n": len(sure), "right": sum(p["top"][0][0] == p["label"] for p in sure)}
    assert scores["trust"]["right"] == pytest.approx(scores["top1"]) and scores["trust"]["n"] == scores["n"]
    pairs = {(photo["label"], photo["top"][0][0]) for photo in photos if photo["top"][0][0] != photo["label"]}
    assert scores["confused_of"] == {"pairs": len(pairs), "ties": 0} and len(scores["confused"]) == len(pairs)


def test_figures_are_those_of_metrics(task, written):
    figures = json.loads((task.output / "metrics.json").read_text(encoding="utf-8"))["test"]
    scores = written[1]["splits"]["test"]
    assert all(scores[key] == figures[key] for key in ("n", "top1", "top5", "calibration_error", "groups"))
    assert [row["top1"] for row in scores["per_class"]] == [row["top1"] for row in figures["per_class"].values()]
    assert set(scores["beside"]) == {"zero-shot", "gda"} and "val" in written[1]["splits"]
    bins = scores["reliability"]
    gaps = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in bins)
    assert gaps / sum(row["n"] for row in bins) == pytest.approx(figures["calibration_error"])


def test_evidence_of_a_cache_is_its_formula(task, written):
    """What the shots and the texts are said to add is what they add to the logits."""
    adapter = artifacts.read(task.output / "adapter.npz", artifacts.Adapter)
    test = artifacts.read(task.output / "test.npz", artifacts.Split)
    logits = predict_logits(adapter, test.features)
    assert written[1]["evidence"]["kind"] == "affinity"
    for photo in written[1]["photographs"][::7]:
        (answer, p), (other, _) = photo["top"][:2]
        row = photo["row"]
        assert p == pytest.approx(softmax(logits[row : row + 1])[0, answer], rel=1e-3)
        assert sum(photo["lead"]) == pytest.approx(logits[row, answer] - logits[row, other], abs=2e-3)
        shot, strength = photo["shots"][0][0]
        affinity = np.exp(-adapter.beta * (1 - test.features[row] @ adapter.keys.T))
        of_answer = np.flatnonzero(adapter.values[:, answer])
        assert shot == of_answer[affinity[of_answer].argmax()] and strength == pytest.approx(affinity[shot], rel=1e-3)


def test_evidence_without_a_cache_is_similarity(tmp_path):
    task = report_task.make(tmp_path / "task", "blend", photographs=False)
    data = report(task, tmp_path)[1]
    support = artifacts.read(task.output / "support.npz", artifacts.Support)
    test = artifacts.read(task.output / "test.npz", artifacts.Split)
    photo = data["photographs"][9]
    shot, strength = photo["shots"][0][0]
    assert data["evidence"]["kind"] == "similarity" and "lead" not in photo
    assert strength == pytest.approx(float(test.features[9] @ shot_rows(support.features)[shot]), rel=1e-3)


def test_the_page_has_thumbnails_of_the_photographs(task, written):
    html, _ = written
    shown, numbers = pictures_of(html), data_of(html)["pictures"]
    # the validation photographs are not there; the test photographs are listed before the shots
    assert len(shown) == len(numbers["test"]) + len(numbers["shots"]) == 4 * TEST + 20 and all(shown)
    with Image.open(io.BytesIO(base64.b64decode(shown[2 * TEST].partition(",")[2]))) as image:
        assert image.size == (pictures.SIDE, pictures.SIDE)
        assert np.abs(np.asarray(image).mean((0, 1)) - report_task.COLOURS[2]).max() < 12


def test_without_photographs_the_page_has_no_pictures(task, tmp_path, capsys):
    html, data = report(task._replace(data=tmp_path / "nowhere"), tmp_path)
    assert pictures_of(html) == [] and len(data["photographs"]) == 4 * TEST
    assert "no pictures" in capsys.readouterr().err


def test_report_photos_limits_the_page_and_not_the_json(task, tmp_path):
    html, data = report(task, tmp_path, "--report-photos", "8")
    rows = [photo["row"] for photo in data_of(html)["photographs"]]
    assert len(rows) == 8 == len(set(rows)) and len(data["photographs"]) == 4 * TEST
    assert pictures_of(report(task, tmp_path, "--report-photos", "0")[0]) == []


def test_findings_are_among_limited_photographs():
    suggested = [{"row": row} for row in (900, 3)]
    summary = {"label_next": {"photographs": suggested}, "suspects": {"copies": {"train_and_test": []}}, "splits": {}}
    rows = publish.shown_rows(summary, 1000, 10)
    assert len(rows) == 10 == len(set(rows)) and {3, 900} <= set(rows) and rows == sorted(rows)


def test_names_of_shots_do_not_lead_out_of_the_data(task, tmp_path):
    """A support.npz of a stranger must not put a picture from elsewhere into the page."""
    Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "secret.jpg")
    data = tmp_path / "data"
    data.mkdir()
    (data / "inside.jpg").write_bytes((tmp_path / "secret.jpg").read_bytes())
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "x/../../secret.jpg", "y" * 300, "missing.jpg"):
        assert publish._below(data, name) is None
    assert publish._below(data, "inside.jpg") == data / "inside.jpg"


def test_names_stay_text_and_nothing_comes_from_outside(written):
    html, data = written
    assert html.count("<script") == 3 + len(re.findall('id="pictures-', html))  # those of the template
    assert "<img" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)[1]
    assert policy.startswith("default-src 'none'; img-src data:") and "unsafe" not in policy
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    assert page.content_hash(script) in policy
    assert "innerHTML" not in script and not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", html)
    assert data["classes"][2]["name"] == report_task.HOSTILE_CLASS
    assert {photo["name"] for photo in data["photographs"]} == set(report_task.test_names())


def test_both_languages_have_the_same_texts():
    texts = json.loads((page.TEMPLATES / "texts.json").read_text(encoding="utf-8"))
    assert texts["en"].keys() == texts["zh"].keys()
    for key, english in texts["en"].items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", texts["zh"][key])), key
    script = (page.TEMPLATES / "report.js").read_text(encoding="utf-8")
    used = set(re.findall(r'say\("(\w+)"', script)) | set(
        re.findall(r't(?:ext\.|\(")(\w+)', (page.TEMPLATES / "report.html").read_text(encoding="utf-8"))
    )
    assert used <= texts["en"].keys()


def test_the_language_is_that_of_the_option(task, tmp_path):
    html = report(task, tmp_path, "--lang", "zh", "--report-photos", "0")[0]
    assert '<html lang="zh" data-language="zh">' in html and "效果如何？" in html


def test_label_next_is_a_table_that_no_spreadsheet_computes(tmp_path):
    task = report_task.make(tmp_path / "task", labelled=False, photographs=False)
    data = report(task, tmp_path)[1]
    with open(tmp_path / "label_next.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [entry["name"] for entry in data["label_next"]["photographs"]]
    assert not data["label_next"]["all_labelled"] and "test" not in data["splits"] and "val" in data["splits"]
    assert b"'=1+1" in label_next.table([[1, "=1+1", "a", 0.5, "b", 0.4]])


def test_suggestions_are_unsure_and_stand_for_different_photographs():
    """Two groups of photographs that the classifier is unsure of, and one that it is sure of."""
    rng = np.random.default_rng(0)
    group = np.array([0] * 8 + [1] * 5 + [2] * 20)
    features = np.eye(3)[group] + 0.05 * rng.normal(size=(33, 3))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    probabilities = np.array([[0.5, 0.45, 0.05], [0.05, 0.5, 0.45], [0.0, 0.0, 1.0]])[group]
    chosen = label_next.suggest(probabilities, features, 40)
    assert [int(group[i]) for i in chosen[:2]] == [0, 1]  # the larger group first, then the other
    assert len(chosen) == 33 == len(set(chosen)) and set(group[chosen[:13]]) == {0, 1}
    assert label_next.suggest(probabilities, features, 2) == chosen[:2]


def test_only_unlabelled_photographs_are_suggested(tmp_path):
    task = report_task.make(tmp_path / "task", photographs=False)
    split = artifacts.read(task.output / "test.npz", artifacts.Split)
    unknown = [5, 17, 30]
    split.labels[unknown] = -1
    artifacts.write(task.output / "test.npz", split)
    suggested = report(task, tmp_path)[1]["label_next"]
    assert {entry["row"] for entry in suggested["photographs"]} == set(unknown) and not suggested["all_labelled"]


def test_an_error_leaves_the_old_report(task, tmp_path, monkeypatch, capsys):
    old = report(task, tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())

    def fail(paths):
        yield "data:"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "thumbnails", fail)
    arguments = ["--output", task.output, "--data", task.data, "--report", tmp_path / "report.html"]
    assert predict.main([*map(str, arguments), "--result", str(tmp_path / "result.txt")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_without_jinja_one_line_says_what_to_install(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    arguments = ["--output", task.output, "--data", task.data, "--report", tmp_path / "report.html"]
    assert predict.main([*map(str, arguments), "--result", str(tmp_path / "result.txt")]) == 1
    assert "pip install -r requirements.txt" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.txt", "result.zip"]


def test_the_least_of_tasks_has_a_report(tmp_path):
    """One class, one photograph, no shots, and nothing in the folder but adapter.npz and test.npz."""
    row = np.ones((1, 1), np.float32)
    text = artifacts.Text(row, np.array(["only"]), 10.0)
    (tmp_path / "output").mkdir()
    artifacts.write(tmp_path / "output/adapter.npz", artifacts.Adapter.without_cache("zero-shot", text))
    artifacts.write(tmp_path / "output/test.npz", artifacts.Split(row, np.array([-1]), np.array(["a.jpg"])))
    data = report(report_task.Planted(tmp_path / "output", tmp_path / "none"), tmp_path)[1]
    assert data["splits"] == {} and data["photographs"][0]["top"] == [[0, 1.0]]
    assert data["confidence"]["classes_answered"] == 1 and data["suspects"]["names"] == []


def test_thumbnails_keep_within_their_share(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (pictures.SIDE, pictures.SIDE, 3), np.uint8)
    sizes = [len(base64.b64decode(pictures.data_uri(noise, most).partition(",")[2])) for most in (20000, 4000, 2500)]
    assert all(size <= most for size, most in zip(sizes, (20000, 4000, 2500)))
    (tmp_path / "broken.jpg").write_bytes(b"no photograph")
    assert list(pictures.thumbnails([None, tmp_path / "broken.jpg"])) == ["", ""]


def test_reliability_adds_up():
    logits, labels = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])), np.array([0, 1, 1])
    bins = metrics.reliability(logits, labels)
    assert bins.n.sum() == 3 and bins.correct.sum() == 2 and bins.confidence.sum() == pytest.approx(2.3)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--report", "x.pdf"], "expected a name that ends in .html"),
        (["--report", "x.html", "photo.jpg"], "leave out the photographs"),
        (["--report", "folder.html"], "is a folder"),
        (["--report", "output/metrics.html"], "would replace metrics.json"),
        (["--lang", "de"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(SystemExit) as stopped:
        predict.parse(options)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
