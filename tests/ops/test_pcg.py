"""``lk.pcg`` against dense solves and against the textbook iteration, one scope unit at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, assert_close_to_reference
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.testing._internal.two_tensor import TwoTensor

import lnb_kernels as lk
from lnb_kernels.pcg.op import LAYER_ROWS, is_small


def moments(batch: tuple[int, ...], d: int, n: int = 60, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows = torch.randn(*batch, n, d, dtype=torch.float64) * torch.linspace(0.5, 2, d, dtype=torch.float64) + 0.3
    rows = torch.cat((rows, torch.ones(*batch, n, 1, dtype=torch.float64)), -1)
    return (rows.mT @ rows).to(dtype)


def dense(s: torch.Tensor, size: int, ridge: float) -> torch.Tensor:
    d = s.shape[-1] - 1
    diagonal = torch.full((size,), ridge, dtype=torch.float64)
    diagonal[d:] = 0
    return s[..., :size, :size].double() / s[..., -1:, -1:].double() + torch.diag(diagonal)


def arrow_of(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    count = s[..., -1, -1:]
    mu = s[..., -1, :-1] / count
    return mu, s.diagonal(dim1=-2, dim2=-1)[..., :-1] / count - mu**2


def textbook(
    a: torch.Tensor, p: torch.Tensor, g: torch.Tensor, h: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, list[float]]:
    """PCG for one scope unit, with Python branches; ``a`` and ``p`` act on rows of ``g`` ``[m, D]``."""
    r = g - h @ a
    norms = [r.norm().item()]
    z = r @ p
    direction = z
    for _ in range(iterations):
        curvature = (direction * (direction @ a)).sum()
        if norms[-1] <= 1e-5 * g.norm() or curvature <= 0:
            norms.append(norms[-1])
            continue
        alpha = (r * z).sum() / curvature
        h = h + alpha * direction
        new_r = r - alpha * (direction @ a)
        new_z = new_r @ p
        direction = new_z + (new_r * new_z).sum() / (r * z).sum() * direction
        r, z = new_r, new_z
        norms.append(r.norm().item())
    return h, norms


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("start", ["zero", "warm"])
@pytest.mark.parametrize("preconditioned", [True, False])
@pytest.mark.parametrize("scope", ["layer", "neuron"])
@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_follows_the_textbook(iterations: int, scope: str, preconditioned: bool, start: str, bias: bool) -> None:
    d, m = 7, 3
    size = d + bias
    s, g = moments((2,), d), torch.randn(2, m, size, dtype=torch.float64)
    h0 = torch.randn_like(g) if start == "warm" else None
    mu, var = arrow_of(s)
    h, norms = lk.pcg(s, g, h0, (mu, var) if preconditioned else None, iterations, ridge=0.1, scope=scope)
    assert norms.shape == ((iterations + 1, 2) if scope == "layer" else (iterations + 1, 2, m))
    for layer in range(2):
        a = dense(s[layer], size, 0.1)
        p = torch.eye(size, dtype=torch.float64)
        if preconditioned:
            p = lk.arrow_solve(p, mu[layer], var[layer], bias)
        begin = torch.zeros_like(g) if h0 is None else h0
        units = [slice(0, m)] if scope == "layer" else [slice(i, i + 1) for i in range(m)]
        for number, unit in enumerate(units):
            expected, expected_norms = textbook(a, p, g[layer, unit], begin[layer, unit], iterations)
            torch.testing.assert_close(h[layer, unit], expected)
            found = norms[:, layer] if scope == "layer" else norms[:, layer, number]
            torch.testing.assert_close(found, torch.tensor(expected_norms, dtype=torch.float64))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preconditioned", [True, False])
@pytest.mark.parametrize("d", [1, 7, 23])
def test_one_row_is_solved_after_as_many_steps_as_unknowns(d: int, preconditioned: bool, bias: bool) -> None:
    s, g = moments((), d), torch.randn(3, d + bias, dtype=torch.float64)
    arrow = arrow_of(s) if preconditioned else None
    h, norms = lk.pcg(s, g, None, arrow, iterations=2 * (d + bias), ridge=0.1, scope="neuron")
    truth = torch.linalg.solve(dense(s, d + bias, 0.1), g, left=False)
    torch.testing.assert_close(h, truth, rtol=1e-4, atol=1e-4 * truth.abs().max().item())
    assert (norms[-1] <= 1.001e-5 * g.norm(dim=-1)).all()


def test_the_exact_preconditioner_solves_in_one_step() -> None:
    """Uncorrelated features: the arrow matrix is the second moment itself."""
    d = 5
    mu, sigma = torch.randn(d, dtype=torch.float64), torch.rand(d, dtype=torch.float64) + 0.5
    steps = torch.diag(sigma) * d**0.5
    s = lk.second_moment(torch.cat((mu + steps, mu - steps)))
    g = torch.randn(4, d + 1, dtype=torch.float64)
    h, _ = lk.pcg(s, g, arrow=(mu, sigma**2), iterations=1)
    torch.testing.assert_close(h, torch.linalg.solve(dense(s, d + 1, 0.0), g, left=False))


def test_identity_metric_returns_the_gradient() -> None:
    s = torch.eye(6, dtype=torch.float64)
    g = torch.randn(3, 5, dtype=torch.float64)
    h, norms = lk.pcg(s, g, iterations=1)
    torch.testing.assert_close(h, g)
    assert norms[1].item() < 1e-12


def test_stays_where_it_starts_when_that_is_the_solution() -> None:
    s, g = moments((), 6), torch.randn(3, 7, dtype=torch.float64)
    exact = torch.linalg.solve(dense(s, 7, 0.1), g, left=False)
    h, norms = lk.pcg(s, g, exact, iterations=4, ridge=0.1)
    assert torch.equal(h, exact)
    assert (norms == norms[0]).all()


def test_a_stopped_unit_does_not_stop_the_others() -> None:
    s, g = moments((), 6), torch.randn(2, 7, dtype=torch.float64)
    exact = torch.linalg.solve(dense(s, 7, 0.1), g, left=False)
    start = torch.stack((exact[0], torch.zeros(7, dtype=torch.float64)))
    h, norms = lk.pcg(s, g, start, iterations=3, ridge=0.1, scope="neuron")
    assert torch.equal(h[0], exact[0])
    assert norms[3, 1].item() < norms[0, 1].item()


def test_no_step_along_a_direction_without_curvature() -> None:
    """A matrix that is not positive must not throw the solution away."""
    g = torch.randn(3, 5, dtype=torch.float64)
    for sign in (0.0, -1.0):
        h, norms = lk.pcg(lambda v, sign=sign: sign * v, g, iterations=3)
        assert torch.equal(h, torch.zeros_like(g))
        assert torch.isfinite(norms).all()


def test_zero_gradient_and_zero_rows_give_zero() -> None:
    h, norms = lk.pcg(moments((), 4), torch.zeros(3, 5, dtype=torch.float64), ridge=0.1)
    assert torch.equal(h, torch.zeros_like(h))
    assert torch.equal(norms, torch.zeros_like(norms))
    g = torch.randn(3, 4)
    h, _ = lk.pcg(torch.zeros(5, 5), g, ridge=0.5, iterations=1)
    torch.testing.assert_close(h, 2 * g)


@pytest.mark.parametrize("start", [None, "warm"])
def test_costs_no_product_it_does_not_need(start: str | None) -> None:
    calls = 0

    def matvec(v: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return 2 * v

    g = torch.randn(3, 5)
    lk.pcg(matvec, g, None if start is None else torch.randn(3, 5), iterations=3)
    assert calls == (3 if start is None else 4)


@pytest.mark.parametrize("bias", [True, False])
def test_matrix_free_agrees_with_the_second_moment(bias: bool) -> None:
    x, g = torch.randn(50, 6, dtype=torch.float64), torch.randn(4, 6 + bias, dtype=torch.float64)
    s = lk.second_moment(x)
    arrow, h0 = arrow_of(s), torch.randn_like(g)
    by_moment = lk.pcg(s, g, h0, arrow, iterations=3, ridge=0.1)
    matrix_free = lk.pcg(lambda v: lk.cov_matvec(x, v, 0.1), g, h0, arrow, iterations=3, bias=bias)
    for one, other in zip(by_moment, matrix_free, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_groups_of_one_layer_can_share_their_step() -> None:
    """``layer_dims=3`` equals one block-diagonal layer."""
    s, g = moments((3,), 4), torch.randn(3, 2, 5, dtype=torch.float64)
    h, norms = lk.pcg(s, g, iterations=2, ridge=0.1, layer_dims=3)
    a = torch.stack([dense(s[i], 5, 0.1) for i in range(3)])
    flat, flat_norms = lk.pcg(lambda v: v @ a, g, iterations=2, layer_dims=3)
    torch.testing.assert_close(h, flat)
    assert norms.shape == (3,)
    torch.testing.assert_close(norms, flat_norms)
    separate, _ = lk.pcg(s, g, iterations=2, ridge=0.1)
    assert not torch.allclose(h, separate)


def test_second_moment_broadcasts_over_layers() -> None:
    s, g = moments((), 4), torch.randn(3, 2, 5, dtype=torch.float64)
    shared, _ = lk.pcg(s, g, ridge=0.1)
    repeated, _ = lk.pcg(s.expand(3, 5, 5), g, ridge=0.1)
    torch.testing.assert_close(shared, repeated)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["layer", "neuron"])
def test_precision(dtype: torch.dtype, scope: str) -> None:
    """Against the same iteration in float64; plain PyTorch is the iteration's formula in float32."""
    d, m = 23, 7
    s64, g = moments((), d), torch.randn(m, d + 1).to(dtype)
    s = s64.to(torch.float64 if dtype == torch.float64 else torch.float32)
    mu, var = arrow_of(s)
    h, norms = lk.pcg(s, g, None, (mu, var), 2, 0.1, scope)
    assert h.dtype == dtype
    assert norms.dtype == s.dtype
    a, p = dense(s, d + 1, 0.1), torch.eye(d + 1, dtype=torch.float64)
    p = lk.arrow_solve(p, mu.double(), var.double())
    units = [slice(0, m)] if scope == "layer" else [slice(i, i + 1) for i in range(m)]

    def run(kind: torch.dtype) -> torch.Tensor:
        rows = g.to(kind)
        return torch.cat([textbook(a.to(kind), p.to(kind), rows[u], torch.zeros_like(rows[u]), 2)[0] for u in units])

    assert_close_to_reference(h, run(torch.float64), run(s.dtype).to(dtype))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**31 - 1))
