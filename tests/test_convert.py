"""convert_weights.py as a user runs it."""

import pytest
from conftest import GOLDEN

from jclip import weights


@pytest.mark.parametrize("name", ["release.pt", "hugging_face.safetensors", "jclip.pkl"])
def test_it_writes_what_reads_as_the_source(run, tmp_path, name):
    done = run("convert_weights.py", GOLDEN / "weights" / name, cwd=tmp_path)
    written = (tmp_path / name).with_suffix(".pkl")
    source, result = weights.read(GOLDEN / "weights" / name), weights.read(written)
    assert source.keys() == result.keys() and all((source[key] == result[key]).all() for key in source)
    assert weights.sha256(written) in done.stdout and "32 px in patches of 16" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [written.name]


def test_a_mistake_is_one_line_and_leaves_the_old_file(run, tmp_path):
    (tmp_path / "broken.pt").write_bytes((GOLDEN / "weights" / "release.pt").read_bytes()[:-1])
    (tmp_path / "out.pkl").write_text("old")
    for source in ("broken.pt", "absent.pt", "RN51"):
        done = run("convert_weights.py", source, "-o", "out.pkl", cwd=tmp_path, check=False)
        assert (
            done.returncode == 1
            and done.stderr.count("\n") == 1
            and done.stderr.startswith("error: ")
            and source in done.stderr
        )
    assert (tmp_path / "out.pkl").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_a_source_is_not_written_over_unless_named(run, tmp_path):
    content = (GOLDEN / "weights" / "jclip.pkl").read_bytes()
    (tmp_path / "model.pkl").write_bytes(content)
    for source in ("model.pkl", tmp_path / "model.pkl"):
        done = run("convert_weights.py", source, cwd=tmp_path, check=False)
        assert done.returncode == 1 and "name another file with -o" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "model.pkl").read_bytes() == content and len(list(tmp_path.iterdir())) == 1
    source = weights.read(tmp_path / "model.pkl")
    run("convert_weights.py", "model.pkl", "-o", "model.pkl", cwd=tmp_path)
    result = weights.read(tmp_path / "model.pkl")
    assert all((source[key] == result[key]).all() and result[key].dtype == "float32" for key in source)


def test_an_output_that_cannot_be_written_is_one_line(run, tmp_path):
    done = run(
        "convert_weights.py", GOLDEN / "weights" / "release.pt", "-o", "no/such/folder.pkl", cwd=tmp_path, check=False
    )
    assert done.returncode == 1 and "no/such" in done.stderr and done.stderr.count("\n") == 1


def test_wrong_arguments_end_with_2(run, tmp_path):
    assert run("convert_weights.py", cwd=tmp_path, check=False).returncode == 2
