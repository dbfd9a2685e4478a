"""One covariance-vector product of a convolution, by every route, over the time of the backward pass it comes on top of.

The product ``(P~'P~ / N + ridge) v`` over the patches ``P`` is what conjugate gradients need three times per layer and step.
Routes: ours (``lnb_kernels.conv2d_cov_matvec``), a forward-mode derivative followed by a reverse-mode one in torch (what the
published implementation does) and in jax (an outside reference; the extra ``jax``), and a product with the second moment
``S``; beside them what making ``S`` once costs. Rows: layers of the UNet of ``models.py``, and all its convolutions
together, these over ``loss.backward()`` of the whole network. Routes take turns; medians of ratios within a round. A route
whose result errs more than twice as much as torch's autodiff, both against float64, ends the benchmark.

    python bench/conv_product.py [--rounds 15] [--threads 1] [--clock cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import step_overhead
import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lnb_kernels as lk
from lnb_bench.study.profiles import save_profile

RIDGE = 0.1
OURS, AUTODIFF, JAX, FROM_S, MAKING_S = "matrix-free", "torch jvp + vjp", "jax jvp + vjp", "S v, S given", "making S"
Route = Callable[[], Any]


class WrongResult(RuntimeError):
    """A route's product is not accurate: its time would mean nothing."""


@dataclass(frozen=True)
class Site:
    """A convolution layer, what flows through it, and a direction ``v`` ``[m, D+1]`` (``[m, D]`` without a bias)."""

    name: str
    layer: nn.Conv2d
    x: Tensor
    v: Tensor

    @property
    def settings(self) -> tuple[Any, Any, Any, int]:
        """Stride, padding, dilation, groups."""
        layer = self.layer
        return layer.stride, layer.padding, layer.dilation, layer.groups