def test_error_never_grows_and_neurons_do_no_worse(d: int, m: int, iterations: int, seed: int) -> None:
    """In the norm of ``A``: each step helps, and one step size per row is at least as good as one for all rows."""
    torch.manual_seed(seed)
    s, g = moments((), d), torch.randn(m, d + 1, dtype=torch.float64)
    a = dense(s, d + 1, 0.1)
    truth = torch.linalg.solve(a, g, left=False)

    def error(steps: int, scope: str) -> float:
        difference = lk.pcg(s, g, arrow=arrow_of(s), iterations=steps, ridge=0.1, scope=scope)[0] - truth
        return ((difference @ a) * difference).sum().item()

    slack = 1e-9 * ((truth @ a) * truth).sum().item()
    assert error(iterations + 1, "layer") <= error(iterations, "layer") + slack
    assert error(iterations, "neuron") <= error(iterations, "layer") + slack


@pytest.mark.parametrize("scope", ["layer", "neuron"])
def test_derivatives(scope: str) -> None:
    s = moments((2,), 3).requires_grad_()
    mu, var = (t.detach().requires_grad_() for t in arrow_of(s))
    g, h0 = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(lambda s, g, h0, mu, var: lk.pcg(s, g, h0, (mu, var), 2, 0.1, scope), (s, g, h0, mu, var))
    assert gradcheck(lambda g: lk.pcg(s.detach(), g, None, None, 2, 0.1, scope), (g,))


