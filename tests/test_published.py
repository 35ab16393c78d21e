"""Published numbers: the table itself, and the check against a table of a tiny model in the place of the real ones."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image

import jclip
from jclip import download, features, published, runtime, weights
from jclip.settings import ModelSettings

TEXTS = ["a diagram", "a dog", "a cat"]


def test_every_published_number_is_complete_and_has_a_source():
    table = published.read_table()
    assert set(table) <= set(download.OFFICIAL)
    for entries in table.values():
        assert {entry["kind"] for entry in entries} == set(published.KINDS)
        assert sum("image" not in entry for entry in entries) >= 3  # what convert_weights.py compares
        for entry in entries:
            assert "@" in entry["source"] and 0 < entry["tolerance"] <= 0.02
            values, texts = np.array(entry["values"]), entry.get("texts", [])
            assert np.isfinite(values).all() and (texts or entry["kind"].startswith("image"))
            if entry["kind"] in ("text features", "text norms"):
                assert len(values) == len(texts)
            if entry["kind"] == "probabilities":
                assert values.sum() == pytest.approx(1, abs=2e-6) or (len(texts) == 100 and values.sum() < 1)


@pytest.fixture(scope="module")
def stand_in(tiny_weights, tmp_path_factory):
    """Return the path of a table of the tiny model's numbers, under the name of ViT-B/32, and that of an image."""
    folder = tmp_path_factory.mktemp("published")
    image = folder / "CLIP.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(image)
    model, preprocess = jclip.load(tiny_weights, "cpu")
    jt = runtime.jittor()
    with jt.no_grad():
        rows = model.encode_text(jclip.tokenize(TEXTS)).numpy()
        row = model.encode_image(preprocess(Image.open(image)).unsqueeze(0)).numpy()
    cosines = (features.unit(row) @ features.unit(rows).T)[0].astype(np.float64)
    p = np.exp(50 * (cosines - cosines.max()))
    entries = [
        {"kind": "text features", "texts": TEXTS, "values": rows[:, :5]},
        {"kind": "text features", "texts": TEXTS[1:2], "values": features.unit(rows)[1:2, :4], "unit": True},
        {"kind": "text norms", "texts": TEXTS, "values": np.linalg.norm(rows, axis=1)},
        {"kind": "image features", "image": "CLIP.png", "values": row[0, :8]},
        {"kind": "image features", "image": "CLIP.png", "values": features.unit(row)[0, :8], "unit": True},
        {"kind": "image norm", "image": "CLIP.png", "values": np.linalg.norm(row, axis=1)},
        {"kind": "cosines", "image": "CLIP.png", "texts": TEXTS, "values": cosines},
        {"kind": "logits", "image": "CLIP.png", "texts": TEXTS, "values": 50 * cosines},
        {"kind": "probabilities", "image": "CLIP.png", "texts": TEXTS, "values": (p / p.sum())[:2]},
        {"kind": "image norm", "image": "other.png", "values": np.ones(1)},
    ]
    content = [{**entry, "values": entry["values"].tolist(), "tolerance": 1e-4, "source": "a@b"} for entry in entries]
    (folder / "table.json").write_text(json.dumps({"ViT-B/32": content}))
    return folder / "table.json", image


def change(table, folder, index):
    """Return a copy of the table in which one number of an entry is 1e-3 larger."""
    content = json.loads(table.read_text())
    values = content["ViT-B/32"][index]["values"]
    row = values[-1] if isinstance(values[-1], list) else values
    row[-1] += 1e-3
    (folder / "changed.json").write_text(json.dumps(content))
    return folder / "changed.json"


def test_every_kind_of_number_is_computed_and_a_wrong_one_is_seen(stand_in, tiny_weights, tmp_path):
    (table, image), clip = stand_in, jclip.load(tiny_weights, "cpu")
    rows = published.compare(*clip, published.read_table(table)["ViT-B/32"], [image])
    assert len(rows) == 9 and all(row.is_right for row in rows)  # other.png was not given
    assert len(published.compare(*clip, published.read_table(table)["ViT-B/32"])) == 3
    for index in range(9):
        entries = published.read_table(change(table, tmp_path, index))["ViT-B/32"]
        assert [row.is_right for row in published.compare(*clip, entries, [image])] == [i != index for i in range(9)]


def test_another_activation_is_far_off(stand_in, tiny_weights):
    from jclip.model import build_model
    from jclip.preprocess import Preprocess

    state, _ = weights.read_model(tiny_weights)
    model = build_model(state, "float32", ModelSettings("gelu"))
    rows = published.compare(model, Preprocess(32), published.read_table(stand_in[0])["ViT-B/32"], [stand_in[1]])
    assert not any(row.is_right for row in rows if "features" in row.what)


def acceptance(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bench.acceptance", *map(str, arguments), "--device", "cpu"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_bench_acceptance_prints_the_table(stand_in, tiny_weights, tmp_path):
    table, image = stand_in
    done = acceptance(tiny_weights, "--table", table, "--image", image)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right  ") == 9 and "all 9 rows are right" in done.stdout
    assert "no official file" in done.stdout and "did not give them: other.png" in done.stdout
    done = acceptance(tiny_weights, "--table", change(table, tmp_path, 2))
    assert done.returncode == 1 and "WRONG" in done.stdout and "1 of 3 rows are off" in done.stderr
    image.with_name("dog.png").write_bytes(image.read_bytes())
    done = acceptance(tiny_weights, "--table", table, "--image", image.with_name("dog.png"))
    assert done.returncode == 1 and "expected CLIP.png, other.png" in done.stderr


CONVERT = """
import sys
from pathlib import Path
import convert_weights
from jclip import download, published, weights
source, table, *arguments = sys.argv[1:]
published.TABLE = Path(table)
download.OFFICIAL["ViT-B/32"] = (weights.sha256(source), "ViT-B-32.pt")
sys.exit(convert_weights.main([source, *arguments]))
"""


def test_convert_weights_checks_an_official_file_and_writes_nothing_if_it_is_off(stand_in, tiny_weights, tmp_path):
    def convert(table):
        return subprocess.run(
            [sys.executable, "-c", CONVERT, tiny_weights, table, "-o", tmp_path / "out.pkl"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=600,
        )

    done = convert(change(stand_in[0], tmp_path, 0))
    assert done.returncode == 1 and not (tmp_path / "out.pkl").exists()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "OpenAI's ViT-B/32" in line and "off by 1.0e-03, expected at most 1e-04 (a@b)" in line
    done = convert(stand_in[0])
    assert done.returncode == 0 and "22 published numbers are met" in done.stdout, done.stdout + done.stderr
    assert weights.sha256(tmp_path / "out.pkl") == weights.sha256(tiny_weights)


def test_other_official_files_are_named(monkeypatch, tiny_weights):
    assert published.check_official(tiny_weights) is None
    monkeypatch.setitem(download.OFFICIAL, "ViT-L/14", (weights.sha256(tiny_weights), "ViT-L-14.pt"))
    assert "is OpenAI's ViT-L/14; there are no published numbers" in published.check_official(tiny_weights)
