"""LNB in Transformers' Trainer: exact steps, its groups, resuming, and two ranks under ``torchrun``."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from integrations.training import Classifier, data
from optimizer.small_models import batches, mixed, train
from torch import nn

import lnb
from lnb.integrations.transformers import create_optimizer, optimizer_cls_and_kwargs
from lnb.integrations.watch import Watch
from lnb.reports.watch_file import NAME, Tail

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from integrations.transformers_ranks import run  # noqa: E402 - it imports transformers


def joined(steps: int) -> nn.Module:
    model = mixed().double()
    train(model, lnb.LNB(model), batches(4)[:steps])
    return model


def same_parameters(model: nn.Module, other: nn.Module) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_an_optimizer_that_is_passed(tmp_path: Path) -> None:
    model = Classifier()
    optimizer = lnb.LNB(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=16, num_train_epochs=1, use_cpu=True, report_to=[],
        save_strategy="no", max_grad_norm=0.0, lr_scheduler_type="constant", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"x": x, "labels": y} for x, y in data()]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    with Watch(optimizer, tmp_path, every=2, tensorboard=False):
        trainer.train()
    assert [record.step for record in Tail(tmp_path / NAME).read()] == [2, 4]
    assert optimizer.diagnostics() == {"steps": 4, "skipped_steps": 0}
    by_hand = mixed()
    train(by_hand, lnb.LNB(by_hand), batches(4))
    same_parameters(model.net, by_hand)


def test_the_factorys_steps_and_groups(tmp_path: Path) -> None:
    trainer = run(tmp_path, 1, 16, weight_decay=0.5)
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, lnb.LNB)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    decaying = [names[p] for group in optimizer.param_groups if group["weight_decay"] == 0.5 for p in group["params"]]
    assert sorted(decaying) == sorted(trainer.get_decay_parameter_names(trainer.model))
    assert sorted(decaying) == ["net.0.weight", "net.3.weight", "net.5.weight"]
    by_hand = mixed().double()
    kept = [p for name, p in by_hand.named_parameters() if f"net.{name}" not in decaying]
    decays = [p for name, p in by_hand.named_parameters() if f"net.{name}" in decaying]
    groups = [{"params": decays, "weight_decay": 0.5}, {"params": kept, "weight_decay": 0.0}]
    train(by_hand, lnb.LNB(by_hand, params=groups), batches(4))
    same_parameters(trainer.model.net, by_hand)


def test_adamws_rate_is_warned_of(tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    with pytest.warns(UserWarning, match=r"learning_rate=5e-05 is the default"):
        optimizer_cls_and_kwargs(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimizer_cls_and_kwargs(arguments, lr=0.1)[1] == {"lr": 0.1, "weight_decay": 0.0}


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    trainer = run(tmp_path, 1, 4, gradient_accumulation_steps=4)
    for p, q in zip(trainer.model.net.parameters(), joined(4).parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # losses are in float32


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = create_optimizer(model, weight_decay=0.1, lr=0.2)
    assert [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups] == [[(2, 3)], [(2,)]]
    model[1].bias.requires_grad_(False)
    assert len(create_optimizer(model, weight_decay=0.1).param_groups) == 1


def test_resumed_training_is_uninterrupted_training(tmp_path: Path) -> None:
    run(tmp_path / "parts", 1, 16, save=True)
    resumed = run(tmp_path / "parts", 2, 16, resume=True)
    whole = run(tmp_path / "whole", 2, 16)
    assert resumed.optimizer.optimizer.diagnostics()["steps"] == 4  # of this process
    for p, q in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_two_ranks(tmp_path: Path) -> None:
    """Each rank sees half of every batch of 16: the steps are those of one process."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), *sys.path])
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            str(tests / "integrations" / "transformers_ranks.py"), str(tmp_path),
        ],
        check=True, timeout=120, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )  # fmt: skip
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(map(torch.equal, first, second))
    for p, q in zip(first, joined(4).parameters(), strict=True):
        torch.testing.assert_close(p, q)


def gpt2(folder: Path, epochs: int, resume: bool = False) -> transformers.Trainer:
    """A Trainer of a small GPT-2 after that many epochs; it saves every one."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=29, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=8, num_train_epochs=epochs, use_cpu=True, report_to=[],
        save_strategy="epoch", lr_scheduler_type="constant", learning_rate=0.05, disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 29, (24, 8))]
    settings = optimizer_cls_and_kwargs(arguments)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, optimizer_cls_and_kwargs=settings)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def test_gpt2_is_claimed_and_resumes(tmp_path: Path) -> None:
    """Its layers are Transformers' own; weights that are laid out by columns are saved, and loaded, as any others."""
    whole = gpt2(tmp_path / "whole", 2)
    rows = {row.name: row.metric for row in whole.optimizer.optimizer.coverage().rows}
    matrices = {name for name, p in whole.model.named_parameters() if p.ndim == 2 and "transformer.h." in name}
    assert len(matrices) == 8
    assert all(rows[name] == "second moment" for name in matrices)
    assert all(whole.model.get_parameter(name).t().is_contiguous() for name in matrices)
    gpt2(tmp_path / "parts", 1)
    resumed = gpt2(tmp_path / "parts", 2, resume=True)
    assert resumed.state.log_history[-1]["epoch"] == 2
    for p, q in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_gpt2_does_as_with_linear_layers() -> None:
    config = transformers.GPT2Config(vocab_size=29, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    other = transformers.GPT2LMHeadModel(config).double().eval()
    other.load_state_dict(model.state_dict())
    for block in other.transformer.h:
        for parent, name in (
            (block.attn, "c_attn"),
            (block.attn, "c_proj"),
            (block.mlp, "c_fc"),
            (block.mlp, "c_proj"),
        ):
            conv = parent.get_submodule(name)
            linear = nn.Linear(*conv.weight.shape).double()
            linear.weight.data.copy_(conv.weight.t())
            linear.bias.data.copy_(conv.bias)
            setattr(parent, name, linear)
    tokens = torch.randint(0, 29, (4, 8))
    for net in (model, other):
        optimizer = lnb.LNB(net, 0.05)
        for _ in range(4):
            optimizer.zero_grad()
            net(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
    for name, q in other.named_parameters():
        turned = isinstance(other.get_submodule(name.rpartition(".")[0]), nn.Linear) and q.ndim == 2
        torch.testing.assert_close(
            model.get_parameter(name), q.t() if turned and "transformer.h." in name else q, rtol=1e-9, atol=1e-11
        )
