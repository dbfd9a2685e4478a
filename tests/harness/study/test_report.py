"""The report of a real small study: complete, self-contained, and readable in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from small_study import PROFILES, SUITE
from typer.testing import CliRunner

from lnb_bench.cli.app import app
from lnb_bench.study import Findings, Store, compare, load_suite
from lnb_bench.study.markdown import write_markdown
from lnb_bench.study.profiles import save_profile

PICTURES = 2 * 3 + 1 + 3  # of every task, of the family, of the profiles
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report ``page/index.html`` and ``results.md`` of a study that was run for it."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "small.toml").write_text(SUITE)
    for kind, results in PROFILES.items():
        save_profile(folder / f"{kind}.json", kind, "A made-up model", results, jax="0")
    for arguments in (
        ["run", folder / "small.toml", "--out", folder / "runs"],
        [
            "report",
            folder / "small.toml",
            folder / "runs",
            "--out",
            folder / "page",
            "--markdown",
            folder / "results.md",
            *(part for kind in PROFILES for part in ("--profile", folder / f"{kind}.json")),
        ],
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
    return folder


def test_the_page_is_complete_and_needs_no_network(report: Path) -> None:
    page = (report / "page" / "index.html").read_text()
    assert not re.search(r"(src|href|srcset)=\"(?!data:)", page)
    assert "@import" not in page
    assert page.count("<img ") == PICTURES
    assert "lnb against adamw" in page
    pictures = sorted(path.name for path in (report / "page").glob("*.png"))
    by_task = [f"{t}-{n}.png" for t in ("digits", "matrix") for n in ("curves", "learning-rates", "time-to-target")]
    assert pictures == sorted([*by_task, "family-both.png", *(f"profile-{kind}.png" for kind in PROFILES)])
    assert len(pictures) == PICTURES
    assert all((report / "page" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_markdown(report: Path) -> None:
    text = (report / "results.md").read_text()
    assert re.search(r"^Machine: .+ cores, \d+ threads?, wall-clock time; lnb ", text, re.M)
    for title in ("## Where LNB does not win", "## Where LNB wins", "## digits", "## matrix"):
        assert title in text
    tables = [line for line in text.splitlines() if line.startswith(("| lnb ", "| adamw "))]
    assert [line.count("|") for line in tables] == [5, 5, 11, 11, 11, 11]  # the family's, then two tasks'
    assert re.search(r"^2 comparisons by time to target: ", text, re.M)
    assert re.search(r"^\| digits \| (none|\w+, .*) \| .* of 2 \|$", text, re.M)
    assert "## Side by side: both\n\nSteps to the target, each" in text
    said = (
        "- mlp: a step takes, in steps of AdamW fused: paper 2.00 (most of the difference: solve).",
        "- At batch 256, without activation checkpointing, in units of AdamW fused's 20.0 MB: paper, probe 1.25.",
        "- At batch 256, with activation checkpointing, in units of AdamW fused's 10.0 MB: paper, probe 1.50.",
        "- 3 to 16: matrix-free 0.50.",
        "- jax jvp + vjp was not installed: its column is empty.",
        "| paper | 4 | 5 | 2 | 8 | 1 | 20 | 2.00 |",
        "| paper, probe | yes | 11.0 | 15.0 |",
        "| 3 to 16 | 0.50 (0.40 to 0.60) | not installed |",
    )
    for line in said:
        assert line in text
    shown = re.findall(r"\]\((results/.*\.png)\)", text)
    assert sorted(shown) == [
        f"results/{name}.png" for name in ("family-both", *(f"profile-{kind}" for kind in sorted(PROFILES)))
    ]
    assert all((report / name).read_bytes().startswith(b"\x89PNG") for name in shown)


def test_markdown_without_pictures_makes_no_folder_for_them(report: Path, tmp_path: Path) -> None:
    comparisons = compare(load_suite(report / "small.toml"), Store(report / "runs"))
    file = tmp_path / "made" / "tables.md"
    write_markdown(Findings(tuple(comparisons)), file)
    assert "## digits" in file.read_text()
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "cannot be read"),
        ("{", "no profile of a training step"),
        ('{"kind": "parts"}', "KeyError: 'title'"),
        (
            '{"kind": "speed", "title": "", "machine": "", "results": {}}',
            "kind='speed' must be one of parts, memory, product",
        ),
        (
            '{"kind": "parts", "title": "", "machine": "", "results": {"a": {"b": {"forward": 1}}}}',
            "KeyError: 'backward'",
        ),
        (
            '{"kind": "memory", "title": "", "machine": "", "results": [{"optimizer": "a", "peaks": {"1": 1}}]}',
            "KeyError: 'checkpointed'",
        ),
    ],
)
def test_a_profile_that_is_none(report: Path, tmp_path: Path, content: str | None, cause: str) -> None:
    profile = tmp_path / "profile.json"
    if content is not None:
        profile.write_text(content)
    arguments = ["report", report / "small.toml", report / "runs", "--out", tmp_path, "--profile", profile]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert cause in " ".join(result.output.split())


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


@pytest.mark.skipif(
    BROWSER is None, reason="NO CHROMIUM: the page is not seen in a browser; tests/harness/study/install_browser.sh"
)
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
    assert len(seen["images"]) == PICTURES
    assert all(loaded and 250 < width <= 390 for loaded, width in seen["images"])
    assert "CONSOLE" not in done.stderr
    assert seen["dark"] is dark
    assert seen["paper"] == ("rgb(23, 23, 23)" if dark else "rgb(255, 255, 255)")
    assert seen["ink"] == ("rgb(229, 231, 235)" if dark else "rgb(31, 41, 55)")
