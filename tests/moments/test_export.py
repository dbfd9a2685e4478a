"""Moments out of a training: what LNB's state says, from an optimizer and from state dicts, in files and in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from moments_support import rows_of, small_model, train
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import lnb
from lnb.moments import LayerMoment, Moments
from lnb.statistics.schedule import is_refresh_step


def same(a: Mapping[str, LayerMoment], b: Mapping[str, LayerMoment]) -> bool:
    parts = ("second_moment", "mean", "count")
    return a.keys() == b.keys() and all(
        torch.equal(getattr(a[n], part), getattr(b[n], part)) and a[n].info == b[n].info for n in a for part in parts
    )


@pytest.mark.parametrize("settings", [{}, {"block_size": None}, {"b_s": 0.5, "refresh_every": 2, "block_size": 8}])
def test_an_export_is_the_decayed_average_of_what_the_layers_saw(settings: dict[str, Any]) -> None:
    """Against a sum in float64 over the rows of the refreshes, of weights ``(1 - b) b^age`` that sum to 1."""
    model = small_model()
    optimizer = lnb.LNB(model, staggered=False, **settings)
    seen = train(model, optimizer, 6)
    moments = lnb.export_moments(optimizer)
    assert set(moments) == {"0", "3", "5"}
    for name, moment in moments.items():
        every = settings.get("refresh_every", 10)
        refreshes = [i for i in range(6) if is_refresh_step(i, every)]
        assert moment.info.steps == len(refreshes)
        decay = optimizer.config.b_s
        assert moment.info.decay == decay
        total = sum((1 - decay) * decay ** (len(refreshes) - 1 - t) for t in range(len(refreshes)))
        weights = [(1 - decay) * decay ** (len(refreshes) - 1 - t) / total for t in range(len(refreshes))]
        rows = [seen[name][step] for step in refreshes]  # [groups, N, d]
        square = sum(w * x.mT @ x / x.shape[1] for w, x in zip(weights, rows, strict=True))
        mean = sum(w * x.mean(1) for w, x in zip(weights, rows, strict=True))
        for block in range(moment.info.blocks):
            cut = slice(block * moment.info.size, (block + 1) * moment.info.size)
            torch.testing.assert_close(
                moment.second_moment[:, block].double(), square[:, cut, cut], rtol=3e-6, atol=1e-6
            )
        torch.testing.assert_close(moment.mean.double(), mean, rtol=3e-6, atol=1e-6)
        # the definition of a count: (sum w)^2 / sum w^2 times the rows of a step
        torch.testing.assert_close(
            moment.count, torch.full_like(moment.count, rows[0].shape[1] / sum(w * w for w in weights))
        )
    assert moments["3"].is_full == (settings.get("block_size", 144) != 8)
    assert moments["0"].info.kind == "convolution"
    assert (moments["3"].info.with_bias, moments["5"].info.with_bias) == (False, True)


def test_all_sources_and_files_agree(tmp_path: Path) -> None:
    model = small_model()
    optimizer = lnb.LNB(model)
    train(model, optimizer, 3)
    moments = lnb.export_moments(optimizer)
    written = lnb.export_moments(optimizer, tmp_path / "m.safetensors")
    assert same(written, moments)
    assert same(lnb.load_moments(tmp_path / "m.safetensors"), moments)
    assert same(lnb.export_moments((small_model(), optimizer.state_dict())), moments)
    assert same(lnb.export_moments((small_model(), get_optimizer_state_dict(model, optimizer))), moments)
    train(model, optimizer, 12)
    assert not same(lnb.export_moments(optimizer), moments)  # an export is a copy
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    """To who reads it without lnb: plain tensors and JSON."""
    model = small_model()
    optimizer = lnb.LNB(model)
    train(model, optimizer, 2)
    moments = lnb.export_moments(optimizer, tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    assert tensors.keys() == {f"{n}.{part}" for n in ("0", "3", "5") for part in ("second_moment", "mean", "count")}
    assert torch.equal(tensors["5.second_moment"], moments["5"].second_moment)
    header = (tmp_path / "m.safetensors").read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert (metadata["format"], metadata["format_version"]) == ("lnb-moments", "1")
    (entry,) = (e for e in json.loads(metadata["layers"]) if e["name"] == "5")
    wanted = {"kind": "linear layer", "parameter": "5.weight", "with_bias": True, "size": 8, "blocks": 1, "decay": 0.9}
    assert entry.items() >= (wanted | {"source": "training", "steps": 2, "dtype": "float32"}).items()


def test_wrappers_do_not_change_names() -> None:
    model = small_model()
    optimizer = lnb.LNB(nn.DataParallel(model))
    train(model, optimizer, 2)
    assert set(lnb.export_moments(optimizer)) == {"0", "3", "5"}


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = small_model()
    with pytest.raises(ValueError, match=r"nothing to export.*Take a step first"):
        lnb.export_moments(lnb.LNB(model), path)
    optimizer = lnb.LNB(small_model(), preset="paper")
    train(optimizer.model, optimizer, 1)
    with pytest.raises(ValueError, match=r"nothing to export.*its setting"):
        lnb.export_moments(optimizer, path)
    with pytest.raises(TypeError, match="gather_moments"):
        lnb.export_moments(model, path)  # type: ignore[arg-type]
    optimizer = lnb.LNB(model)
    train(model, optimizer, 2)
    with pytest.raises(ValueError, match=r"of another model|another shape"):
        lnb.export_moments(
            (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.LayerNorm(5)), optimizer.state_dict())
        )
    with pytest.raises(ValueError, match=r"not what LNB.state_dict"):
        lnb.export_moments((model, torch.optim.SGD(model.parameters()).state_dict()))
    groups = lnb.LNB(small_model(), params=None)
    split = lnb.LNB(groups.model, params=lnb.param_groups(groups.model, weight_decay=0.1))
    train(split.model, split, 1)
    assert set(lnb.export_moments(split)) == {"0", "3", "5"}
    with pytest.raises(ValueError, match=r"2 parameter groups.*get_optimizer_state_dict"):
        lnb.export_moments((split.model, split.state_dict()))
    optimizer.state[model[5].weight]["second_moment"][0, 0, 0, 0] = float("nan")
    for target in (None, path):
        with pytest.raises(ValueError, match="layer '5': second_moment holds NaN"):
            lnb.export_moments(optimizer, target)
    assert os.listdir(tmp_path) == []  # nothing was written


def _file(tmp_path: Path) -> tuple[Path, Moments]:
    model = small_model()
    optimizer = lnb.LNB(model)
    train(model, optimizer, 1)
    return tmp_path / "m.safetensors", lnb.export_moments(optimizer, tmp_path / "m.safetensors")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path, _ = _file(tmp_path)
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"m\.safetensors is no whole safetensors file.*export or copy it anew"):
            lnb.load_moments(path)
    with pytest.raises(FileNotFoundError):
        lnb.load_moments(tmp_path / "none")
    with pytest.raises(OSError, match="not a regular file"):
        lnb.load_moments(tmp_path)
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="it is no file of moments"):
        lnb.load_moments(path)
    path.write_bytes(content.replace(b'\\"blocks\\": 1', b'\\"blocks\\": 0'))
    with pytest.raises(ValueError, match="blocks=0"):
        lnb.load_moments(path)
    path.write_bytes(content.replace(b'"format_version": "1"', b'"format_version": "9"'))
    with pytest.raises(ValueError, match="version '9'"):
        lnb.load_moments(path)
    tensors = dict(load_file_with_metadata(path, content))
    metadata = tensors.pop("__metadata__")
    broken = tensors | {"5.mean": torch.full_like(tensors["5.mean"], float("inf"))}
    save_file(broken, path, metadata=metadata)
    moments = lnb.load_moments(path)
    assert moments["3"].mean.isfinite().all()
    with pytest.raises(ValueError, match="layer '5': mean holds NaN or inf"):
        _ = moments["5"]
    save_file({name: value for name, value in tensors.items() if name != "5.mean"}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"tensors \['5.mean'\] are missing"):
        lnb.load_moments(path)
    save_file(tensors | {"5.mean": torch.zeros(1, 9)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="mean has shape"):
        _ = lnb.load_moments(path)["5"]


def test_a_file_that_is_cut_off_while_it_is_open_is_named(tmp_path: Path) -> None:
    path, _ = _file(tmp_path)
    opened = lnb.load_moments(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(ValueError, match=r"m\.safetensors is no whole safetensors file.*export or copy it anew"):
        _ = [opened[name] for name in opened]


def load_file_with_metadata(path: Path, content: bytes) -> list[tuple[str, Any]]:
    path.write_bytes(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return [*load_file(path).items(), ("__metadata__", header["__metadata__"])]


LARGE = """
import resource, sys, torch, lnb
from torch import nn
print(sum(name.startswith(("lnb.moments", "safetensors")) for name in sys.modules))
with torch.device("meta"):  # the widths of GPT-2 with 124 million parameters
    widths = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    model = nn.ModuleList(nn.Linear(*sizes) for _ in range(12) for sizes in widths)
    model.append(nn.Embedding(50257 + 1024, 768))
