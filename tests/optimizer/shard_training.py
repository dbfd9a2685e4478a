"""What each of the processes of ``test_shards.py`` does: a module that a spawned process can import."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from optimizer.rank_training import images
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.profiler import ProfilerActivity, profile

import lnb
from lnb.damping import OPENING
from lnb.integrations.watch import Watch
from lnb.sharded.shards import Shards
from lnb.verdict import Verdict

LR = 0.02
STEPS = 6
RESUMED = {2: ("fast", "uneven"), 4: ("fast", "factored")}
Make = Callable[[], nn.Module]


class Network(nn.Module):
    """A convolution, a norm, attention of two inputs, linear layers: rows that four ranks share in pairs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.middle = nn.Linear(8, 16, bias=False)
        self.head = nn.Linear(16, 8)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``[n, 8]`` of images ``[n, 2, 6, 6]``."""
        tokens = self.norm(self.patches(images).flatten(2).mT)
        mixed, _ = self.attention(tokens, tokens.tanh(), tokens.tanh(), need_weights=False)
        scores: Tensor = self.head(self.middle(mixed.mean(1)).tanh())
        return scores


class Scaled(nn.Module):
    """Two channels of different sizes, which are those of two groups."""

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[n, 2, 6, 6]``."""
        return images * torch.tensor([3.0, 60.0], dtype=images.dtype).view(2, 1, 1)


class Uneven(nn.Sequential):
    """Rows that ranks share unevenly; of the last layer a fourth rank has none. Inputs are large: steps follow their size."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            Scaled(),
            nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2),
            nn.Flatten(),
            nn.Linear(54, 7),
            nn.Tanh(),
            nn.LayerNorm(7),
            nn.Linear(7, 3),
        )


class Plain(nn.Sequential):
    """Linear layers alone."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(72, 8), nn.Tanh(), nn.Linear(8, 8))


# Blocks of outputs end where shards do, so that one process has the same.
CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "fast": (Network, {"block_size": 2}),
    "uneven": (Uneven, {"block_size": 1}),
    "factored": (Network, {"preset": "paper", "solver": "cholesky"}),
    "neuron": (Network, {"trust_region": "neuron", "damping": "none", "others": "identity"}),
    "paper": (Plain, {"preset": "paper"}),
    "iterated": (Plain, {"preset": "paper", "cg_scope": "neuron", "trust_region": "layer"}),
}


