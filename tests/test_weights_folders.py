"""Folders of Hugging Face and shards are read as weights, and what is no weights is called what it is."""

import hashlib
import json
import pickle
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
from conftest import GOLDEN, draw
from safetensors.numpy import load_file, save_file

import jclip
from jclip import weights

FILES = GOLDEN / "weights"
CONFIG = {"model_type": "clip", "vision_config": {"hidden_size": 64, "patch_size": 16}, "text_config": {}}


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(FILES / "expected.npz"))


@pytest.fixture(scope="module")
def state():
    """The tensors by the names of Hugging Face."""
    return load_file(FILES / "hugging_face.safetensors")


def save(path, state):
    """Write safetensors, or what torch.save writes in its older form, by the suffix."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        path.write_bytes(pickle.dumps(state, 2))


def shard(folder, state, parts=3, kind="model.safetensors"):
    """Write the shards of a folder and their index; return the paths of the shards."""
    stem, suffix = kind.split(".")
    names = [f"{stem}-{i + 1:05}-of-{parts:05}.{suffix}" for i in range(parts)]
    shard_of = {name: names[i % parts] for i, name in enumerate(sorted(state))}
    for name in names:
        save(folder / name, {tensor: value for tensor, value in state.items() if shard_of[tensor] == name})
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard_of}))
    return [folder / name for name in names]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "clip-vit"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "README.md").write_text("text")
    return folder


def check(path, expected):
    actual = weights.read(path)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value.astype(np.float32), err_msg=name)


def file_sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_one_file_is_that_file(folder, state, expected, kind, caplog):
    caplog.set_level("INFO")
    save(folder / kind, state)
    for path in (folder, folder / kind, str(folder)):
        check(path, expected)
        assert weights.sha256(path) == file_sha256(folder / kind)
    assert jclip.load(folder, "cpu")[1].resolution == 32
    assert not [record for record in caplog.records if "activation" in record.message]


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_read_together_and_their_sha256_is_that_of_sha256sum(folder, state, expected, kind):
    paths = shard(folder, state, 3, kind)
    for path in (folder, folder / f"{kind}.index.json"):
        check(path, expected)
        printed = subprocess.run(
            "LC_ALL=C; sha256sum *-of-* | sha256sum", shell=True, cwd=folder, capture_output=True, text=True
        )
        assert weights.sha256(path) == printed.stdout.split()[0]
    before = weights.sha256(folder)
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"\x01")
    assert weights.sha256(folder) != before


def test_which_file_of_a_folder_is_read(folder, state, expected):
    """The same order as Hugging Face's: safetensors first, a whole file before shards."""
    wrong = {name: value * 0 for name, value in state.items()}
    save(folder / "other.safetensors", state)
    check(folder, expected)  # the only one, whatever its name
    shard(folder, wrong, 2, "pytorch_model.bin")
    save(folder / "pytorch_model.bin", state)
    check(folder, expected)
    shard(folder, state, 2, "model.safetensors")
    save(folder / "pytorch_model.bin", wrong)
    check(folder, expected)


