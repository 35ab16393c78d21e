"""Each stage of jclip is compared with recorded results of OpenAI's own code (golden/record_clip.py)."""

import errno
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import ftfy
import numpy as np
import pytest
import regex
from conftest import GOLDEN, PROJECT, python
from PIL import Image

import jclip
from jclip import features, reading, weights
from jclip.errors import Unreadable
from jclip.preprocess import normalised, pixels
from jclip.tokenizer import clean, tokenize

TOLERANCE = 1e-5  # relative L2 error of one stage


def error(actual, expected):
    """Return the largest relative L2 error of any row."""
    return (np.linalg.norm(actual - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()


@pytest.fixture(scope="module")
def model(jt):
    return jclip.load(GOLDEN / "clip_weights.npz", "cpu")[0]


@pytest.fixture(scope="module")
def stages():
    return dict(np.load(GOLDEN / "clip_stages.npz"))


@pytest.mark.parametrize("text, ids, truncated", json.loads((GOLDEN / "tokens.json").read_text()))
def test_token_ids_are_openais(text, ids, truncated):
    row = tokenize(text, truncate=truncated)[0]
    assert row.tolist() == ids + [0] * (77 - len(ids))


def test_ascii_needs_no_repair():
    """The steps that `clean` skips for ASCII would not change it."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        text = "".join(rng.choice([*map(chr, range(32, 127)), " ", "  ", "'s"], rng.integers(0, 30)))
        repaired = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        assert clean(text) == regex.sub(r"\s+", " ", repaired).strip().lower()


def test_an_over_long_text_is_refused_unless_truncated():
    with pytest.raises(jclip.ClipError, match="102 tokens is too long for a context of 77"):
        tokenize("word " * 100)


@pytest.mark.parametrize("number", range(12))  # the 13th, of 16 bits, is white in torchvision's: see test_levels.py
def test_preprocessing_is_torchvisions(number):
    golden = np.load(GOLDEN / "preprocess.npz")
    actual = pixels(Image.open(io.BytesIO(golden[f"file_{number}"].tobytes())), 64)
    assert actual.shape == (3, 64, 64) and actual.dtype == np.float32
    np.testing.assert_allclose(actual, golden[f"pixels_{number}"], atol=1e-6, err_msg=str(golden["modes"][number]))


@pytest.mark.parametrize(
    "stage",
    [
        "visual.ln_pre",
        "visual",
        "ln_final",
        *[f"{tower}resblocks.{i}" for tower in ("visual.transformer.", "transformer.") for i in range(2)],
    ],
)
def test_each_stage_is_openais(jt, model, stages, stage):
    module = model
    for part in stage.split("."):
        module = getattr(module, part)
    with jt.no_grad():
        actual = module(jt.array(stages[f"{stage}.in"])).numpy()
    assert error(actual, stages[f"{stage}.out"]) < TOLERANCE


def test_features_and_logits_are_openais(jt, model, stages):
    with jt.no_grad():
        text = model.encode_text(jt.array(stages["tokens"].astype(np.int32))).numpy()
        per_image, per_text = model(jt.array(stages["image"]), jt.array(stages["tokens"].astype(np.int32)))
    assert error(text, stages["text_features"]) < TOLERANCE
    np.testing.assert_allclose(per_image.numpy(), stages["logits_per_image"], atol=1e-4)
    np.testing.assert_allclose(per_text.numpy(), stages["logits_per_text"], atol=1e-4)


def test_a_text_does_not_depend_on_its_batch(jt, model, stages):
    tokens = stages["tokens"].astype(np.int32)
    with jt.no_grad():
        together = model.encode_text(tokens).numpy()
        alone = np.concatenate([model.encode_text(tokens[i : i + 1]).numpy() for i in range(len(tokens))])
    assert error(alone, together) < TOLERANCE


def test_the_snippet_of_every_clip_readme_runs(jt, tmp_path):
    import jclip as clip

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)).save(tmp_path / "CLIP.png")
    model, preprocess = clip.load(str(GOLDEN / "clip_weights.npz"))
    image = preprocess(Image.open(tmp_path / "CLIP.png")).unsqueeze(0)
    text = clip.tokenize(["!", "a"], context_length=77) % 300  # the tiny model knows 300 tokens
    with jt.no_grad():
        assert model.encode_image(image).shape == (1, 48) and model.encode_text(text).shape == (2, 48)
        logits_per_image, logits_per_text = model(image, text)
        probs = logits_per_image.softmax(dim=-1).numpy()
    assert probs.shape == (1, 2) and probs.sum() == pytest.approx(1, abs=1e-6) and logits_per_text.shape == (2, 1)
    assert model.visual.input_resolution == preprocess.resolution == 64


def test_the_example_is_that_of_the_documents_and_runs_on_the_kernels(jt, tiny_weights, tmp_path, monkeypatch):
    example = textwrap.dedent(jclip.__doc__.split("\n\n", 1)[1])
    for name in ("docs/usage.md", "docs/usage.zh.md"):
        assert re.search(r"```python\n(.*?)```", (PROJECT / name).read_text(encoding="utf-8"), re.DOTALL)[1] == example
    from jclip import kernels

    ran, run = [], kernels._run
    monkeypatch.setattr(
        kernels,
        "_run",
        lambda shape, dtype, call, *inputs, **more: (
            ran.append(call.split("(")[0]) or run(shape, dtype, call, *inputs, **more)
        ),
    )
    load = jclip.load
    monkeypatch.setattr(jclip, "load", lambda path: load(path, "cpu"))  # also on a machine with a GPU
    Image.new("RGB", (48, 40), "red").save(tmp_path / "photo.jpg")
    shutil.copy(tiny_weights, tmp_path / "ViT-B-32.pkl")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert set(ran) == {"patches", "tokens", "layer_norm", "attention", "quick_gelu", "residual"}


@pytest.mark.parametrize(
    "wrong",
    [
        np.array([[298, 300, 299]]),
        np.array([[298, -1, 299]]),
        np.zeros((1, 78), int),
        np.zeros((2, 3)),
        np.zeros(5, int),
    ],
)
def test_unusable_tokens_are_refused(model, wrong):
    with pytest.raises(jclip.ClipError, match="encode_text"):
        model.encode_text(wrong)


def test_images_of_another_size_are_refused(jt, model):
    with pytest.raises(jclip.ClipError, match=r"\(n, 3, 64, 64\), found \(3, 64, 64\)"):
        model.encode_image(jt.zeros((3, 64, 64)))


def test_gradients_reach_every_parameter(jt, stages):
    """The towers can be trained."""
    model = jclip.load(GOLDEN / "clip_weights.npz", "cpu")[0]
    model.train()
    per_image, _ = model(jt.array(stages["image"]), jt.array(stages["tokens"].astype(np.int32)))
    state = {name: value for name, value in model.state_dict().items() if name != "token_embedding.weight"}
    grads = jt.grad((per_image * jt.array(np.float32([1, 2, 3, 4]))).sum(), list(state.values()))
    assert [name for name, grad in zip(state, grads) if not np.abs(grad.numpy()).max() > 0] == []


class Drawer:
    """Reads number i: an image of its own, or an error."""

    def __init__(self, broken=None, killed=None, error=jclip.ClipError):
        self.broken, self.killed, self.error = broken, killed, error

    def __call__(self, i):
        if i == self.broken:
            raise self.error(f"image {i} is broken")
        if i == self.killed:
            os.kill(os.getpid(), 9)
        return np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize("n, batch_size", [(0, 4), (1, 4), (8, 4), (23, 5)])
def test_image_features_keep_the_order_whoever_reads(jt, model, n, batch_size):
    here, elsewhere = (
        [encoded.rows for encoded in features.image_features(model, range(n), Drawer(), batch_size, workers)]
        for workers in (0, 2)
    )
    assert (
        [len(rows) for rows in here]
        == [len(rows) for rows in elsewhere]
        == [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
    )
    for one, other in zip(here, elsewhere):
        np.testing.assert_array_equal(one, other)
    if n:
        with jt.no_grad():
            alone = model.encode_image(jt.array(normalised(np.stack([Drawer()(i) for i in range(n)])))).numpy()
        np.testing.assert_allclose(np.concatenate(here), features.unit(alone), atol=1e-6)


def test_on_cuda_a_batch_is_fetched_before_the_next_is_started(jt, model, monkeypatch):
    """CUDA works in order: fetched afterwards, rows would wait for the next batch, and the readers with them."""
    from jclip import kernels

    events = []

    class Rows:
        def __init__(self, pixels):
            self.batch = int(pixels.numpy()[0, 0, 0, 0])

        def sync(self):
            events.append(f"start {self.batch}")

        def numpy(self):
            events.append(f"fetch {self.batch}")
            return np.full((2, 4), self.batch + 1, np.float32)

    queued = SimpleNamespace(visual=model.visual, encode_image=Rows)
    monkeypatch.setattr(features, "_device", lambda: "cuda")
    monkeypatch.setattr(kernels, "normalise", lambda rgb, levels: jt.array(rgb.astype(np.float32)))
    pictures = [np.full((64, 64, 3), i // 2, np.uint8) for i in range(5)]
    assert len(list(features.image_features(queued, range(5), pictures.__getitem__, batch_size=2))) == 3
    assert events == ["start 0", "fetch 0", "start 1", "fetch 1", "start 2", "fetch 2"]


@pytest.mark.parametrize("workers", [0, 2])
def test_image_features_raise_what_the_reader_raises(model, workers):
    with pytest.raises(jclip.ClipError, match="image 13 is broken"):
        list(features.image_features(model, range(40), Drawer(broken=13), 4, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_has_a_row_of_nan_and_a_cause(model, workers):
    read = Drawer(broken=13, error=Unreadable)
    encoded = list(features.image_features(model, range(18), read, 4, workers))
    assert [batch.failures for batch in encoded] == [{}, {}, {}, {1: "image 13 is broken"}, {}]
    assert np.flatnonzero(np.isnan(np.concatenate([batch.rows for batch in encoded])).any(axis=1)).tolist() == [13]


def test_a_killed_reader_is_one_clear_error(model):
    with pytest.raises(jclip.ClipError, match="a process that reads images was killed"):
        list(features.image_features(model, range(40), Drawer(killed=13), 4, 2))


def test_readers_that_cannot_start_leave_no_shared_memory(monkeypatch):
    asked = []

    def no_pool(workers, context, start, arguments):
        asked.append(arguments[0])
        raise OSError("no semaphores here")

    monkeypatch.setattr(reading, "ProcessPoolExecutor", no_pool)
    with pytest.raises(OSError, match="no semaphores"):
        next(reading.batches(range(4), Drawer(), 64, 4, 2))
    with pytest.raises(FileNotFoundError):
        reading.SharedMemory(asked[0])


def test_shared_memory_that_is_not_there_is_one_clear_error(monkeypatch):
    """A container promises more than it has."""
    made = []
    memory = reading.SharedMemory
    monkeypatch.setattr(reading, "SharedMemory", lambda **given: made.append(memory(**given)) or made[-1])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        jclip.ClipError, match=r"two batches of 4 photographs \(0 MB\) do not fit into shared memory .*--batch-size"
    ):
        next(reading.batches(range(4), Drawer(), 64, 4, 2))
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        reading.SharedMemory(made[0].name)


def test_features_that_are_no_numbers_are_an_error(jt):
    overflown = SimpleNamespace(
        visual=SimpleNamespace(input_resolution=64),
        encode_image=lambda x: jt.array(np.full((len(x), 8), np.inf, np.float32)),
    )
    with (
        pytest.raises(jclip.ClipError, match="not finite numbers; run with --precision float32"),
        np.errstate(invalid="ignore"),
    ):
        list(features.image_features(overflown, range(3), Drawer(), 4))


def test_readers_start_where_there_is_no_niceness(monkeypatch):  # Windows
    monkeypatch.delattr(os, "nice")
    monkeypatch.setattr(reading, "SharedMemory", lambda name: SimpleNamespace(buf=bytearray(12)))
    monkeypatch.setattr(reading.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(reading.signal, "signal", lambda *_: None)
    for name in ("_memory", "_halves", "_reader"):
        monkeypatch.setattr(reading, name, None, raising=False)
    reading._start("name", (2, 1, 1, 2, 3), Drawer())
    assert reading._halves.shape == (2, 1, 1, 2, 3)


def test_readers_end_when_their_parent_is_killed():
    code = """
import os, sys
sys.path[:0] = ["tests", "."]
from jclip import reading
from test_clip import Drawer
batches = reading.batches(range(10**6), Drawer(), 64, 4, 2)
next(batches)
import multiprocessing
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True, timeout=100)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2 and done.returncode == -9
    deadline = time.monotonic() + 20
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid) -> bool:
    """Whether a process lives; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_prompt_ensemble_is_the_direction_of_the_mean():
    a, b, c = np.eye(3, dtype=np.float32)
    rows = features.prompt_ensemble(np.stack([a, b, c]), [2, 1])
    np.testing.assert_allclose(rows, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]], atol=1e-7)


def test_names_of_the_model_are_those_of_the_weights(model):
    state = weights.read(GOLDEN / "clip_weights.npz")
    assert {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "logit_scale"} == {
        name: value.shape for name, value in state.items() if name != "logit_scale"
    }


def test_without_its_text_tower_a_model_encodes_images_as_with_it(jt, model, stages):
    images_only, _ = jclip.load(GOLDEN / "clip_weights.npz", "cpu", text_tower=False)
    assert set(images_only.state_dict()) == {
        name for name in model.state_dict() if name.startswith("visual.") or name == "logit_scale"
    }
    with jt.no_grad():
        rows = [loaded.encode_image(stages["image"]).numpy() for loaded in (model, images_only)]
    np.testing.assert_array_equal(*rows)
    with pytest.raises(jclip.ClipError, match="^encode_text: .* without its text tower"):
        images_only.encode_text(stages["tokens"].astype(np.int32))


def test_loading_computes_no_zeros_in_the_place_of_weights(tiny_weights):
    """Jittor would, with the first weights that are copied; for ViT-B/32, that took its size again, and 0.2 s."""
    done = python(
        f"""if True:
        import jclip, jittor as jt
        jt.flags.use_stat_allocator = 1
        model, _ = jclip.load({str(tiny_weights)!r}, "cpu")
        size = sum(parameter.numel() for parameter in model.parameters()) * 4
        print(jt.flags.stat_allocator_total_alloc_byte / size)"""
    )
    assert 1 <= float(done.stdout.split()[-1]) < 1.5, done.stderr
