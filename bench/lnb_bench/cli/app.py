"""The commands of ``lnb-bench`` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lnb.cli.errors import reported
from lnb.cli.settings import parse_settings
from lnb.cli.version import version_option
from lnb_bench.cli.spec import RunSpec
from lnb_bench.training import MODELS, OPTIMIZERS, SCHEDULES, TASKS, TrainingError

app = typer.Typer(
    name="lnb-bench",
    help="Train networks with Linear Neuron Boosting and other optimizers, and compare them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RUN, MODEL, FILES = "The run", "The model and data", "Files"


@app.callback()
def main(version: Annotated[bool, version_option("lnb-bench")] = False) -> None:
    """Train networks with Linear Neuron Boosting and other optimizers, and compare them."""


def _modes(quick: bool, short: bool, full: bool) -> dict[str, bool]:
    return {"quick": quick, "short": short, "full": full}


@app.command()
def run(
    suite: Annotated[Path, typer.Argument(help="The TOML file that describes the study.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; what is there is not run again.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data. Default: $LNB_DATA.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The suite's short form.")] = False,
    short: Annotated[bool, typer.Option("--short", help="A form in between.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The suite's long form.")] = False,
    task: Annotated[list[str] | None, typer.Option(help="Only this task of the suite; repeatable.")] = None,
    optimizer: Annotated[list[str] | None, typer.Option(help="Only this optimizer; repeatable.")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out optimizers whose package is not installed, and say so.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. Default: as torch has it.", min=1)] = None,
    clock: Annotated[
        str, typer.Option(help="wall, or cpu: processor time, which other processes do not disturb; needs --threads 1.")
    ] = "wall",
) -> None:
    """Run a study: tasks x optimizers x learning rates x seeds. Killed, it goes on where it was."""
    from lnb_bench.cli.study import run_study

    run_study(suite, out, data, _modes(quick, short, full), (task, optimizer), threads, clock, Console(), skip_missing)


@app.command()
def report(
    suite: Annotated[Path, typer.Argument(help="The TOML file that describes the study.")],
    runs: Annotated[Path, typer.Argument(help="The folder that `lnb-bench run` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")],
    quick: Annotated[bool, typer.Option("--quick", help="The suite's short form.")] = False,
    short: Annotated[bool, typer.Option("--short", help="A form in between.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The suite's long form.")] = False,
    profile: Annotated[
        list[Path] | None, typer.Option(help="A result file of bench/step_profile.py to show too; repeatable.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file too.")] = None,
    note: Annotated[
        str, typer.Option(help="A paragraph at the top of the report, such as what the runs are a part of.")
    ] = "",
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out this optimizer, of which there are no runs; repeatable.")
    ] = None,
) -> None:
    """Compare the finished runs of a study: one self-contained page, its pictures, and tables."""
    from lnb_bench.cli.study import run_report

    run_report(suite, runs, out, _modes(quick, short, full), profile or [], markdown, Console(), note, without or [])


@app.command()
def train(
    task: Annotated[str | None, typer.Option(help=f"One of {', '.join(TASKS)}.", rich_help_panel=RUN)] = None,
    optimizer: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}. Default: lnb.", rich_help_panel=RUN)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps. Default: by task.", rich_help_panel=RUN)] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Length in passes over the data, instead of --steps.", rich_help_panel=RUN)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. Default: by optimizer.", rich_help_panel=RUN)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay. Default: by optimizer.", rich_help_panel=RUN)
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"{' or '.join(SCHEDULES)}. Default: constant.", rich_help_panel=RUN)
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help="Share of the steps over which the rate rises. Default: 0.", rich_help_panel=RUN),
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Scale gradients down to this global norm.", rich_help_panel=RUN)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A further optimizer setting, NAME=VALUE, such as ridge=1.0; repeatable.", rich_help_panel=RUN
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples per step. Default: by task.", rich_help_panel=RUN)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of parameters and data order. Default: 0.", rich_help_panel=RUN)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: cpu.", rich_help_panel=RUN)] = None,
    model: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(MODELS)}. Default: auto, by task.", rich_help_panel=MODEL)
    ] = None,
    invert: Annotated[
        bool, typer.Option("--invert", help="Train and test on inverted images, 1 - x.", rich_help_panel=MODEL)
    ] = False,
    rescale: Annotated[
        int | None, typer.Option(help="Seed of a random scale and shift of every pixel (mnist).", rich_help_panel=MODEL)
    ] = None,
    same_start: Annotated[
        bool,
        typer.Option(
            "--same-start", help="Start as the network of the images as they are (mnist).", rich_help_panel=MODEL
        ),
    ] = False,
    width: Annotated[
        int | None,
        typer.Option(help="Units (mlp), channels (unet, cnn), token size (vit, gpt).", rich_help_panel=MODEL),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Hidden layers (mlp), halvings (unet, cnn), blocks.", rich_help_panel=MODEL)
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.", rich_help_panel=MODEL)] = None,
    patch: Annotated[int | None, typer.Option(help="Side of a patch (vit).", rich_help_panel=MODEL)] = None,
    activation: Annotated[str | None, typer.Option(help="tanh or relu (mlp).", rich_help_panel=MODEL)] = None,
    context: Annotated[int | None, typer.Option(help="Window of text (shakespeare).", rich_help_panel=MODEL)] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images (camvid).", rich_help_panel=MODEL)] = None,
    condition: Annotated[
        float | None, typer.Option(help="Condition number (matrix-factorization).", rich_help_panel=MODEL)
    ] = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Shift and mirror training images (cifar10).", rich_help_panel=MODEL)
    ] = False,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapters (lora).", rich_help_panel=MODEL)] = None,
    frequency: Annotated[
        int | None, typer.Option(help="Half waves of the solution (helmholtz).", rich_help_panel=MODEL)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the data. Default: $LNB_DATA, else fetched where possible.", rich_help_panel=FILES
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics and checkpoints.", rich_help_panel=FILES)] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out from its last checkpoint.", rich_help_panel=FILES),
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.", rich_help_panel=FILES)] = 100,
    log_every: Annotated[
        int | None, typer.Option(help="Steps between training records. Default: 10.", rich_help_panel=FILES)
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps between evaluations. Default: about an epoch.", rich_help_panel=FILES)
    ] = None,
) -> None:
    """Train a network on real data, with live progress, metrics and checkpoints that survive a kill."""
    from lnb_bench.cli.train import run_training

    with reported(TrainingError, ValueError):
        settings = parse_settings(set_ or [])
    spec = RunSpec(
        task=task,
        optimizer=optimizer,
        model=model,
        steps=steps,
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        settings=settings,
        seed=seed,
        batch_size=batch_size,
        schedule=schedule,
        warmup=warmup,
        clip_norm=clip_norm,
        log_every=log_every,
        evaluate_every=evaluate_every,
        invert=invert or None,
        rescale=rescale,
        same_start=same_start or None,
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        activation=activation,
        context=context,
        size=size,
        condition=condition,
        augment=augment or None,
        rank=rank,
        frequency=frequency,
        data=None if data is None else str(data),
        device=device,
    )
    run_training(spec, out, resume, checkpoint_every, Console())
