"""Interrupts ``LNB.step`` at its lines, by an exception or by Ctrl-C, and judges what it left behind.

PYTHONPATH=tests python tests/reliability/interrupts.py [--stride 1]
"""

from __future__ import annotations

import argparse
import copy
import os
import signal
import sys
from collections import Counter
from typing import Any

import torch
from moments import EveryLine
from optimizer.small_models import MODES, batches, copied, loss_of, mixed, same, train
from torch import nn

import lnb
from lnb.state.portable import PROGRESS


def throw() -> None:
    raise KeyboardInterrupt


def press() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


class Scene:
    """A model in training, and the one step that is to be interrupted.

    Args:
        mode: settings of :data:`small_models.MODES`.
        steps: made before; the first step makes the state, others find it.
    """

    def __init__(self, mode: str, steps: int) -> None:
        settings = dict(MODES[mode])
        if mode == "fast":
            settings |= {"refresh_every": 2}
        self.data = batches(steps + 2)
        model = mixed()
        optimizer = lnb.LNB(model, others="adamw", **settings)
        train(model, optimizer, self.data[:steps])
        self.kept = model, optimizer
        self.ready()[1].step()  # what is made once in a process is no line of every step
        model, optimizer = self.ready()
        self.before = self.content(model, optimizer)
        counter = EveryLine(None, throw)
        with counter:
            optimizer.step()
        self.first = counter.first
        self.lines = sorted(counter.first.values())
        self.after = self.content(model, optimizer)

    def lines_of(self, *files: str) -> list[int]:
        """The moments that fall into files of these names."""
        return sorted(at for (path, _), at in self.first.items() if os.path.basename(path) in files)

    def ready(self) -> tuple[nn.Module, lnb.LNB]:
        """Model and optimizer with the gradients of the step, not yet made."""
        model, optimizer = copy.deepcopy(self.kept)
        optimizer.zero_grad()
        loss_of(model, self.data[-2]).backward()
        return model, optimizer

    @staticmethod
    def content(model: nn.Module, optimizer: lnb.LNB) -> dict[str, Any]:
        return copied({"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    def throw_at(self, line: int) -> str:
        """Raise at a line of the step; what became of it. Fails where that is not as promised."""
        model, optimizer = self.ready()
        made = optimizer.diagnostics()["steps"]
        moment = EveryLine(line, throw)
        try:
            with moment:
                optimizer.step()
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError(f"line {line}: the exception was lost at {moment.where}")
        found = self.content(model, optimizer)
        if optimizer.diagnostics()["steps"] > made:
            assert same(found, self.after), f"{moment.where}: counted, but not complete"
            return "complete"
        self._require_old_or_new(found, moment.where)
        try:
            optimizer.step()
        except RuntimeError as error:
            if "broken off" not in str(error):
                raise
            assert same(self.content(model, optimizer), found), f"{moment.where}: a refused step changed something"
            fate = "refused to repeat"
        else:
            assert same(self.content(model, optimizer), self.after), f"{moment.where}: the repeated step is another one"
            fate = "repeated"
        train(model, optimizer, self.data[-1:] * 3)  # new gradients are always welcome
        assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
        return fate

    def _require_old_or_new(self, found: dict[str, Any], where: str) -> None:
        for name, value in found["model"].items():
            allowed = (self.before["model"][name], self.after["model"][name])
            assert any(torch.equal(value, other) for other in allowed), f"{where}: {name} is half moved"
        for index, state in found["optimizer"]["state"].items():
            old = self.before["optimizer"]["state"].get(index, {}).get("momentum")
            new = self.after["optimizer"]["state"][index]["momentum"]
            now = state.get("momentum")
            allowed = (torch.zeros_like(new) if old is None else old, new)
            assert now is None or any(torch.equal(now, other) for other in allowed), f"{where}: averaged otherwise"

    def press_at(self, line: int) -> str:
        """Press Ctrl-C at a line of the step, repeat it if it was not counted; fails where that is not one step in all."""
        model, optimizer = self.ready()
        made = optimizer.diagnostics()["steps"]
        moment = EveryLine(line, press)
        try:
            with moment:
                optimizer.step()
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError(f"line {line}: Ctrl-C was lost at {moment.where}")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        counted = optimizer.diagnostics()["steps"] > made
        found, wanted = self.content(model, optimizer), self.after if counted else self.before
        if not counted:  # the plan may have noted the rows already, which a repeated step notes again
            found["optimizer"]["lnb_plan"] = wanted["optimizer"]["lnb_plan"]
            for group, other in zip(
                found["optimizer"]["param_groups"], wanted["optimizer"]["param_groups"], strict=True
            ):
                group[PROGRESS] = other[PROGRESS]  # where it stands once more
        assert same(found, wanted), f"{moment.where}: half made"
        if not counted:
            optimizer.step()
        assert same(self.content(model, optimizer), self.after), f"{moment.where}: not one step in all"
        return "complete" if counted else "repeated"


def sweep(mode: str, steps: int, stride: int) -> Counter[str]:
    """Interrupt a step at every ``stride``-th different line, both ways; how often it had which fate."""
    scene = Scene(mode, steps)
    fates: Counter[str] = Counter()
    for line in scene.lines[::stride]:
        fates[f"exception: {scene.throw_at(line)}"] += 1
        fates[f"Ctrl-C: {scene.press_at(line)}"] += 1
    return fates


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stride", type=int, default=1)
    stride = parser.parse_args().stride
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
    total: Counter[str] = Counter()
    for mode, steps in [("fast", 0), *((mode, 2) for mode in MODES)]:
        fates = sweep(mode, steps, stride)
        print(mode, steps, dict(fates), flush=True)
        total += fates
    print("in all", sum(total.values()), dict(sorted(total.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