def test_folders_of_open_clip_and_of_hugging_faces_cache(tmp_path, folder, state, expected):
    save(folder / "model.safetensors", state)
    cache = tmp_path / "models--openai--clip"
    shutil.copytree(folder, cache / "snapshots/0123abcd")
    check(cache, expected)
    shutil.rmtree(folder)
    folder.mkdir()
    shutil.copy(FILES / "open_clip.safetensors", folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        '{"model_cfg": {"quick_gelu": true, "text_cfg": {"width": 64, "heads": 1}}}'
    )
    check(folder, expected)
    shard(folder, load_file(FILES / "open_clip.safetensors"), 2, "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    check(folder, expected)


def test_the_cache_of_the_hub_is_read_at_refs_main(tmp_path, folder, state, expected):
    """Snapshots hold links to blobs, as huggingface_hub makes them; a config is beside the link, not the blob."""
    cache = tmp_path / "models--laion--clip"
    save(folder / "model.safetensors", state)
    for number, name in enumerate(("aaa111", "bbb222")):
        snapshot, blobs = cache / "snapshots" / name, cache / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir(exist_ok=True)
        shutil.copy(folder / "model.safetensors", blobs / f"{number}")
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/{number}")
        acts = {"hidden_act": ["quick_gelu", "gelu"][number]}
        (snapshot / "config.json").write_text(json.dumps({"vision_config": acts, "text_config": acts}))
    with pytest.raises(jclip.ClipError, match="2 snapshots, and refs/main names none.*aaa111, bbb222"):
        weights.read(cache)
    (cache / "refs").mkdir()
    for name, activation in (("aaa111", "quickgelu"), ("bbb222", "gelu")):
        (cache / "refs/main").write_text(name)
        check(cache, expected)
        assert weights.read_model(cache)[1].activation == activation
        assert weights.sha256(cache) == file_sha256(cache / "snapshots" / name / "model.safetensors")
    (cache / "refs/main").write_text("../../clip-vit\n")
    with pytest.raises(jclip.ClipError, match="refs/main names none"):
        weights.read(cache)
    (cache / "refs/main").write_text("bbb222\n")
    (cache / "blobs/1").unlink()
    with pytest.raises(jclip.ClipError, match="bbb222/model.safetensors: a link to a file that does not exist"):
        weights.read(cache)


def test_shards_with_a_config_of_plain_gelu(folder, state):
    shard(folder, state)
    (folder / "config.json").write_text('{"vision_config": {"hidden_act": "gelu"}}')
    assert weights.read_model(folder)[1].activation == "gelu"


def damage_index(change):
    def damage(paths):
        index = paths[0].with_name("model.safetensors.index.json")
        index.write_text(change(index.read_text()))

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda paths: paths[1].unlink(), "lists 'model-00002-of-00003.safetensors', which is no file beside it"),
        (
            lambda paths: paths[1].write_bytes(paths[1].read_bytes()[:-5]),
            "model-00002-of-00003.safetensors: .*cut short",
        ),
        (lambda paths: paths[1].write_bytes(b""), "model-00002-of-00003.safetensors: an empty file"),
        (
            lambda paths: paths[1].write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n"),
            "model-00002-of-00003.safetensors: a Git LFS pointer",
        ),
        (
            lambda paths: paths[1].write_bytes(paths[0].read_bytes()),
            "model-00002.*: lacks .*, which model.*says it has",
        ),
        (damage_index(lambda text: text[:-9]), "index.json: no index of the parts"),
        (damage_index(lambda text: "[]"), "index.json: no index of the parts"),
        (damage_index(lambda text: '{"weight_map": {}}'), "index.json: no index of the parts"),
        (damage_index(lambda text: '{"weight_map": {"a": 1}}'), "index.json: no index of the parts"),
        (damage_index(lambda text: text.replace("model-00001", "../x/model-00001")), "no file beside it"),
        (damage_index(lambda text: text.replace("model-00001-of-00003.safetensors", "")), "no file beside it"),
        (damage_index(lambda text: text.replace("model-00001-of-00003.safetensors", "..")), "no file beside it"),
    ],
)
def test_damaged_shards_are_one_clear_error(folder, state, damage, message):
    damage(shard(folder, state))
    with pytest.raises(jclip.ClipError, match=message) as raised:
        weights.read(folder)
    assert "\n" not in str(raised.value) and "clip-vit" in str(raised.value)


