"""The CUDA kernels on a GPU: results, CUDA graphs, streams. tests/cusim runs the same sources without one."""

from __future__ import annotations

import pytest
import torch
from cusim.refresh_support import SHAPES, Shape, layer, moved, plain, run
from support import DTYPES, assert_close_to_reference

import lnb_kernels as lk
from lnb_kernels import multi_tensor
from lnb_kernels.multi_tensor import reference
from lnb_kernels.newton_schulz import reference as newton_schulz
from lnb_kernels.pcg import reference as pcg_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SIZES = [3, 0, 8192, 20_001, 1_000_003]


@pytest.fixture(autouse=True)
def native_backend():
    lk.set_backend("native")  # a kernel that does not load is an error, not a fallback
    yield
    lk.set_backend("auto")


def tensors(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(n, device="cuda").to(dtype) for n in SIZES]


def test_report_names_the_kernels() -> None:
    served = {row.op: row.backend for row in lk.report().ops if row.device == "cuda"}
    assert served["multi_tensor_apply_"] == served["pcg_rows"] == served["pcg_vectors"] == "native-cuda"


@pytest.mark.parametrize("y_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_multi_tensor(x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    xs, ys, scales = tensors(x_dtype), tensors(y_dtype), torch.rand(len(SIZES), device="cuda")
    expected = [x.clone() for x in xs]
    start = [x.clone() for x in xs]
    combined = multi_tensor.ema_combined_(start, ys, 0.75, scales, 0.5)
    right_combined = [x.clone() for x in xs]
    reference.ema_combined_([x.clone() for x in xs], right_combined, ys, 0.75, scales, 0.5, None)
    for x, right in zip(combined, right_combined, strict=True):
        torch.testing.assert_close(x, right, rtol=4 * torch.finfo(x.dtype).eps, atol=10 * torch.finfo(x.dtype).eps)
    multi_tensor.ema_combined_(xs, ys, 0.75, torch.ones(len(xs), device="cuda"), 0.0)
    for x, right in zip(start, xs, strict=True):
        torch.testing.assert_close(x, right, rtol=2 * torch.finfo(x.dtype).eps, atol=4 * torch.finfo(x.dtype).eps)
    multi_tensor.apply_(xs, ys, scales, torch.tensor(0.5, device="cuda"), 0.125)
    ones = torch.ones(len(xs), device="cuda")
    reference.ema_combined_(expected, [x.clone() for x in xs], ys, 0.75, ones, 0.0, None)
    reference.apply_(expected, ys, scales, 0.5, None, 0.125, None, None)
    for x, right in zip(xs, expected, strict=True):
        unit = torch.finfo(x.dtype).eps
        torch.testing.assert_close(x, right, rtol=2 * unit, atol=10 * unit)
    truth = torch.stack([(x.double() * y.double()).sum() for x, y in zip(xs, ys, strict=True)])
    products = multi_tensor.dot(xs, ys)
    assert_close_to_reference(products, truth, reference.dot(xs, ys))
    assert torch.equal(products, multi_tensor.dot(xs, ys))
    assert multi_tensor.all_finite(xs)
    xs[-1][-1] = float("nan")
    assert not multi_tensor.all_finite(xs)


def test_cuda_graph_follows_its_tensors() -> None:
    params, grads, averages = tensors(), tensors(), tensors()
    masters, halves = tensors(), tensors(torch.bfloat16)
    scales, lr = torch.rand(len(SIZES), device="cuda"), torch.tensor(0.5, device="cuda")

    def step() -> torch.Tensor:
        ok = multi_tensor.all_finite(grads)
        combined = multi_tensor.ema_combined_(averages, grads, 0.9, scales, 0.1, ok)
        multi_tensor.apply_(params, combined, scales, lr, 0.1, ok)
        multi_tensor.apply_master_(masters, halves, averages, scales, lr, 0.1, ok)
        return multi_tensor.dot(averages, grads, [0] * len(SIZES))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    state = [*params, *averages, *masters, *halves]
    for rate in (0.25, 0.125):
        lr.fill_(rate)
        before = [tensor.clone() for tensor in state]
        graph.replay()
        replayed, result = [tensor.clone() for tensor in state], captured.clone()
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)
        assert torch.equal(step(), result)
        assert all(torch.equal(*pair) for pair in zip(state, replayed, strict=True))


@pytest.mark.parametrize("scope", ["neuron", "layer"])
@pytest.mark.parametrize("d", [1, 64, 128, 300, 4000])
def test_pcg(d: int, scope: str) -> None:
    rows = torch.randn(2 * d + 40, d + 1, device="cuda")
    rows[:, -1] = 1
    s, g, h0 = rows.t() @ rows, torch.randn(70, d + 1, device="cuda"), torch.randn(70, d + 1, device="cuda")
    mu = s[-1, :-1] / s[-1, -1]
    var = s.diagonal()[:-1] / s[-1, -1] - mu**2
    options = (2, 0.1, scope, 2)
    truth = pcg_reference.pcg_moment(s.double(), g.double(), h0.double(), mu.double(), var.double(), *options)
    plain = pcg_reference.pcg_moment(s, g, h0, mu, var, *options)
    a = pcg_reference.metric(s, d + 1, 0.1)
    results = [lk.pcg(lambda v: v @ a, g, h0, (mu, var), 2, 0.0, scope)]
    if d <= 128 and scope == "neuron":
        results.append(lk.pcg(s, g, h0, (mu, var), 2, 0.1, scope))
    for result in results:
        for ours, right, torchs in zip(result, truth, plain, strict=True):
            assert_close_to_reference(ours, right, torchs)


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_refresh_of_layers_of_all_shapes(backend: str) -> None:
    lk.set_backend(backend)
    layers = [moved(layer(shape, seed), "cuda") for seed, shape in enumerate((*SHAPES, Shape(1, 7, 144, 2, 144)))]
    for of, result in zip(layers, run(layers), strict=True):
        truth, same = plain(moved(of, "cpu"), torch.float64), plain(moved(of, "cpu"), torch.float32)
        for name, value in result.items():
            assert_close_to_reference(value.cpu(), truth[name], same[name])


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_refresh_in_a_graph(backend: str) -> None:
    lk.set_backend(backend)
    layers = [moved(layer(shape, seed), "cuda") for seed, shape in enumerate(SHAPES)]
    expected = run(layers)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(layers)
    graph.replay()
    for result, right in zip(found, expected, strict=True):
        assert all(torch.equal(value, right[name]) for name, value in result.items())


@pytest.mark.parametrize("n", [3, 64, 144, 200])
def test_inverses_and_roots(n: int) -> None:
    x = torch.randn(5, n, 2 * n, device="cuda")
    matrices = x @ x.mT / n
    inverses, failed = lk.spd_inverse(matrices)
    assert not bool(failed.any())
    assert_close_to_reference(
        inverses.cpu(),
        torch.linalg.inv(matrices.double()).cpu(),
        torch.cholesky_inverse(torch.linalg.cholesky(matrices.cpu())),
    )
    power, quintic = matrices / (4 * n), [3.4445, -4.7750, 2.0315]
    truth = newton_schulz.newton_schulz_root(power.double(), quintic, 5).cpu()
    plain_root = newton_schulz.newton_schulz_root(power.cpu(), quintic, 5)
    if n <= 144:
        assert_close_to_reference(lk.newton_schulz_root(power, quintic, 5).cpu(), truth, plain_root)