def trained(
    model: nn.Module,
    optimizer: lnb.LNB,
    rank: int = 0,
    ranks: int = 1,
    dtype: torch.dtype = torch.float64,
    steps: tuple[int, int] = (0, STEPS),
    before_step: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """All parameters after steps on this rank's share of every batch."""
    for x, y in images(dtype, steps[1])[steps[0] :]:
        optimizer.zero_grad()
        F.cross_entropy(model(x[rank::ranks]).to(dtype), y[rank::ranks]).backward()
        before_step()
        optimizer.step()
    return whole(model)


def whole(model: nn.Module) -> list[Tensor]:
    """All parameters, gathered."""
    return [p.full_tensor().detach() if isinstance(p, DTensor) else p.detach().clone() for p in model.parameters()]


def sharded(model: nn.Module, **options: Any) -> nn.Module:
    """``fully_shard`` of every child, then of what is left."""
    for child in model.children():
        if any(True for _ in child.parameters()):
            fully_shard(child, **options)
    fully_shard(model, **options)
    return model


def run_rank(rank: int, ranks: int, folder: Path) -> None:
    """Train in every way, and write what came out to ``folder``; what two ranks show is left out where there are four."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / f'meeting{ranks}'}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),  # what hangs, fails
    )
    found: dict[str, Any] = {"cases": {name: _case(name, rank, ranks) for name in CASES}}
    found["tensor parallel"] = _tensor_parallel(rank, ranks)
    found["resumed"] = _resumed(rank, ranks, folder)
    found["complaints"] = _complaints(rank, ranks)
    if ranks == 2:
        model = sharded(Plain())
        found["float32"] = trained(model, lnb.LNB(model, LR / 10, block_size=2), rank, ranks, torch.float32)
        found["ways"] = _ways(rank, ranks)
        found["exchanges"] = _exchanges(rank, ranks, Network, 3, **CASES["fast"][1])
        found["exchanges of wide layers"] = _exchanges(rank, ranks, Wide, 20)
        found["bytes"] = _bytes(rank, ranks)
        found["long"] = long(rank, ranks, sharded)
        model = sharded(Network().double())
        watched(model, lnb.LNB(model, LR, **CASES["fast"][1]), folder / "watched", rank, ranks)
        found["failed"] = _failed(rank, ranks)
        with _unseen_by_host():
            found["failed unseen"] = _failed(rank, ranks)
        found["resumed whole"] = _resumed_whole(rank, ranks)
    else:
        found["copies"] = _copies(rank, ranks)
    found["deserted"] = _deserted(rank, ranks)
    torch.save(found, folder / f"rank{rank}of{ranks}.pt")  # the last rank ends; then the others do
    if rank == ranks - 1:
        dist.destroy_process_group()


def _case(name: str, rank: int, ranks: int) -> list[Tensor]:
    make, settings = CASES[name]
    model = sharded(make().double())
    return trained(model, lnb.LNB(model, LR, **settings), rank, ranks)


def long(
    rank: int = 0, ranks: int = 1, wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """All parameters after more steps than a radius opens in, and the radii before every one of the later steps."""
    make, settings = CASES["uneven"]
    model = wrap(make().double())
    optimizer = lnb.LNB(model, LR, **settings)
    radii: list[dict[str, float]] = []

    def keep() -> None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        radii.append({names[p]: float(state["radius"]) for p, state in optimizer.state.items() if "radius" in state})

    ended = trained(model, optimizer, rank, ranks, steps=(0, OPENING + 20), before_step=keep)
    return ended, radii[OPENING:]


def _copies(rank: int, ranks: int) -> list[Tensor]:
    """Two copies of the shards of a model."""
    make, settings = CASES["fast"]
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard"))
    model = sharded(make().double(), mesh=mesh)
    return trained(model, lnb.LNB(model, LR, **settings), rank, ranks)


def _ways(rank: int, ranks: int) -> dict[str, list[Tensor]]:
    """Ways to shard that must not change what comes out; and half precision, which rounds."""
    settings = CASES["fast"][1]
    found = {}
    late = Network().double()
    optimizer = lnb.LNB(late, LR, **settings)
    found["sharded later"] = trained(sharded(late), optimizer, rank, ranks)
    kept = sharded(Network().double(), reshard_after_forward=False)
    kept.set_reshard_after_backward(False)
    found["kept whole"] = trained(kept, lnb.LNB(kept, LR, **settings), rank, ranks)
    again = Network().double()
    again.middle = checkpoint_wrapper(again.middle)
    again.patches = checkpoint_wrapper(again.patches)
    sharded(again)
    found["checkpointed"] = trained(again, lnb.LNB(again, LR, **settings), rank, ranks)
    offloaded = sharded(Network().double(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    found["offloaded"] = trained(offloaded, lnb.LNB(offloaded, LR, **settings), rank, ranks)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    half = sharded(Network(), mp_policy=policy)
    found["bfloat16"] = trained(half, lnb.LNB(half, LR, **settings), rank, ranks, torch.float32)
    return found


def _tensor_parallel(rank: int, ranks: int) -> dict[str, list[Tensor]]:
    """Rows of linear layers on the ranks of a group, which sees one batch; alone, and inside of ``fully_shard``."""
    plan = {"1": ColwiseParallel(output_layouts=Replicate()), "3": ColwiseParallel(output_layouts=Replicate())}
    settings = {"block_size": 2}
    found = {}
    alone = parallelize_module(Plain().double(), init_device_mesh("cpu", (ranks,)), plan)
    found["alone"] = trained(alone, lnb.LNB(alone, LR, **settings))
    found["columns"] = trained(*_by_columns(ranks))
    found["columns resumed"] = _columns_resumed(ranks)
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("data", "tensor"))
    both = parallelize_module(Plain().double(), mesh["tensor"], plan)
    fully_shard(both, mesh=mesh["data"])
    found["with shards"] = trained(both, lnb.LNB(both, LR, **settings), rank // (ranks // 2), 2)
    crossed, optimizer = _by_columns(ranks, mesh["tensor"], mesh["data"])
    found["columns of shards"] = trained(crossed, optimizer, rank // (ranks // 2), 2)
    data = mesh["data"].get_group()
    averaged = parallelize_module(Plain().double(), mesh["tensor"], plan)
    optimizer = lnb.LNB(averaged, LR, process_group=data, **settings)

    def average() -> None:
        for parameter in averaged.parameters():
            gradient = parameter.grad.to_local()
            dist.all_reduce(gradient, group=data)
            gradient.div_(2)

    found["with a group"] = trained(averaged, optimizer, rank // (ranks // 2), 2, before_step=average)
    return found


COLUMNS = {"1": ColwiseParallel(), "3": RowwiseParallel()}


def _by_columns(ranks: int, mesh: Any = None, data: Any = None, plan: Any = COLUMNS) -> tuple[nn.Module, lnb.LNB]:
    """A layer by rows, and the next one by the columns of what that makes; inside of ``fully_shard`` over ``data``."""
    model = parallelize_module(Plain().double(), init_device_mesh("cpu", (ranks,)) if mesh is None else mesh, plan)
    if data is not None:
        fully_shard(model, mesh=data)
    return model, lnb.LNB(model, LR, block_size=2)


def _columns_resumed(ranks: int) -> tuple[bool, bool, list[Tensor]]:
    """Whether training goes on the same from its state by columns; whether one process has that state; and how it goes on."""
    plan = {"3": RowwiseParallel(input_layouts=Replicate())}
    model, optimizer = _by_columns(ranks, plan=plan)
    trained(model, optimizer, steps=(0, 4))
    resumed, other = _by_columns(ranks, plan=plan)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    resumed.load_state_dict(start)
    set_optimizer_state_dict(resumed, other, get_optimizer_state_dict(model, optimizer))
    before = averages(model, optimizer)
    gathered = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    whole_model = Plain().double()
    whole_model.load_state_dict(
        {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in start.items()}
    )
    alone = lnb.LNB(whole_model, LR, block_size=2, process_group=None)
    set_optimizer_state_dict(whole_model, alone, gathered)
    found = averages(whole_model, alone)
    known = found.keys() == before.keys() and all(
        torch.equal(found[key].view_as(before[key]), before[key]) for key in found
    )
    ends = [trained(*one, steps=(4, 8)) for one in ((model, optimizer), (resumed, other), (whole_model, alone))]
    return all(map(torch.equal, *ends[:2])), known, ends[2]


class Wide(nn.Sequential):
    """Layers of usual blocks, beside whose second moments a few sums are small."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(72, 64), nn.Tanh(), nn.Linear(64, 8))


def _exchanges(rank: int, ranks: int, make: Make, steps: int, **settings: Any) -> list[dict[str, Any]]:
    """What ``step()`` exchanges, and the bytes of the second moments that it works on."""
    model = sharded(make().double())
    with CommDebugMode() as seen:
        optimizer = lnb.LNB(model, LR, **settings)
    assert seen.get_total_counts() == 0
    found = []
    for x, y in images(torch.float64, steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x[rank::ranks]), y[rank::ranks]).backward()
        captures = [c for m in model.modules() for c in getattr(m, "_lnb_captures", {}).values()]
        live = [tuple(probe.shape) for capture in captures for probe in capture.live_probes()]
        with _reductions() as sizes, CommDebugMode() as seen:
            optimizer.step()
        counts = {str(operator): count for operator, count in seen.get_comm_counts().items() if count}
        found.append({"moments": live, "sizes": sizes, "collectives": counts})
    return found


