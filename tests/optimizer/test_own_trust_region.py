"""A trust region from outside of the package, in one file; and the former name of one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lnb
import lnb_kernels as lk
from lnb import trust_regions
from lnb.trust_regions import Steps, TrustRegion


class Fixed(TrustRegion):
    """Every layer's step has the Euclidean length ``lr``."""

    name = "fixed length, a test's"

    def scales(self, steps: Steps) -> torch.Tensor:
        """The reciprocals of the lengths."""
        squares = torch.zeros_like(steps.products)
        for owner, direction in zip(steps.owners, steps.directions, strict=True):
            squares[owner] += direction.to(squares.dtype).square().sum()
        return squares.rsqrt()


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_regions._REGIONS, "known", dict(trust_regions._REGIONS.known))
    trust_regions.register(Fixed())


def train(model: nn.Module, optimizer: lnb.LNB, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 5, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_it_decides_how_long_steps_are(preset: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
    settings = {"damping": "none", "max_relative_change": None} if preset == "fast" else {}
    optimizer = lnb.LNB(model, 0.03, preset, trust_region=Fixed.name, weight_decay=0.0, **settings)
    assert Fixed.name in trust_regions.names()
    for _ in range(3):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        train(model, optimizer, 1)
        moved = [(p.detach() - b).square().sum() for p, b in zip(model.parameters(), before, strict=True)]
        for weight, bias in (moved[:2], moved[2:]):
            assert float((weight + bias).sqrt()) == pytest.approx(0.03, rel=1e-4)
    twin = lnb.LNB(model, 0.03, preset, trust_region=Fixed.name, weight_decay=0.0, **settings)
    twin.load_state_dict(optimizer.state_dict())
    assert optimizer.plan().rows[0].layer == "0"


@pytest.mark.parametrize(
    ("region", "kind", "message"),
    [
        (Fixed, TypeError, "must be an instance of"),
        ("global", TypeError, "region='global'"),
        (type("Nameless", (TrustRegion,), {})(), ValueError, "name=None of Nameless"),
        (type("Taken", (TrustRegion,), {"name": "layer"})(), ValueError, "name='layer' is taken by Layer"),
    ],
)
def test_what_is_no_region(region: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        trust_regions.register(region)  # type: ignore[arg-type]


def test_the_former_name_of_two_sided() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 6)
    with pytest.warns(DeprecationWarning, match="'two_sided'"):
        optimizer = lnb.LNB(model, trust_region="balanced")
    assert optimizer.config.trust_region == "two_sided"
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    state["lnb_settings"] = {**state["lnb_settings"], "trust_region": "balanced"}
    lnb.LNB(model).load_state_dict(state)
    with pytest.warns(DeprecationWarning, match="two_sided_directions_"):
        assert lk.balanced_directions_ is lk.two_sided_directions_
