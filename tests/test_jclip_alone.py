"""jclip imports nothing else of this repository: its folder can be copied into any other project."""

import os
import shutil
import subprocess
import sys

from conftest import PROJECT

CODE = f"""
import sys
import jclip
model, preprocess = jclip.load({str(PROJECT / "demo/clip.npz")!r}, device="cpu")
features = model.encode_text(jclip.tokenize("a red circle")).numpy()
assert features.dtype == "float32" and features.shape == (1, model.visual.output_dim) and features.any()
for module in sys.modules.values():
    path = getattr(module, "__file__", None) or ""
    assert "site-packages" in path or not path.startswith({f"{PROJECT}{os.sep}"!r}), path
print(jclip.__file__)
"""


def test_its_folder_alone_loads_weights_and_encodes_a_text(tmp_path):
    shutil.copytree(PROJECT / "jclip", tmp_path / "jclip", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.strip() == str(tmp_path / "jclip/__init__.py"), done.stderr
