"""Names of what training programs save beside weights, such as options and dates; a stand-in replaces each.

A stand-in is made by a class of ours, takes any arguments and state, and does nothing with them. The library that a
name belongs to is not imported.
"""

from __future__ import annotations

from .machine import Ignored

# every name in these modules and below them
MODULES = (
    "accelerate",
    "addict",
    "argparse",
    "datetime",
    "decimal",
    "easydict",
    "fractions",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "ml_collections",
    "numpy.dtypes",
    "numpy.random",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "torch.distributed",
    "torch.optim",
    "torch.torch_version",
    "transformers",
    "typing",
    "uuid",
    "yacs",
)
BUILTINS = (  # types, some by their names in Python 2, which protocol 2 writes
    *("bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object", "range", "set"),
    *("slice", "str", "tuple", "unicode", "xrange"),
)
DTYPES = (
    *("float16", "half", "bfloat16", "float32", "float", "float64", "double", "float8_e4m3fn", "float8_e5m2"),
    *("int8", "int16", "short", "int32", "int", "int64", "long", "uint8", "uint16", "uint32", "uint64", "bool"),
    *("complex64", "complex128"),
)
NAMES = {
    *(("torch", name) for name in DTYPES),
    *(("torch", name) for name in ("device", "strided", "sparse_coo", "preserve_format", "contiguous_format")),
    ("torch.nn.parameter", "Parameter"),
    ("torch.serialization", "_get_layout"),
    ("types", "SimpleNamespace"),
    *((module, name) for module in ("builtins", "__builtin__") for name in BUILTINS),
    *((module, "_reconstructor") for module in ("copyreg", "copy_reg")),
}
# These may hold the weights themselves, so they are read as plain dicts.
DICTS = ("AttributeDict", "CfgNode", "Dict", "EasyDict")


def find(module: str, name: str):
    """Return the class that stands in for a name, or None if the name is none of those above."""
    if (module, name) in NAMES:
        return Ignored
    if any(f"{module}.".startswith(f"{root}.") for root in MODULES):
        return _empty_dict if name in DICTS else Ignored
    return None


def _empty_dict(*_) -> dict:
    return {}
