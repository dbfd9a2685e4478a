"""Runs one of accelerate's own test scripts with LNB in place of its optimizer, and writes which of its checks ran.

``python accelerate_scripts.py SCRIPT FOLDER``, alone or under ``torchrun``. The scripts fit a line ``a x + b`` with two scalar
parameters; here the line is an ``nn.Linear(1, 1)``, for LNB to have a layer.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lnb

_lines: weakref.WeakSet[Line] = weakref.WeakSet()


class Line(nn.Module):
    """``RegressionModel`` of the scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.zeros_(self.line.weight)
        nn.init.zeros_(self.line.bias)
        _lines.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Line:
        other = Line()
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, x: Tensor) -> Tensor:
        """``[n]`` of ``[n]``."""
        with torch.autocast(x.device.type, enabled=False):  # the scripts expect a line that no autocast rounds
            out: Tensor = self.line(x.unsqueeze(-1)).squeeze(-1)
        return out

    @property
    def a(self) -> Tensor:
        """The slope."""
        return self.line.weight

    @property
    def b(self) -> Tensor:
        """The intercept."""
        return self.line.bias


def optimizer_of(params: Iterable[nn.Parameter], lr: float, process_group: Any = "auto") -> lnb.LNB:
    """LNB of the line with these parameters."""
    first = next(iter(params))
    line = next(line for line in _lines if line.line.weight is first)
    return lnb.LNB(line, lr, process_group=process_group)


def counted(check: Callable[..., Any], ran: list[str]) -> Callable[..., Any]:
    """``check``, which notes that it came to its end."""

    @functools.wraps(check)
    def run(*arguments: Any, **named: Any) -> Any:
        result = check(*arguments, **named)
        ran.append(check.__name__)
        return result

    return run


def prepared(script: str) -> tuple[Any, list[str], list[str]]:
    """The script's module, the names of its checks, and where those that ran will be noted."""
    module: Any = importlib.import_module(f"accelerate.test_utils.scripts.{script}")
    module.RegressionModel = Line
    checks: list[str] = []
    ran: list[str] = []
    for name, value in vars(module).copy().items():
        own = getattr(value, "__module__", None) == module.__name__
        if own and callable(value) and (name.startswith(("test_", "check_")) or name.endswith("_check")):
            setattr(module, name, counted(value, ran))
            checks.append(name)
    if script == "test_sync":
        # of each pair the first is of a model that nobody wraps, which sees the rows of all ranks
        groups = itertools.cycle([None, "auto"])
        module.AdamW = lambda params, lr: optimizer_of(params, lr, next(groups))
    else:
        plain = module.mock_training

        def alone(*arguments: Any, **named: Any) -> Any:
            torch.optim.SGD = functools.partial(optimizer_of, process_group=None)  # type: ignore[assignment, misc]
            try:
                return plain(*arguments, **named)
            finally:
                torch.optim.SGD = optimizer_of  # type: ignore[assignment, misc]

        module.mock_training = alone
        module.is_datasets_available = lambda: False
    return module, checks, ran


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    module, checks, ran = prepared(sys.argv[1])
    module.main()
    folder, rank = Path(sys.argv[2]), os.environ.get("RANK", "0")
    (folder / f"rank{rank}.json").write_text(json.dumps([checks, ran]))
