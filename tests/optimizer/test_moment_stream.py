"""Second moments on a side stream, whose work is put off here until something waits for it: nothing reads them before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from optimizer.small_models import equal_parameters
from torch import Tensor, nn

import lnb
import lnb_kernels as lk
from lnb_kernels import moment_stream
from lnb_kernels.linear import SharedMoment


class LateStreams:
    """A side stream that works when it is waited for; until then its results are NaN."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []
        self.made = self.joined = 0

    def serves(self, device: torch.device) -> bool:
        return True

    def run(self, moment: Callable[[], Tensor], read: tuple[Tensor, ...]) -> Tensor:
        assert all(isinstance(tensor, Tensor) for tensor in read)
        result = torch.full_like(moment(), float("nan"))

        memory = result.detach()  # autograd would copy a gradient that another has, too

        def late() -> None:
            with torch.no_grad():
                memory.copy_(moment())

        self.waiting.append(late)
        self.made += 1
        return result

    def join(self) -> None:
        self.joined += bool(self.waiting)
        while self.waiting:
            self.waiting.pop(0)()


class Model(nn.Module):
    """A convolution, two projections of one input, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.flat = nn.Conv2d(2, 4, 3), nn.Linear(144, 8)
        self.q, self.k, self.twice, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.flat(torch.relu(self.conv(x)).flatten(1)))
        x = torch.tanh(self.q(x) * self.k(x))
        return self.out(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


def trained(parts: int) -> Model:
    model = Model()
    optimizer = lnb.LNB(model, block_size=4)  # in blocks: moments apart from weight gradients
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        optimizer.zero_grad()
        for _ in range(parts):
            model(torch.randn(6, 2, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("parts", [1, 3])
def test_steps_are_those_of_one_stream(parts: int) -> None:
    streams = LateStreams()
    expected = trained(parts)
    with moment_stream.replaced_streams(streams):
        found = trained(parts)
    assert equal_parameters(found, expected)
    assert not streams.waiting
    gathered = 3  # of the four steps, at 0, 1 and 2
    assert streams.made == gathered * parts * 4  # the convolution, the first, the two projections' one, and the last
    assert streams.joined >= gathered * parts


def test_what_stays_in_the_stream_of_the_backward_pass() -> None:
    """A recorded backward pass, a probe that is no leaf, a fused one, and all where nobody asked for another stream."""
    x, weight = torch.randn(6, 4), torch.randn(3, 4)
    streams = LateStreams()
    with moment_stream.replaced_streams(streams):
        probe = torch.zeros(2, 3, 3, requires_grad=True)
        (s,) = torch.autograd.grad(lk.linear(x, weight, probe=probe).sum(), probe, create_graph=True)
        assert s.isfinite().all()
        (s,) = torch.autograd.grad(lk.linear(x, weight, probe=probe * 1).sum(), probe)
        assert s.isfinite().all()
        whole = torch.zeros(5, 5, requires_grad=True)
        lk.linear(x, weight, probe=whole).sum().backward()
        assert streams.made == 0
        lk.linear(x, weight, probe=probe, shared=SharedMoment()).sum().backward()
        assert streams.made == 1
        assert probe.grad is not None
        assert probe.grad.isnan().all()
        moment_stream.join_moments()
        torch.testing.assert_close(probe.grad, lk.second_moment(x, blocks=2))
    assert not moment_stream.CudaStreams().serves(torch.device("cpu"))
    lk.linear(x, weight, probe=probe).sum().backward()
    assert streams.made == 1


def test_cuda_streams_wait_for_each_other_and_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls in their order, on a stand-in for CUDA."""
    calls: list[str] = []

    class Stream:
        def __init__(self, device: object = None, priority: int = 1, name: str = "side") -> None:
            self.name = name
            if name == "side":
                calls.append(f"new stream of priority {priority}")

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

        def __enter__(self) -> None:
            calls.append("begin aside")

        def __exit__(self, *error: object) -> None:
            calls.append("end aside")

    capturing = False
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name="main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    recorded = lambda self, stream: calls.append(f"{self.dim()} dimensions kept for {stream.name}")  # noqa: E731
    monkeypatch.setattr(Tensor, "record_stream", recorded)
    streams = moment_stream.CudaStreams()
    assert streams.serves(torch.device("cuda"))
    for _ in range(2):
        streams.run(lambda: calls.append("moment") or torch.zeros(2, 3, 3), (torch.zeros(4, 4),))  # type: ignore[func-returns-value]
    once = [
        "side waits for main", "begin aside", "moment", "end aside", "2 dimensions kept for side", "3 dimensions kept for main",
    ]  # fmt: skip
    assert calls == ["new stream of priority 0", *once, *once]
    calls.clear()
    streams.join()
    streams.join()
    assert calls == ["main waits for side"]
    capturing = True
    assert not streams.serves(torch.device("cuda"))
