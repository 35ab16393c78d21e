"""Checkpoints as training programs save them: the CLIP in them is found, and nothing beside it is run or needed.

The files are pickles of numpy arrays, which are read like those of torch tensors; names of torch and other libraries in
them are made without the libraries.
"""

import argparse
import collections
import datetime
import logging
import pathlib
import pickle
import random
import sys
import types

import numpy as np
import pytest
from conftest import GOLDEN

import jclip
from jclip import weights


@pytest.fixture(scope="module")
def state():
    return dict(np.load(GOLDEN / "weights/expected.npz"))


def save(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def doubled(state):
    return {name: value * 2 for name, value in state.items()}


def check(path, expected):
    actual = weights.read(path)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


OPTIMIZER = {
    "state": {0: {"step": np.float32(3), "exp_avg": np.ones((3, 3), np.float32)}},
    "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "fused": None, "params": [0, 1]}],
}
WRAPPINGS = {
    "bare": lambda s: s,
    "a tensor beside": lambda s: {"state_dict": s, "best": np.ones(3, np.float32)},
    "a number of numpy's beside": lambda s: {
        "state_dict": s,
        "best_acc": np.float64(0.5),
        "epoch": np.int64(3),
        "done": np.bool_(True),
        "name": np.str_("ViT"),
    },
    "more tensors beside than in it": lambda s: {"state_dict": s, **{f"t{i}": np.ones(2) for i in range(300)}},
    "open_clip": lambda s: {
        "epoch": 3,
        "name": "run",
        "state_dict": under("module.", s),
        "optimizer": OPTIMIZER,
        "scaler": {},
    },
    "open_clip with a text tower of its own": lambda s: {
        "state_dict": {
            f"module.{'' if name.startswith(('visual.', 'logit_scale')) else 'text.'}{name}": value
            for name, value in s.items()
        }
    },
    "PyTorch Lightning": lambda s: {
        "epoch": 3,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": under("model.", s),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": np.float32(1), "best_k_models": {"a": np.float32(1)}}},
        "optimizer_states": [OPTIMIZER],
        "lr_schedulers": [{"milestones": collections.Counter([3, 4]), "_last_lr": [0.1]}],
    },
    "generators of random numbers": lambda s: {
        "model": s,
        "rng": (random.getstate(), np.random.get_state(), np.random.RandomState(0), np.random.default_rng(0)),
    },
    **{
        f"names under {prefix}": lambda s, prefix=prefix: under(prefix, s)
        for prefix in ("module.", "model.", "clip.", "_orig_mod.", "module.model.", "_orig_mod.module.", "a.b.c.d.")
    },
    **{
        f"under the key {key}": lambda s, key=key: {"epoch": 1, key: under("module.", s)}
        for key in ("state_dict_ema", "network", "params", "weights", "model_state_dict", "ema", "net", "clip_model")
    },
    "nested three times": lambda s: {"checkpoint": {"model": {"state_dict": s}}, "version": 1},
    "a list": lambda s: [s, OPTIMIZER, 3],
    "a tuple": lambda s: (3, s),
    "an ordered and a default dict": lambda s: collections.OrderedDict(
        state_dict=collections.defaultdict(list, under("module.", s))
    ),
    "one tower compiled": lambda s: {name.replace("visual.", "visual._orig_mod."): value for name, value in s.items()},
    "numbers and text among the tensors": lambda s: {
        **s,
        "epoch": 3,
        "step": np.int64(7),
        "arch": "ViT-B/32",
        "args": {"lr": 1},
        "done": None,
    },
    "sizes as in OpenAI's archives": lambda s: {**s, "input_resolution": np.int64(32), "vocab_size": np.int64(40)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_clip_in_a_checkpoint_is_read(tmp_path, state, wrapping):
    content = WRAPPINGS[wrapping](state)
    for protocol in (2, 4):
        check(save(tmp_path / "w.pth", content, protocol), state)


OPTIONS = {
    "lr": 0.1,
    "out": pathlib.PurePosixPath("a/b"),
    "when": datetime.datetime(2020, 1, 1),
    "set": {1, 2},
    "frozen": frozenset([1]),
    "float": np.float64(3),
    "dtype": np.dtype("f4"),
    "type": int,
    "objects": np.array([None, "a"], object),
    "texts": np.array(["a"]),
    "days": np.array(["2020-01-01"], "M8[D]"),
    "complex": 1 + 2j,
    "deque": collections.deque([1, 2]),
    "counter": collections.Counter("abc"),
    "space": types.SimpleNamespace(a=1),
    "range": range(3),
    "bytes": b"abc",
    "none": None,
}


@pytest.fixture
def torch_named(monkeypatch):
    """torch_named("torch", "float16"): what is pickled as the name torch.float16, or with more arguments as a call.

    The module need not exist.
    """

    def torch_named(module, name, *arguments):
        made = type(name, (), {"__module__": module, "__qualname__": name})
        for end in range(1, module.count(".") + 2):
            parent = ".".join(module.split(".")[:end])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setattr(sys.modules[module], name, made, raising=False)
        if not arguments:
            return made
        made.__reduce__ = lambda self: (made, arguments)
        return made()

    return torch_named


@pytest.mark.parametrize("option", OPTIONS)
def test_options_beside_the_weights_are_no_obstacle(tmp_path, state, option):
    content = {"model": state, "args": argparse.Namespace(**{option: OPTIONS[option]}), option: OPTIONS[option]}
    for protocol in (2, 4):
        check(save(tmp_path / "w.pth", content, protocol), state)


@pytest.mark.parametrize(
    "named",
    [
        ("torch", "float16"),
        ("torch", "bfloat16"),
        ("torch", "Size", (1, 2)),
        ("torch", "device", "cuda", 0),
        ("torch.torch_version", "TorchVersion", "2.1"),
        ("omegaconf.dictconfig", "DictConfig", {"a": 1}),
        ("pytorch_lightning.trainer.states", "RunningStage", "train"),
        ("pathlib._of_another_python", "PosixPath", "a", "b"),  # as pathlib._local of 3.13
    ],
)
def test_names_of_torch_and_others_beside_the_weights_are_no_obstacle(tmp_path, state, torch_named, named):
    value = torch_named(*named)
    check(save(tmp_path / "w.pth", {"state_dict": state, "hyper_parameters": {"x": value, "y": [value]}}), state)


def test_weights_in_a_lightning_attribute_dict(tmp_path, state, torch_named):
    made = torch_named("lightning.fabric.utilities.data", "AttributeDict")
    kind = type(made.__name__, (dict,), {"__module__": made.__module__})
    sys.modules[made.__module__].AttributeDict = kind
    check(save(tmp_path / "w.pth", kind(state_dict=state)), state)


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda s: {"state_dict": s, "state_dict_ema": doubled(s)}, "2 CLIPs in it, under state_dict, state_dict_ema"),
        (lambda s: {"state_dict_ema": doubled(s), "state_dict": s}, "2 CLIPs in it, under state_dict, state_dict_ema"),
        (lambda s: {"model": s, "optimizer": {"exp_avg": doubled(s)}}, "under model, optimizer.exp_avg"),
        (
            lambda s: {**under("ema_model.", doubled(s)), **under("model.", s)},
            "tensors under 'model' are read; 38 others are not: ema_model.",
        ),
        (lambda s: {**under("model.", s), "head.weight": np.ones((2, 2))}, "1 other is not: head.weight"),
        (lambda s: {**under("module.", s), "queue": np.ones(3)}, "1 other is not: queue"),
    ],
)
def test_what_is_left_out_is_said_once(tmp_path, state, caplog, content, message):
    path = save(tmp_path / "w.pkl", content(state))
    with caplog.at_level(logging.INFO):
        check(path, state)
    (record,) = caplog.records
    assert str(path) in record.message and message in record.message


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda s: {**under("a.", s), **under("b.", s)}, r"several CLIPs, under a\., b\.; save the state dict of one"),
        (lambda s: {**s, "adapter.weight": np.ones(3)}, "not the weights of one CLIP; extra: adapter.weight"),
        (lambda s: {**under("model.", s), "model.logit_bias": np.float32(1)}, "extra: logit_bias"),
        (lambda s: {**s, "_orig_mod.visual.proj": s["visual.proj"]}, "two tensors are visual.proj"),
        (
            lambda s: {"state_dict": under("model.", {k: v for k, v in s.items() if k != "visual.proj"})},
            "missing: visual.proj",
        ),
        (
            lambda s: {"backbone.layer1.weight": np.ones(3), "backbone.fc.weight": np.ones(3)},
            "no CLIP with a vision transformer or ResNet; its tensors are named backbone.layer1.weight, backbone.fc",
        ),
        (
            lambda s: under("m.", {"visual.layer1.0.conv1.weight": np.ones(3)}),
            r"visual.layer1.0.conv1.weight is of shape \(3,\), expected 4 dimensions: an image tower without a text",
        ),
        (lambda s: {k: v for k, v in s.items() if k.startswith("visual.")}, "an image tower without a text tower"),
        (lambda s: {"epoch": 3, "optimizer": {"state": {}}}, "holds no tensors"),
    ],
)
def test_what_is_not_one_clip_is_called_what_it_is(tmp_path, state, content, message):
    with pytest.raises(jclip.ClipError, match=message) as raised:
        weights.read(save(tmp_path / "w.pth", content(state)))
    is_no_clip = "no CLIP with a vision transformer" in str(raised.value)
    assert is_no_clip == ("no CLIP with" in message)


