"""Runs every example, writes what it prints into ``docs/gallery.md``, and draws what ``lnb watch`` shows of one of them.

python docs/tools/gallery.py     # under a minute
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, DIMMED_MONOKAI, TerminalTheme

from lnb.cli.watch_table import History, screen
from lnb.reports.watch_file import NAME, Tail

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "gallery.md"
OUTPUT = re.compile(r"(<!-- output of (\w+) -->\n```text\n).*?(```\n<!-- end of output -->)", re.S)
WATCHED = "watch_training"
THEMES = {"": DEFAULT_TERMINAL_THEME, "-dark": DIMMED_MONOKAI}


def printed(name: str, folder: Path) -> str:
    """What an example prints, run by one thread with ``folder`` as the current one."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def drawn(folder: Path, theme: TerminalTheme) -> str:
    """The screen of ``lnb watch``, as a picture without fonts of a network."""
    history, place = History(), Path("runs") / "watched"
    history.add(Tail(folder / place / NAME).read())
    console = Console(record=True, width=88, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(screen(history, place / NAME, "model", None))
    svg = console.export_svg(title=f"lnb watch {place}", theme=theme, unique_id="watch")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


def main() -> None:
    """Run, draw and write."""
    text, outputs = PAGE.read_text(), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for _, name, _ in OUTPUT.findall(text):
            outputs[name] = printed(name, folder)
            for suffix, theme in THEMES.items() if name == WATCHED else ():
                (ROOT / "docs" / "pictures" / f"watch{suffix}.svg").write_text(drawn(folder, theme))
    PAGE.write_text(OUTPUT.sub(lambda match: f"{match[1]}{outputs[match[2]]}{match[3]}", text))


if __name__ == "__main__":
    main()
