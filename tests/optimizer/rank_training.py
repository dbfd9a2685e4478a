"""What each of the processes of ``test_ranks.py`` does: a module that a spawned process can import."""

from __future__ import annotations

import contextlib
import copy
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from optimizer.conv1d_double import Net as Transposed
from optimizer.conv1d_double import imported
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lnb
import lnb.statistics.refresh

CASES: dict[str, dict[str, Any]] = {
    "fast": {"preset": "fast"},
    "paper": {"preset": "paper"},
    "paper, averaged": {"preset": "paper", "refresh_every": 2, "b_s": 0.5, "cg_scope": "neuron"},
    "full batch": {"preset": "full_batch", "ridge": 0.1},
}
WAYS = ("accumulated", "wrapped later", "wrapped", "group")
STEPS = 5
LR = 0.02


class Network(nn.Module):
    """A convolution, attention of two inputs, and a linear layer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``[n, 3]`` of images ``[n, 2, 6, 6]``."""
        tokens = self.patches(images).flatten(2).mT
        mixed, _ = self.attention(tokens, tokens.tanh(), tokens.tanh(), need_weights=False)
        scores: Tensor = self.head(mixed.mean(1))
        return scores


class Plain(nn.Sequential):
    """Layers whose inputs vary in every direction, so that float32 does not magnify its rounding."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(2, 6, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(54, 6),
            nn.Tanh(),
            nn.Linear(6, 3),
        )


class Branches(nn.Module):
    """Two layers, of which each rank's batch reaches one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.branches = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.use = 0

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``[n, 3]`` of ``[n, 4]``."""
        scores: Tensor = self.branches[self.use](x)
        return scores


def parameters_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def images(dtype: torch.dtype, steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.rand(16, 2, 6, 6, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(0, 3, (16,), generator=generator),
        )
        for _ in range(steps)
    ]


def trained(
    model: nn.Module,
    optimizer: lnb.LNB,
    rank: int = 0,
    ranks: int = 1,
    micro: int = 1,
    at: Callable[..., None] | None = None,
) -> Tensor:
    """All parameters after five steps on this rank's share of every batch, in ``micro`` backward passes.

    Args:
        at: called with the number of the step, between backward pass and step.
    """
    for number, (x, y) in enumerate(images(next(model.parameters()).dtype)):
        optimizer.zero_grad()
        shares = list(zip(x[rank::ranks].chunk(micro), y[rank::ranks].chunk(micro), strict=True))
        for i, (inputs, targets) in enumerate(shares):
            waits = isinstance(model, DistributedDataParallel) and i + 1 < len(shares)
            with model.no_sync() if waits else contextlib.nullcontext():
                (F.cross_entropy(model(inputs), targets) / micro).backward()
        if at is not None:
            at(number)
        optimizer.step()
    return parameters_of(model)


def run_rank(rank: int, ranks: int, folder: Path) -> None:
    """Train every case in every way of telling the optimizer, and write what came out to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),  # what hangs, fails
    )
    found: dict[str, Any] = {"parameters": {}, "exchanges": {}}
    for name, settings in CASES.items():
        for how in WAYS if name == "fast" else WAYS[:2]:
            found["parameters"][name, how] = _trained_how(how, Network().double(), rank, ranks, {**settings, "lr": LR})
        found["parameters"][name, "float32"] = _trained_how(
            "wrapped later", Plain(), rank, ranks, {**settings, "lr": LR / 10}
        )
        found["exchanges"][name] = _exchanges(rank, ranks, settings)
    found["split"] = _split(rank, ranks)
    found["transposed"] = _transposed(rank, ranks)
    found["branches"] = [_branches(rank, ranks, settings) for settings in CASES.values()]
    found["failed"] = [_failing(rank, ranks, settings) for settings in CASES.values()]
    found["strict"] = _strict(rank)
    alone = Network().double()
    found["alone"] = trained(alone, lnb.LNB(alone, 0.02, process_group=None))
    found["copy"] = _copied(rank, ranks)
    found["complaints"] = _complaints()
    found["moments"] = _moments(rank, ranks)
    found["differences"] = _differences(rank, ranks)
    if ranks == 2:
        found["closure"] = _raising_closure(rank)
    if rank < ranks - 1:
        found["deserted"] = _deserted()
    torch.save(found, folder / f"rank{rank}.pt")  # the last rank ends; then the others do


