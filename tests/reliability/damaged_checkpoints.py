"""Damaged checkpoints: each must be refused by a named error that changes nothing, or be harmless.

    python tests/reliability/damaged_checkpoints.py [--count 1000] [--seed 0]

Bits are flipped, files cut, lengthened, shuffled and exchanged for those of other runs. Some are given a new, valid digest
after the damage, as no accident would: they reach the reader behind it, and must not reach the user as a traceback.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trials

from lnb_bench.training import LoopConfig, OptimizerConfig, RunFolder, TaskOptions, Trainer, TrainingError, make_task
from lnb_bench.training import train as run_training
from lnb_bench.training.checkpoint import DIGEST_BYTES, MAGIC, load_checkpoint, save_checkpoint

HEADER = len(MAGIC) + DIGEST_BYTES
# Every run differs from the first in one thing.
RUNS: dict[str, tuple[str, OptimizerConfig, dict[str, Any], dict[str, Any]]] = {
    "the run": ("digits", OptimizerConfig("lnb"), {"width": 8}, {}),
    "another seed": ("digits", OptimizerConfig("lnb"), {"width": 8}, {"seed": 1}),
    "another width": ("digits", OptimizerConfig("lnb"), {"width": 9}, {}),
    "another optimizer": ("digits", OptimizerConfig("adamw"), {"width": 8}, {}),
    "another preset": ("digits", OptimizerConfig("lnb-paper"), {"width": 8}, {}),
    "another setting": ("digits", OptimizerConfig("lnb", settings={"others": "identity"}), {"width": 8}, {}),
    "another batch": ("digits", OptimizerConfig("lnb"), {"width": 8}, {"batch_size": 64}),
    "another task": ("matrix-factorization", OptimizerConfig("lnb"), {}, {}),
}


def trainer_of(name: str) -> Trainer:
    task, optimizer, options, loop = RUNS[name]
    return Trainer(
        make_task(task, TaskOptions(**options)), optimizer, LoopConfig(**{"steps": 6, "log_every": 2, **loop})
    )


class Damage:
    """Makes damaged files of a run and judges how they are received.

    Args:
        folder: for the runs.
        seed: of the damage.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folders = {name: RunFolder(folder / name) for name in RUNS}
        for name, run in self.folders.items():
            run.create({"task": "digits"})
            for _ in run_training(trainer_of(name), run, checkpoint_every=3):
                pass
        self.run = self.folders["the run"]
        self.whole = self.run.checkpoint.read_bytes()
        self.state = load_checkpoint(self.run.checkpoint)
        self.trainer = trainer_of("the run")
        self.untouched = copy.deepcopy(self.trainer.state_dict())
        self.kinds: dict[str, Callable[[], bytes]] = {
            "bits flipped": lambda: self._flipped(self.whole),
            "cut": lambda: self.whole[: self.random.randrange(len(self.whole))],
            "lengthened": lambda: self.whole + self.random.randbytes(self.random.randint(1, 5000)),
            "blocks zeroed": self._zeroed,
            "blocks exchanged": self._exchanged,
            "another file": self._other,
            "damaged and sealed": self._sealed,
            "restructured and sealed": self._restructured,
        }

    def _flipped(self, content: bytes) -> bytes:
        damaged = bytearray(content)
        for position in self.random.sample(range(8 * len(content)), self.random.randint(1, 16)):
            damaged[position // 8] ^= 1 << position % 8
        return bytes(damaged)

    def _zeroed(self) -> bytes:
        start, size = self.random.randrange(len(self.whole) - 600), self.random.randint(8, 512)
        damaged = bytearray(self.whole)
        damaged[start : start + size] = b"\xa5" * size if not any(damaged[start : start + size]) else bytes(size)
        return bytes(damaged)

    def _exchanged(self) -> bytes:
        blocks = [self.whole[i : i + 512] for i in range(0, len(self.whole), 512)]
        while True:
            i, j = self.random.sample(range(len(blocks)), 2)
            if blocks[i] != blocks[j]:
                blocks[i], blocks[j] = blocks[j], blocks[i]
                return b"".join(blocks)

    def _other(self) -> bytes:
        others = [run.checkpoint for name, run in self.folders.items() if run is not self.run]
        return self.random.choice([*others, self.run.model, self.run.metrics, self.run.description]).read_bytes()

    def _sealed(self) -> bytes:
        payload = self._flipped(self.whole[HEADER:])
        if self.random.random() < 0.3:
            payload = payload[: self.random.randrange(len(payload))]
        return MAGIC + hashlib.sha256(payload).digest() + payload

    def _restructured(self) -> bytes:
        state = copy.deepcopy(self.state)
        for _ in range(self.random.randint(1, 2)):
            holder: Any = state
            while True:
                keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
                if not keys:
                    break
                key = self.random.choice(keys)
                value = holder[key]
                if isinstance(value, (dict, list)) and value and self.random.random() < 0.8:
                    holder = value
                    continue
                if self.random.random() < 0.3:
                    del holder[key]
                else:
                    holder[key] = self.random.choice(
                        [None, -1, 2**70, "x", [], {}, float("nan"), torch.zeros(2), torch.tensor([float("nan")])]
                    )
                break
        path = self.run.path / "restructured"
        save_checkpoint(path, state)
        return path.read_bytes()

    def judge(self, kind: str, content: bytes) -> str:
        """ "refused", "harmless" or what is wrong with how ``content`` is received as the run's checkpoint."""
        self.run.checkpoint.write_bytes(content)
        series = self.run.metrics.read_bytes()
        try:
            self.run.rewind(self.trainer)
        except TrainingError as error:
            if not str(error).strip() or (
                self.run.checkpoint.name not in str(error) and "checkpoint" not in str(error)
            ):
                return f"the error does not name the checkpoint: {error}"
            if self.run.metrics.read_bytes() != series:
                return "refused, but the metric series was changed"
            if not trials.same(self.trainer.state_dict(), self.untouched):
                self.trainer = trainer_of("the run")
                return f"refused ({error}), but the trainer was changed"
            return "refused"
        except Exception as error:
            self.trainer = trainer_of("the run")
            return f"{type(error).__name__} instead of a named error: {error}"[:300]
        same = trials.same(self.trainer.state_dict(), self.state)
        try:
            self.trainer.train_step()
        except Exception as error:
            return f"loaded, and then: {type(error).__name__}: {error}"[:300]
        finally:
            self.trainer = trainer_of("the run")
            self.run.metrics.write_bytes(series)
        if same:
            return "harmless"
        return "harmless" if "sealed" in kind else "a damaged checkpoint was loaded"


def campaign(count: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Judge ``count`` damaged checkpoints: how many of a kind were refused or harmless, and what is wrong."""
    made = Damage(folder, seed)
    fates: Counter[str] = Counter()
    wrong: list[str] = []
    for i in range(count):
        kind = list(made.kinds)[i % len(made.kinds)]
        fate = made.judge(kind, made.kinds[kind]())
        if fate in ("refused", "harmless"):
            fates[f"{kind}: {fate}"] += 1
        else:
            wrong.append(f"{kind} {i}: {fate}")
    shutil.rmtree(folder, ignore_errors=True)
    return fates, wrong


def main() -> int:
    """Run what the command line asks for; 1 where something is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fates, wrong = campaign(options.count, options.seed, Path(folder))
    print("\n".join(wrong))
    print(
        json.dumps(
            {"fates": dict(sorted(fates.items())), "wrong": len(wrong), "seconds": round(time.monotonic() - started)}
        )
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
