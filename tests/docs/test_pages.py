"""Pages say what the code has: preset values, public names, figures that they quote from other pages."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

import lnb
import lnb_kernels
from lnb.config import PRESETS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFERENCE = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))

MODULES = (
    "lnb", "lnb.trust_regions", "lnb.moments", "lnb.planning",
    "lnb_kernels", "lnb_kernels.multi_tensor", "lnb_kernels.fused_step",
)  # fmt: skip


def stated() -> dict[str, dict[str, str]]:
    """Of every preset, the values that the page's tables give to settings; a row may name several."""
    found: dict[str, dict[str, str]] = {}
    parts = re.split(r'^## `"(\w+)"`.*$', (DOCS / "presets.md").read_text(), flags=re.M)[1:]
    for preset, text in zip(parts[::2], parts[1::2], strict=True):
        for names, value in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]*) \|", text, re.M):
            settings, values = re.findall(r"`(\w+)`", names), value.split(", ")
            assert len(settings) == len(values), (preset, names, value)
            found.setdefault(preset, {}).update(zip(settings, values, strict=True))
    return found


def test_preset_values_are_those_of_the_code() -> None:
    tables = stated()
    assert tables.keys() == PRESETS.keys()
    for preset, values in tables.items():
        config = {**dataclasses.asdict(PRESETS[preset]()), "lr": lnb.DEFAULT_LR[preset]}
        for name, value in values.items():
            own = config[name]
            number = isinstance(own, int | float) and not isinstance(own, bool)
            assert (float(value) == own) if number else (value == str(own)), f"{preset}: {name} is {own}, not {value}"
    assert tables["fast"].keys() == {*(field.name for field in dataclasses.fields(PRESETS["fast"]())), "lr"}


def test_every_public_name_is_in_the_reference() -> None:
    shown = set(re.findall(r"^::: (\S+)", REFERENCE, re.M)) | set(re.findall(r"heading: ([\w.]+)", REFERENCE))
    whole = {"lnb_kernels.multi_tensor", "lnb_kernels.fused_step"}  # shown with all that their __all__ lists
    modules = {"lnb.moments", "lnb.trust_regions", *whole}
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            known = {f"{module}.{name}", f"lnb.{name}"} & shown
            assert known or module in whole or f"{module}.{name}" in modules, (
                f"{module}.{name} is in no page of docs/reference"
            )
    integrations = {f"lnb.integrations.{path.stem}" for path in (ROOT / "python/lnb/integrations").glob("[a-z]*.py")}
    assert integrations <= shown


@pytest.mark.parametrize("module", ["lnb", "lnb_kernels"])
def test_arguments_of_docstrings_are_arguments(module: str) -> None:
    """Each name before a colon under ``Args:`` is a parameter; several may share a line."""
    names = {name: getattr(importlib.import_module(module), name) for name in importlib.import_module(module).__all__}
    names |= {
        f"multi_tensor.{name}": getattr(lnb_kernels.multi_tensor, name) for name in lnb_kernels.multi_tensor.__all__
    }
    for name, value in names.items():
        text = inspect.getdoc(value) or ""
        if not callable(value) or "Args:\n" not in text:
            continue
        section = re.split(r"^\S", text.partition("Args:\n")[2], flags=re.M)[0]
        given = re.findall(r"^    (\w+(?:, \w+)*): ", section, re.M)
        known = set(inspect.signature(value).parameters) | {"settings"}
        assert given, name
        assert {each for line in given for each in line.split(", ")} <= known, name


def test_rows_of_the_robustness_suite_are_quoted_as_they_are() -> None:
    rows = {}
    for line in (DOCS / "robustness.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0]] = cells[:7]
    quoted = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (DOCS / "how-it-fails.md").read_text().splitlines()
        if re.match(r"\| (plain|batch|outlier|residual|label|inputs|weights|recurrent)", line)
    ]
    assert len(quoted) >= 7
    for cells in quoted:
        assert rows[cells[0]] == cells, f"docs/how-it-fails.md: {cells[0]} differs from docs/robustness.md"


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert listed == written, "mkdocs.yml: nav"


def test_relative_links_lead_to_files() -> None:
    """Of pages as they are read in the repository; anchors are checked in the built site."""
    broken = []
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))):
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
        targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text)
        broken += [(page.name, each) for each in targets if "://" not in each and not (page.parent / each).exists()]
    assert not broken