def _trained_how(how: str, model: nn.Module, rank: int, ranks: int, settings: dict[str, Any]) -> Tensor:
    if how in ("wrapped", "accumulated"):
        wrapped = DistributedDataParallel(model)
        optimizer = lnb.LNB(wrapped, **settings)
    elif how == "group":
        optimizer = lnb.LNB(model, process_group=dist.group.WORLD, **settings)
        wrapped = DistributedDataParallel(model)
    else:  # inside another module, as trainers do
        optimizer = lnb.LNB(model, **settings)
        wrapped = DistributedDataParallel(nn.Sequential(model))
    return trained(wrapped, optimizer, rank, ranks, micro=2 if how == "accumulated" else 1)


def _exchanges(rank: int, ranks: int, settings: dict[str, Any]) -> list[tuple[bool, int, int]]:
    """Of each of five steps, whether it has second moments, and the reductions of its backward pass and of itself."""
    plain, sizes, found = dist.all_reduce, [], []

    def noted(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        sizes.append(tensor.numel())
        return plain(tensor, *arguments, **named)

    wrapped = DistributedDataParallel(Network())
    optimizer = lnb.LNB(wrapped, 0.02, **settings)
    dist.all_reduce = noted
    try:
        for x, y in images(torch.float32):
            optimizer.zero_grad()
            F.cross_entropy(wrapped(x[rank::ranks]), y[rank::ranks]).backward()
            before = len(sizes)
            gathers = bool(optimizer.gathering)
            optimizer.step()
            found.append((gathers, before, len(sizes) - before))
            sizes.clear()
    finally:
        dist.all_reduce = plain
    return found


def _split(rank: int, ranks: int) -> dict[str, Any]:
    """Training whose refreshes are shared out, with what it had in its state; and how many blocks this rank factored."""
    found = {}
    for name in ("alone", "split"):
        wrapped = DistributedDataParallel(Network())
        optimizer = lnb.LNB(wrapped, 0.02, block_size=4, split_refresh=name == "split")
        with mock.patch("lnb.statistics.refresh.factorize", wraps=lnb.statistics.refresh.factorize) as factorized:
            moved = trained(wrapped, optimizer, rank, ranks)
        count = sum(len(call.args[0]) for call in factorized.call_args_list)
        found[name] = moved, optimizer.state_dict()["state"], count
    return found


def _transposed(rank: int, ranks: int) -> list[list[Tensor]]:
    """Training of weights ``[d_in, d_out]`` under wrappers that look at strides once, or again; and alone."""
    found = []
    with imported():
        for options in ({}, {"find_unused_parameters": True}, {"gradient_as_bucket_view": True}, None):
            model = Transposed(True).double()
            optimizer = lnb.LNB(model, LR, process_group="auto" if options is not None else None)
            wrapped = model if options is None else DistributedDataParallel(model, **options)
            share = slice(None) if options is None else slice(rank, None, ranks)
            for number in range(4):
                x = torch.rand(8, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
                optimizer.zero_grad()
                wrapped(x[share]).square().mean().backward()
                optimizer.step()
            found.append([parameter.detach() for parameter in model.parameters()])
    return found


def _branches(rank: int, ranks: int, settings: dict[str, Any]) -> Tensor:
    """Ranks whose batches reach different layers."""
    model = Branches().double()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = lnb.LNB(wrapped, 0.02, **settings)
    for number in range(4):
        model.use = (rank + number) % 2
        x = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        wrapped(x).square().mean().backward()
        optimizer.step()
    return parameters_of(model)


def _failing(rank: int, ranks: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Steps that one rank cannot make, at every place of the schedule of refreshes."""
    model = Network().double()
    wrapped = DistributedDataParallel(model)
    optimizer = lnb.LNB(wrapped, 0.02, **settings)
    raised, moved = 0, 0
    for x, y in images(torch.float64, 8):
        for failing in (True, False):
            optimizer.zero_grad()
            F.cross_entropy(wrapped(x[rank::ranks]), y[rank::ranks]).backward()
            before, weight = parameters_of(model), model.head.weight
            if failing and rank == 1:
                model.head.weight = nn.Parameter(torch.zeros(3, 8, dtype=torch.float64))
            try:
                optimizer.step()
            except RuntimeError as error:
                raised += "the weight of layer 'module.head' was re-assigned" in str(error)
            model.head.weight = weight
            moved += failing and not torch.equal(parameters_of(model), before)
    counts = optimizer.diagnostics()
    return {"raised": raised, "moved": moved, "counts": counts, "parameters": parameters_of(model)}


def _strict(rank: int) -> list[str]:
    """What a strict optimizer says where one rank's input is not finite, on each of two steps."""
    wrapped = DistributedDataParallel(nn.Linear(3, 2))
    optimizer = lnb.LNB(wrapped, strict=True)
    said = []
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(torch.full((4, 3), float("nan") if rank == 1 else 1.0)).sum().backward()
        try:
            optimizer.step()
        except FloatingPointError as error:
            said.append(str(error))
    return said


def _copied(rank: int, ranks: int) -> list[Tensor]:
    """The training of a copy of model and optimizer, made before the first step and after it."""
    wrapped = DistributedDataParallel(Network().double())
    optimizer = lnb.LNB(wrapped, 0.02)
    early = copy.deepcopy((wrapped, optimizer))
    late = copy.deepcopy(early)
    ended = [trained(*early, rank, ranks), trained(*copy.deepcopy(late), rank, ranks)]
    return ended


def _moments(rank: int, ranks: int) -> dict[str, Any]:
    """Moments that every rank gathers of its own rows, of unlike numbers, reduced; and what is said where they do not fit."""
    model, ((x, _),) = Network(), images(torch.float32, 1)
    share = x.tensor_split([3 * (i + 1) for i in range(ranks - 1)])[rank]
    own = lnb.gather_moments(model, [share])
    whole = lnb.moments.reduce_moments(own)
    found: dict[str, Any] = {name: (moment.second_moment, moment.mean, moment.count) for name, moment in whole.items()}
    own["head"].mean[0, 0] = float("nan") if rank == 1 else 0.0
    found["said of layers"] = _refused(lnb.gather_moments(model, [share], layers=["head", "patches"][rank % 2 :]))
    found["said of NaN"] = _refused(own)
    return found


def _refused(moments: lnb.moments.Moments) -> str:
    try:
        lnb.moments.reduce_moments(moments)
    except ValueError as error:
        return str(error)
    return "nothing"


def _differences(rank: int, ranks: int) -> dict[str, tuple[str, bool]]:
    """What is said where rank 1 has what the others have not, and whether nothing moved; it goes on as it was then."""
    wrapped = DistributedDataParallel(Network().double())
    optimizer = lnb.LNB(wrapped, 0.02, preset="paper")
    found = {}
    for name in ("none", "rate", "parameter", "state", "none again", "layer", "layer still", "layer anew", "at last"):
        x, y = images(torch.float64)[0]
        optimizer.zero_grad()
        head = wrapped.module.head
        if name == "layer" and rank == 1:
            lnb.detach(head)
        if name == "layer anew" and rank == 1:
            lnb.attach(head)
        F.cross_entropy(wrapped(x[rank::ranks]), y[rank::ranks]).backward()
        before, saved = parameters_of(wrapped), copy.deepcopy(optimizer.state_dict())
        if rank == 1 and name == "rate":
            optimizer.param_groups[0]["lr"] = 0.5
        elif rank == 1 and name == "parameter":
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3, dtype=torch.float64))]})
        elif rank == 1 and name == "state":
            optimizer.load_state_dict({**saved, "lnb_step": saved["lnb_step"] + 1})
        try:
            optimizer.step()
            said = ""
        except RuntimeError as error:
            said = str(error)
        found[name] = said, torch.equal(parameters_of(wrapped), before)
        optimizer.param_groups[0]["lr"] = 0.02
        del optimizer.param_groups[1:]
        if rank == 1 and name == "state":
            optimizer.load_state_dict(saved)
    model = nn.Linear(3, 2 + (rank == 1))
    optimizer = lnb.LNB(model, process_group=dist.group.WORLD)
    model(torch.ones(4, 3)).sum().backward()
    try:
        optimizer.step()
    except RuntimeError as error:
        found["model"] = str(error), True
    return found


