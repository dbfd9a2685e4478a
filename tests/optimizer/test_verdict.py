"""The verdict on a step, on a model that is split over an accelerator and the CPU."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from lnb.distributed.late_flag import LateFlag
from lnb.verdict import Verdict


class OnGpu:
    """A flag on an accelerator. What a copy to the host that does not block returns is not there yet when it is read."""

    device = torch.device("cuda", 0)

    def __init__(self, value: bool) -> None:
        self.value = value
        self.blocked: list[bool] = []

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        self.blocked.append(not non_blocking)
        late = non_blocking and device.type == "cpu"
        return torch.tensor(self.value != late)


@pytest.mark.parametrize("value", [True, False])
def test_the_host_reads_the_verdict_when_it_has_come(value: bool) -> None:
    flag = OnGpu(value)
    verdict = Verdict(cast(Any, flag))
    target = torch.zeros(2)
    verdict.commit(target, torch.ones(2))
    assert target.tolist() == [value, value]
    assert bool(verdict.on(torch.device("cpu"))) is value
    assert flag.blocked == [True]  # once a step
    verdict.on(torch.device("meta"))
    assert flag.blocked == [True, False]  # another accelerator is not waited for


@pytest.mark.parametrize("value", [True, False])
def test_a_late_flag_is_read_when_its_copy_has_landed(value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy lands when its event is waited for; nothing else is, and nothing before the flag is read."""
    host = torch.tensor(not value)
    found: list[str] = []

    class Event:
        def __init__(self, device: torch.device) -> None:
            found.append(f"made for {device}")

        def record(self) -> None:
            found.append("recorded")
            host.fill_(not value)  # still under way

        def synchronize(self) -> None:
            found.append("waited for")
            host.fill_(value)

    def memory(*_: Any, pin_memory: bool, **__: Any) -> Tensor:
        assert pin_memory
        return host

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch, "empty", memory)
    flag = LateFlag(torch.tensor(value))
    assert found == ["made for cpu", "recorded"]
    assert flag.read() is value
    assert found[2:] == ["waited for"]
