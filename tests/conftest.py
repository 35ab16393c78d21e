"""What the tests share: the scripts run as a user runs them, and a tiny CLIP to run them with."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
SHARED = PROJECT.parent / "shared"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


@pytest.fixture
def run():
    """run(script, *arguments, cwd=…, check=True) -> CompletedProcess of `python script.py arguments…`."""

    def run(script: str, *arguments, cwd: Path, check: bool = True, env: dict | None = None):
        done = subprocess.run([sys.executable, str(PROJECT / script), *map(str, arguments)], cwd=cwd, capture_output=True,
                              text=True, timeout=900, env={**os.environ, **(env or {})})
        assert not check or done.returncode == 0, f"{script} {arguments}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def shared():
    """The folder of real data beside the project; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED.name}/ beside the project")
    return SHARED