def _raising_closure(rank: int) -> tuple[str, bool]:
    """What each rank is told where rank 1's closure raises after its backward pass, and whether nothing moved."""
    impatient = dist.new_group(timeout=datetime.timedelta(seconds=2))
    wrapped = DistributedDataParallel(Plain())
    optimizer = lnb.LNB(wrapped, process_group=impatient)
    before = parameters_of(wrapped)
    said = ""

    def closure() -> float:
        optimizer.zero_grad()
        loss = wrapped(images(torch.float32)[0][0]).square().sum()
        loss.backward()
        if rank == 1:
            raise ArithmeticError("the loss of rank 1 is not what it should be")
        return float(loss.detach())

    try:
        optimizer.step(closure)
    except (ArithmeticError, RuntimeError) as error:
        said = str(error)
    return said, torch.equal(parameters_of(wrapped), before)


def _deserted() -> tuple[str, bool]:
    """What is said where a rank has ended, and whether nothing moved."""
    model = Plain()
    optimizer = lnb.LNB(model, process_group=dist.group.WORLD)
    before = parameters_of(model)
    model(images(torch.float32)[0][0]).square().sum().backward()
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error), torch.equal(parameters_of(model), before)
    return "", False


def _complaints() -> dict[str, str]:
    """What is said to settings that cannot work on several ranks, and where ranks are not mentioned."""
    world = dist.group.WORLD
    found = {
        "auto solver": _refusal(solver="auto", process_group=world),
        "kept inputs": _refusal(solver="matrix_free", process_group=world),
        "by time": _refusal(solver="cholesky", max_overhead=0.1, process_group=world),
        "no group": _refusal(process_group="gloo"),
        "wrapped": _refusal(DistributedDataParallel(Network()), solver="matrix_free"),
    }
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    found["other ranks"] = _other_ranks(DistributedDataParallel(Network()), alone)
    found["alone"] = _other_ranks(DistributedDataParallel(Network()), None)
    found["loss"] = _step_with_loss(DistributedDataParallel(Network()))
    model = Network()
    optimizer = lnb.LNB(model)
    for name in ("unknown", "unknown again"):
        before = parameters_of(model)
        try:
            trained(model, optimizer)
        except RuntimeError as error:
            found[name] = str(error) if torch.equal(parameters_of(model), before) else "it moved"
    return found


def _other_ranks(wrapped: DistributedDataParallel, group: Any) -> str:
    optimizer = lnb.LNB(wrapped, process_group=group)
    before = parameters_of(wrapped)
    try:
        trained(wrapped, optimizer)
    except ValueError as error:
        return str(error) if torch.equal(parameters_of(wrapped), before) else "it moved"
    return "none"


def _step_with_loss(wrapped: DistributedDataParallel) -> str:
    optimizer = lnb.LNB(wrapped)
    before = parameters_of(wrapped)
    x, _ = next(iter(images(torch.float32)))
    loss = wrapped(x).square().mean()
    loss.backward()
    try:
        optimizer.step(loss=loss)
    except ValueError as error:
        return str(error) if torch.equal(parameters_of(wrapped), before) else "it moved"
    return "none"


def _refusal(model: nn.Module | None = None, **settings: Any) -> str:
    try:
        lnb.LNB(Network() if model is None else model, preset="paper", **settings)
    except (TypeError, ValueError) as error:
        return str(error)
    return "none"