def watched(model: nn.Module, optimizer: lnb.LNB, folder: Path, rank: int = 0, ranks: int = 1) -> None:
    """Train under a watch that logs every second step."""
    with Watch(optimizer, folder, every=2, tensorboard=False):
        trained(model, optimizer, rank, ranks)


def _bytes(rank: int, ranks: int) -> dict[str, int]:
    """The most that each optimizer has on this rank in the steps 10 to 12, its state included; and what the plan announces.

    Parameters and gradients are the same for both, and so is what forward and backward passes have but for the second moments,
    which are counted.
    """
    found = {}
    for name in ("lnb", "adamw"):
        torch.manual_seed(0)
        model = sharded(nn.Sequential(*[nn.Linear(288, 288) for _ in range(4)]))
        ours = lnb.LNB(model, LR)
        optimizer = ours if name == "lnb" else torch.optim.AdamW(model.parameters())
        most = 0
        for step in range(13):
            optimizer.zero_grad()
            model(torch.randn(32, 288)).square().mean().backward()
            captures = [c for m in model.modules() for c in getattr(m, "_lnb_captures", {}).values()]
            gathered = [probe.grad for c in captures for probe in c.live_probes() if name == "lnb"]
            before = _memory([*_state_of(optimizer), *(gradient for gradient in gathered if gradient is not None)])
            if step < 10:
                optimizer.step()
            else:
                most = max(most, before + _most_allocated(optimizer.step))
        found[name] = most
        if name == "lnb":
            found["lnb"] += sum(p.to_local().numel() * 4 for p in model.parameters())  # directions, kept to work in
            found["planned"] = ours.plan().state_bytes
    return found


