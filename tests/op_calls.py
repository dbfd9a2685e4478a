"""A valid call of every public function of the ops, small enough to be varied argument by argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels import multi_tensor
from lnb_kernels.linear import SharedMoment


@dataclass(frozen=True)
class Call:
    """A function, what makes its arguments anew, and the names of those that it writes."""

    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    written: tuple[str, ...] = ()


def _probed(layer: Callable[..., Tensor]) -> Callable[..., Any]:
    """The layer's output and the moments of its probes."""

    def call(**arguments: Any) -> Any:
        probes = [arguments[name] for name in ("probe", "channel_probe") if arguments.get(name) is not None]
        y = layer(**arguments)
        return [y, *torch.autograd.grad(y.sum(), probes)]

    return call


def spd(n: int) -> Tensor:
    x = torch.randn(3 * n, n)
    return x.t() @ x / (3 * n) + 0.1 * torch.eye(n)


def moment(d: int) -> Tensor:
    return lk.second_moment(torch.randn(20, d))


def pair() -> list[Tensor]:
    """Two dense tensors."""
    return [torch.randn(2), torch.randn(3)]


def two_sided() -> dict[str, Any]:
    return {
        "weights": [torch.randn(2, 3), torch.randn(4, 2)],
        "biases": [torch.randn(2, 1), None],
        "inverses": [spd(3).unsqueeze(0), spd(2).unsqueeze(0)],
        "means": [torch.randn(3), None],
        "roots": [spd(2).unsqueeze(0), spd(2).expand(2, 2, 2).clone()],
        "squares": [10 * torch.rand(2, dtype=torch.float64), 10 * torch.rand(4, dtype=torch.float64)],
        "bias_weights": torch.rand(2, dtype=torch.float64),
    }


def steps() -> dict[str, Any]:
    return {
        "scales": torch.rand(2),
        "lr": torch.tensor(0.5),
        "weight_decay": torch.tensor(0.25),
        "ok": torch.tensor(True),
    }


def shape() -> dict[str, Any]:
    return {"kernel_size": 2, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


CALLS: dict[str, Call] = {
    "second_moment": Call(lk.second_moment, lambda: {"x": torch.randn(5, 4), "weights": torch.rand(5), "blocks": 2}),
    "linear": Call(
        _probed(lk.linear),
        lambda: {
            "x": torch.randn(5, 3),
            "weight": torch.randn(2, 3),
            "bias": torch.randn(2),
            "probe": torch.zeros(4, 4, requires_grad=True),
            "sample": (torch.tensor(0.25), 2),
            "moment_dtype": torch.bfloat16,
            "shared": SharedMoment(),
        },
    ),
    "conv2d": Call(
        _probed(lk.conv2d),
        lambda: {
            "x": torch.randn(2, 2, 4, 4),
            "weight": torch.randn(3, 2, 2, 2),
            "bias": torch.randn(3),
            "stride": 1,
            "padding": 1,
            "dilation": 1,
            "groups": 1,
            "probe": torch.zeros(1, 9, 9, requires_grad=True),
            "channel_probe": torch.zeros(3, 2, requires_grad=True),
            "sample": (torch.tensor(0.25), 2),
            "moment_dtype": torch.bfloat16,
        },
    ),
    "conv2d_second_moment": Call(
        lk.conv2d_second_moment, lambda: {"x": torch.randn(2, 2, 4, 4), **shape(), "blocks": 2}
    ),
    "conv2d_cov_matvec": Call(
        lk.conv2d_cov_matvec,
        lambda: {"x": torch.randn(2, 2, 4, 4), "v": torch.randn(3, 9), **shape(), "ridge": 0.5},
    ),
    "cov_matvec": Call(lk.cov_matvec, lambda: {"x": torch.randn(5, 3), "v": torch.randn(2, 4), "ridge": 0.5}),
    "arrow_solve": Call(
        lk.arrow_solve,
        lambda: {"v": torch.randn(2, 4), "mu": torch.randn(3), "var": torch.rand(3) + 0.5, "bias": True},
    ),
    "spd_inverse": Call(lk.spd_inverse, lambda: {"matrices": spd(3)}),
    "newton_schulz": Call(
        lk.newton_schulz, lambda: {"x": torch.randn(2, 3) / 3, "coefficients": (1.5, -0.5, 0.0), "steps": 2}
    ),
    "newton_schulz_root": Call(
        lk.newton_schulz_root, lambda: {"power": spd(3), "coefficients": (1.5, -0.5, 0.0), "steps": 2}
    ),
    "pcg": Call(
        lk.pcg,
        lambda: {
            "matvec_or_s": moment(3),
            "g": torch.randn(2, 4),
            "h0": torch.randn(2, 4),
            "arrow": (torch.randn(3), torch.rand(3) + 0.5),
            "iterations": 2,
            "ridge": 0.5,
            "scope": "neuron",
            "layer_dims": 2,
            "bias": True,
        },
    ),
    "pcg_layers": Call(
        lk.pcg_layers,
        lambda: {
            "moments": [moment(3), moment(2)],
            "gradients": [torch.randn(2, 4), torch.randn(2, 2)],
            "starts": [torch.randn(2, 4), None],
            "arrows": [None, (torch.randn(2), torch.rand(2) + 0.5)],
            "iterations": 2,
            "ridge": 0.5,
        },
    ),
    "two_sided_directions_": Call(lk.two_sided_directions_, two_sided, ("weights", "biases")),
    "multi_tensor.all_finite": Call(multi_tensor.all_finite, lambda: {"tensors": pair()}),
    "multi_tensor.dot": Call(multi_tensor.dot, lambda: {"xs": pair(), "ys": pair(), "layers": [1, 0]}),
    "multi_tensor.squared_row_norms": Call(
        multi_tensor.squared_row_norms, lambda: {"tensors": [torch.randn(2, 3), torch.randn(3)], "rows": [2, 1]}
    ),
    "multi_tensor.ema_combined_": Call(
        multi_tensor.ema_combined_,
        lambda: {
            "averages": pair(),
            "values": pair(),
            "beta": 0.5,
            "shares": torch.rand(2),
            "take": 0.5,
            "ok": torch.tensor(True),
            "out": pair(),
        },
        ("averages", "out"),
    ),
    "multi_tensor.apply_": Call(
        multi_tensor.apply_, lambda: {"params": pair(), "directions": pair(), **steps()}, ("params",)
    ),
    "multi_tensor.apply_master_": Call(
        multi_tensor.apply_master_,
        lambda: {"masters": pair(), "params": [t.half() for t in pair()], "directions": pair(), **steps()},
        ("masters", "params"),
    ),
}

SETTINGS = ("get_backend", "set_backend", "set_input_precision", "set_moment_stream", "report")
"""Public functions that compute nothing."""


def tensors(arguments: dict[str, Any]) -> Iterator[tuple[str, int | None, Tensor]]:
    """Every tensor of a call: the argument's name, its position in a list, and itself."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, None, value
        elif isinstance(value, (list, tuple)):
            for i, entry in enumerate(value):
                if isinstance(entry, Tensor):
                    yield name, i, entry


def replaced(arguments: dict[str, Any], name: str, position: int | None, value: object) -> dict[str, Any]:
    """The arguments with one of them, or one entry of its list, replaced."""
    if position is None:
        return arguments | {name: value}
    entries = list(arguments[name])
    entries[position] = value
    return arguments | {name: type(arguments[name])(entries)}


PLACES = [(op, name, position) for op, call in CALLS.items() for name, position, _ in tensors(call.arguments())]
"""Every place of a tensor in every call."""