print(sum(parameter.numel() for parameter in model.parameters()))
optimizer = lnb.LNB(model, block_size=None)
shared = {d: {"second_moment": torch.ones(1, 1, d + 1, d + 1), "second_moment_step": torch.tensor(1.0)} for d in (768, 3072)}
for layer in model[:-1]:
    optimizer.state[layer.weight] = shared[layer.in_features]  # so that what is measured is the export, and not the state
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import lnb.moments, safetensors
before = rss()
moments = lnb.export_moments(optimizer, sys.argv[1])
for name in list(moments)[:8]:  # two of the largest among them
    assert moments[name].mean[0, 0] == 1
print(rss() - before, 3072 * 3072 * 4 // 1024)
"""


def test_exports_of_124_million_parameters_need_memory_for_one_layer_and_imports_are_lazy(tmp_path: Path) -> None:
    """Whole moments, 540 MB in all: written and read with the memory of the largest, 36 MB, and a constant."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "m")], capture_output=True, text=True, check=True
    )
    imported, parameters, peak, layer = map(int, done.stdout.split())
    assert imported == 0, "import lnb has loaded what only moments need"
    assert 124e6 < parameters < 125e6
    assert (tmp_path / "m").stat().st_size > 14 * layer * 1024
    assert peak <= layer + 30 * 1024, f"{peak} KiB for layers of {layer} KiB"