def _state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [value.to_local() if isinstance(value, DTensor) else value for value in held]


def _memory(tensors: list[Tensor]) -> int:
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _most_allocated(call: Callable[[], Any]) -> int:
    """The most that ``call`` has allocated at one time, beside what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), i, event.nbytes()) for i, event in enumerate(events) if event.name() == "[memory]"
    )
    return max(itertools.accumulate((change for _, _, change in changes), initial=0))


@contextlib.contextmanager
def _reductions() -> Iterator[list[int]]:
    """The bytes of every ``all_reduce``."""
    plain, sizes = dist.all_reduce, []

    def noted(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return plain(tensor, *arguments, **named)

    dist.all_reduce = noted
    try:
        yield sizes
    finally:
        dist.all_reduce = plain


def save(folder: Path, model: nn.Module, optimizer: lnb.LNB, flat: bool = False, later: bool = False) -> Any:
    """Save to ``folder``; what to wait for, where that is ``later``."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    if not later:
        return dcp.save(state, checkpoint_id=folder)
    own = dist.new_group()  # training goes on in the other, from another thread
    return dcp.async_save(state, checkpoint_id=folder, process_group=own)


def load(folder: Path, model: nn.Module, optimizer: lnb.LNB, flat: bool = False) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.load(state, checkpoint_id=folder)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


def averages(model: nn.Module, optimizer: lnb.LNB) -> dict[str, Tensor]:
    """State that does not depend on how rows are cut, gathered."""
    found = {}
    for name, entry in get_optimizer_state_dict(model, optimizer)["state"].items():
        for key in ("momentum", "row_square", "second_moment", "gradient_square", "radius", "weight_norm", "step"):
            if key in entry:
                value = entry[key]
                found[f"{name}/{key}"] = value.full_tensor() if isinstance(value, DTensor) else value.clone()
    return found


