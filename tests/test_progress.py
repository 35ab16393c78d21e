"""Long loops show a bar on a terminal and log a line each minute elsewhere; short ones log nothing."""

import io
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT
from tasks import make_task

from jclip import progress
from methods import METHODS, Settings, train


@pytest.fixture
def clock(monkeypatch, caplog):
    """Give a clock that the test sets, for loops that begin with no other loop before them."""
    caplog.set_level(logging.INFO, "jclip")
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(progress, "_lines", progress._Lines())
    return clock


def run_loop(clock, n, seconds, desc="photographs"):
    """Run a loop of n steps that take `seconds` each."""
    for _ in progress.track(range(n), desc, " photo"):
        clock.now += seconds


def test_a_line_each_minute(clock, caplog):
    run_loop(clock, 3000, 1 / 16)  # 187 s
    assert caplog.messages == [
        "photographs: 960 of 3000, 16.0 per second, 02:07 left",
        "photographs: 1920 of 3000, 16.0 per second, 01:07 left",
        "photographs: 2880 of 3000, 16.0 per second, 00:07 left",
    ]


def test_short_work_logs_nothing(clock, caplog):
    run_loop(clock, 100, 0.59)
    clock.now += 3600  # of something else
    run_loop(clock, 100, 0.59)
    run_loop(clock, 0, 1)
    assert caplog.messages == []


def test_slow_steps(clock, caplog):
    run_loop(clock, 3, 90)
    assert caplog.messages == [
        f"photographs: {n} of 3, 90.0 s each, {left} left" for n, left in ((1, "03:00"), (2, "01:30"), (3, "00:00"))
    ]


def test_many_short_loops_are_long_work(clock, caplog):
    for fold in range(10):
        run_loop(clock, 50, 0.5, f"fold {fold}")  # 25 s
    assert len(caplog.messages) == 4 and caplog.messages[0] == "fold 2: 20 of 50, 2.0 per second, 00:15 left"


def test_loops_in_a_loop_share_the_minute(clock, caplog):
    for _ in progress.track(range(4), "draws", " draw"):
        run_loop(clock, 40, 0.5, "epochs")
    assert [message.split(":")[0] for message in caplog.messages] == ["epochs"]


def test_what_was_done_before_and_bytes(clock, caplog):
    with progress.Progress(300_000_000, "ViT-B-32.pt", "B", initial=100_000_000) as download:
        clock.now += 100
        download.update(50_000_000)
    with progress.Progress(None, "unknown", "B") as download:
        clock.now += 100
        download.update(2_000_000, "a note")
    assert caplog.messages == [
        "ViT-B-32.pt: 150M of 300M, 500k per second, 05:00 left",
        "unknown: 2.00M, 20.0k per second, a note",
    ]


@pytest.mark.parametrize("jupyter", [False, True])
def test_a_terminal_has_a_bar_and_no_lines(jupyter, clock, caplog, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: not jupyter
    if jupyter:
        monkeypatch.setitem(sys.modules, "ipykernel", None)
    monkeypatch.setattr(sys, "stderr", terminal)
    run_loop(clock, 10, 100)
    assert "photographs: 100%" in terminal.getvalue() and "10/10" in terminal.getvalue() and caplog.messages == []


def test_without_a_stderr_nothing_fails(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    run_loop(clock, 2, 100)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "zero-shot"])
@pytest.mark.parametrize("with_val", [True, False])
def test_the_search_of_every_method_is_tracked(method, with_val, caplog, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0)
    caplog.set_level(logging.INFO, "jclip")
    text, support, val, _ = make_task(np.random.default_rng(1), classes=6, shots=2, rows=3)
    train(method, text, support, val if with_val else None, Settings(epochs=2, device="cpu"))
    assert any(" left" in message for message in caplog.messages)


def test_under_a_pipe_the_commands_log_lines(work):
    code = (
        "import sys, extract_feature, train_adapter\n"
        "from jclip import progress\n"
        "progress.INTERVAL = 0\n"
        "sys.exit(extract_feature.main([]) or train_adapter.main(['--seeds', '2']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    counted = {line.split(":")[0] for line in done.stderr.splitlines() if line.endswith(" left")}
    assert {"prompts", "train", "views", "test", "choosing photographs", "regressions", "weights"} <= counted
    assert "draws of the shots" in counted and "\r" not in done.stderr


def test_the_bar_has_one_home():
    users = [
        path.relative_to(PROJECT).as_posix()
        for folder in (".", "jclip", "fewshot", "methods", "report", "demo")
        for path in (PROJECT / folder).glob("*.py")
        if "import tqdm" in path.read_text(encoding="utf-8")
    ]
    assert users == ["jclip/progress.py"]
