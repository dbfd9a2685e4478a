"""Counts what a piece of code asks of an accelerator, from meta tensors: launches, bytes, FLOPs, borrowed memory, host reads.

Every operator that reaches the device is seen by a dispatch mode. PyTorch's own count as they are launched on CUDA: one launch
each, lists of tensors (``_foreach``) one per table. The project's ops run the code that they would run on an NVIDIA GPU:
Triton launches are recorded, and the CUDA module is the one that the tests compile for a CPU, which here starts its launchers
but no kernel. An operator that is not known here is an error, not a zero.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parents[2]
sys.path += [
    str(ROOT),
    str(ROOT / "python"),
    str(ROOT / "bench"),
    str(ROOT / "tests"),
]  # last: what is installed comes first

import launches as triton_launches  # noqa: E402
from cusim.simulated import Simulator, simulator  # noqa: E402

from lnb_kernels import _autocast, _backend, _cuda  # noqa: E402
from lnb_kernels._library import kernel_of  # noqa: E402
from lnb_kernels._triton.arch import ARCHS  # noqa: E402
from meter.operators import foreach_launches, is_free, require_known  # noqa: E402
from meter.traffic import ON_TENSOR_CORES, cuda_traffic, direct_traffic, moment_flops, refresh_traffic, table_traffic  # noqa: E402

# Where storages of meta tensors are said to lie, for good: code may remember the address of a tensor from step to step.
_addresses: dict[int, int] = {}
_free = itertools.count(1)
_TRITON = "lnb_kernels.fused_step.triton_kernel"


@dataclass
class Launch:
    """One or more launches of one operator.

    Attributes:
        name: of the operator or kernel.
        count: launches.
        bytes: read and written.
        flops: of matrix products; nothing else is bound by arithmetic.
        dtype: of the products; None where no tensor cores make them.
    """

    name: str
    count: int
    bytes: int
    flops: int = 0
    dtype: torch.dtype | None = torch.float32


@dataclass
class Record:
    """What was counted between two points.

    Attributes:
        launched: in order.
        borrowed: the most bytes of tensors alive at once that were made since the beginning and are gone at the end.
        host_reads: operators by which the host waits for the device.
        host_copies: operators that copy from the host, whose memory a captured CUDA graph would find gone.
    """

    launched: list[Launch] = field(default_factory=list)
    borrowed: int = 0
    host_reads: list[str] = field(default_factory=list)
    host_copies: list[str] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """In all."""
        return sum(launch.count for launch in self.launched)

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(launch.bytes for launch in self.launched)


def moment_products(op: str, args: Any, result: Any) -> list[Launch]:
    """The arithmetic of the second moments that an op of a layer returned, as an entry without launches of its own."""
    inputs = [value for value in args if isinstance(value, Tensor)]
    flops = moment_flops(op, inputs, [value for value in tree_leaves(result) if isinstance(value, Tensor)])
    return [Launch("second moments", 0, 0, flops, inputs[0].dtype)] if flops else []


def _behind_tables(op: str, args: Any) -> list[Launch]:
    """What Triton's launches reach through tables of addresses, as an entry without launches of its own."""
    found = table_traffic(op.removeprefix("lnb_kernels::"), args)
    return [] if found is None else [Launch(op, 0, *found)]