def _resumed(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Training that goes on from files, of this number of ranks and of half of it."""
    found: dict[str, Any] = {"same": {}, "state": {}, "other": {}}
    for name in RESUMED[ranks]:
        make, settings = CASES[name]
        model = sharded(make().double())
        optimizer = lnb.LNB(model, LR, **settings)
        trained(model, optimizer, rank, ranks, steps=(0, 4))
        flat = name == "uneven"
        writing = save(folder / f"{name}{ranks}", model, optimizer, flat, later=name == "fast")
        before = {key: value.clone() for key, value in averages(model, optimizer).items()}
        went_on = [trained(model, optimizer, rank, ranks, steps=(4, 8))]  # while the files are written
        if name == "fast":
            writing.result()
        resumed = sharded(make().double())
        other = lnb.LNB(resumed, LR, **settings)
        load(folder / f"{name}{ranks}", resumed, other, flat)
        went_on.append(trained(resumed, other, rank, ranks, steps=(4, 8)))
        found["same"][name] = all(map(torch.equal, *went_on))
        found["state"][name] = before
        if ranks == 4 and name == "fast":  # resume_ranks.py has more pairs, of a smaller model
            fewer = sharded(make().double())
            third = lnb.LNB(fewer, LR, **settings)
            load(folder / f"{name}2", fewer, third, flat)
            found["other"][name] = averages(fewer, third), trained(fewer, third, rank, ranks, steps=(4, 8))
    return found


def _resumed_whole(rank: int, ranks: int) -> bool:
    """Whether training goes on the same from state that was gathered, and is spread again, by every rank or by the first."""
    make, settings = CASES["fast"]
    model = sharded(make().double())
    optimizer = lnb.LNB(model, LR, **settings)
    trained(model, optimizer, rank, ranks, steps=(0, 4))
    options = StateDictOptions(full_state_dict=True)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    start, ended = model.state_dict(), []
    start = {name: value.clone() for name, value in start.items()}
    for broadcast in (False, True):
        resumed = sharded(make().double())
        resumed.load_state_dict(start)
        other = lnb.LNB(resumed, LR, **settings)
        spread = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
        given = {} if broadcast and rank else saved
        set_optimizer_state_dict(resumed, other, given, options=spread)
        ended.append(trained(resumed, other, rank, ranks, steps=(4, 8)))
    expected = trained(model, optimizer, rank, ranks, steps=(4, 8))
    return all(all(map(torch.equal, expected, got)) for got in ended)


def _failed(rank: int, ranks: int) -> dict[str, Any]:
    """Steps that one rank cannot make: for a setting, for a gradient that is not finite, and for a layer that is detached there.

    The step after the last of them notes that the layer was attached anew.
    """
    make, settings = CASES["fast"]
    model = sharded(make().double())
    optimizer = lnb.LNB(model, LR, **settings)
    raised, moved = 0, 0
    bad = ("", "setting", "gradient", "detached", "anew", "")
    for how, (x, y) in zip(bad, images(torch.float64, len(bad)), strict=True):
        fails = how if rank == 1 else ""
        if fails == "detached":
            lnb.detach(model.head)
        elif fails == "anew":
            lnb.attach(model.head)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rank::ranks]), y[rank::ranks]).backward()
        before = whole(model)
        if fails == "setting":
            optimizer.param_groups[0]["lr"] = -1.0
        elif fails == "gradient":
            model.head.weight.grad.to_local()[0, 0] = float("nan")
        try:
            optimizer.step()
        except (ValueError, RuntimeError) as error:
            told = {"setting": "lr=-1.0", "detached": "layer 'head' was detached", "anew": "'head' was attached anew"}
            raised += told[how] in str(error)
        optimizer.param_groups[0]["lr"] = LR
        moved += bool(how) and not all(map(torch.equal, before, whole(model)))
    return {"raised": raised, "moved": moved, "counts": optimizer.diagnostics(), "parameters": whole(model)}


def _deserted(rank: int, ranks: int) -> tuple[str, bool]:
    """What is said where a rank has ended in the middle of a step, and whether no parameter moved."""
    model = sharded(Plain().double())
    optimizer = lnb.LNB(model, LR)
    ended, before = "", []

    def end(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    for number, (x, y) in enumerate(images(torch.float64, 2)):
        optimizer.zero_grad()
        F.cross_entropy(model(x[rank::ranks]), y[rank::ranks]).backward()
        before = [parameter.to_local().clone() for parameter in model.parameters()]
        if number == 1 and rank == ranks - 1:
            optimizer._shards.exchange.add_sums = end
        try:
            optimizer.step()
        except (RuntimeError, KeyboardInterrupt) as error:
            ended = str(error)
    return ended, all(map(torch.equal, before, (parameter.to_local() for parameter in model.parameters())))


@contextlib.contextmanager
def _unseen_by_host() -> Iterator[None]:
    """Steps as on an accelerator, whose host does not wait to know whether a step is made."""
    made, leave = Verdict.__init__, Shards.leave

    def unknown(self: Verdict, ok: Tensor | bool, wait: bool = False) -> None:
        ok = torch.as_tensor(ok)
        made(self, ok, wait)
        self.known = self.rejected = False
        self._ok = ok

    Verdict.__init__ = unknown
    Shards.leave = lambda self, blocks, device, identity, seen_by_host: leave(self, blocks, device, identity, False)
    try:
        yield
    finally:
        Verdict.__init__, Shards.leave = made, leave


def _complaints(rank: int, ranks: int) -> dict[str, str]:
    """What is said to shards and settings that cannot be served."""
    by_columns = {"shard_placement_fn": lambda parameter: Shard(1) if parameter.ndim == 2 else None}
    tensor = init_device_mesh("cpu", (ranks,))
    columns = parallelize_module(Plain(), tensor, {"1": RowwiseParallel()})
    odd = parallelize_module(nn.Sequential(nn.Linear(7, 4)), tensor, {"0": RowwiseParallel()})
    half = Plain()
    fully_shard(half, ignored_params={half[1].bias})
    part = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("data", "tensor"))["tensor"]
    packed = parallelize_module(Network(), tensor, {"head": ColwiseParallel()})
    nn.Module.register_parameter(
        packed.attention,
        "in_proj_weight",
        nn.Parameter(
            torch.distributed.tensor.distribute_tensor(packed.attention.in_proj_weight.detach(), tensor, [Shard(0)])
        ),
    )
    packed.attention.in_proj_bias = None
    return {
        "columns": _refusal(sharded(Plain(), **by_columns)),
        "columns iterated": _refusal(columns, preset="paper", cg_scope="neuron"),
        "odd columns": _refusal(odd),
        "bias": _refusal(half),
        "region": _refusal(sharded(Plain()), trust_region="spectral"),
        "damping": _refusal(sharded(Plain()), preset="full_batch", ridge=0.1, cg_scope="neuron"),
        "inputs": _refusal(sharded(Plain()), preset="paper", solver="matrix_free"),
        "group": _refusal(sharded(Plain()), process_group=dist.new_group([rank], use_local_synchronization=True)),
        "alone": _refusal(sharded(Plain()), process_group=None),
        "mesh": _refusal(_on_two_meshes(ranks)),
        "attention": _refusal(packed),
        "unknown": _refusal(parallelize_module(Plain(), part, {"1": ColwiseParallel()})) if ranks > 2 else "",
        "columns later": _later_columns(ranks),
        "settings": _step_refusal(rank, ranks, momentum=0.9 - 0.1 * rank),
    }


def _on_two_meshes(ranks: int) -> nn.Module:
    model = Plain()
    fully_shard(model[1], mesh=DeviceMesh("cpu", list(range(ranks))))
    fully_shard(model[3], mesh=DeviceMesh("cpu", list(reversed(range(ranks)))))
    return model


def _refusal(model: nn.Module, **settings: Any) -> str:
    classes = [type(module) for module in model.modules()]
    try:
        lnb.LNB(model, **settings)
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error) if [type(module) for module in model.modules()] == classes else "the model was left attached"
    return "none"


def _later_columns(ranks: int) -> str:
    model = Plain().double()
    optimizer = lnb.LNB(model)
    parallelize_module(model, init_device_mesh("cpu", (ranks,)), COLUMNS)
    try:
        trained(model, optimizer)
    except TypeError as error:
        return str(error)
    return "none"


def _step_refusal(rank: int, ranks: int, **settings: Any) -> str:
    model = sharded(Plain().double())
    optimizer = lnb.LNB(model, **settings)
    before = whole(model)
    try:
        trained(model, optimizer, rank, ranks)
    except RuntimeError as error:
        return str(error) if all(map(torch.equal, before, whole(model))) else "it moved"
    return "none"
