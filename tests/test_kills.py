"""train_adapter.py and predict.py that are killed leave the old files or the new ones, never half of one."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT
from test_train import write_task

from fewshot import artifacts


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("kills", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_whole_files(tmp_path, kills):
    write_task(tmp_path / "output", validation=False)
    rows = artifacts.read(tmp_path / "output/support.npz", artifacts.Support)
    artifacts.write(
        tmp_path / "output/test.npz",
        artifacts.Split(rows.features[:, 0], rows.labels, np.array([f"{i}.jpg" for i in range(len(rows.labels))]), {}),
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", tmp_path, str(kills)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert not report["failures"] and report["kills"] > kills
    assert all(counts["old"] and counts["new"] for counts in report["files"].values())  # kills before and after each