@pytest.mark.parametrize("scope", ["layer", "neuron"])
def test_opcheck(scope: str) -> None:
    s = moments((2,), 3, dtype=torch.float32).requires_grad_()
    mu, var = (t.detach().requires_grad_() for t in arrow_of(s))
    g, h0 = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(2))
    op = torch.ops.lnb_kernels.pcg.default
    opcheck(op, (s, g, h0, mu, var, 2, 0.1, scope, 2))
    opcheck(op, (s.detach(), g.detach()[..., :3].mT.contiguous().mT, None, None, None, 0, 0.1, scope, 3))
    opcheck(op, (s.detach(), g.detach(), h0.detach(), None, None, 0, 0.1, scope, 2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scope": "row"}, ValueError, r"pcg: scope='row' is not allowed; choose 'layer' or 'neuron'"),
        ({"iterations": -1}, ValueError, r"pcg: iterations=-1 is not allowed"),
        ({"iterations": 1.0}, ValueError, r"pcg: iterations=1.0 is not allowed"),
        ({"ridge": -1.0}, ValueError, r"pcg: ridge=-1.0 is not allowed"),
        ({"layer_dims": 3}, ValueError, r"pcg: layer_dims=3 is not allowed for g of 2 dimensions"),
        ({"g": torch.ones(3, 7)}, ValueError, r"g has shape \(3, 7\); its last dimension must be D=4 or D\+1=5"),
        ({"g": torch.ones(5)}, ValueError, r"g has shape \(5,\); allowed is \[..., m, D\]"),
        ({"matvec_or_s": torch.ones(5, 4)}, ValueError, r"S has shape \(5, 4\); allowed is \[..., D\+1, D\+1\]"),
        ({"matvec_or_s": torch.ones(2, 5, 5)}, ValueError, r"S has leading dimensions \(2,\), which do not broadcast"),
        ({"matvec_or_s": 3}, TypeError, r"matvec_or_s must be a tensor S or a callable, got int"),
        ({"matvec_or_s": lambda v: v, "ridge": 0.1}, ValueError, r"ridge=0.1 is not allowed with a callable"),
        ({"h0": torch.ones(3, 4)}, ValueError, r"h0 has shape \(3, 4\), allowed is \(3, 5\)"),
        ({"arrow": torch.ones(4)}, TypeError, r"arrow must be None or a tuple \(mu, var\), got Tensor"),
        ({"arrow": (torch.ones(5), torch.ones(4))}, ValueError, r"arrow mu has shape \(5,\), allowed is \(4,\)"),
        ({"matvec_or_s": lambda v: v, "arrow": 5}, TypeError, r"arrow must be None or a tuple \(mu, var\), got int"),
        ({"matvec_or_s": lambda v: v, "arrow": (1, 2)}, TypeError, r"arrow mu must be a torch.Tensor, got int"),
        ({"bias": False}, ValueError, r"bias=False contradicts the shapes"),
        ({"matvec_or_s": lambda v: v, "bias": "yes"}, TypeError, r"bias must be None, True or False, got 'yes'"),
        ({"layer_dims": 2.0}, ValueError, r"layer_dims=2.0 is not allowed"),
        ({"ridge": 10**400}, ValueError, r"it must be a finite number >= 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"matvec_or_s": torch.eye(5), "g": torch.ones(3, 5)} | change
    with pytest.raises(error, match=message):
        lk.pcg(**arguments)


@pytest.mark.parametrize("scope", ["layer", "neuron"])
@pytest.mark.parametrize(
    ("matvec", "error", "message"),
    [
        (lambda v: v[:1], ValueError, r"returns has shape \(1, 300\), allowed is \(40, 300\)"),
        (lambda v: v.t(), ValueError, r"returns has shape \(300, 40\), allowed is \(40, 300\)"),
        (lambda v: None, TypeError, r"returns must be a torch.Tensor, got NoneType"),
        (lambda v: v.int(), TypeError, r"returns has dtype torch.int32"),
        (lambda v: v.to("meta"), ValueError, r"returns is on meta but g is on cpu"),
        (lambda v: v.to_sparse(), TypeError, r"returns has layout torch.sparse_coo"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_a_callable_returns_is_checked(backend: str, matvec, error, message: str, scope: str) -> None:
    """The kernels take it by its address: a product that is too short would be read beyond its end."""
    lk.set_backend(backend)
    try:
        with pytest.raises(error, match=f"pcg: what matvec_or_s {message}"):
            lk.pcg(matvec, torch.ones(40, 300), scope=scope)
    finally:
        lk.set_backend("auto")


def test_subclasses_of_tensors_go_by_the_reference() -> None:
    """They need not have memory of their own, as the two tensors in PyTorch's example have two."""
    g = torch.randn(40, 300)
    expected, _ = lk.pcg(lambda v: 2 * v + v.flip(-1), g)
    found, _ = lk.pcg(lambda v: 2 * v + v.flip(-1), TwoTensor(g, 3 * g))
    torch.testing.assert_close(found.a, expected)


def test_layers_of_more_rows_than_the_kernels_count_go_elsewhere() -> None:
    rows = (LAYER_ROWS, LAYER_ROWS + 1)
    s = torch.ones(3, 3, device="meta")
    assert [is_small((s, torch.ones(m, 2, device="meta"), None, None, None)) for m in rows] == [True, False]


def test_a_wide_moment_serves_a_narrow_gradient() -> None:
    x, g = torch.randn(30, 4, dtype=torch.float64), torch.randn(3, 5)
    h, norms = lk.pcg(lk.second_moment(x), g, ridge=0.1, iterations=9)
    exact, _ = lk.pcg(lk.second_moment(x), g.double(), ridge=0.1, iterations=9)
    assert h.dtype == torch.float32
    assert norms.dtype == torch.float64
    assert torch.allclose(h.double(), exact, rtol=1e-5, atol=1e-6)
