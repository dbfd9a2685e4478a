"""A language model of Shakespeare, adapted to the manual of Python by low-rank adapters."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lnb.demo.batches import Batcher
from lnb.machine import cache_folder
from lnb_bench.training import data
from lnb_bench.training.checkpoint import load_checkpoint, save_checkpoint
from lnb_bench.training.data.manual import ASCII
from lnb_bench.training.data.splits import TextSplit
from lnb_bench.training.errors import TrainingError
from lnb_bench.training.models import GPT
from lnb_bench.training.models.lora import adapt
from lnb_bench.training.objectives import NextToken
from lnb_bench.training.tasks.base import Task, TaskOptions, choose

PRETRAINING = {"steps": 1000, "batch_size": 32, "lr": 1e-3}


def lora(options: TaskOptions) -> Task:
    """Fine-tune the adapters of a character model on another text; all but the adapters is frozen.

    The model is trained on Shakespeare first, by AdamW with a falling rate and the seed 0, once for each size, and kept in
    the cache: every run of every optimizer starts from the same weights.
    """
    choose(options, "lora", ("gpt",))
    context = options.take("context", context=128)["context"]
    sizes = {"context": context, **options.take("width", "depth", "heads", width=128, depth=4, heads=4)}
    rank = options.take("rank", rank=8)["rank"]
    text, _ = data.load_shakespeare_bytes(options.data, context=context)
    train, test = data.load_manual(context=context)
    weights = _pretrained(text, sizes)
    return Task("lora", train, test, partial(_build, sizes, weights, rank), NextToken(), batch_size=32, steps=600)


def _build(sizes: dict[str, Any], weights: dict[str, Tensor], rank: int) -> nn.Module:
    model = GPT(ASCII, **sizes)
    model.load_state_dict(weights)
    return adapt(model, rank)


def _pretrained(text: TextSplit, sizes: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the model of ``text``, from the cache or made now."""
    described = json.dumps([sizes, PRETRAINING, len(text.tokens), torch.__version__, torch.get_num_threads()])
    file = cache_folder() / f"lora-{hashlib.sha256(described.encode()).hexdigest()[:16]}.lnb"
    if file.is_file():
        return load_checkpoint(file)
    weights = _train(text, sizes)
    _keep(file, weights)
    return weights


def _train(text: TextSplit, sizes: dict[str, Any]) -> dict[str, Tensor]:
    steps, batch_size = int(PRETRAINING["steps"]), int(PRETRAINING["batch_size"])
    with torch.random.fork_rng(devices=[]):  # the seeds of runs are not disturbed
        torch.manual_seed(0)
        model = GPT(ASCII, **sizes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING["lr"])
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        batcher = Batcher(len(text), batch_size, seed=0)
        for step in range(steps):
            inputs, targets = text.batch(batcher.indices(step), torch.device("cpu"))
            optimizer.zero_grad()
            NextToken().loss(model(inputs), targets).backward()
            optimizer.step()
            falling.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def _keep(file: Path, weights: dict[str, Tensor]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(file, weights)
    except OSError as error:
        raise TrainingError(
            f"{file}: cannot be written ({error.strerror or error}); set the cache elsewhere"
        ) from error
