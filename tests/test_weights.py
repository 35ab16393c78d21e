"""Weights are read in every format, hostile and damaged files are refused.

The files were written by the programs that people use for each format (golden/record_weights.py).
"""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import GOLDEN, PROJECT

import jclip
from jclip import weights
from jclip.architecture import Architecture, architecture_of, expected_shapes
from jclip.weights import formats, unpickle

FILES = GOLDEN / "weights"
FORMATS = [
    "release.pt",
    "nested.pth",
    "legacy.pt",
    "bfloat16.pt",
    "hugging_face.safetensors",
    "open_clip.safetensors",
    "jclip.pkl",
    "expected.npz",
]


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(FILES / "expected.npz"))


def write_npz(path, state):
    with open(path, "wb") as file:
        np.savez(file, **state)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_as_the_same_weights(name, expected):
    state = weights.read(FILES / name)
    assert set(state) == set(expected)
    for tensor, value in expected.items():
        exact = value.astype(np.float32)
        if name == "bfloat16.pt":
            np.testing.assert_allclose(state[tensor], exact, rtol=2**-8, err_msg=tensor)
        else:
            np.testing.assert_array_equal(state[tensor], exact, err_msg=tensor)


def test_the_release_keeps_its_float16(expected):
    state = weights.read(FILES / "release.pt")
    assert {name: value.dtype for name, value in state.items()} == {
        name: value.dtype for name, value in expected.items()
    }


def test_the_format_is_recognised_by_content_not_by_suffix(tmp_path, expected):
    for name in FORMATS:
        (tmp_path / "weights.bin").write_bytes((FILES / name).read_bytes())
        assert set(weights.read(tmp_path / "weights.bin")) == set(expected)


def test_sizes_are_read_from_the_weights():
    a = architecture_of(weights.read(FILES / "release.pt"))
    assert a == Architecture(
        embed_dim=24,
        image_resolution=32,
        patch_size=16,
        vision_width=64,
        vision_layers=1,
        vision_heads=1,
        context_length=8,
        vocab_size=40,
        text_width=64,
        text_layers=1,
        text_heads=1,
    )


# name -> parameters, counted by OpenAI's own build_model in PyTorch
@pytest.mark.parametrize(
    "sizes, parameters",
    [
        ((512, 224, 32, 768, 12, 12, 77, 49408, 512, 12, 8), 151277313),  # ViT-B/32
        ((512, 224, 16, 768, 12, 12, 77, 49408, 512, 12, 8), 149620737),  # ViT-B/16
        ((768, 224, 14, 1024, 24, 16, 77, 49408, 768, 12, 12), 427616513),  # ViT-L/14
        ((768, 336, 14, 1024, 24, 16, 77, 49408, 768, 12, 12), 427944193),  # ViT-L/14@336px
    ],
)
def test_all_official_vision_transformers_have_their_shapes(sizes, parameters):
    a = Architecture(*sizes)
    shapes = expected_shapes(a)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters
    assert architecture_of({name: np.broadcast_to(np.float16(0), shape) for name, shape in shapes.items()}) == a


