"""Readers are given mutated files (fuzz.py) and what hypothesis generates; the inputs are the same every time."""

import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import GOLDEN, PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fewshot import artifacts, data, prompts
from fewshot.errors import TaskError
from jclip import weights
from jclip.errors import ClipError
from jclip.weights import unpickle

EXPECTED = dict(np.load(GOLDEN / "weights/expected.npz"))
SPLIT = dict(
    features=np.eye(4, dtype=np.float32),
    labels=np.zeros(4, np.int64),
    names=np.array(list("abcd")),
    meta=np.array("{}"),
)
NORMAL = {"allow_subnormal": False}  # Jittor makes the process treat subnormal numbers as zero
generated = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("inputs", [1020, pytest.param(20_400, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(inputs):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", str(inputs)], cwd=PROJECT, capture_output=True, text=True, timeout=1200
    )
    print(done.stdout)
    result = json.loads(done.stdout)
    assert not result["failures"] and not done.returncode and not done.stderr
    assert result["tried"] == result["read"] + result["refused"] == inputs and result["memory"] < 256 << 20
    # the mutations leave some files valid, and damage some of each reader
    assert all(reader["refused"] for reader in result["readers"].values()) and result["read"] > inputs / 20


instructions = st.one_of(
    st.sampled_from(
        [
            b"}",
            b"]",
            b")",
            b"(",
            b"N",
            b"\x88",
            b"\x85",
            b"\x86",
            b"\x87",
            b"t",
            b"s",
            b"u",
            b"a",
            b"e",
            b"b",
            b"R",
            b"\x81",
            b"Q",
            b"0",
            b"1",
            b"\x94",
            b".",
        ]
    ),
    st.sampled_from(
        sorted(unpickle.ALLOWED_GLOBALS)
        + [("__torch__.m", "M"), ("_codecs", "encode"), ("torch.storage", "_load_from_bytes")]
    ).map(lambda name: b"c%s\n%s\n" % (name[0].encode(), name[1].encode())),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: b"J" + struct.pack("<i", n)),
    st.integers(0, 9).flatmap(lambda n: st.sampled_from([b"q", b"h", b"K"]).map(lambda code: code + bytes([n]))),
    st.text(max_size=9).map(lambda text: b"X" + struct.pack("<I", len(text.encode())) + text.encode()),
    st.sampled_from(["latin1", "storage", "FloatStorage", "<f4", "f4", "<"]).map(
        lambda text: b"\x8c" + bytes([len(text)]) + text.encode()
    ),
    st.binary(max_size=16).map(lambda content: b"C" + bytes([len(content)]) + content),
)


@generated
@given(st.lists(instructions, max_size=40))
def test_any_program_of_the_pickle_machine_ends(program):
    try:
        unpickle.read_pickle(io.BytesIO(b"\x80\x04" + b"".join(program) + b"."))
    except unpickle.DAMAGE:
        pass


numbers = arrays.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=65),
    elements=NORMAL,
)


@generated
@given(
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(EXPECTED)), st.text(st.characters(max_codepoint=300), min_size=1, max_size=9)),
        st.one_of(st.none(), numbers),
        max_size=3,
    )
)
def test_any_shapes_are_weights_or_a_clear_error(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "w.npz"
    state = {name: value for name, value in {**EXPECTED, **changes}.items() if value is not None}
    try:
        with open(path, "wb") as file:
            np.savez(
                file,
                **{name.replace("\0", "0").replace("/", "."): value for name, value in state.items() if name != "file"},
            )
        weights.read(path)
    except ClipError as error:
        assert str(error).isprintable()


@generated
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "features": numbers,
            "labels": numbers,
            "names": st.one_of(numbers, arrays.arrays("<U3", (4,))),
            "meta": st.text(max_size=9).map(np.array),
        },
    )
)
def test_any_arrays_are_a_split_or_a_clear_error(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "split.npz"
    np.savez(path, **{**SPLIT, **changes})
    try:
        result = artifacts.read(path, artifacts.Split)
    except TaskError as error:
        assert str(error).isprintable()
    else:
        assert len(result.features) == len(result.labels) == len(result.names) and np.isfinite(result.features).all()


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(**NORMAL),
        st.text(st.characters(), max_size=9),
        st.sampled_from(["a {}", "{}}", "{{}}"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@generated
@given(
    st.sampled_from(["templates.json", "default_prompt.json", "names.json"]),
    st.dictionaries(
        st.one_of(st.sampled_from(["default", "teapot"]), st.text(st.characters(), max_size=5)), json_values, max_size=3
    ),
)
def test_any_json_is_prompts_or_a_clear_error(tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "templates.json").write_text('{"default": "a {}"}')
    (folder / name).write_text(json.dumps(content))
    try:
        result = prompts.read(["teapot", "a_b"], folder)
    except TaskError as error:
        assert str(error).isprintable()
    else:
        assert all(sentence.encode() for sentences in result.sentences for sentence in sentences)  # no half characters


@generated
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(blacklist_categories=["Cs"]), max_size=9),
            st.one_of(st.integers(-2, 4).map(str), st.text(max_size=3)),
            st.sampled_from([" ", "\t", ",", ""]),
        ),
        max_size=4,
    ),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin1"]),
)
def test_any_text_is_a_class_list_or_a_clear_error(tmp_path_factory, lines, line_end, encoding):
    path = tmp_path_factory.getbasetemp() / "classes.txt"
    path.write_bytes(
        line_end.join(f"{name}{between}{label}" for name, label, between in lines).encode(encoding, "replace")
    )
    try:
        result = data.read_classes(path)
    except TaskError as error:
        assert str(error).isprintable() and "classes.txt" in str(error)
    else:
        assert len(set(result)) == len(result) and all(name and not data.NOT_IN_NAMES.search(name) for name in result)
