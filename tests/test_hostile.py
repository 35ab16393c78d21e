"""Hostile files are refused at once, each with a message of one line.

They try to run code, to hang, to crash the interpreter or to fill the memory. All are read in one process, in which
watch.py records forbidden actions, time and memory.
"""

import hashlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from conftest import GOLDEN, PROJECT

from fewshot import artifacts, prompts
from jclip import weights
from jclip.architecture import architecture_of, expected_shapes
from jclip.weights import unpickle

MEMORY = 192 << 20  # bytes that reading one file may take: the 64 MiB that any archive may unpack to, and copies of it
EXPECTED = dict(np.load(GOLDEN / "weights/expected.npz"))
P = b"\x80\x04"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ%stQ"  # with the number of values


class Call:
    """An object that is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


HARM = Call(os.system, "touch harm")


def zipped(members, packed=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed, compresslevel=1) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def npy(header: str, content: bytes = b"") -> bytes:
    header = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def declared(shape, dtype="<f4") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


def safetensors(header, content=b"", length=None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + content


def npz(arrays: dict, save=np.savez) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def torch_zip(listing: bytes, **storages) -> bytes:
    return zipped(
        [("a/data.pkl", listing), *((f"a/data/{name}", content) for name, content in storages.items())],
        zipfile.ZIP_DEFLATED,
    )


def doubled(start: bytes, pair: bytes) -> bytes:
    """Return pickle code of a value with 2**60 parts: sixty times, `pair` joins two copies (#) of the last value."""
    return start + b"".join(b"q%c0" % i + pair.replace(b"#", b"h%c" % i) for i in range(60))


def signed(content: bytes) -> bytes:
    return content + hashlib.sha1(content).digest() + unpickle.JITTOR_MAGIC


def old_torch(body: bytes, keys=(), data=b"") -> bytes:
    return (
        b"".join(pickle.dumps(value, 2) for value in (unpickle.LEGACY_MAGIC, 1001, {}))
        + b"\x80\x02"
        + body
        + b"."
        + pickle.dumps(list(keys), 2)
        + data
    )


def nested_files(levels: int) -> bytes:
    """Return a pickle that reads a pickle 100 times, which reads a pickle 100 times, and so on."""
    content = b"\x80\x02N."
    for _ in range(levels):
        content = (
            b"\x80\x02ctorch.storage\n_load_from_bytes\nq\x00"
            + b"B"
            + struct.pack("<I", len(content))
            + content
            + b"q\x01"
            + b"h\x00h\x01\x85R0" * 100
            + b"N."
        )
    return content


def modules(levels: int) -> bytes:
    """Return TorchScript modules, each of which has the next one twice: 2**levels paths."""
    content = b"\x80\x02c__torch__.m\nM\nq\x00)\x81"
    for i in range(levels):
        content += (
            b"r"
            + struct.pack("<I", i + 1)
            + b"0h\x00)\x81}(U\x01".replace(b"U\x01", b"X\x01\0\0\0")
            + b"aj"
            + struct.pack("<I", i + 1)
            + b"X\x01\0\0\0bj"
            + struct.pack("<I", i + 1)
            + b"ub"
        )
    return content + b"."


def with_sizes(**changes) -> bytes:
    return npz({**EXPECTED, **{name.replace("__", "."): value for name, value in changes.items()}})


def f4(*shape):
    return np.zeros(shape, np.float32)


MANY = (
    b"\x80\x02}("
    + b"".join(
        b"X\x05\0\0\0"
        + b"t%04d" % i
        + TENSOR
        + b"("
        + STORAGE % struct.pack("<i", 1 << 20)
        + b"K\x00J\x00\x00\x10\x00\x85K\x01\x85\x89}tR"
        for i in range(1000)
    )
    + b"u."
)

WEIGHTS = {  # what is wrong -> content of the file, regular expression of the message
    "a zip bomb in an .npz": (
        zipped([("a.npy", npy(declared((1 << 25,)), bytes(1 << 27)))], zipfile.ZIP_DEFLATED),
        "declare 134",
    ),
    "a zip bomb in a torch archive": (torch_zip(MANY, **{"0": bytes(1 << 27)}), "declare 134"),
    "an .npz whose shape is not there": (
        zipped([("a.npy", npy(declared((10**12,))))]),
        "declares 4000000000000 bytes, but 0 are there",
    ),
    "an .npz whose shape overflows": (zipped([("a.npy", npy(declared((2**32, 2**32))))]), "bytes, but 0 are there"),
    "an .npz of endless text": (
        zipped([("a.npy", npy(declared((), "<U99999999"), b"abcd"))]),
        "declares 399999996 bytes, but 4",
    ),
    "an .npz whose header is code": (
        zipped([("a.npy", npy("__import__('os').system('touch harm')"))]),
        "a header other than numpy's",
    ),
    "an .npz whose header is deep": (zipped([("a.npy", npy("(" * 60000))]), "a header other than numpy's"),
    "an .npz of objects": (npz({"a": np.array([HARM], object)}), "objects are not read"),
    "an .npz of structures": (npz({"a": np.zeros(3, [("x", "f4"), ("y", "O")])}), "objects are not read"),
    "an .npz with two members of one name": (
        zipped([("a.npy", b""), ("A.npy", b"")]).replace(b"A.npy", b"a.npy"),
        "two members",
    ),
    "an .npz of something else": (zipped([("a.txt", b"hello")]), "a.txt is no array"),
    "an .npz packed in an unusual way": (zipped([("a.npy", bytes(1 << 20))], zipfile.ZIP_LZMA), "packed in a way"),
    "an .npz whose packed size is a lie": (
        zipped([("a.npy", bytes(100))]).replace(struct.pack("<II", 100, 100), struct.pack("<II", 100, 1 << 30)),
        "declares two sizes",
    ),
    "a torch archive whose storage is too small": (torch_zip(MANY, **{"0": bytes(100)}), "storage cut short"),
    "a thousand tensors on one storage": (torch_zip(MANY, **{"0": os.urandom(1 << 22)}), "declare 41943.* of tensors"),
    "two torch files in one archive": (zipped([("a/data.pkl", b""), ("b/data.pkl", b"")]), "two torch files"),
    "a torch archive of a big-endian machine": (
        zipped([("a/data.pkl", P + b"}."), ("a/byteorder", b"big")]),
        "big-endian",
    ),
    "a pickle that calls": (pickle.dumps({"visual.proj": HARM}, 4), "names posix.system, .*nothing was run"),
    "a pickle that calls, signed": (
        signed(pickle.dumps(OrderedDict(x=HARM), 2)),
        "names posix.system, .*nothing was run",
    ),
    "a torch archive that calls": (torch_zip(pickle.dumps({"x": HARM}, 0)), "nothing was run"),
    "an instance by INST": (P + b"(ios\nsystem\n.", "instruction b'i', .*nothing was run"),
    "an extension's code": (P + b"\x82\x01.", "instruction b'.x82'.*nothing was run"),
    "a call of what was put together": (P + b"X\x02\0\0\0os)R.", "calls what is no function"),
    "a call of a class's class": (P + b"cnumpy\nndarray\n\x85R.", "calls what is no function|takes what is not there"),
    "a change of a function": (P + TENSOR + b"}X\x08\0\0\0__call__K\x01sb.", "no state"),
    "a key of tuples 900,000 deep": (
        P + b"})" + b"\x85" * 900_000 + b"Ns.",
        "a tuple as a key",
    ),  # hash() of it ends the interpreter
    "a key of 2**60 tuples": (P + b"}" + doubled(b")", b"##\x86") + b"Ns.", "a tuple as a key"),
    "an ordered dict with such a key": (
        P + b"ccollections\nOrderedDict\n]" + doubled(b")", b"##\x86") + b"N\x86a\x85R.",
        "a tuple as a key",
    ),
    "a value of 2**60 lists": (
        P
        + b"}(X\x01\0\0\0aK\x01X\x01\0\0\0bcnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
        + b"X\x02\0\0\0f4\x85RC\x04abcd\x86RX\x01\0\0\0c"
        + doubled(b"]", b"](##e")
        + b"u.",
        "'c' is a list, expected a tensor",
    ),
    "lists 400,000 deep": (P + b"}X\x01\0\0\0a" + b"]" * 400_000 + b"a" * 399_999 + b"s.", "holds no tensors"),
    "two million instructions": (P + b"N0" * 1_000_000 + b".", "more than 1000000 instructions"),
    "attributes handed over a hundred thousand times": (
        torch_zip(
            P
            + b"}("
            + b"".join(b"J%sK\x00" % struct.pack("<i", i) for i in range(9000))
            + b"uq\x00c__torch__\nM\n)\x81"
            + b"h\x00b" * 100_000
            + b"."
        ),
        "more than 1000000 instructions",
    ),
    "a memo number of two billion": (P + b"}r\xff\xff\xff\x7f.", "holds no tensors"),
    "bytes of a terabyte": (P + b"\x8e" + struct.pack("<Q", 1 << 40) + b"abc.", "declares more than it holds"),
    "text of four gigabytes": (P + b"X\xff\xff\xff\xffabc.", "declares more than it holds"),
    "a bytearray of the whole address space": (
        P + b"\x96" + struct.pack("<Q", 2**63 - 1) + b".",
        "declares more than it holds",
    ),
    "a frame of the whole address space": (P + b"\x95" + struct.pack("<Q", 2**62) + b"}.", "holds no tensors"),
    "a number of two gigabytes": (P + b"\x8b\xff\xff\xff\x7fabc.", "instruction b'.x8b'"),
    "a name without an end": (P + b"c" + b"x" * 5_000_000, "a name without an end"),
    "a pickle without an end": (P + b"}" * 50, "cut short"),
    "a dict that holds itself": (P + b"}q\x00X\x05\0\0\0modelh\x00s.", "recursion"),
    "a file in a file in a file": (nested_files(5), "names torch.storage._load_from_bytes"),
    "one file read a hundred thousand times": (
        P
        + b"ctorch.storage\n_load_from_bytes\nq\x00B"
        + struct.pack("<I", 100_000)
        + b"\x80\x02"
        + b"N0" * 49_998
        + b"N."
        + b"q\x01"
        + b"h\x00h\x01\x85R0" * 100_000
        + b"N.",
        "more than",
    ),
    "2**100 paths of modules": (torch_zip(modules(100)), "visual.conv1.weight is missing"),
    "modules 20,000 deep": (torch_zip(modules(20_000)), "nested deeper"),
    "an old torch file of a thousand storages as large as itself": (
        old_torch(
            b"("
            + b"".join(
                (STORAGE % struct.pack("<i", 10_000)).replace(b"X\x01\0\0\x000", b"X\x04\0\0\0%04d" % i)
                for i in range(1000)
            )
            + b"t"
        ),
        "declares more than it holds",
    ),
    "an old torch file whose storage is absent": (
        old_torch(
            b"}X\x01\0\0\0a" + TENSOR + b"(" + STORAGE % struct.pack("<i", 4) + b"K\x00K\x04\x85K\x01\x85\x89}tRs"
        ),
        "is not in it",
    ),
    "an old torch file of another size than announced": (
        old_torch(STORAGE % struct.pack("<i", 4), ["0"], struct.pack("<q", 2**60)),
        "another size than announced",
    ),
    "a tensor of a hundred dimensions": (
        torch_zip(
            P + TENSOR + b"(" + STORAGE % struct.pack("<i", 1) + b"K\x00(" + b"K\x01" * 100 + b"t)\x89}tR.",
            **{"0": bytes(4)},
        ),
        "up to 32 whole numbers",
    ),
    "a header of safetensors beyond the file": (safetensors({}, length=2**63), "eader"),
    "a header of safetensors of 90 megabytes": (safetensors({}, length=99_000_000), "eader"),
    "deep JSON in safetensors": (safetensors(b'{"a":' + b"[" * 100_000), "eader"),
    "tensors of safetensors that overlap": (
        safetensors(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            bytes(12),
        ),
        "ffset",
    ),
    "tensors of safetensors beyond the file": (
        safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(8)),
        "(?i)incomplete|buffer|offset",
    ),
    "a shape of safetensors that overflows": (
        safetensors({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, bytes(8)),
        "(?i)overflow",
    ),
    "a shape of safetensors that is not its size": (
        safetensors({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}, bytes(8)),
        "(?i)shape|size",
    ),
    "the same tensor twice in safetensors": (
        safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            bytes(8),
        ),
        "(?i)offset|twice|duplicate",
    ),
    "a tensor's name of two lines": (
        safetensors({"a\nb": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        r"'a\\nb' is no name",
    ),
    "patches of no pixels": (with_sizes(visual__conv1__weight=f4(64, 3, 0, 0)), "sizes that no CLIP has"),
    "towers of no width": (
        npz({name: value[..., :0] if value.ndim else value for name, value in EXPECTED.items()}),
        "sizes that no CLIP has",
    ),
    "no place for an image": (with_sizes(visual__positional_embedding=f4(0, 64)), "sizes that no CLIP has"),
    "texts whose attention fills the memory": (
        with_sizes(positional_embedding=f4(100_000, 1)),
        "sizes that no CLIP has",
    ),
    "images whose attention fills the memory": (
        with_sizes(visual__positional_embedding=f4(90_001, 1)),
        "sizes that no CLIP has",
    ),
    "images of a hundred thousand pixels": (
        with_sizes(visual__conv1__weight=f4(1, 3, 1000, 1000), visual__positional_embedding=f4(8101, 1)),
        "sizes that no CLIP has",
    ),
    "the first byte of a pickle": (b"\x80", "cut short"),
    "nothing": (b"", "expected a torch archive"),
}

SPLIT = dict(
    features=np.eye(4, dtype=np.float32),
    labels=np.zeros(4, np.int64),
    names=np.array(list("abcd")),
    meta=np.array("{}"),
)
TEXT = dict(features=np.eye(4, dtype=np.float32), names=np.array(list("abcd")))


def text(*points):
    return np.array(points, np.uint32).view("<U1")


def meta(content: str) -> bytes:
    return npz({**SPLIT, "meta": np.array(content)})


ARTIFACTS = {
    "a zip bomb": (
        "split",
        zipped([("features.npy", npy(declared((1 << 19, 64)), bytes(1 << 27)))], zipfile.ZIP_DEFLATED),
        "declare 134.*save it uncompressed",
    ),
    "rows that are not there": (
        "split",
        zipped([("features.npy", npy(declared((10**9, 512))))]),
        "declares 2048000000000 bytes",
    ),
    "rows too large for float32": ("split", npz({**SPLIT, "features": np.eye(4) * 1e300}), "NaN or infinity"),
    "rows whose norm is too large for float32": ("split", npz({**SPLIT, "features": np.eye(4) * 1e30}), "L2 norm"),
    "rows of zeros": ("split", npz({**SPLIT, "features": f4(4, 4)}), "L2 norm 0, expected 1"),
    "rows of complex numbers": ("split", npz({**SPLIT, "features": np.eye(4) * 1j}), "a header other than numpy's"),
    "features without dimensions": (
        "split",
        npz({**SPLIT, "features": np.float32(1)}),
        r"of shape \(\), expected \(M, D\)",
    ),
    "labels that int64 does not hold": (
        "split",
        npz({**SPLIT, "labels": np.full(4, 2**64 - 1, np.uint64)}),
        "18446744073709551615, which does not fit int64",
    ),
    "a scale of two numbers": ("text", npz({**TEXT, "scale": f4(2)}), r"scale is of shape \(2,\), expected \(\)"),
    "a scale without end": ("text", npz({**TEXT, "scale": np.float32(np.inf)}), "NaN or infinity"),
    "two classes of one name": ("text", npz({**TEXT, "names": np.array(list("abca"))}), "two of one name"),
    "no classes": ("text", npz({"features": f4(0, 4), "names": np.array([], np.str_)}), "no classes"),
    "more names than rows of text": (
        "text",
        npz({**TEXT, "names": np.array(list("abcde"))}),
        r"names is of shape \(5,\), expected \(C=4\)",
    ),
    "a name of two lines": (
        "split",
        npz({**SPLIT, "names": np.array(["a\nb 1 2 3 4 5", "b", "c", "d"])}),
        "names holds .*control characters",
    ),
    "a name that moves the cursor": (
        "split",
        npz({**SPLIT, "names": np.array(["\x1b[2J", "b", "c", "d"])}),
        "names holds .*control characters",
    ),
    "half a character": ("split", npz({**SPLIT, "names": text(97, 98, 99, 0xD800)}), "names holds"),
    "numbers that are no characters": (
        "split",
        npz({**SPLIT, "names": text(97, 98, 99, 0x7FFFFFFF)}),
        "numbers that are no characters",
    ),
    "meta that is no text": ("split", npz({**SPLIT, "meta": np.arange(3)}), "damaged"),
    "meta of numbers that are no characters": ("split", npz({**SPLIT, "meta": text(0x7FFFFFFF)}), "damaged"),
    "deep meta": ("split", meta('{"a":' * 100 + "1" + "}" * 100), "nested more than 32 deep"),
    "very deep meta": ("split", meta("[" * 100_000), "nested more than 32 deep"),
    "overlong meta": ("split", meta('{"a": "' + "x" * (16 << 20) + '"}'), "JSON of 16777225 characters"),
    "meta with a key twice": ("split", meta('{"a": 1, "a": 2}'), "the key 'a' stands twice"),
    "meta with NaN": ("split", meta('{"a": NaN}'), "JSON compliant"),
    "meta with a number beyond floats": ("split", meta('{"a": 1e999}'), "JSON compliant"),
    "meta with a number of a million digits": (
        "split",
        meta('{"a": %s}' % ("9" * 1_000_000)),
        "a number of 1000000 digits",
    ),
    "meta with half a character": ("split", meta('{"a": "\\ud800"}'), "surrogates not allowed"),
    "a fingerprint that is no text": (
        "split",
        meta('{"weights_sha256": 1}'),
        "weights_sha256 in meta is int, expected text",
    ),
    "pickled objects": ("split", npz({**SPLIT, "names": np.array([HARM] * 4, object)}), "objects are not read"),
}

PROMPTS = {
    "deep JSON": (b"[" * 100_000, "nested more than 32 deep"),
    "JSON 40 deep": (b'{"default": ' + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32 deep"),
    "a key twice": (b'{"default": "a {}", "default": "the {}"}', "'default' stands twice"),
    "a number without end": (b'{"default": "a {}", "x": %s}' % (b"9" * 100_000), "a number of 100000 digits"),
    "a number as a template": (b'{"default": 1e999}', "JSON compliant"),
    "invalid UTF-8": (b'{"default": "a {} \xff"}', "not JSON in UTF-8"),
    "UTF-16": ('{"default": "a {}"}'.encode("utf-16"), "not JSON in UTF-8"),
    "half a character": (b'{"default": "a {} \\ud800"}', "surrogates not allowed"),
    "half a character as a group": (b'{"default": "a {}", "\\udfff": "a {}"}', "surrogates not allowed"),
    "a brace too many": (b'{"default": "a {}}"}', "'default': expected a sentence"),
    "an attribute in braces": (b'{"default": "a {0.__class__} {}"}', "'default': expected a sentence"),
    "a group that is a path": (b'{"default": "a {}", "../x": "a {}"}', "is not a valid group name"),
    "a group of two lines": (b'{"default": "a {}", "x\\ny": 1}', "expected a sentence"),
    "too much": (b" " * (17 << 20), "larger than 16777216 bytes"),
    "nothing": (b"", "not JSON"),
}

CASES = {
    **{f"weights: {what}": ("weights", "w", *case) for what, case in WEIGHTS.items()},
    **{f"artefact: {what}": (case[0], "a.npz", *case[1:]) for what, case in ARTIFACTS.items()},
    **{f"prompts: {what}": ("prompts", "templates.json", *case) for what, case in PROMPTS.items()},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """({name of a case: (outcome, message, seconds, bytes of memory)}, the process)."""
    folder, arguments = tmp_path_factory.mktemp("hostile"), {}
    for number, (what, (reader, name, content, _)) in enumerate(CASES.items()):
        (folder / f"{number}").mkdir()
        (folder / f"{number}" / name).write_bytes(content)
        arguments[f"{reader}:{folder / str(number) / name}"] = what
    done = subprocess.run(
        [sys.executable, "-m", "tests.watch", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not (folder / "harm").exists()
    results = {arguments[line[0]]: line[1:] for line in map(json.loads, done.stdout.splitlines())}
    print(
        f"{len(results)} hostile files, {sum(line[2] for line in results.values()):.1f} s, the longest "
        f"{max(line[2] for line in results.values()):.2f} s, "
        f"the most memory {max(line[3] for line in results.values()) >> 20} MiB"
    )
    return results, done


@pytest.mark.parametrize("what", CASES)
def test_a_hostile_file_is_refused_at_once(outcomes, what):
    results, done = outcomes
    assert what in results, f"the process ended with {done.returncode} before this file or at it: {done.stderr[-500:]}"
    outcome, message, _, memory = results[what]
    assert outcome == "refused" and re.search(CASES[what][3], message), (outcome, message)
    assert memory < MEMORY and not done.stderr


def test_unusual_and_honest_arrays_are_read(tmp_path):
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    for save in (np.savez, np.savez_compressed):
        for dtype in ("<f2", "<f4", ">f4", "<f8", ">f8"):
            (tmp_path / "a.npz").write_bytes(
                npz(
                    {
                        **SPLIT,
                        "features": np.asfortranarray(rows.astype(dtype)),
                        "labels": SPLIT["labels"].astype(">u2"),
                        "names": SPLIT["names"].astype(">U3"),
                    },
                    save,
                )
            )
            results = artifacts.read(tmp_path / "a.npz", artifacts.Split)
            np.testing.assert_allclose(results.features, rows, atol=1e-3)
            assert (
                results.features.dtype == np.float32
                and results.features.flags.c_contiguous
                and results.labels.dtype == np.int64
                and results.names.tolist() == list("abcd")
            )


def test_honest_constant_weights_may_shrink_a_hundredfold(tmp_path):
    shapes = expected_shapes(architecture_of(EXPECTED))
    (tmp_path / "w.npz").write_bytes(
        npz({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, np.savez_compressed)
    )
    assert set(weights.read(tmp_path / "w.npz")) == set(shapes)


def test_a_name_is_put_into_its_template_not_evaluated(tmp_path):
    (tmp_path / "templates.json").write_text('{"default": "a {}"}')
    assert prompts.read(["{0.real}", "{}"], tmp_path).sentences == [["a {0.real}"], ["a {}"]]
