"""Every argument of every public function, given what is not allowed: the error names the function and the argument."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from op_calls import CALLS, SETTINGS, replaced
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels import multi_tensor

OPTIONAL = {
    "second_moment": {"weights", "blocks"},
    "linear": {"bias", "probe", "sample", "moment_dtype", "shared"},
    "conv2d": {"bias", "probe", "channel_probe", "sample", "moment_dtype"},
    "pcg": {"h0", "arrow", "bias"},
    "pcg_layers": {"starts", "arrows"},
    "two_sided_directions_": {"squares", "bias_weights"},
    "multi_tensor.dot": {"layers"},
    "multi_tensor.ema_combined_": {"out"},
}
"""Arguments that may be None; ``ok`` may be everywhere."""

SINGULAR = {
    "weights": "weight", "biases": "bias", "inverses": "inverse", "means": "mean", "roots": "root", "moments": "moment",
    "gradients": "gradient", "starts": "start", "arrows": "arrow", "matvec_or_s": "S", "weight": "kernel",
}  # fmt: skip
"""What errors may say in place of an argument's name: of a list's entry, of a second moment that could be a function, and of a
convolution's weight that is larger than the image."""


def wrong_tensors(value: Tensor) -> dict[str, Any]:
    """In place of a tensor. A probe counts where it requires a gradient."""
    plain, live = value.detach(), value.requires_grad
    floating: dict[str, Any] = {
        "complex": plain.to(torch.complex64),
        "sparse": plain.to_sparse(),
        "scalar": plain.new_ones(()),
        "wrong rank": plain[(None,) * 5],
        "wrong size": torch.cat([plain] * 3, -1) if plain.dim() else plain.new_ones(7),
        "empty": plain.new_empty((0,) * max(plain.dim(), 1)),
        "meta": plain.to("meta"),
    }
    floating = {kind: bad.requires_grad_(live) for kind, bad in floating.items()}
    return floating | {"3": 3, "a": "a", "nan": math.nan, "list": [1.0], "int": plain.to(torch.int64)}


WRONG_NUMBERS: dict[str, Any] = {
    "a": "a",
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "list": ["a"],
    "dict": {},
    "huge": 10**400,
    "tensor": torch.ones(2),
    "complex": 1j,
}
WRONG_LISTS: dict[str, Any] = {"3": 3, "a": "a", "nan": math.nan, "short": [], "tensor": torch.ones(2), "dict": {}}


ALLOWED = {
    ("second_moment", "x", "wrong size"),  # a number of features that the blocks divide
    ("cov_matvec", "x", "wrong rank"),
    ("cov_matvec", "v", "wrong rank"),
    ("conv2d_second_moment", "x", "wrong size"),
    ("conv2d_second_moment", "x", "meta"),
    ("conv2d_cov_matvec", "x", "wrong size"),
    ("linear", "x", "wrong rank"),
    ("linear", "probe", "int"),  # without a gradient
    ("conv2d", "x", "wrong size"),
    ("conv2d", "probe", "int"),
    ("conv2d", "channel_probe", "int"),
    ("linear", "sample", "scalar"),
    ("conv2d", "sample", "scalar"),
    ("multi_tensor.all_finite", "tensors", "short"),
    *(("multi_tensor.squared_row_norms", "tensors", kind) for kind in ("wrong rank", "wrong size", "empty")),
    ("multi_tensor.ema_combined_", "take", "-1"),
    *(("newton_schulz", "x", kind) for kind in ("wrong rank", "wrong size", "empty", "meta")),
    *(("newton_schulz_root", "power", kind) for kind in ("wrong rank", "empty", "meta")),
    *(("spd_inverse", "matrices", kind) for kind in ("wrong rank", "empty", "meta")),
    *(("multi_tensor.all_finite", "tensors", kind) for kind in ("scalar", "wrong rank", "wrong size", "empty")),
    *((f"multi_tensor.{op}", name, kind) for op in ("apply_", "apply_master_")
      for name in ("lr", "weight_decay") for kind in ("3", "scalar")),
    *((op, "ok", "scalar") for op in CALLS),
}  # fmt: skip
"""What looks wrong, and is a valid call."""


