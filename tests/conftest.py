"""Fixtures that run the scripts as a user does, on drawn photographs and a tiny CLIP of random weights."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip import compat, jittor_cache, runtime, weights
from jclip.architecture import Architecture, expected_shapes

PROJECT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
SHARED = PROJECT.parent / "shared"

CLASSES = ["Animal_Bear", "Animal_Bee", "Food-101_hot_dog", "Stanford-Cars_Volvo_C30", "no group", "Thu-dog_Pomeranian"]
SHOTLESS = 3  # the label of the one class without a training photograph

# Tests started in the background ignore Ctrl-C and Ctrl-\, and the processes that they stop so would inherit that.
for name, handler in {"SIGINT": signal.default_int_handler, "SIGQUIT": signal.SIG_DFL}.items():
    number = getattr(signal, name, None)  # Windows has no SIGQUIT
    if number and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


# Of an import of Jittor before jclip, which prepares the system for it
jittor_alone = pytest.mark.skipif(
    compat.PYTHON >= (3, 13) or bool(jittor_cache.compiler_flags()),
    reason="on this system Jittor cannot be imported without jclip",
)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if item.get_closest_marker("cuda") and runtime.cuda_problem():
            item.add_marker(pytest.mark.skip(reason=runtime.cuda_problem()))


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -c code` in the project's folder, with these environment variables beside those of this process."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **{k: v for k, v in os.environ.items() if k not in ("nvcc_path", "use_mpi", "use_parallel_op_compiler")},
            "PYTHONUNBUFFERED": "1",  # what was printed is there when a signal ends the process
            **environment,
        },
    )


@pytest.fixture(scope="module")
def jt():
    """Jittor in this process, on the CPU."""
    runtime.use("cpu")
    return runtime.jittor()


@pytest.fixture
def run():
    """Give run(script, *arguments, cwd=…), which runs `python script arguments…` and returns a CompletedProcess."""

    def run(script: str, *arguments, cwd: Path, check: bool = True, env: dict | None = None):
        done = subprocess.run(
            [sys.executable, str(PROJECT / script), *map(str, arguments)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, **(env or {})},
        )
        assert not check or done.returncode == 0, f"{script} {arguments}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def shared():
    """Return the folder of real data beside the project; skip the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED.name}/ beside the project")
    return SHARED


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """Write random weights of a tiny CLIP for 32 px with the full vocabulary, and return their path."""
    a = Architecture(
        embed_dim=32,
        image_resolution=32,
        patch_size=16,
        vision_width=64,
        vision_layers=1,
        vision_heads=1,
        context_length=77,
        vocab_size=49408,
        text_width=64,
        text_layers=1,
        text_heads=1,
    )
    rng = np.random.default_rng(0)
    state = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in expected_shapes(a).items()}
    state["logit_scale"] = np.float32(np.log(50))
    path = tmp_path_factory.mktemp("weights") / "tiny.pkl"
    with open(path, "wb") as file:
        weights.write(state, file)
    return path


def draw(path, label, seed):
    """Draw a photograph of its class's colour with noise; even random weights tell such classes apart."""
    rng = np.random.default_rng([label, seed])
    colour = np.array(
        [[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40], [40, 200, 200], [200, 40, 200]][label]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((colour + rng.normal(0, 25, (40 + seed % 3, 48, 3))).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def contest(tmp_path_factory, tiny_weights):
    """Make a working folder: weights, 7 training photographs a class, 13 test photographs, in the contest's layout."""
    folder = tmp_path_factory.mktemp("contest")
    lines = []
    for label, name in enumerate(CLASSES):
        for i in range(0 if label == SHOTLESS else 7):
            draw(folder / f"Dataset/TrainSet/{name}/{i}.jpg", label, i)
            lines.append(f"TrainSet/{name}/{i}.jpg {label}\n")
    for i in range(1, 14):
        draw(folder / f"Dataset/TestSetB/image_{i}.jpg", i % 6, 100 + i)
    (folder / "Dataset/train.txt").write_text("".join(lines))
    (folder / "Dataset/classes_b.txt").write_text("\n".join(f"{name} {label}" for label, name in enumerate(CLASSES)))
    shutil.copy(tiny_weights, folder / "ViT-B-32.pkl")
    return folder


@pytest.fixture
def work(contest, tmp_path):
    """Make a working folder for one test, with links to the photographs and weights of `contest`."""
    for name in ("Dataset", "ViT-B-32.pkl"):
        (tmp_path / name).symlink_to(contest / name)
    return tmp_path


@pytest.fixture(scope="session")
def extracted(contest, tmp_path_factory):
    """Run extract_feature.py without options; return its output/, which tests copy, and the CompletedProcess."""
    done = subprocess.run(
        [sys.executable, PROJECT / "extract_feature.py"], cwd=contest, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return contest / "output", done


@pytest.fixture
def trained(work, extracted, run):
    """Return `work` with the outputs of extract_feature.py and train_adapter.py."""
    shutil.copytree(extracted[0], work / "output")
    run("train_adapter.py", "--method", "tip", cwd=work)
    return work
