"""Groups of a suite: what a report shows side by side."""

from __future__ import annotations

from dataclasses import dataclass

MEASURES = ("final", "steps_to_target", "shortest_schedule")


@dataclass(frozen=True)
class SuiteQuestion:
    """Variants of one optimizer that differ in one thing: what is it worth?

    Attributes:
        label: its name in the study.
        optimizers: labels; the first is what the others are compared with.
        note: the question, as a sentence; may be empty.
    """

    label: str
    optimizers: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class SuiteFamily:
    """Tasks that differ in one thing, such as the scale of the inputs: what that does to each optimizer is a result.

    Attributes:
        label: its name in the study.
        tasks: labels, in the order in which they are shown.
        measure: what is compared, one of :data:`MEASURES`.
        note: a sentence that explains what is varied; may be empty.
    """

    label: str
    tasks: tuple[str, ...]
    measure: str
    note: str = ""
