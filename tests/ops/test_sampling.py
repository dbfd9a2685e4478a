"""Second moments of a part of the rows, and in lower precision: what the probes of layers can be told to read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import assert_close_to_reference, with_ones
from torch._dynamo.testing import CompileCounter
from torch.autograd import gradgradcheck

import lnb_kernels as lk
from lnb_kernels._sampling import Sample


def linear_moment(x: torch.Tensor, **reading: object) -> torch.Tensor:
    """What the probe of a linear layer with input ``x`` gets."""
    d = x.shape[-1]
    probe = torch.zeros((), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32).expand(d + 1, d + 1)
    probe = probe.requires_grad_()
    lk.linear(x, torch.randn(3, d).to(x.dtype), None, probe, **reading).sum().backward()  # type: ignore[arg-type]
    assert probe.grad is not None
    return probe.grad


def conv_moment(x: torch.Tensor, kernel: int = 3, **reading: object) -> torch.Tensor:
    """What the probe of a convolution with input ``x`` gets."""
    size = kernel**2 * x.shape[1] + 1
    probe = torch.zeros((), dtype=x.dtype).expand(1, size, size).requires_grad_()
    weight = torch.randn(2, x.shape[1], kernel, kernel, dtype=x.dtype)
    lk.conv2d(x, weight, padding=kernel // 2, probe=probe, **reading).sum().backward()  # type: ignore[arg-type]
    assert probe.grad is not None
    return probe.grad


@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 12, 13])
def test_every_entry_is_read_equally_often(size: int, every: int) -> None:
    """Over all starts that differ, so that the estimate is unbiased; and never twice at once."""
    counts = torch.zeros(size)
    for first in range(size):
        indices = Sample(torch.tensor((first + 0.5) / size), every).indices(size)
        assert indices.unique().numel() == indices.numel() == -(-size // every)
        counts[indices] += 1
    assert counts.unique().numel() == 1


@pytest.mark.parametrize("shape", [(13, 5), (13, 2, 5)], ids=str)
def test_the_mean_over_starts_is_the_second_moment_of_all_rows(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    rows = x.numel() // 5
    starts = [(torch.tensor((first + 0.5) / rows), 4) for first in range(rows)]
    estimates = torch.stack([linear_moment(x, sample=start) for start in starts])
    torch.testing.assert_close(estimates.mean(0), lk.second_moment(x), rtol=1e-12, atol=1e-12)
    assert estimates.std(0)[:-1, :-1].min() > 0
    torch.testing.assert_close(estimates[:, -1, -1], torch.full((rows,), float(rows), dtype=torch.float64))


def test_the_mean_over_starts_is_the_second_moment_of_all_images() -> None:
    x = torch.randn(5, 2, 6, 4, dtype=torch.float64)
    starts = [(torch.tensor((first + 0.5) / 5), 2) for first in range(5)]
    estimates = torch.stack([conv_moment(x, sample=start) for start in starts])
    torch.testing.assert_close(estimates.mean(0), lk.conv2d_second_moment(x, 3, padding=1), rtol=1e-12, atol=1e-12)
    assert bool((estimates[:, 0, -1, -1] - 5 * 24).abs().max() < 1e-9)


def test_no_rows_give_zero() -> None:
    assert linear_moment(torch.randn(0, 4), sample=(torch.tensor(0.3), 3)).count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounded_rows_are_summed_in_full_precision(dtype: torch.dtype) -> None:
    x = torch.randn(700, 33, dtype=torch.float64) + 3
    rounded = with_ones(x.to(torch.bfloat16))
    truth = rounded.t() @ rounded
    plain = (rounded.float().t() @ rounded.float()).float()
    assert_close_to_reference(linear_moment(x.to(dtype), moment_dtype=torch.bfloat16), truth, plain)


@pytest.mark.parametrize("moment_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rounded_float64_rows_are_summed_in_float64(both_backends: None, moment_dtype: torch.dtype) -> None:
    """Their sums hold what float32 would lose: one part in 2^40 here."""
    x = torch.full((4096, 3), 1.0, dtype=torch.float64)
    x[0] = 2.0**20
    expected = 2.0**40 + 4095
    assert linear_moment(x, moment_dtype=moment_dtype)[0, 1].item() == expected
    images = x.reshape(1, 64, 64, 3).movedim(-1, 1)
    assert conv_moment(images, moment_dtype=moment_dtype, kernel=1)[0, 0, 1].item() == expected
    assert lk.second_moment(x)[0, 1].item() == expected


def test_only_the_second_moment_is_rounded_or_sampled() -> None:
    x, weight = torch.randn(9, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    probe, reading = torch.zeros(5, 5, requires_grad=True), (torch.tensor(0.2), 3)
    y = lk.linear(x, weight, None, probe, sample=reading, moment_dtype=torch.bfloat16)
    plain = F.linear(x, weight)
    upstream = torch.randn_like(plain)
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, weight), upstream), torch.autograd.grad(plain, (x, weight), upstream), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_sampled_moments_can_be_differentiated() -> None:
    """A penalty on the estimate moves the rows that were read, and no others."""
    start = torch.tensor(0.3)
    x, weight = torch.randn(7, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    probe = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)

    def estimate(rows: torch.Tensor) -> torch.Tensor:
        y = lk.linear(rows, weight, None, probe, sample=(start, 3))
        return torch.autograd.grad(y.sum(), probe, create_graph=True)[0]

    x.requires_grad_()
    direction = torch.randn(4, 4, dtype=torch.float64)
    (grad,) = torch.autograd.grad((estimate(x) * direction).sum(), x)
    read = Sample(start, 3).indices(7)
    chosen = x.detach()[read].requires_grad_()
    (expected,) = torch.autograd.grad((lk.second_moment(chosen) * direction).sum() * 7 / 3, chosen)
    torch.testing.assert_close(grad[read], expected)
    assert grad.count_nonzero() == read.numel() * 3
    images = torch.randn(3, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    shared = torch.zeros(1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda i, t: lk.conv2d(i, t, probe=shared, sample=(start, 2)), (images, taps))


def test_one_compiled_graph_serves_every_start() -> None:
    x, weight = torch.randn(8, 4), torch.randn(3, 4, requires_grad=True)
    probe = torch.zeros(5, 5, requires_grad=True)
    graphs = CompileCounter()

    def layer(start: torch.Tensor) -> torch.Tensor:
        return lk.linear(x, weight, None, probe, sample=(start, 4))

    compiled = torch.compile(layer, backend=graphs, fullgraph=True)
    for value in (0.1, 0.6, 0.9):
        probe.grad = None
        compiled(torch.tensor(value)).sum().backward()
        assert probe.grad is not None
        torch.testing.assert_close(probe.grad, linear_moment(x, sample=(torch.tensor(value), 4)))
    assert graphs.frame_count == 1


def test_bad_arguments_are_named() -> None:
    x, weight, probe = torch.randn(5, 4), torch.randn(3, 4), torch.zeros(5, 5, requires_grad=True)
    start = torch.tensor(0.0)
    with pytest.raises(TypeError, match="linear: sample must be None or a pair"):
        lk.linear(x, weight, None, probe, sample=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"linear: sample\[1\]=0 is not allowed"):
        lk.linear(x, weight, None, probe, sample=(start, 0))
    with pytest.raises(ValueError, match=r"sample\[0\] has shape \(1,\)"):
        lk.linear(x, weight, None, probe, sample=(start.reshape(1), 2))
    with pytest.raises(ValueError, match=r"moment_dtype=torch\.int8"):
        lk.linear(x, weight, None, probe, moment_dtype=torch.int8)
    images, s = torch.randn(2, 1, 4, 4), torch.zeros(1, 10, 10, requires_grad=True)
    with pytest.raises(ValueError, match=r"conv2d: sample\[1\]=-1"):
        lk.conv2d(images, torch.randn(2, 1, 3, 3), probe=s, sample=(start, -1))
