"""Figures that pages quote in sentences are those of the pages that commands write; new measurements name the sentences to mend.

Each entry has a page, words of it, and the words of the source that they rest on.
"""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"

STUDY, CONDITION, ROBUST, PROTOCOL = "results.md", "results-condition.md", "robustness.md", "results-protocol.md"

QUOTES = [
    ("index.md", "it needed 0.17 times as long as tuned AdamW", STUDY, "mnist-inverted: lnb against adamw: 0.17 times"),
    ("index.md", "its accuracy moved by 0.35 points", STUDY, "96.57% and 96.92%, moves by 0.35 points"),
    ("index.md", "that of AdamW by 7.22", STUDY, "88.74% and 95.96%, moves by 7.22 points"),
    ("index.md", "21 times as long as SGD", STUDY, "matrix-1e1: lnb against sgd: 21.30 times"),
    ("index.md", "won 71, lost 2, and 33", PROTOCOL, "71 wins, 33 without a clear difference, 2 losses"),
    ("index.md", "46.4 % after 120 steps, Muon's 43.6 %", PROTOCOL, "cifar10-resnet-small: lnb ends at 46.40%"),
    ("index.md", "Muon's 43.6 %, NadamW's 38.8 %", PROTOCOL, "| 38.80% (38.70% to 40.50%) |"),
    ("index.md", "0.32 times as long as with NadamW", PROTOCOL, "camvid-small: lnb against nadamw: 0.32 times"),
    ("index.md", "SOAP, the next, at 70.8 %", PROTOCOL, "| 70.77% (69.32% to 73.51%) |"),
    ("index.md", "46.3 % after 120 steps with LNB", PROTOCOL, "cifar10-vit-small: lnb ends at 46.30%"),
    ("index.md", "42.6 % with NorMuon, 28.2 % with AdamW", PROTOCOL, "| 42.60% (42.20% to 44.00%) |"),
    ("index.md", "1.88 after 300 steps, NorMuon 1.89, Muon 1.93", PROTOCOL, "gpt-small: lnb ends at 1.88"),
    ("index.md", "2.18 after 200 steps", PROTOCOL, "| lora-small | lnb, 2.6 s | lnb, 2.21 | lnb, 2.18 |"),
    ("index.md", "1.46 times as long as tuned SGD", PROTOCOL, "digits: lnb against sgd: 1.46 times"),
    ("index.md", "98.02 % with Muon, 97.58 % with LNB", PROTOCOL, "mnist: lnb ends at 97.58%"),
    (
        "index.md",
        "94.17 % with SOAP, 93.06 % with LNB",
        PROTOCOL,
        "| digits | sgd, 0.0257 s | lnb, 92.22% | soap, 94.17% |",
    ),
    ("index.md", "15 steps to a relative error of 1e-6", CONDITION, "| 1e+08 | 15 (12 to 28) |"),
    ("index.md", "with 289 steps against 21", CONDITION, "| 1e+08 | 21 (18 to 35) | 289 (51 to never) |"),
    ("index.md", "batches of one row: loss 0.34, LNB 0.29", ROBUST, "| batch 1 | 3 | 0.81 | 0.34 | 0.52 | 0.29 |"),
    ("index.md", "32 layers with ReLU: loss 0.0075", ROBUST, "| plain 32 x 64 ReLU | 3 | 0.8 | 0.82 | 0.82 | 0.0075 |"),
    (
        "index.md",
        "no case of 67 ended above its start",
        ROBUST,
        "Of 67 cases run (the suite has 67): lnb: 0 above the start",
    ),
    ("how-it-fails.md", "LNB takes 1.29 times as long", STUDY, "mnist: lnb against sgd: 1.29 times"),
    (
        "how-it-fails.md",
        "1.46 times as long: 0.57 times the steps",
        PROTOCOL,
        "digits: lnb against sgd: 1.46 times as long",
    ),
    ("how-it-fails.md", "ends at 97.58 % (PSGD 98.07 %)", PROTOCOL, "mnist: lnb ends at 97.58%"),
    ("how-it-fails.md", "as many steps as Muon and NorMuon", PROTOCOL, "gpt-small: lnb against normuon: 1.04 times"),
    ("how-it-fails.md", "it has 1.88, NorMuon 1.89", PROTOCOL, "gpt-small: lnb ends at 1.88"),
    ("how-it-fails.md", "tuned at 0.834: it overfits most", PROTOCOL, "diabetes: lnb ends at 0.834"),
    ("how-it-fails.md", "0.379 (0.0222 to 0.446); NorMuon's ends at 0.0443", PROTOCOL, "burgers: lnb ends at 0.379"),
    ("how-it-fails.md", "1.26 times as long as SOAP", PROTOCOL, "burgers: lnb against soap: 1.26 times as long"),
    (
        "../README.md",
        "reaches tuned NadamW's target on ten of the eleven",
        PROTOCOL,
        "| lnb | 10 of 11 | 4 | 0.88 | 0.84 | 10 of 11 |",
    ),
    ("../README.md", "LNB 0.88, NorMuon 0.75", PROTOCOL, "| normuon | 11 of 11 | 1 | 0.75 | 0.82 | 4 of 11 |"),
    ("../README.md", "Muon and SOAP 0.74", PROTOCOL, "| soap | 10 of 11 | 2 | 0.57 | 0.74 | 2 of 11 |"),
    (
        "how-it-fails.md",
        "1.10 times as long as NorMuon: 1.29 times the steps",
        PROTOCOL,
        "mnist: lnb against normuon: 1.10 times",
    ),
    ("how-it-fails.md", "SOAP tuned ends at 0.00139", PROTOCOL, "| soap | 0.02464 | 0.00139 (0.00127 to 0.0016) |"),
    ("how-it-fails.md", "LNB at 0.002;", PROTOCOL, "| lnb | 0.5841 | 0.002 (0.00193 to 0.0028) |"),
    ("how-it-fails.md", "21, 11 and 2.7 times as long", STUDY, "matrix-1e1: lnb against adamw: 10.57 times"),
    ("how-it-fails.md", "1.34, 1.26 and 1.08 times as long", STUDY, "shakespeare: lnb against muon: 1.34 times"),
    ("how-it-fails.md", "`rescaled inputs`: AdamW 0.19, LNB 0.0071", ROBUST, "1.5e+02 | 0.19 | 0.06 | 0.0071 |"),
    ("how-it-fails.md", "`residual 16`: AdamW 0.0054", ROBUST, "| residual 16 | 3 | 1.1 | 0.0054 | 0.0029 | 0.00092 |"),
    ("how-it-works.md", "end within 0.12 points of accuracy", STUDY, "moves by 0.12 points"),
    ("how-it-works.md", "1.06 to 1.11 in five models", "gpu.md", "AdamW's | 1.087 | 1.089 | 1.061 | 1.09 | 1.107 |"),
    ("presets.md", "none of 67 cases ends above its start", ROBUST, "lnb x 3: 0 above the start"),
    (
        "presets.md",
        "without it the MLP is worse by 185 %",
        "presets.md",
        "| `damping=none` | +185.2 ± 4.8 | +83.9 ± 20.7 |",
    ),
    (
        "presets.md",
        "whole matrices are worse on the GPT (0.5 %)",
        "presets.md",
        "| `block_size=None` | +1.9 ± 1.7 | +0.7 ± 1.2 | +0.5 ± 0.2 |",
    ),
    (
        "presets.md",
        "without it the autoencoder is worse by 79 %",
        "presets.md",
        "| `output_ridge=0` | +78.7 ± 6.8 |",
    ),
    ("recipes/unet.md", "0.52 times its\ntime", STUDY, "camvid-iou: lnb against adamw: 0.52 times"),
]


@pytest.mark.parametrize("page", sorted({quote[0] for quote in QUOTES}))
def test_sentences_say_what_was_measured(page: str) -> None:
    text = (DOCS / page).read_text()
    for _, words, source, measured in (quote for quote in QUOTES if quote[0] == page):
        assert words in text, f"docs/{page} no longer says {words!r}: mend this list"
        assert measured in (DOCS / source).read_text(), (
            f"docs/{page}: {words!r} rests on {measured!r}, not in {source} any more"
        )