def test_what_is_written_reads_back_here_and_in_jittor(tmp_path, expected):
    with open(tmp_path / "w.pkl", "wb") as file:
        weights.write(expected, file)
    for name, value in weights.read(tmp_path / "w.pkl").items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[name])
    code = """
import sys, numpy as np
from jclip import runtime, weights
runtime.use("cpu")
jt = runtime.jittor()
loaded = jt.load(sys.argv[1] + "/w.pkl")
jt.save({name: jt.array(value) for name, value in loaded.items()}, sys.argv[1] + "/vars.pkl")
ours, theirs = weights.read(sys.argv[1] + "/w.pkl"), weights.read(sys.argv[1] + "/vars.pkl")
assert ours.keys() == theirs.keys() == loaded.keys()
assert all((ours[name] == theirs[name]).all() and ours[name].shape == theirs[name].shape for name in ours)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda s: s.pop("visual.ln_pre.bias"), "missing: visual.ln_pre.bias"),
        (lambda s: s.pop("visual.proj"), "missing: visual.proj"),
        (lambda s: s.pop("text_projection"), "text_projection is missing"),
        (lambda s: s.update(logit_bias=np.float32(0)), "extra: logit_bias"),
        (
            lambda s: s.update({"ln_final.weight": np.ones(63, np.float32)}),
            r"misshapen: ln_final.weight \(63,\), expected \(64,\)",
        ),
        (
            lambda s: s.update({"ln_final.weight": np.ones(64, np.int64)}),
            r"not floating point: ln_final.weight \(int64\)",
        ),
        (lambda s: s["visual.proj"].__setitem__((3, 3), np.nan), "NaN or infinite: visual.proj"),
        (lambda s: s["positional_embedding"].__setitem__((0, 0), -np.inf), "NaN or infinite: positional_embedding"),
        (lambda s: [s.pop(name) for name in list(s) if ".mlp." in name], "missing: .*mlp.* and "),
    ],
)
def test_wrong_tensors_are_listed(tmp_path, expected, damage, message):
    state = {name: value.copy() for name, value in expected.items()}
    damage(state)
    if message.endswith("and "):
        state.update({f"visual.transformer.resblocks.{i}.ln_1.weight": np.ones(64, np.float16) for i in range(1, 5)})
    with pytest.raises(jclip.ClipError, match=message) as raised:
        weights.read(write_npz(tmp_path / "w.npz", state))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 2000


HUGGING_FACE, OPEN_CLIP = "config.json", "open_clip_config.json"
GELU = {HUGGING_FACE: '{"vision_config": {"hidden_act": "gelu"}}', OPEN_CLIP: '{"model_cfg": {"embed_dim": 24}}'}


@pytest.fixture
def weights_beside_config(tmp_path):
    """weights_beside_config(name, config, content): copy FILES / content to `name`, with config files in its folder."""

    def weights_beside_config(name, config, content):
        if (name, content) == ("pytorch_model.bin", "hugging_face.safetensors"):
            # Hugging Face's names in the older format
            (tmp_path / name).write_bytes(pickle.dumps(formats._safetensors(FILES / content), 2))
        else:
            (tmp_path / name).write_bytes((FILES / content).read_bytes())
        weights.read(tmp_path / name)
        for name_of_config, message in config.items():
            (tmp_path / name_of_config).write_text(message)
        return tmp_path / name

    return weights_beside_config


@pytest.mark.parametrize(
    "name, content",
    [
        ("model.safetensors", "hugging_face.safetensors"),
        ("pytorch_model.bin", "hugging_face.safetensors"),
        ("model.pkl", "hugging_face.safetensors"),
    ],
)
@pytest.mark.parametrize(
    "config, expected",
    [
        ({HUGGING_FACE: GELU[HUGGING_FACE]}, {"activation": "gelu"}),
        (
            {HUGGING_FACE: '{"text_config": {"hidden_size": 64, "hidden_act": "gelu"}}'},
            {"activation": "gelu", "text_heads": 8},  # Hugging Face's default
        ),
        ({HUGGING_FACE: '{"vision_config": {"hidden_size": 64, "num_attention_heads": 4}}'}, {"vision_heads": 4}),
        ({OPEN_CLIP: GELU[OPEN_CLIP]}, {"activation": "gelu"}),
        (GELU, {"activation": "gelu"}),
    ],
)
def test_a_config_says_activation_and_heads(weights_beside_config, name, content, config, expected):
    assert weights.read_model(weights_beside_config(name, config, content))[1].differences() == expected


@pytest.mark.parametrize(
    "name, content",
    [
        ("open_clip_pytorch_model.bin", "nested.pth"),
        ("open_clip_pytorch_model.bin", "legacy.pt"),
        ("open_clip_model.safetensors", "open_clip.safetensors"),
    ],
)
@pytest.mark.parametrize(
    "config, expected",
    [
        ('{"model_cfg": {"vision_cfg": {"width": 64, "layers": 1}}}', {"activation": "gelu"}),
        ('{"model_cfg": {}}', {"activation": "gelu"}),
        ('{"model_cfg": {"quick_gelu": true, "vision_cfg": {"head_width": 32}}}', {"vision_heads": 2}),
        ('{"model_cfg": {"quick_gelu": true, "text_cfg": {"width": 64, "heads": 2}}}', {"text_heads": 2}),
    ],
)
def test_open_clips_config_says_activation_and_heads(weights_beside_config, name, content, config, expected):
    path = weights_beside_config(name, {OPEN_CLIP: config}, content)
    assert weights.read_model(path)[1].differences() == expected


@pytest.mark.parametrize(
    "name, content, config",
    [
        ("ViT-B-32.pkl", "jclip.pkl", GELU),  # in a folder with others' files
        ("ViT-B-32.npz", "expected.npz", GELU),
        ("ViT-B-32.pt", "release.pt", GELU),
        (
            "model.safetensors",
            "hugging_face.safetensors",
            {HUGGING_FACE: '{"vision_config": {"hidden_size": 1280, "num_attention_heads": 16, "hidden_act": "gelu"}}'},
        ),
        ("model.pth", "nested.pth", {OPEN_CLIP: '{"model_cfg": {"vision_cfg": {"layers": 32}}}'}),
        ("model.pth", "nested.pth", {OPEN_CLIP: '{"model_cfg": {"vision_cfg": {"patch_size": 14}}}'}),
        (
            "model.safetensors",
            "open_clip.safetensors",
            {
                OPEN_CLIP: '{"model_cfg": {"quick_gelu": true, "vision_cfg": {"width": 64}, "text_cfg": {"width": 64, '
                '"heads": 1}}}'
            },
        ),
        (
            "model.safetensors",
            "hugging_face.safetensors",
            {
                HUGGING_FACE: '{"vision_config": {"hidden_act": "quick_gelu", "hidden_size": 64, '
                '"num_attention_heads": 1}}'
            },
        ),
        (
            "model.safetensors",
            "hugging_face.safetensors",
            {HUGGING_FACE: '{"vision_config": [], "model_cfg": 1}', OPEN_CLIP: "not JSON"},
        ),
        ("model.safetensors", "hugging_face.safetensors", {HUGGING_FACE: "[1]"}),
    ],
)
def test_a_config_of_other_weights_or_of_the_same_model_is_accepted(weights_beside_config, name, content, config):
    assert set(weights.read(weights_beside_config(name, config, content))) == set(np.load(FILES / "expected.npz"))


def remarks(caplog, path):
    """Return the messages about the activation that reading a file logs."""
    caplog.clear()
    with caplog.at_level("INFO"):
        weights.read(path)
    return [record.getMessage() for record in caplog.records if "QuickGELU" in record.getMessage()]


@pytest.mark.parametrize(
    "name, content, config",
    [
        ("vit_b_32-laion2b_e16.pt", "nested.pth", {}),
        ("model.safetensors", "hugging_face.safetensors", {}),
        ("open_clip_model.safetensors", "open_clip.safetensors", {}),
        ("model.pkl", "hugging_face.safetensors", {}),  # Hugging Face's names, whatever the suffix
        # a config of other weights
        ("model.safetensors", "hugging_face.safetensors", {HUGGING_FACE: '{"vision_config": {"hidden_size": 1280}}'}),
        ("model.safetensors", "hugging_face.safetensors", {HUGGING_FACE: "not JSON"}),
        ("model.safetensors", "hugging_face.safetensors", {HUGGING_FACE: '{"lr": 0.1, "width": 64}'}),
    ],
)
def test_weights_whose_activation_is_not_known_get_one_remark(tmp_path, caplog, name, content, config):
    (tmp_path / name).write_bytes((FILES / content).read_bytes())
    for name_of_config, text in config.items():
        (tmp_path / name_of_config).write_text(text)
    (remark,) = remarks(caplog, tmp_path / name)
    assert str(tmp_path / name) in remark and "\n" not in remark
    assert "QuickGELU is assumed" in remark and "open_clip" in remark and "plain GELU" in remark


@pytest.mark.parametrize(
    "name, content, config",
    [
        ("ViT-B-32.pt", "release.pt", {}),
        ("ViT-B-32.pkl", "jclip.pkl", {}),
        ("clip.npz", "expected.npz", {}),
        ("model.safetensors", "hugging_face.safetensors", {HUGGING_FACE: '{"vision_config": {"hidden_size": 64}}'}),
        (
            "open_clip_model.safetensors",
            "open_clip.safetensors",
            {OPEN_CLIP: '{"model_cfg": {"quick_gelu": true, "text_cfg": {"width": 64, "heads": 1}}}'},
        ),
    ],
)
def test_other_weights_get_no_remark(tmp_path, caplog, name, content, config):
    (tmp_path / name).write_bytes((FILES / content).read_bytes())
    for name_of_config, text in config.items():
        (tmp_path / name_of_config).write_text(text)
    assert remarks(caplog, tmp_path / name) == []
    assert remarks(caplog, PROJECT / "demo/clip.npz") == []


class Call:
    """An object that is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile(tmp_path):
    touch = f"touch {tmp_path / 'harm'}"
    return {
        "system": Call(os.system, touch),
        "popen": Call(subprocess.Popen, ["sh", "-c", touch]),
        "eval": Call(eval, f"__import__('os').system({touch!r})"),
        "getattr": Call(getattr, "", "join"),
        "open": Call(open, str(tmp_path / "harm"), "w"),
    }


