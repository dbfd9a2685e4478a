"""The report of a real small study: complete, self-contained, and readable in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from small_study import SUITE
from typer.testing import CliRunner

from lnb.cli.app import app

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report ``page/index.html`` and ``results.md`` of a study that was run for it."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "small.toml").write_text(SUITE)
    for arguments in (
        ["bench", folder / "small.toml", "--out", folder / "runs"],
        [
            "report",
            folder / "small.toml",
            folder / "runs",
            "--out",
            folder / "page",
            "--markdown",
            folder / "results.md",
        ],
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
    return folder


def test_the_page_is_complete_and_needs_no_network(report: Path) -> None:
    page = (report / "page" / "index.html").read_text()
    assert not re.search(r"(src|href|srcset)=\"(?!data:)", page)
    assert "@import" not in page
    assert page.count("<img ") == 6
    assert "lnb against adamw" in page
    pictures = sorted(path.name for path in (report / "page").glob("*.png"))
    assert pictures == [
        f"{task}-{name}.png" for task in ("digits", "matrix") for name in ("curves", "learning-rates", "time-to-target")
    ]
    assert all((report / "page" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_markdown(report: Path) -> None:
    text = (report / "results.md").read_text()
    assert re.search(r"^Machine: .+ cores, \d+ threads?, wall-clock time; lnb ", text, re.M)
    for title in ("## Where LNB does not win", "## Where LNB wins", "## digits", "## matrix"):
        assert title in text
    tables = [line for line in text.splitlines() if line.startswith(("| lnb ", "| adamw "))]
    assert len(tables) == 4
    assert all(line.count("|") == 9 for line in tables)


def test_nothing_to_report(report: Path, tmp_path: Path) -> None:
    arguments = ["report", str(report / "small.toml"), str(tmp_path), "--out", str(tmp_path / "page")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "is finished there" in " ".join(result.output.split())


PROBE = """<!doctype html><meta charset="utf-8"><body><iframe id="f" src="page/index.html"
style="width:390px;height:844px;border:0"></iframe><pre id="result"></pre><script>
const frame = document.getElementById("f");
frame.onload = () => {
  const inside = frame.contentDocument, root = inside.documentElement;
  document.getElementById("result").textContent = JSON.stringify({
    scroll: root.scrollWidth, client: root.clientWidth,
    images: [...inside.images].map(i => [i.complete && i.naturalWidth > 100, i.getBoundingClientRect().width]),
    dark: [...inside.images].every(i => i.currentSrc !== i.src),
    paper: frame.contentWindow.getComputedStyle(inside.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(inside.body).color,
  });
};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="NO CHROMIUM: the page stays untested in a browser; install chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_as_wide_as_a_phone(report: Path, tmp_path: Path, dark: bool) -> None:
    probe = report / f"probe-{dark}.html"
    probe.write_text(PROBE)
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom",
        "--allow-file-access-from-files", "--virtual-time-budget=5000", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={tmp_path}", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        probe.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1])
    assert 370 < seen["client"] <= 390  # a vertical scroll bar may take some
    assert seen["scroll"] == seen["client"]
    assert len(seen["images"]) == 6
    assert all(loaded and 250 < width <= 390 for loaded, width in seen["images"])
    assert "CONSOLE" not in done.stderr
    assert seen["dark"] is dark
    assert seen["paper"] == ("rgb(23, 23, 23)" if dark else "rgb(255, 255, 255)")
    assert seen["ink"] == ("rgb(229, 231, 235)" if dark else "rgb(31, 41, 55)")
