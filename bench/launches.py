"""Record what the launchers would launch, without a GPU: kernels, grids, constants and argument types.

The launchers run on meta tensors with the heuristics of a chosen architecture, and Triton's launch is replaced by a
recorder. So the code that is inspected (``codegen.py``) and costed (``roofline.py``) is that of the shipped
configurations by construction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from lnb_kernels._triton import arch as arches  # noqa: E402

TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
    torch.float64: "*fp64", torch.uint8: "*u8",
}  # fmt: skip


@dataclass
class Launch:
    """One kernel launch: ``signature`` and ``constants`` as Triton's compiler takes them."""

    kernel: Any
    grid: tuple[int, ...]
    values: dict[str, Any]
    signature: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    attributes: dict[tuple[int], list[list[Any]]] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


def _describe(kernel: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """Types and specialisations (constants 1, divisibility by 16) as the just-in-time compiler would derive them."""
    names = [parameter.name for parameter in kernel.params]
    values = dict(zip(names, args, strict=False)) | {name: value for name, value in kwargs.items() if name in names}
    options = {name: value for name, value in kwargs.items() if name not in names}
    launch = Launch(kernel, tuple(grid), values, options=options)
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr:
            launch.signature[name], launch.constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            launch.signature[name] = TYPES[value.dtype]
            # Of a meta tensor only the offset into its storage is known; allocations themselves are aligned.
            if value.storage_offset() * value.element_size() % 16 == 0:
                launch.attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            launch.signature[name] = f"tensordesc<{TYPES[value.base.dtype][1:]}{list(value.block_shape)}>"
        elif isinstance(value, float):
            launch.signature[name] = "fp32"
        elif value == 1:
            launch.signature[name], launch.constants[name] = "constexpr", 1
        else:
            launch.signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                launch.attributes[(index,)] = [["tt.divisibility", 16]]
    return launch


@contextmanager
def recording(arch: arches.Arch, launches: list[Launch]) -> Iterator[None]:
    """Inside, the launches of Triton kernels are appended to ``launches`` and not made."""
    from triton.runtime.jit import JITFunction

    run, interpreted = JITFunction.run, arches.INTERPRETED

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if not warmup:
            launches.append(_describe(self, grid, args, kwargs))

    JITFunction.run, arches.INTERPRETED = record, arch
    try:
        yield
    finally:
        JITFunction.run, arches.INTERPRETED = run, interpreted


def record(call: Callable[[], Any], arch: arches.Arch) -> list[Launch]:
    """The launches of ``call``, whose tensors live on the meta device, on ``arch``."""
    launches: list[Launch] = []
    with recording(arch, launches):
        call()
    return launches
