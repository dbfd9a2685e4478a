"""Profiles of a training step in words and as tables."""

from __future__ import annotations

from dataclasses import dataclass

from lnb_bench.study.profiles import PARTS, Profile

TITLES = {
    "parts": "Where the time of a step goes",
    "memory": "Peak memory against batch size",
    "product": "One covariance-vector product of a convolution",
}
NOTES = {
    "parts": (
        "Milliseconds of a step: medians over refresh cycles of means over the ten steps of a cycle; optimizers take turns. "
        "Statistics: what forward and backward take longer than the first row's. Solve: the directions from gradients and "
        "second moments. Update: the rest."
    ),
    "memory": (
        "Most megabytes live at one time, parameters and optimizer state included. Kept inputs: matrix-free paper mode, which "
        "holds every layer's input until the step. Probe: second moments made in the backward pass. Checkpointed: "
        "activations are computed again in the backward pass."
    ),
    "product": (
        "The product (P'P/N + ridge) v that paper mode needs three times per layer and step, over the layer's own backward "
        "pass, medians of interleaved runs with quartiles. Every method's result was first checked against float64."
    ),
}


@dataclass(frozen=True)
class Table:
    """A table of text; the title may be empty."""

    title: str
    headers: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def tables(profile: Profile) -> list[Table]:
    """The figures of a profile."""
    return {"parts": _parts, "memory": _memory, "product": _product}[profile.kind](profile)


def conclusions(profile: Profile) -> list[str]:
    """What they say."""
    return {"parts": _parts_said, "memory": _memory_said, "product": _product_said}[profile.kind](profile)


def _parts(profile: Profile) -> list[Table]:
    found = []
    for model, rows in profile.results.items():
        base = sum(next(iter(rows.values()))[part] for part in PARTS)
        lines = []
        for optimizer, row in rows.items():
            total = sum(row[part] for part in PARTS)
            lines.append(
                (optimizer, *(f"{row[part]:.3g}" for part in PARTS), f"{total:.3g}", f"{total / base:.2f}"),
            )
        found.append(Table(model, ("optimizer", *PARTS, "whole step", "ratio"), tuple(lines)))
    return found


def _parts_said(profile: Profile) -> list[str]:
    said = []
    for model, rows in profile.results.items():
        (base_name, base), *others = rows.items()
        whole = sum(base[part] for part in PARTS)
        texts = []
        for optimizer, row in others:
            extra = {part: row[part] - base[part] for part in PARTS}
            most = max(extra, key=lambda part: extra[part])
            texts.append(f"{optimizer} {sum(row[part] for part in PARTS) / whole:.2f} (most of the difference: {most})")
        said.append(f"{model}: a step takes, in steps of {base_name}: {'; '.join(texts)}.")
    return said


def _memory(profile: Profile) -> list[Table]:
    batches = list(profile.results[0]["peaks"])
    lines = tuple(
        (row["optimizer"], "yes" if row["checkpointed"] else "no", *(f"{row['peaks'][b] / 1e6:.1f}" for b in batches))
        for row in profile.results
    )
    return [Table(profile.title, ("optimizer", "checkpointed", *(f"batch {batch}" for batch in batches)), lines)]


def _memory_said(profile: Profile) -> list[str]:
    largest = max(profile.results[0]["peaks"], key=int)
    said = []
    for checkpointed in (False, True):
        peaks = {
            row["optimizer"]: row["peaks"][largest]
            for row in profile.results
            if bool(row["checkpointed"]) is checkpointed
        }
        if len(peaks) > 1:
            (base_name, base), *others = peaks.items()
            texts = ", ".join(f"{name} {peak / base:.2f}" for name, peak in others)
            how = "with activation checkpointing" if checkpointed else "without activation checkpointing"
            said.append(f"At batch {largest}, {how}, in units of {base_name}'s {base / 1e6:.1f} MB: {texts}.")
    return said


def _product(profile: Profile) -> list[Table]:
    methods = list(next(iter(profile.results.values())))
    lines = []
    for layer, rows in profile.results.items():
        shown = (
            "not installed"
            if rows[m] is None
            else f"{rows[m]['ratio']:.2f} ({rows[m]['low']:.2f} to {rows[m]['high']:.2f})"
            for m in methods
        )
        lines.append((layer, *shown))
    return [Table(profile.title, ("layer", *methods), tuple(lines))]


def _product_said(profile: Profile) -> list[str]:
    *_, (last, rows) = profile.results.items()
    ratios = ", ".join(f"{method} {row['ratio']:.2f}" for method, row in rows.items() if row is not None)
    missing = [method for method, row in rows.items() if row is None]
    return [f"{last}: {ratios}.", *(f"{method} was not installed: its column is empty." for method in missing)]