def test_a_clip_that_lacks_a_tensor_is_not_called_no_clip(tmp_path, state):
    for name in state:
        with pytest.raises(jclip.ClipError) as raised:
            weights.read(save(tmp_path / "w.pth", {k: v for k, v in state.items() if k != name}))
        assert name in str(raised.value) and "no CLIP with" not in str(raised.value)


@pytest.mark.parametrize("name", ["__main__.Config", "builtins.getattr", "collections.namedtuple", "pathlibx.Path"])
def test_other_names_beside_the_weights_are_refused(tmp_path, state, name):
    module, _, attribute = name.rpartition(".")
    content = pickle.dumps(state, 2)[:-1] + b"0c" + f"{module}\n{attribute}\n".encode() + b"."
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(jclip.ClipError, match=rf"it names {name}.*nothing was run.*save model.state_dict\(\) alone"):
        weights.read(tmp_path / "w.pth")


def test_a_stand_in_takes_no_part_in_anything(tmp_path, state):
    """What a stand-in is given is not kept, called or looked up; a tensor made of one is refused."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for body in (
        rebuild + b"(cargparse\nNamespace\n)\x81K\x00K\x01\x85K\x01\x85tR.",  # a tensor on a stand-in
        b"cargparse\nNamespace\n)\x81)R.",  # a call of a stand-in
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cargparse\nNamespace\n)\x81NNNtR.",  # a call by a function of ours
        b"cargparse\nNamespace\n)\x81}X\x08\0\0\0__call__N.",
    ):
        (tmp_path / "w.pth").write_bytes(b"\x80\x02" + body)
        with pytest.raises(jclip.ClipError):
            weights.read(tmp_path / "w.pth")
