"""Optimizers of other packages, to compare with: the extra ``peers``, imported only when one is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from torch import nn
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
        of_layers: it takes the model, and moves linear and convolution layers only.
        needs: a further package that it must have here.
    """

    package: str
    attribute: str
    lr: float
    settings: dict[str, Any] = field(default_factory=dict)
    of_layers: bool = False
    needs: str | None = None

    def build(self, name: str, model: nn.Module, settings: dict[str, Any]) -> Optimizer:
        """The optimizer over all parameters of ``model``; ``settings`` over the peer's own.

        Raises:
            PeerError: the package is missing or its import fails.
            ValueError: the model has parameters that the optimizer does not move.
        """
        peer = load_peer(name)
        chosen = {"lr": self.lr, **self.settings, **settings}
        if not self.of_layers:
            made: Optimizer = peer(model.parameters(), **chosen)
            return made
        for path, module in model.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)) and any(True for _ in module.parameters(recurse=False)):
                raise ValueError(
                    f"optimizer {name!r} moves linear and convolution layers only, and {path or 'the model'!r} is a "
                    f"{type(module).__name__} with parameters: leave {name!r} out here"
                )
        made = peer(model, **chosen)
        return made


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
    "kfac": Peer("singd.optim.optimizer", "SINGD", 3e-2, {"kfac_like": True, "alpha1": 0.0}, of_layers=True),
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
