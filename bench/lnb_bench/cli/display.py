"""Live progress of training runs, and the figures of merit as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.progress import Progress

from lnb_bench.training import Record


def follow(records: Iterable[Record], bars: Progress, name: str, steps: int, *, done: int = 0) -> Iterator[Record]:
    """Hand ``records`` on, with a bar ``name`` of ``steps`` steps that moves along; ``done`` steps are made already."""
    bar = bars.add_task(name, total=steps, completed=done, figures="")
    latest: dict[str, Record] = {}
    for record in records:
        latest[record.split] = record
        bars.update(bar, completed=record.step, figures=_brief(latest))
        yield record
    bars.update(bar, completed=steps)


def _brief(latest: dict[str, Record]) -> str:
    """The newest training loss and test figure; the last figure of a test record is the one that fits the bar."""
    shown = [f"loss {latest['train'].values['loss']:.3g}"] if "train" in latest else []
    if "test" in latest:
        name, value = list(latest["test"].values.items())[-1]
        shown.append(f"{'test loss' if name == 'loss' else name} {value:.3g}")
    return " · ".join(shown)


def figures(record: Record) -> str:
    """The record's figures of merit in one line, without the learning rate."""
    return "  ".join(f"{name} {value:.4g}" for name, value in record.values.items() if name != "lr")


def line(record: Record) -> str:
    """An evaluation as one line of a log."""
    return f"step {record.step:>6}  epoch {record.epoch:6.2f}  {figures(record)}  {record.seconds:.1f} s"