def test_python_objects_do_not_hold_tensors_while_a_file_is_written(tmp_path: Path) -> None:
    moments = Moments(_many(40, 64))
    tracemalloc.start()
    try:
        moments.save(tmp_path / "m")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * 64 * 64 * 4 / 2


def _many(count: int, size: int) -> list[LayerMoment]:
    info = lnb.moments.LayerInfo("", "linear layer", "", None, 1, 1, size, 2, torch.float32, "data")
    from dataclasses import replace

    square, mean, rows = (
        torch.eye(size).view(1, 1, size, size),
        torch.zeros(1, size),
        torch.ones(1, dtype=torch.float64),
    )
    return [LayerMoment(replace(info, name=str(i), parameter=f"{i}.weight"), square, mean, rows) for i in range(count)]


def test_rows_of_the_helper_are_those_of_the_layers() -> None:
    """The reference above depends on them: a product with the weight gives the layer's output."""
    model = small_model()
    x = torch.randn(4, 2, 4, 4)
    out = rows_of(model[0], x) @ model[0].weight.detach().double().flatten(1).mT
    torch.testing.assert_close(
        out[0] + model[0].bias.detach().double(),
        model[0](x).detach().double().permute(0, 2, 3, 1).reshape(-1, 4),
        rtol=1e-5,
        atol=1e-5,
    )