class Counter(TorchDispatchMode):
    """Within it, all operators on meta tensors are counted in ``record``."""

    def __init__(self, by_triton: bool = False) -> None:
        super().__init__()
        self.record = Record()
        self._by_triton = by_triton
        self._alive: dict[int, int] = {}  # bytes of storages made within, by number
        self._now = 0
        self._peak: list[tuple[int, dict[int, int]]] = []
        self._numbers = itertools.count()
        self._depth = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        if name.startswith("lnb_kernels."):
            return self._own(func, args, kwargs)
        known_host_read = name in ("aten._local_scalar_dense.default", "aten.equal.default", "aten.nonzero.default")
        if known_host_read:
            if any(tensor.is_meta for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)):
                self.record.host_reads.append(name)
                if func is torch.ops.aten._local_scalar_dense.default:
                    return 0.0
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # a chain of others
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        tensors = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        if not any(tensor.is_meta for tensor in (*tensors, *made)):
            return result  # on the host
        if name in ("aten._to_copy.default", "aten.copy_.default") and any(x.is_cpu for x in tensors):
            self.record.host_copies.append(name)
        for tensor in made:
            self._note(tensor)
        if is_free(func):
            return result
        require_known(name)
        known = {tensor.untyped_storage()._cdata for tensor in tensors}
        moved = sum(_bytes(tensor) for tensor in tensors if tensor.is_meta)
        moved += sum(_bytes(tensor) for tensor in made if tensor.untyped_storage()._cdata not in known)
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:  # read above, and written
                written = args[_place(func, argument.name)] if _place(func, argument.name) < len(args) else ()
                moved += sum(_bytes(t) for t in tree_leaves(written) if isinstance(t, Tensor))
        flops, dtype = 0, torch.float32
        if func._overloadpacket in flop_registry:
            flops = int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=result))
            dtype = tensors[0].dtype
        self.record.launched.append(Launch(name, foreach_launches(name, args), moved, flops, dtype))
        return result

    def _own(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the op's own code on these tensors, as on a GPU."""
        if not any(t.is_meta for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)):
            return func(*args, **kwargs)
        kernel = kernel_of(func._schema.name.removeprefix("lnb_kernels::"))
        with self, torch._C._AutoDispatchBelowAutograd():
            result = kernel(*args, **kwargs)
        self.record.launched += moment_products(func._schema.name, args, result)
        if self._by_triton:
            self.record.launched += _behind_tables(func._schema.name, args)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if not tensor.is_meta or getattr(storage, "_counted", False):
            return
        number = next(self._numbers)
        storage._counted = True
        size = storage.nbytes()
        self._alive[number] = size
        self._now += size
        if not self._peak or self._now > self._peak[-1][0]:
            self._peak = [(self._now, dict(self._alive))]
        weakref.finalize(storage, self._forget, number)

    def _forget(self, number: int) -> None:
        self._now -= self._alive.pop(number, 0)

    def finish(self) -> Record:
        """The record, with what the code borrowed: of the bytes alive at the peak, those that are gone now."""
        if self._peak:
            self.record.borrowed = sum(size for number, size in self._peak[0][1].items() if number not in self._alive)
        return self.record


def _place(func: Any, name: str) -> int:
    return next(i for i, argument in enumerate(func._schema.arguments) if argument.name == name)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


HOST_ONLY = {
    "conv_sizes",
    "supported",
    "combines",
    "directs",
    "moves",
    "check_moves",
    "require_disjoint_writes",
    "failure",
    "runtime_version",
}
"""Functions of the module that ask nothing of a device."""


class _DryModule:
    """The CUDA module: its launchers run and are noted, its kernels do not."""

    def __init__(self, simulated: Simulator, counter: Counter) -> None:
        self._simulated, self._counter = simulated, counter

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._simulated.module, name)
        if not callable(value) or isinstance(value, type) or name in HOST_ONLY:
            return value

        def call(*args: Any) -> Any:
            before = len(self._simulated.launches)
            result = value(*args)
            made = self._simulated.launches[before:]
            if made:
                moved, flops = cuda_traffic(name, args)
                self._counter.record.launched.append(
                    Launch(
                        made[0] if len(set(made)) == 1 else name,
                        len(made),
                        moved,
                        flops,
                        torch.float32 if name in ON_TENSOR_CORES else None,
                    )
                )
            return result

        return call


