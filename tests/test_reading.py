"""The processes that read photographs leave the caller's script alone, whatever the script is."""

import subprocess
import sys

import pytest
from conftest import PROJECT, draw

SCRIPT = """
import os, sys
sys.path.insert(0, {project!r})
with open("ran.txt", "a") as file:  # work at the top level of a script
    file.write(__name__ + " ")
if os.path.exists(globals().get("__file__", "")) and "--remove" in sys.argv:
    os.remove(__file__)
{setup}
from pathlib import Path
from fewshot.encoder import Encoder

encoder = Encoder.load(Path({weights!r}), device="cpu")
photos = sorted(Path("photos").iterdir())
encoded = encoder.encode_photos(photos)
print(len(encoded.rows), len(encoded.failures), (encoded.rows == encoder.encode_photos(photos[:1]).rows).all(1).sum())
"""
COUNT = """
from jclip import reading
ahead = reading._Process.start
reading._Process.start = lambda process: (print("process", file=sys.stderr), ahead(process))
"""


@pytest.fixture
def folder(tmp_path):
    """Return a folder with more photographs than are read without processes; the first is there twice."""
    draw(tmp_path / "photos/00.png", 0, 0)
    (tmp_path / "photos/01.png").write_bytes((tmp_path / "photos/00.png").read_bytes())
    for i in range(2, 70):
        draw(tmp_path / f"photos/{i:02}.png", i % 6, i)
    return tmp_path


@pytest.fixture
def script(tiny_weights):
    """Give script(setup), the text of a script without a guard."""
    return lambda setup="": SCRIPT.format(project=str(PROJECT), weights=str(tiny_weights), setup=COUNT + setup)


def run(folder, *arguments, **options):
    """Run Python in the folder; return what it prints, how many processes have read, and the names it ran under."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr.count("process\n"), (folder / "ran.txt").read_text().split()


@pytest.mark.parametrize("way", ["file", "removed file", "standard input", "-c", "-m"])
def test_a_script_without_guard_reads_in_processes_and_runs_once(folder, script, way):
    (folder / "script.py").write_text(script())
    arguments, options = {
        "file": (["script.py"], {}),
        "removed file": (["script.py", "--remove"], {}),
        "standard input": ([], {"input": script()}),
        "-c": (["-c", script()], {}),
        "-m": (["-m", "script"], {}),
    }[way]
    printed, processes, names = run(folder, *arguments, **options)
    assert (printed, names) == (["70", "0", "2"], ["__main__"]) and processes > 0
    assert (folder / "script.py").exists() == (way != "removed file")


def test_threads_may_read_in_processes_at_once(folder, script):
    setup = """
import threading
def work():
    rows.append(Encoder.load(Path(WEIGHTS), device="cpu").encode_photos(sorted(Path("photos").iterdir())).rows)
from fewshot.encoder import Encoder
from pathlib import Path
rows, main = [], sys.modules["__main__"]
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert (rows[0] == rows[1]).all() and sys.modules["__main__"] is main
"""
    weights = script().split("Path(")[1].split(")")[0]
    printed, processes, names = run(folder, "-c", script(setup.replace("WEIGHTS", weights)))
    assert (printed, names) == (["70", "0", "2"], ["__main__"]) and processes > 0


def test_what_the_script_sets_in_pillow_holds_in_the_reading_processes(folder, script):
    photo = folder / "photos/02.jpg"
    draw(photo, 2, 2)
    photo.write_bytes(photo.read_bytes()[:-200])
    printed, _, _ = run(folder, "-c", script())
    assert printed == ["71", "1", "2"]
    printed, processes, _ = run(
        folder, "-c", script("from PIL import ImageFile; ImageFile.LOAD_TRUNCATED_IMAGES = True")
    )
    assert printed == ["71", "0", "2"] and processes > 0


PLUGIN = """
import io
from PIL import Image
def accept(start):
    return start.startswith(b"JCLIP")
class File(Image.Image):
    pass
def open_file(file, name):
    return Image.open(io.BytesIO(file.read()[5:]))
open_file.__module__ = {module!r}
Image.register_open("JCLIP", open_file, accept)
"""


@pytest.mark.parametrize("own", [False, True])
def test_formats_that_the_script_registers_with_pillow_are_read(folder, script, own):
    """Those of a module are read in processes, those of the script itself in its own."""
    png = (folder / "photos/69.png").read_bytes()
    (folder / "photos/69.jclip").write_bytes(b"JCLIP" + png)
    (folder / "plugin.py").write_text(PLUGIN.format(module="plugin"))
    setup = PLUGIN.format(module="__main__") if own else "import plugin"
    printed, processes, _ = run(folder, "-c", script(setup))
    assert printed == ["71", "0", "2"] and (processes == 0) == own


@pytest.mark.parametrize("daemon", [False, True])
def test_items_and_readers_of_the_script_itself_are_read_in_its_own_process(folder, daemon):
    """And so are all in a daemonic process, which may not start others."""
    (folder / "script.py").write_text(f"""
import multiprocessing, sys
sys.path.insert(0, {str(PROJECT)!r})
import numpy as np
from jclip import reading

class Item:
    def __init__(self, value):
        self.value = value

def read(item):
    return np.full((8, 8, 3), item.value, np.uint8)

def main():
    for batch in reading.batches(map(Item, range(100)), read, 8, 32, workers=2):
        print(len(batch.pixels), batch.pixels[0, 0, 0, 0], flush=True)

if __name__ == "__main__":
    if {daemon}:
        process = multiprocessing.Process(target=main, daemon=True)
        process.start()
        process.join()
    else:
        main()
""")
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["32", "0", "32", "32", "32", "64", "4", "96"], done.stderr
