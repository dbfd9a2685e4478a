"""``pcg_layers``: many layers of different shapes at once, against ``pcg`` on each; checks; the launches of a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cusim.simulated import cuda_kernels_on_cpu
from torch import Tensor

import lnb_kernels as lk

# m, d, bias; the last two are beyond what one launch takes
SHAPES = [((), 33, 128, True), ((2,), 5, 7, False), ((), 1, 1, True), ((), 0, 4, True), ((), 3, 129, True)]


def layer(batch: tuple[int, ...], m: int, d: int, bias: bool, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    x = torch.randn(*batch, 2 * d + 40, d) + 0.3
    rows = torch.cat((x, torch.ones(*batch, 2 * d + 40, 1)), -1)
    return {
        "s": (rows.mT @ rows).to(dtype),
        "g": torch.randn(*batch, m, d + bias).to(dtype),
        "h0": torch.randn(*batch, m, d + bias).to(dtype),
        "arrow": (x.mean(-2).to(dtype), x.var(-2, correction=0).to(dtype)),
    }


def solve(layers: list[dict[str, Any]], iterations: int = 2, ridge: float = 0.1) -> tuple[list[Tensor], list[Tensor]]:
    lists = ([one[name] for one in layers] for name in ("s", "g", "h0", "arrow"))
    return lk.pcg_layers(*lists, iterations=iterations, ridge=ridge)


def assert_as_one_by_one(
    layers: list[dict[str, Any]], found: tuple[list[Tensor], list[Tensor]], **tolerance: float
) -> None:
    for one, h, norms in zip(layers, *found, strict=True):
        right, right_norms = lk.pcg(one["s"], one["g"], one["h0"], one["arrow"], 2, 0.1, "neuron")
        torch.testing.assert_close(h, right, **tolerance)
        torch.testing.assert_close(norms, right_norms, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_layer_is_solved_as_alone(dtype: torch.dtype) -> None:
    layers = [layer(*shape, dtype) for shape in SHAPES]
    layers[1]["h0"] = layers[2]["arrow"] = None
    assert_as_one_by_one(layers, solve(layers), rtol=0, atol=0)


def test_small_layers_of_a_gpu_share_a_launch_and_others_go_elsewhere() -> None:
    layers = [layer(*shape) for shape in SHAPES] + [layer((), 2, 3, True, torch.float64)]
    layers[0]["h0"] = layers[1]["arrow"] = None
    with cuda_kernels_on_cpu() as simulator:
        found = solve(layers)
        assert simulator.launches == ["pcg_rows"]
        simulator.set()
        assert solve(layers[4:])[0][0].shape == (3, 130)
        assert simulator.launches == []
    assert_as_one_by_one(layers, found, rtol=1e-4, atol=1e-4)


def test_no_layers() -> None:
    assert lk.pcg_layers([], []) == ([], [])


def test_starts_and_arrows_can_be_left_out() -> None:
    one = layer((), 4, 6, True)
    [h], [norms] = lk.pcg_layers([one["s"]], [one["g"]], ridge=0.1)
    right, right_norms = lk.pcg(one["s"], one["g"], None, None, 2, 0.1, "neuron")
    assert torch.equal(h, right)
    assert torch.equal(norms, right_norms)


def test_opcheck() -> None:
    a, b = layer((), 4, 6, True), layer((2,), 3, 5, False)
    arguments = [a["s"], b["s"]], [a["g"], b["g"]], [a["h0"], None], [None, b["arrow"][0]], [None, b["arrow"][1]]
    torch.library.opcheck(torch.ops.lnb_kernels.pcg_layers.default, (*arguments, 2, 0.1))


S, G = torch.eye(4), torch.ones(2, 3)
BAD_CALLS = [
    (lambda: lk.pcg_layers(S, [G]), TypeError, "moments must be a list, got Tensor"),
    (lambda: lk.pcg_layers([S], None), TypeError, "gradients must be a list"),
    (lambda: lk.pcg_layers([S], [G, G]), ValueError, "moments has 1 entries"),
    (lambda: lk.pcg_layers([S], [G], [None, None]), ValueError, "starts has 2 entries"),
    (lambda: lk.pcg_layers([S], [G], iterations=-1), ValueError, "iterations=-1"),
    (lambda: lk.pcg_layers([S], [G], ridge=-1.0), ValueError, "ridge=-1.0"),
    (lambda: lk.pcg_layers([S, S], [G, torch.ones(2, 7)]), ValueError, "layer 1: gradient has shape"),
    (lambda: lk.pcg_layers([S, S], [G, torch.ones(3)]), ValueError, "layer 1: gradient has shape"),
    (lambda: lk.pcg_layers([S, S.int()], [G, G]), TypeError, "layer 1: moment has dtype"),
    (lambda: lk.pcg_layers([S], [G], [torch.ones(2, 4)]), ValueError, "layer 0: start has shape"),
    (lambda: lk.pcg_layers([S], [G], None, [S]), TypeError, "layer 0: arrow must be"),
    (lambda: lk.pcg_layers([S], [G], None, [(torch.ones(2), torch.ones(3))]), ValueError, "arrow mu has shape"),
    (lambda: lk.pcg_layers([S, S.to("meta")], [G, G.to("meta")]), ValueError, "meta"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
