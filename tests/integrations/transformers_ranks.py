"""Started by ``torchrun``: a short run of Transformers' Trainer, whose parameters go to the folder that is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from integrations.training import Classifier, data

import lnb
from lnb.integrations.transformers import optimizer_cls_and_kwargs


def run(folder: Path, epochs: int, batch_size: int, save: bool = False, resume: bool = False, **settings: Any) -> Any:
    """A Trainer after that many epochs of the data, in order."""
    torch.manual_seed(0)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch_size, num_train_epochs=epochs, use_cpu=True, report_to=[],
        save_strategy="epoch" if save else "no", max_grad_norm=0.0, lr_scheduler_type="constant", disable_tqdm=True,
        learning_rate=lnb.DEFAULT_LR["fast"], **settings,
    )  # fmt: skip
    rows = [{"x": x, "labels": y} for x, y in data()]
    model = Classifier().double()
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(arguments)
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    trained = run(where / "runs", 1, 8, ddp_backend="gloo")
    rank = os.environ["RANK"]
    torch.save([parameter.detach() for parameter in trained.model.parameters()], where / f"rank{rank}.pt")