def sites(model: nn.Module, inputs: Tensor) -> list[Site]:
    """Every convolution of ``model`` with the input that it sees."""
    found: list[Site] = []

    def keep(name: str, layer: nn.Conv2d, x: Tensor) -> None:
        v = torch.randn(layer.out_channels, layer.weight[0].numel() + (layer.bias is not None))
        found.append(Site(name, layer, x.detach(), v))

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: keep(name, module, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    model(inputs)
    for handle in handles:
        handle.remove()
    return found


def ours(site: Site) -> Tensor:
    """The product by our op."""
    return lk.conv2d_cov_matvec(site.x, site.v, site.layer.kernel_size, *site.settings, ridge=RIDGE)


def autodiff(site: Site, dtype: torch.dtype = torch.float32) -> Tensor:
    """The product by torch's forward- and reverse-mode derivatives."""
    kernel = (site.layer.kernel_size[0], site.layer.kernel_size[1])
    return step_overhead.autodiff_conv_product(site.x.to(dtype), site.v.to(dtype), kernel, *site.settings, RIDGE)


def making_s(site: Site) -> Tensor:
    """The second moment of the layer's patches, ``[groups, D+1, D+1]``."""
    return lk.conv2d_second_moment(site.x, site.layer.kernel_size, *site.settings)


def from_s(site: Site) -> Callable[[], Tensor]:
    """The product with a second moment that is there already, its last entry being the number of rows."""
    size = site.v.shape[1]
    s = making_s(site)
    metric = s[:, :size, :size] / s[:, -1:, -1:]
    metric.diagonal(dim1=-2, dim2=-1)[:, : site.layer.weight[0].numel()] += RIDGE
    rows = site.v.view(site.layer.groups, -1, size)
    return lambda: (rows @ metric).view_as(site.v)


def by_jax(site: Site) -> Callable[[], Any]:
    """The product by jax's forward- and reverse-mode derivatives, compiled."""
    import jax
    from jax import lax, numpy

    layer, size = site.layer, site.layer.weight[0].numel()
    if isinstance(layer.padding, str):
        raise ValueError(f"{site.name}: padding={layer.padding!r} must be numbers")
    padding = [(p, p) for p in layer.padding]
    has_bias = site.v.shape[1] > size

    def product(x: Any, v: Any) -> Any:
        def convolve(rows: Any) -> Any:
            weight = rows[:, :size].reshape(layer.weight.shape)
            y = lax.conv_general_dilated(
                x, weight, layer.stride, padding, rhs_dilation=layer.dilation, feature_group_count=layer.groups
            )
            return y + rows[:, size].reshape(1, -1, 1, 1) if has_bias else y

        zero = numpy.zeros_like(v)
        _, tangent = jax.jvp(convolve, (zero,), (v,))
        _, pull = jax.vjp(convolve, zero)
        rows = tangent.size // tangent.shape[1]
        return pull(tangent)[0] / rows + RIDGE * v.at[:, size:].set(0)

    compiled = jax.jit(product)
    x, v = numpy.asarray(site.x.numpy()), numpy.asarray(site.v.numpy())
    return lambda: compiled(x, v).block_until_ready()


def routes(chosen: list[Site], with_jax: bool) -> dict[str, Route]:
    """Every route over all ``chosen`` sites, one after the other."""
    prepared = {FROM_S: [from_s(site) for site in chosen]} | (
        {JAX: [by_jax(site) for site in chosen]} if with_jax else {}
    )
    return {
        OURS: lambda: [ours(site) for site in chosen],
        AUTODIFF: lambda: [autodiff(site) for site in chosen],
        **{name: (lambda calls=calls: [call() for call in calls]) for name, calls in prepared.items()},
        MAKING_S: lambda: [making_s(site) for site in chosen],
    }


def verify(chosen: list[Site], given: dict[str, Route]) -> None:
    """Require that every product is right.

    Raises:
        WrongResult: one errs more than twice as much as torch's autodiff.
    """
    truths = [autodiff(site, torch.float64) for site in chosen]

    def errors(route: Route) -> list[float]:
        products = [torch.tensor(product.__array__()) for product in route()]
        return [float((p - t).norm() / t.norm()) for p, t in zip(products, truths, strict=True)]

    allowed = errors(given[AUTODIFF])
    for name, route in given.items():
        if name == MAKING_S:
            continue
        for site, error, plain in zip(chosen, errors(route), allowed, strict=True):
            if not error <= 2 * plain + 1e-7:
                raise WrongResult(f"{site.name}: {name} errs by {error:.1e}, torch's autodiff by {plain:.1e}: no times")


def layer_backward(site: Site) -> Route:
    """The layer's own backward pass: gradients of its input, weight and bias."""
    layer, x = site.layer, site.x.clone().requires_grad_()
    y = F.conv2d(x, layer.weight, layer.bias, *site.settings)
    upstream = torch.randn_like(y)
    wanted = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(y, wanted, upstream, retain_graph=True)


def model_backward(model: nn.Module, batch: models.Batch) -> Route:
    """``loss.backward()`` of the whole model, without the adding up into ``.grad``."""
    inputs, loss_fn = batch
    loss = loss_fn(model(inputs))
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(loss, parameters, retain_graph=True)


def compare(
    base: Route, given: dict[str, Route], rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Interleaved times; ratios to ``base`` within each round."""
    seconds: dict[str, list[float]] = {"base": [], **{name: [] for name in given}}
    for _ in range(rounds + 2):  # the first two warm up
        for name, route in {"base": base, **given}.items():
            start = clock()
            route()
            seconds[name].append(clock() - start)
    rows = {}
    for name in given:
        ratios = sorted(t / b for t, b in zip(seconds[name][2:], seconds["base"][2:], strict=True))
        quarter = len(ratios) // 4
        rows[name] = {
            "ratio": statistics.median(ratios),
            "low": ratios[quarter],
            "high": ratios[-1 - quarter],
            "ms": 1e3 * statistics.median(seconds[name][2:]),
        }
    return rows


def measure(
    model: nn.Module, batch: models.Batch, rounds: int, clock: Callable[[], float], with_jax: bool
) -> dict[str, dict[str, dict[str, float] | None]]:
    """Rows of the distinct shapes among the model's convolutions, and of all of them together."""
    every = sites(model, batch[0])
    distinct = {(site.x.shape, site.layer.weight.shape, site.layer.stride): site for site in reversed(every)}
    cases: dict[str, tuple[Route, list[Site]]] = {
        f"{s.layer.in_channels} to {s.layer.out_channels}, {s.layer.kernel_size[0]}x{s.layer.kernel_size[1]}, "
        f"{s.x.shape[2]}x{s.x.shape[3]}": (layer_backward(s), [s])
        for s in reversed(distinct.values())
    }
    cases["all layers, over loss.backward()"] = model_backward(model, batch), every
    results: dict[str, dict[str, dict[str, float] | None]] = {}
    for name, (base, chosen) in cases.items():
        given = routes(chosen, with_jax)
        verify(chosen, given)
        rows: dict[str, dict[str, float] | None] = dict(compare(base, given, rounds, clock))
        results[name] = rows if with_jax else {**rows, JAX: None}
        shown = (f"{route} {row['ratio']:.2f}" for route, row in rows.items() if row is not None)
        print(f"{name:34}" + ", ".join(shown), flush=True)
    return results


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments, clock = timing.parse(parser, threads=1)
    if hasattr(os, "sched_setaffinity"):  # jax takes as many threads as the process may run on cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    with_jax = importlib.util.find_spec("jax") is not None
    if not with_jax:
        print("NO JAX: the outside reference is missing from every row; pip install './bench[jax]'", flush=True)
    torch.manual_seed(0)
    model, batch = models.unet()
    results = measure(model, batch, arguments.rounds, clock, with_jax)
    if arguments.json:
        versions = {}
        if with_jax:
            import jax

            versions["jax"] = jax.__version__
        title = f"Convolutions of the UNet ({(models.unet.__doc__ or '').rstrip('.')})"
        save_profile(arguments.json, "product", title, results, **versions)


if __name__ == "__main__":
    main()
