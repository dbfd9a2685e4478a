"""What continuous integration and the hooks before a commit call is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_workflow_calls_targets_of_the_makefile() -> None:
    targets, docs = re.findall(r"run: make PYTHON=python ([\w -]+)", text(".github/workflows/test.yml"))
    [known] = re.findall(r"^\.PHONY: (.+)", text("Makefile"), re.MULTILINE)
    assert {"lint", "types", "pytest"} == set(targets.split()) <= set(known.split())
    assert {"docs-test"} == set(docs.split()) <= set(known.split())


def test_the_workflow_begins_with_the_oldest_python_that_is_supported() -> None:
    [versions] = re.findall(r"python: \[(.+)\]", text(".github/workflows/test.yml"))
    [oldest] = re.findall(r'requires-python = ">=(.+)"', text("pyproject.toml"))
    assert re.findall(r'"(.+?)"', versions)[0] == oldest


def test_the_hooks_take_their_tools_from_the_environment_of_the_tests() -> None:
    tools = re.findall(r"entry: \.venv/bin/(\S+)", text(".pre-commit-config.yaml"))
    assert len(tools) == text(".pre-commit-config.yaml").count("- id:")
    for tool in tools:
        assert f"\n{tool}==" in text("requirements/test.txt")