@contextmanager
def counting(autocast: torch.dtype | None = None, cuda_module: bool = True) -> Iterator[Counter]:
    """Meta tensors inside are those of an H100: yields what counts. Addresses are made up.

    Args:
        autocast: to which layers cast their inputs, as in a region of ``torch.autocast``, which knows no meta tensors.
        cuda_module: whether there is the CUDA module; without it ops run by Triton, or as plain PyTorch.
    """
    counter = Counter(by_triton=not cuda_module)
    candidate = _backend.candidate
    data_ptr = Tensor.data_ptr

    def address(tensor: Tensor) -> int:
        if not tensor.is_meta:
            return data_ptr(tensor)
        if tensor.numel() == 0:
            return 0
        storage = tensor.untyped_storage()
        known = _addresses.get(storage._cdata)
        if known is None:
            known = _addresses[storage._cdata] = next(_free) << 40
            weakref.finalize(storage, _addresses.pop, storage._cdata, None)
        return known + tensor.storage_offset() * tensor.element_size()

    def as_on_a_gpu(route: Any, device: torch.device, dtype: torch.dtype, backend: str) -> str:
        if not cuda_module:
            route = replace(route, kernels={k: v for k, v in route.kernels.items() if k != "native-cuda"})
        return candidate(route, torch.device("cuda") if device.type == "meta" else device, dtype, backend)

    def cast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tensors if autocast is None else tuple(x if x is None else x.to(autocast) for x in tensors)

    arch = next(arch for name, arch in ARCHS.items() if "90" in str(name))
    with ExitStack() as stack:
        if cuda_module:
            stack.enter_context(_dry_module(counter))
            stack.enter_context(mock.patch(f"{_TRITON}.direct_some_", _noted_direct(counter)))
        stack.enter_context(
            mock.patch.dict(_backend.routes()["refresh_metrics"].loaded, triton=_noted_refresh(counter))
        )
        stack.enter_context(mock.patch.object(_backend, "candidate", as_on_a_gpu))
        stack.enter_context(mock.patch.object(_autocast, "cast_layer", cast))
        for name in ("linear", "conv2d"):  # of layers that gather nothing
            stack.enter_context(mock.patch.object(torch.nn.functional, name, _casting(name, cast)))
        stack.enter_context(mock.patch.object(Tensor, "data_ptr", address))
        stack.enter_context(triton_launches.recording(arch, _TritonLaunches(counter)))
        stack.enter_context(counter)
        yield counter


def _noted_direct(counter: Counter) -> Callable[..., None]:
    """Directions by Triton of what the CUDA module does not take, with such an entry."""
    from lnb_kernels.fused_step import triton_kernel

    usual = triton_kernel.direct_some_

    def call(layers: Any, chosen: Any, given: Any) -> None:
        usual(layers, chosen, given)
        mine = [layer for layer, own in zip(layers, chosen, strict=True) if own]
        columns = [
            [getattr(layer, name) for layer in mine]
            for name in ("direction", "momentum", "gradient", "inverse", "root")
        ]
        counter.record.launched.append(Launch("direct_layers_", 0, *direct_traffic(*columns, given.precision)))

    return call


def _noted_refresh(counter: Counter) -> Callable[..., None]:
    """The refresh by Triton, with an entry without launches of its own for what it reaches through tables."""
    from lnb_kernels.refresh.triton_kernel import refresh_metrics

    def call(layers: Any, *args: Any) -> None:
        refresh_metrics(layers, *args)
        counter.record.launched.append(Launch("refresh_metrics", 0, *refresh_traffic(layers), dtype=None))

    return call


@contextmanager
def _dry_module(counter: Counter) -> Iterator[None]:
    """The CUDA module notes in ``counter`` what it would launch."""
    simulated = simulator()
    simulated.set(dry=True)
    module = _DryModule(simulated, counter)
    with (
        mock.patch.object(_cuda, "module", return_value=module),
        mock.patch.object(_cuda, "where", return_value=(0, 0)),
    ):
        try:
            yield
        finally:
            simulated.set()


def _casting(name: str, cast: Any) -> Any:
    plain = getattr(torch.nn.functional, name)

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = plain(*cast(x, weight, bias), *args, **kwargs)
        return result

    return layer


class _TritonLaunches(list[Any]):
    """Where the recorder of Triton launches puts them: they are noted in their order among the others."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter

    def append(self, launch: Any) -> None:
        moved = sum(_bytes(value) for value in launch.values.values() if isinstance(value, Tensor))
        self._counter.record.launched.append(Launch(f"triton.{launch.name}", 1, moved))
