"""Optimizers of other packages, to compare with: the extra ``peers``, imported only when one is used."""

from __future__ import annotations

import importlib
from typing import Any

from torch.optim import Optimizer

from lnb.training.errors import TrainingError

PACKAGE = "pytorch_optimizer"
# By our name: the package's class, and settings that make its rule the one of its paper.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    # SOAP, arXiv:2409.11321
    "soap": ("SOAP", {}),
    # Shampoo, arXiv:2002.09018, grafted to the sizes of SGD steps; roots anew every 10 steps, as SOAP does its bases
    "shampoo": ("ScalableShampoo", {"preconditioning_compute_steps": 10, "start_preconditioning_step": 10}),
    # PSGD with a Kronecker-factored preconditioner, arXiv:1512.04202
    "psgd": ("Kron", {}),
}
PEER_LR = {"soap": 3e-3, "shampoo": 1e-3, "psgd": 1e-3}


class PeerError(TrainingError):
    """The package of an optimizer is missing or cannot be imported."""


def load_peer(name: str) -> tuple[type[Optimizer], dict[str, Any]]:
    """The class of the peer ``name`` and its settings.

    Raises:
        PeerError: the package is not installed, or its import fails.
    """
    attribute, settings = PEERS[name]
    try:
        if name == "psgd":  # without it torch contracts PSGD's products from left to right, through terabytes
            importlib.import_module("opt_einsum")
        peer = getattr(importlib.import_module(PACKAGE), attribute)
    except ModuleNotFoundError as error:
        raise PeerError(
            f"optimizer {name!r} needs the package {error.name!r}, which is not installed: pip install "
            f"'lnb-kernels[peers]', or leave {name!r} out"
        ) from error
    except Exception as error:  # another package's import can raise anything
        raise PeerError(
            f"optimizer {name!r}: importing {PACKAGE} failed ({type(error).__name__}: {error}); repair it, or leave "
            f"{name!r} out"
        ) from error
    return peer, settings