def cases() -> list[Any]:
    found = []
    for op, call in CALLS.items():
        for name, value in call.arguments().items():
            places: list[tuple[int | None, dict[str, Any]]]
            if isinstance(value, Tensor):
                places = [(None, wrong_tensors(value))]
            elif isinstance(value, (list, tuple)) and isinstance(value[0], Tensor):
                places = [(None, WRONG_LISTS), (0, wrong_tensors(value[0]))]
            elif isinstance(value, (list, tuple)):
                places = [(None, WRONG_LISTS), (0, {k: v for k, v in WRONG_NUMBERS.items() if k != "-1"})]
            elif name == "moment_dtype":
                places = [(None, {"a": "a", "3": 3, "int8": torch.int8, "complex": torch.complex64, "list": []})]
            else:
                places = [(None, WRONG_NUMBERS)]
            if name not in OPTIONAL.get(op, set()) | {"ok"}:
                places = [(place, {"None": None, **wrong}) for place, wrong in places]
            for place, wrong in places:
                for kind, bad in wrong.items():
                    if (op, name, kind) in ALLOWED:
                        continue
                    label = name if place is None else f"{name}[{place}]"
                    found.append(pytest.param(op, name, place, bad, id=f"{op}-{label}-{kind}"))
    return found


@pytest.mark.parametrize(("op", "name", "position", "bad"), cases())
def test_the_error_names_the_function_and_the_argument(op: str, name: str, position: int | None, bad: object) -> None:
    arguments = CALLS[op].arguments()
    with pytest.raises((TypeError, ValueError)) as error:
        CALLS[op].function(**replaced(arguments, name, position, bad))
    message = str(error.value)
    assert message.startswith(op)
    assert name in message or SINGULAR.get(name, name) in message


def test_every_public_function_and_argument_is_here() -> None:
    public = {name: getattr(lk, name) for name in lk.__all__ if name not in (*SETTINGS, "multi_tensor")}
    public |= {f"multi_tensor.{name}": getattr(multi_tensor, name) for name in multi_tensor.__all__}
    assert public.keys() == CALLS.keys()
    for name, function in public.items():
        assert inspect.signature(function).parameters.keys() == CALLS[name].arguments().keys()


@pytest.mark.parametrize("op", CALLS)
def test_the_calls_that_are_varied_are_valid(op: str) -> None:
    CALLS[op].function(**CALLS[op].arguments())


@pytest.mark.parametrize("op", ["linear", "conv2d"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_dtypes_of_a_layer_agree(op: str, name: str) -> None:
    arguments = CALLS[op].arguments()
    with pytest.raises(ValueError, match=rf"{op}: {name} has dtype torch.float64; it must be torch.float32, as x has"):
        CALLS[op].function(**arguments | {name: arguments[name].double()})


@pytest.mark.parametrize("op", ["cov_matvec", "conv2d_cov_matvec", "pcg", "pcg_layers"])
def test_a_ridge_is_within_the_range_of_the_sums(op: str) -> None:
    arguments = CALLS[op].arguments() | {"ridge": 1e308}
    with pytest.raises(ValueError, match=rf"{op}.*: ridge=1e\+308 is not allowed; it must be at most 3.403e\+38"):
        CALLS[op].function(**arguments)
    wide = {name: arguments[name].double() for name in ("x", "matvec_or_s") if name in arguments}
    if wide:
        CALLS[op].function(**arguments | wide)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (lk.set_backend, "name"),
        (lk.set_input_precision, "name"),
        (lk.set_moment_stream, "stream"),
    ],
)
@pytest.mark.parametrize("bad", [3, math.nan, [], torch.ones(2)], ids=str)
def test_settings_name_their_argument(setting: Any, name: str, bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"{setting.__name__}: {name}"):
        setting(bad)
