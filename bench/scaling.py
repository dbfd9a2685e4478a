"""What a step exchanges between ranks beyond what FSDP does, by arithmetic: LNB beside optimizers that need whole matrices.

    python bench/scaling.py        # the table of docs/shards.md

Bytes are those that a rank sends in a ring: an all-reduce of ``n`` ranks sends ``2 (n - 1) / n`` times its size, an all-gather or
a reduce-scatter ``(n - 1) / n``. Up to 8 ranks share NVLink at 450 GB/s each way, more ranks a network of 50 GB/s each. Nothing
here is measured, and nothing overlaps with the computation.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "python")]

from lnb.statistics.factored import block_count  # noqa: E402

NVLINK, NETWORK, NODE = 450e9, 50e9, 8
BLOCK, REFRESH_EVERY = 144, 10
HALF, SINGLE, DOUBLE = 2, 4, 8  # bytes of bfloat16, float32 and float64


@dataclass(frozen=True)
class Transformer:
    """A decoder with gated feed-forward layers and grouped keys and values."""

    name: str
    layers: int
    width: int
    hidden: int
    keys: int

    @property
    def parameters(self) -> int:
        """Of its linear layers."""
        attention = 2 * self.width**2 + 2 * self.width * self.keys
        return self.layers * (attention + 3 * self.width * self.hidden)

    @property
    def moment_bytes(self) -> int:
        """What is sent of the second moments of all seven layers of each: a triangle of every diagonal block."""
        sides = [(count, d // count + 1) for d in [self.width] * 6 + [self.hidden] for count in [block_count(d, BLOCK)]]
        return self.layers * sum(SINGLE * count * side * (side + 1) // 2 for count, side in sides)

    @property
    def sum_bytes(self) -> int:
        """What every step sends beside: six sums of each layer, one of each norm, and five numbers of the verdict."""
        return DOUBLE * self.layers * (7 * 6 + 2) + SINGLE * 5


MODELS = [Transformer("7B", 32, 4096, 11008, 4096), Transformer("70B", 80, 8192, 28672, 1024)]
RANKS = (8, 64, 256, 1024)


def seconds(sent: float, ranks: int) -> float:
    """To send so many bytes from each rank."""
    return sent / (NVLINK if ranks <= NODE else NETWORK)


def sent(model: Transformer, ranks: int) -> dict[str, float]:
    """Bytes that a rank sends in a step, on average."""
    share = (ranks - 1) / ranks
    n = model.parameters
    return {
        "FSDP itself": share * (2 * HALF + SINGLE) * n,  # parameters gathered twice, gradients scattered in float32
        "LNB": 2 * share * (model.moment_bytes / REFRESH_EVERY + model.sum_bytes),
        "Muon": share * HALF * n,  # its matrices gathered in bfloat16; their owners' updates take the way back as well
        "distributed Shampoo": share * SINGLE * n,  # directions gathered in float32
    }


def table() -> str:
    """As docs/shards.md has it: gigabytes and milliseconds a step."""
    rows = [
        "| model | ranks | FSDP itself | LNB | Muon | distributed Shampoo |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model in MODELS:
        for ranks in RANKS:
            cells = [
                f"{1e-9 * bytes_:.3g} GB, {1e3 * seconds(bytes_, ranks):.3g} ms"
                for bytes_ in sent(model, ranks).values()
            ]
            rows.append(f"| {model.name} | {ranks} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
