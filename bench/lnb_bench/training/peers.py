"""Optimizers of other packages, to compare with: the extra ``peers``, imported only when one is used."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lnb_bench.training.errors import TrainingError


@dataclass(frozen=True)
class Peer:
    """An optimizer of another package.

    Attributes:
        package: module that has the class.
        attribute: the class.
        lr: default learning rate.
        settings: what makes its rule the one of its paper.
        takes: what it is given: ``"parameters"``; ``"groups"``, which say whether they are matrices of linear and convolution
            layers; or ``"layers"``, the model, whose linear and convolution layers it moves while AdamW moves the rest.
        others_lr: AdamW's rate for the rest in units of the peer's, where it takes layers.
        needs: a further package that it must have here.
        schedule_free: it averages its iterates instead of lowering the rate, so that its rate stays constant.
    """

    package: str
    attribute: str
    lr: float
    settings: dict[str, Any] = field(default_factory=dict)
    takes: str = "parameters"
    others_lr: float = 1.0
    needs: str | None = None
    schedule_free: bool = False

    def build(self, name: str, model: nn.Module, settings: dict[str, Any]) -> list[Optimizer]:
        """Optimizers over all parameters of ``model`` that are not frozen; ``settings`` over the peer's own.

        Raises:
            PeerError: the package is missing or its import fails.
        """
        peer = load_peer(name)
        chosen = {"lr": self.lr, **self.settings, **settings}
        if self.takes == "parameters":
            return [peer([parameter for parameter in model.parameters() if parameter.requires_grad], **chosen)]
        matrices, others = matrices_and_others(model)
        if self.takes == "groups":
            return [peer(list(_groups(matrices, others, chosen)), **chosen)]
        mine = {id(weight) for weight in matrices}
        for module in model.modules():
            if isinstance(module, LAYERS) and id(module.weight) in mine and module.bias is not None:
                mine.add(id(module.bias))
        rest = [parameter for parameter in others if id(parameter) not in mine]
        made: list[Optimizer] = [peer(model, **chosen)]
        if rest:
            made.append(torch.optim.AdamW(rest, lr=self.others_lr * chosen["lr"]))
        return made


LAYERS = (nn.Linear, nn.Conv2d)


def matrices_and_others(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The weights of linear and convolution layers, each once, and all other parameters; none that is frozen."""
    matrices: list[Tensor] = []
    for module in model.modules():
        if not isinstance(module, LAYERS) or not module.weight.requires_grad:
            continue
        if not any(module.weight is weight for weight in matrices):
            matrices.append(module.weight)
    taken = {id(weight) for weight in matrices}
    return matrices, [p for p in model.parameters() if p.requires_grad and id(p) not in taken]


def _groups(matrices: list[Tensor], others: list[Tensor], chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One group of matrices and one of the rest, at one rate and decay; empty ones are left out."""
    decay = chosen.get("weight_decay", 0.0)
    if matrices:
        yield {"params": matrices, "use_muon": True}
    if others:
        yield {"params": others, "use_muon": False, "lr": chosen["lr"], "betas": (0.9, 0.999), "weight_decay": decay}


SUITE = "pytorch_optimizer"
PEERS: dict[str, Peer] = {
    # SOAP, arXiv:2409.11321
    "soap": Peer(SUITE, "SOAP", 3e-3),
    # Shampoo, arXiv:2002.09018, grafted to the sizes of SGD steps; roots anew every 10 steps, as SOAP does its bases
    "shampoo": Peer(
        SUITE, "ScalableShampoo", 1e-3, {"preconditioning_compute_steps": 10, "start_preconditioning_step": 10}
    ),
    # PSGD with a Kronecker-factored preconditioner, arXiv:1512.04202; without opt_einsum torch contracts its products from
    # left to right, through terabytes
    "psgd": Peer(SUITE, "Kron", 1e-3, needs="opt_einsum"),
    # K-FAC with inverse-free updates of its factors (IKFAC of arXiv:2312.05705, which sets the momentum alpha1 to 0); their
    # gradients are those of losses that are means over the batch
    "kfac": Peer(
        "singd.optim.optimizer",
        "SINGD",
        3e-2,
        {"kfac_like": True, "alpha1": 0.0, "warn_unsupported": False},
        takes="layers",
        others_lr=1 / 30,  # AdamW's default beside this one's
    ),
    # NorMuon, arXiv:2510.05491, in AdamW's unit of the rate; AdamW moves what is no matrix, at the same rate
    "normuon": Peer(SUITE, "NorMuon", 3e-3, {"update_scale": "match_rms", "weight_decay": 0.01}, takes="groups"),
    # Schedule-Free AdamW, arXiv:2405.15682
    "schedule-free": Peer(SUITE, "ScheduleFreeAdamW", 2.5e-3, schedule_free=True),
}


def peer_version(name: str) -> dict[str, str]:
    """The version of the package that the optimizer ``name`` comes from, by its name; empty where that is torch or ours."""
    if name not in PEERS:
        return {}
    distribution = PEERS[name].package.partition(".")[0]
    return {distribution: metadata.version(distribution)}


class PeerError(TrainingError):
    """The package of an optimizer is missing or cannot be imported."""


def load_peer(name: str) -> Any:
    """The class of the peer ``name``.

    Raises:
        PeerError: the package is not installed, or its import fails.
    """
    peer = PEERS[name]
    try:
        if peer.needs is not None:
            importlib.import_module(peer.needs)
        return getattr(importlib.import_module(peer.package), peer.attribute)
    except ModuleNotFoundError as error:
        raise PeerError(
            f"optimizer {name!r} needs the package {error.name!r}, which is not installed: pip install "
            f"'./bench[peers]', or leave {name!r} out"
        ) from error
    except Exception as error:  # another package's import can raise anything
        raise PeerError(
            f"optimizer {name!r}: importing {peer.package} failed ({type(error).__name__}: {error}); repair it, or leave "
            f"{name!r} out"
        ) from error
