"""What mkdocs does here beside its own: raw data and examples are part of the site, and pictures have a dark form.

Links of pages to ``../bench/results/...``, which work in the repository, lead to copies in the site's folder ``data``. A line
that is a link to an example becomes its code, folded. A picture ``pictures/NAME.svg`` with a neighbour ``NAME-dark.svg`` is
shown in the form that fits the reader's palette.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "bench" / "results"
_RAW = re.compile(r"\]\(((?:\.\./)+)bench/results/([^)\s]+)\)")
_EXAMPLE = re.compile(r"^\[(examples/\w+\.py)\]\(\.\./\1\)$", re.M)
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]*pictures/[\w-]+)\.svg\)")

# Notices about other projects' releases are no faults of a page.
logging.getLogger("mkdocs.material.blog").setLevel(logging.ERROR)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the raw data of the benchmarks."""
    for path in sorted([*DATA.rglob("*.json"), *DATA.rglob("*.parquet")]):
        name = f"data/{path.relative_to(DATA).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to the raw data to their copies, unfold examples, and show pictures in two forms."""
    depth = page.file.src_uri.count("/")
    markdown = _RAW.sub(lambda match: f"]({'../' * depth}data/{match[2]})", markdown)
    markdown = _EXAMPLE.sub(lambda match: _folded(match[1]), markdown)
    folder = Path(page.file.abs_src_path).parent

    def pair(match: re.Match[str]) -> str:
        text, path = match[1], match[2]
        if not (folder / f"{path}-dark.svg").is_file():
            return match[0]
        return f"![{text}]({path}.svg#only-light)![{text}]({path}-dark.svg#only-dark)"

    return _PICTURE.sub(pair, markdown)


def _folded(name: str) -> str:
    code = (ROOT / name).read_text()
    return f'<details markdown="1"><summary>{name}</summary>\n\n```python\n{code}```\n\n</details>'