def test_a_folder_without_weights_and_one_shard_say_what_to_give(folder, state):
    for read in (weights.read, weights.sha256, lambda path: jclip.load(path, "cpu")):
        with pytest.raises(jclip.ClipError, match="a folder without model.safetensors.* in it: none; give a file"):
            read(folder)
    paths = shard(folder, state)
    with pytest.raises(jclip.ClipError, match="one of 3 parts of the weights; give the folder"):
        weights.read(paths[0])
    paths[0].with_name("model.safetensors.index.json").unlink()
    with pytest.raises(jclip.ClipError, match="in it: model-00001-of-00003.safetensors, .*give one of them"):
        weights.read(folder)


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return path.read_bytes()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:a63082132ba4f97a80bea76823f5\nsize 605247071\n"
WHOLE = {
    name: (FILES / name).read_bytes() for name in ("release.pt", "hugging_face.safetensors", "jclip.pkl", "legacy.pt")
}
FOREIGN = {  # what it is -> content, message
    "a Git LFS pointer": (LFS.encode(), "a Git LFS pointer to weights of 605247071 bytes.*run git lfs pull"),
    "one with other line ends": (LFS.replace("\n", "\r\n").encode(), "a Git LFS pointer to weights of 605247071"),
    "an HTML page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "an HTML page, such as a login"),
    "HTML with a BOM": (b"\xef\xbb\xbf\r\n  <HTML lang=en>", "an HTML page"),
    "HTML in UTF-16": ("\ufeff<!doctype HTML><html>".encode("utf-16-le"), "an HTML page"),
    "XHTML": (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C">', "an HTML page"),
    "HTML after a comment": (b"<!-- saved -->\n<html>", "an HTML page"),
    "HTML of a Chinese site": ("<html><title>百度网盘 请输入提取码</title>".encode("gbk"), "an HTML page"),
    "a server's error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML text"),
    "JSON": (b'{"error": "Repository not found"}', "JSON text"),
    "text": (b"Not Found", "a text file, which begins 'Not Found'"),
    "an empty file": (b"", "an empty file; download it again"),
    "zeros": (bytes(5000), "begins with zeros"),
    "a truncated zip": (WHOLE["release.pt"][:-100], "cut short: the end of its archive is missing"),
    "half a zip": (WHOLE["release.pt"][: len(WHOLE["release.pt"]) // 2], "cut short: the end of its archive"),
    "truncated safetensors": (WHOLE["hugging_face.safetensors"][:-100], "cut short"),
    "a truncated pickle": (WHOLE["jclip.pkl"][:-1000], "cut short"),
    "a truncated old file": (WHOLE["legacy.pt"][:-1000], "cut short|a storage"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "a gzip archive; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive; unpack it"),
    "RAR": (b"Rar!\x1a\x07" + bytes(100), "a RAR archive; unpack it"),
    "tar": (b"w.pt".ljust(257, b"\0") + b"ustar\x0000" + bytes(500), "a tar archive; unpack it"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, as TensorFlow"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG picture"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("name", ["ViT-B-32.pt", "model.safetensors"])
def test_what_is_no_weights_is_called_what_it_is(tmp_path, what, name):
    content, message = FOREIGN[what]
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(jclip.ClipError, match=message) as raised:
            weights.read(path)
        assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_a_zip_of_something_else_lists_what_is_in_it(tmp_path):
    zipped(tmp_path / "w.pt", a_jpg=b"x", b_jpg=b"x", c_jpg=b"x", d_jpg=b"x")
    with pytest.raises(jclip.ClipError, match=r"a zip archive of other files \(a.jpg, b.jpg, c.jpg, …\)"):
        weights.read(tmp_path / "w.pt")
    zipped(tmp_path / "w.pt", model_pt=WHOLE["release.pt"])
    with pytest.raises(jclip.ClipError, match=r"other files \(model.pt\); if the weights are in it, unpack it"):
        weights.read(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".crdownload", ".part", ".download", ".incomplete"])
def test_an_unfinished_download_is_called_that(tmp_path, suffix):
    path = tmp_path / f"ViT-B-32.pt{suffix}"
    path.write_bytes(WHOLE["release.pt"][:-100])
    with pytest.raises(jclip.ClipError, match=rf"an unfinished download \({suffix}\); let it finish"):
        weights.read(path)
    for read in (weights.read, lambda path: jclip.load(path, "cpu")):
        with pytest.raises(
            jclip.ClipError, match=rf"no weights at .*ViT-B-32.pt; .*{suffix} is an unfinished download"
        ):
            read(tmp_path / "ViT-B-32.pt")


def test_the_commands_read_a_folder_and_know_its_weights(run, tmp_path, state):
    """Features know their weights by the SHA-256; without a change, nothing is encoded a second time."""
    folder, moved = tmp_path / "clip.v1", tmp_path / "moved"
    folder.mkdir()
    full = {name: value for name, value in state.items() if "position_ids" not in name}
    rng = np.random.default_rng(0)
    full["text_model.embeddings.token_embedding.weight"] = rng.normal(size=(49408, 64)).astype(np.float16)
    full["text_model.embeddings.position_embedding.weight"] = rng.normal(size=(77, 64)).astype(np.float16)
    for name, value in full.items():
        full[name] = np.asarray(rng.normal(size=value.shape) * 0.2, np.float16)
    shard(folder, full)
    for label in range(2):
        for i in range(3):
            draw(tmp_path / f"data/train/{'ab'[label]}/{i}.jpg", label, i)
        draw(tmp_path / f"data/test/{label}.jpg", label, 9)
    arguments = ("--data", "data", "--views", "plain", "--device", "cpu")
    first = run("extract_feature.py", "--weights", "clip.v1", *arguments, cwd=tmp_path)
    assert first.stderr.count("OpenAI's QuickGELU is assumed") == 1
    meta = json.loads(str(np.load(tmp_path / "output/support.npz")["meta"]))
    assert meta["weights_sha256"] == weights.sha256(folder)
    folder.rename(moved)
    second = run("extract_feature.py", "--weights", "moved", *arguments, cwd=tmp_path)
    assert "encoded 0, kept" in second.stdout
    run("convert_weights.py", "moved", cwd=tmp_path)
    assert weights.read(tmp_path / "moved.pkl").keys() == weights.read(moved).keys()
    moved.rename(folder)
    run("convert_weights.py", "clip.v1/", cwd=tmp_path)
    assert (tmp_path / "clip.v1.pkl").is_file()
    done = run("convert_weights.py", "data", cwd=tmp_path, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
