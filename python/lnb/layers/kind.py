"""What the step, the reports and the planner ask of a kind of layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import lnb_kernels as lk
from lnb.layers.capture import Capture
from lnb.layers.probed import ProbedLayer


class LayerKind(ABC):
    """One kind of layer. The methods here are those of layers whose inputs are samples ``[..., d_in]``.

    A layer has one linear map for each of its weights. A map's gradient is a matrix ``[groups, rows, d_in]``.

    Attributes:
        original: the class. Subclasses of it that keep its ``forward`` are of this kind too.
        probed: its attached form.
        words: what one of its maps is called.
        group_words: what the groups of a map are called.
        has_patches: whether an input is an image ``[.., C, H, W]`` whose patches are the samples.
        product: the product that its forward pass is, as the planner's rates name it: ``"matmul"`` or ``"conv"``.
        takes_shards: whether the forward pass can work on shards of the rows of the weight (:mod:`lnb.sharded.parallel`).
        transposed: whether the weight is ``[d_in, d_out]`` (:mod:`lnb.routes.turned`).
    """

    probed: ClassVar[type[ProbedLayer]]
    words: ClassVar[str]
    group_words: ClassVar[str] = "matrices"
    has_patches: ClassVar[bool] = False
    product: ClassVar[str] = "matmul"
    takes_shards: ClassVar[bool] = False
    transposed: ClassVar[bool] = False

    @property
    @abstractmethod
    def original(self) -> type[nn.Module]:
        """The class of such layers, as a property or an attribute."""

    @property
    def title(self) -> str:
        """What the class is called."""
        return f"nn.{self.original.__name__}"

    # -- attaching ----------------------------------------------------------------------------------------------------

    def weights(self, module: nn.Module) -> dict[str, str | None]:
        """The names of the weights of the layer's maps, each with the name of its bias, if that is its own."""
        return {"weight": "bias"}

    @abstractmethod
    def captures(self, module: nn.Module) -> dict[str, Capture]:
        """A new capture for each weight, by the weight's name."""

    def refusal(self, cls: type[nn.Module]) -> str | None:
        """Why ``cls``, a subclass of :attr:`original`, computes something else; None if it does not."""
        replaced: Any = cls.forward is not self.original.forward
        return f"{cls.__name__} has its own forward" if replaced else None

    def uncalled(self, module: nn.Module) -> Iterable[nn.Module]:
        """The layers inside ``module`` whose ``forward`` it never calls unless it is attached."""
        return ()

    # -- geometry -----------------------------------------------------------------------------------------------------

    def groups(self, module: nn.Module, weight: str) -> int:
        """How many matrices of equal size the map ``weight`` consists of."""
        return 1

    def is_packed(self, weight: str) -> bool:
        """Whether the groups of the map ``weight`` are maps of their own, which may have one input or different ones."""
        return False

    def kernel(self, module: nn.Module) -> tuple[int, int]:
        """Inputs of a neuron for each channel, the taps of a kernel: its rows and columns."""
        return 1, 1

    def stride_area(self, module: nn.Module) -> int:
        """Positions of the input for each position of the output."""
        return 1

    def shifts(self, module: nn.Module) -> int:
        """Differences of two taps of the kernel, up to sign."""
        return 1

    def geometry(self, module: nn.Module) -> tuple[object, ...]:
        """What layers that share a weight must agree in, so that one metric is right for both."""
        return ()

    # -- inputs that were kept ----------------------------------------------------------------------------------------

    def kept(self, module: nn.Module, x: Tensor) -> Tensor:
        """What is kept of an input of the layer: what its op is given. The methods below are given the same."""
        return x

    def count(self, module: nn.Module, x: Tensor) -> int:
        """How many samples an input has."""
        return x.numel() // max(1, x.shape[-1])

    def samples(self, module: nn.Module, inputs: list[Tensor], dtype: torch.dtype) -> Tensor:
        """All samples of ``inputs``, ``[groups or 1, N, d_in]``."""
        return torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).to(dtype).unsqueeze(0)

    def matvec(self, module: nn.Module, x: Tensor, direction: Tensor, ridge: float) -> Tensor:
        """``(X~'X~/N + ridge diag(1..1, 0)) v`` for every row ``v`` of ``direction`` ``[d_out, columns]``."""
        product: Tensor = lk.cov_matvec(x, direction, ridge)
        return product

    def second_moment(self, module: nn.Module, x: Tensor, blocks: int) -> Tensor:
        """Sums ``[X 1]'[X 1]`` over the samples of an input, in diagonal blocks, ``[groups, blocks, size+1, size+1]``.

        That of a layer whose groups are maps of their own is of one of them, ``[1, ...]``.
        """
        return lk.second_moment(x, blocks=blocks).unsqueeze(0)

    # -- cost ---------------------------------------------------------------------------------------------------------

    def product_size(self, samples: int, d_in: int, d_out: int, groups: int) -> float:
        """The size at which the planner's rates of :attr:`product` are read."""
        return float((max(1, samples) * d_in * d_out * groups) ** (1 / 3))