@pytest.mark.parametrize("attack", ["system", "popen", "eval", "getattr", "open"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_pickle_is_refused_before_it_acts(tmp_path, attack, protocol):
    content = pickle.dumps({"visual.proj": hostile(tmp_path)[attack]}, protocol)
    (tmp_path / "w.pkl").write_bytes(content + hashlib.sha1(content).digest() + unpickle.JITTOR_MAGIC)
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    for name in ("w.pkl", "w.pt"):
        with pytest.raises(jclip.ClipError) as raised:
            weights.read(tmp_path / name)
        # protocol 0 has no magic number, so a .pkl in it is in no known format
        assert "refused, nothing was run" in str(raised.value) or (protocol == 0 and name == "w.pkl")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "module, name",
    [
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.storage", "os.system"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("collections", "namedtuple"),
        ("__torch__x", "y"),
        ("jittor", "load"),
        ("builtins", "bytearray"),
    ],
)
def test_names_that_are_not_allowed_are_refused(module, name):
    content = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b")R."
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        unpickle.read_pickle(io.BytesIO(content))


def test_a_pickle_cannot_change_our_functions():
    for state in (b"}U\x08__call__K\x01s", b"N}U\x0c__defaults__)s\x86"):  # a state, and a state of slots
        with pytest.raises(unpickle.DAMAGE):
            unpickle.read_pickle(io.BytesIO(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b."))
    assert set(weights.read(FILES / "release.pt"))


@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (0, (5,), (1,)),
        (4, (1,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (0, (4,), (-1,)),
        (0, (10**9,), (0,)),
        (0, (2,), ()),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(offset, size, stride):
    with pytest.raises(pickle.UnpicklingError, match="beyond its storage"):
        unpickle._tensor(np.arange(4.0), offset, size, stride)


def test_a_strided_tensor_is_read_as_in_torch():
    np.testing.assert_array_equal(unpickle._tensor(np.arange(10.0), 1, (2, 3), (1, 2)), [[1, 3, 5], [2, 4, 6]])


def test_safetensors_are_not_taken_for_a_pickle(tmp_path, expected):
    """The first byte of both may be 0x80: that of a pickle always, that of safetensors by the header's length."""
    content = (FILES / "open_clip.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    padded = content[8 : 8 + length] + b" " * (-(length - 0x80) % 256)
    (tmp_path / "w.safetensors").write_bytes(len(padded).to_bytes(8, "little") + padded + content[8 + length :])
    assert (tmp_path / "w.safetensors").read_bytes()[:1] == b"\x80"
    assert set(weights.read(tmp_path / "w.safetensors")) == set(expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_one_clear_error(tmp_path, name):
    whole = (FILES / name).read_bytes()
    for kept in (0, 1, 9, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:kept])
        with pytest.raises(jclip.ClipError) as raised:
            weights.read(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_mutated_file_never_ends_in_anything_but_weights_or_a_clear_error(tmp_path, name):
    whole, rng = (FILES / name).read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        for position in rng.integers(0, min(len(whole), 4000), 3):  # the structure of the file; the rest is numbers
            content[position] = rng.integers(256)
        (tmp_path / name).write_bytes(content)
        try:
            weights.read(tmp_path / name)
        except jclip.ClipError:
            pass


def test_a_missing_file_says_how_to_make_one():
    with pytest.raises(jclip.ClipError, match="no weights at nowhere.pkl; .*convert_weights.py"):
        jclip.load("nowhere.pkl")
