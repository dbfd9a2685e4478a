"""Everything that needs a GPU, in one command: tests on hardware, compute-sanitizer, and times.

    python bench/gpu_check.py              # all of it; report in bench/gpu_report.json
    python bench/gpu_check.py --dry-run    # every step up to where hardware is needed

Works offline on a machine with torch, triton, pybind11, cmake, ninja and nvcc. A step that fails is recorded and the
next one runs; the exit status is 1 if any failed. A kernel whose result is wrong gets no time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "python")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

LIMIT = 570.0  # seconds for everything
STARTED = time.monotonic()


def left(most: float) -> float:
    """Seconds that a step may still take."""
    return max(1.0, min(most, LIMIT - (time.monotonic() - STARTED)))


def command(words: list[str], seconds: float) -> dict[str, Any]:
    """Run a command in the source tree; its last lines, and whether it succeeded."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}", "LNB_NATIVE": "required", "LNB_CUDA": "on"}
    environment.pop("TRITON_INTERPRET", None)
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=left(seconds), check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"ok": False, "output": str(error)}
    output = done.stdout + done.stderr
    failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]  # of pytest's summary
    return {"ok": done.returncode == 0, "failed": failed, "output": output[-4000:]}


def milliseconds(call: Callable[[], Any], device: str, cycle: int = 0) -> float:
    """Of a run, by CUDA events on a GPU: the median of 20 after 5 to warm up, or the mean of two cycles of ``cycle`` runs after
    one of them. One run of the clock elsewhere."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    for _ in range(cycle or 5):
        call()
    times = []
    for _ in range(2 * cycle or 20):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sum(times) / len(times) if cycle else sorted(times)[len(times) // 2]


def error(actual: torch.Tensor, truth: torch.Tensor) -> float:
    return float((actual.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30))


def kernels(device: str, small: bool) -> list[dict[str, Any]]:
    """Each kernel against the library product it replaces; ``small`` shrinks the shapes for a dry run."""
    import lnb_kernels as lk

    backward = torch.ops.lnb_kernels.linear_backward
    rows: list[dict[str, Any]] = []

    def row(
        name: str, ours: Callable[[], torch.Tensor], plain: Callable[[], torch.Tensor], truth: torch.Tensor
    ) -> None:
        entry: dict[str, Any] = {"kernel": name, "correct": False}
        try:
            entry["error"] = error(ours(), truth)
            entry["correct"] = entry["error"] < 2e-2
            if entry["correct"]:
                entry |= {"ms": milliseconds(ours, device), "plain_ms": milliseconds(plain, device)}
                entry["ratio"] = entry["ms"] / entry["plain_ms"]
        except Exception as failure:  # the other kernels still get their turn
            entry |= {"correct": False, "error": f"{type(failure).__name__}: {failure}"}
        rows.append(entry)

    n = 256 if small else 16384

    def products(d: int, dtype: torch.dtype) -> None:
        x = torch.randn(n, d, device=device, dtype=dtype)
        g = torch.randn(n, d, device=device, dtype=dtype)
        w = torch.randn(d, d, device=device, dtype=dtype)
        v = torch.randn(10, d, device=device, dtype=dtype)
        tag = f"{str(dtype)[6:]}/d{d}"
        square = x.double().t() @ x.double()
        row(f"second_moment/{tag} against X'X", lambda: lk.second_moment(x)[:-1, :-1], lambda: x.t() @ x, square)
        blocks = max(2, d // 128)
        cut = x.unflatten(1, (blocks, -1)).transpose(0, 1)  # [blocks, n, d / blocks]
        row(
            f"second_moment of {blocks} blocks/{tag} against batched products",
            lambda: lk.second_moment(x, blocks=blocks)[:, :-1, :-1], lambda: cut.mT @ cut, cut.double().mT @ cut.double(),
        )  # fmt: skip
        mask = [False, True, True, True]
        row(
            f"linear_backward/{tag} against G'X",
            lambda: backward(g, x, w, mask, None, 1, None, None)[0], lambda: g.t() @ x, g.double().t() @ x.double(),
        )  # fmt: skip
        row(
            f"cov_matvec/m10/{tag} against two products",
            lambda: lk.cov_matvec(x, v), lambda: (x @ v.t()).t() @ x / n, v.double() @ square / n,
        )  # fmt: skip

    for dtype in (torch.bfloat16, torch.float32):
        for d in (32, 64) if small else (256, 1024, 2048, 4096):
            products(d, dtype)
    solvers(device, small, row)
    c, size = (16, 12) if small else (128, 56)
    image = torch.randn(2 if small else 32, c, size, size, device=device, dtype=torch.bfloat16)
    patches = F.unfold(image.float(), 3, padding=1).transpose(0, 1).flatten(1)
    truth = patches @ patches.t() if small else torch.cat([part @ patches.t() for part in patches.split(128)])
    row(
        f"conv2d_second_moment/3x3/c{c} against unfold and product",
        lambda: lk.conv2d_second_moment(image, 3, padding=1)[0, :-1, :-1],
        lambda: (lambda p: p @ p.t())(F.unfold(image, 3, padding=1).transpose(0, 1).flatten(1)), truth,
    )  # fmt: skip
    blocks = c // 16  # as the default gathers it: 16 channels to a block
    of_blocks = patches.unflatten(0, (blocks, -1))
    row(
        f"conv2d_second_moment/3x3/c{c}/g{blocks} against unfold and products",
        lambda: lk.conv2d_second_moment(image, 3, padding=1, groups=blocks)[:, :-1, :-1],
        lambda: (lambda p: p @ p.mT)(F.unfold(image, 3, padding=1).transpose(0, 1).flatten(1).unflatten(0, (blocks, -1))),
        of_blocks @ of_blocks.mT,
    )  # fmt: skip
    v = torch.randn(10, 9 * c, device=device, dtype=torch.bfloat16)
    weight = v.view(10, c, 3, 3)

    def two_products() -> torch.Tensor:
        y = F.conv2d(image, weight, padding=1)
        return torch.nn.grad.conv2d_weight(image, weight.shape, y, padding=1)

    positions = patches.shape[1]
    row(
        f"conv2d_cov_matvec/3x3/c{c}/m10 against convolution and weight gradient",
        lambda: lk.conv2d_cov_matvec(image, v, 3, padding=1), two_products, v.double() @ truth.double() / positions,
    )  # fmt: skip
    rows += multi_tensor_rows(device, small)
    return rows


def multi_tensor_rows(device: str, small: bool) -> list[dict[str, Any]]:
    """The whole-model update of 200 tensors against what it replaces."""
    from lnb_kernels import multi_tensor

    sizes = [64] * 100 + [512 if small else 512 * 512] * 100
    params, directions = ([torch.randn(n, device=device) for n in sizes] for _ in range(2))
    scales, parts = torch.ones(len(sizes), device=device), [torch.zeros_like(p).requires_grad_() for p in params]
    for part, direction in zip(parts, directions, strict=True):
        part.grad = direction
    adamw = torch.optim.AdamW(parts, fused=True)
    truth = [p.double() - 0.1 * (d.double() + 0.01 * p.double()) for p, d in zip(params, directions, strict=True)]
    multi_tensor.apply_(params, directions, scales, 0.1, 0.01)
    entry: dict[str, Any] = {
        "kernel": "multi_tensor.apply_ against fused AdamW",
        "error": max(error(p, right) for p, right in zip(params, truth, strict=True)),
    }
    entry["correct"] = entry["error"] < 1e-6
    if entry["correct"]:
        ours = milliseconds(lambda: multi_tensor.apply_(params, directions, scales, 0.1, 0.01), device)
        entry |= {"ms": ours, "plain_ms": milliseconds(adamw.step, device)}
        entry["ratio"] = entry["ms"] / entry["plain_ms"]
    return [entry]


Row = Callable[[str, Callable[[], torch.Tensor], Callable[[], torch.Tensor], torch.Tensor], None]


def solvers(device: str, small: bool, row: Row) -> None:
    """Averages, conjugate gradients and Newton-Schulz steps against what plain PyTorch would run."""
    import lnb_kernels as lk
    from lnb_kernels.newton_schulz import reference as plain_newton
    from lnb_kernels.pcg import reference as plain_pcg

    d, m, batch = (32, 20, 2) if small else (1024, 1024, 4)
    x = torch.randn(8 * d, d, device=device)
    s = lk.second_moment(x)
    moments, g = s.expand(batch, -1, -1), torch.randn(batch, m, d + 1, device=device)
    for scope in ("layer", "neuron"):
        arguments = (None, None, None, 2, 0.1, scope, 2)
        row(
            f"pcg/{scope}/d{d}/m{m}/batch{batch} against plain PyTorch",
            lambda scope=scope: lk.pcg(moments, g, iterations=2, ridge=0.1, scope=scope)[0],
            lambda arguments=arguments: plain_pcg.pcg_moment(moments, g, *arguments)[0],
            plain_pcg.pcg_moment(moments.double(), g.double(), *arguments)[0],
        )  # fmt: skip
    quintic = [3.4445, -4.7750, 2.0315]
    matrix = torch.nn.functional.normalize(torch.randn(batch, d * d, device=device), dim=1).view(batch, d, d)
    half = matrix.to(torch.bfloat16)
    row(
        f"newton_schulz/bfloat16/{batch}x{d}x{d} against plain products",
        lambda: lk.newton_schulz(half, quintic, 1), lambda: plain_newton.newton_schulz(half, quintic, 1),
        plain_newton.newton_schulz(half.double(), quintic, 1),
    )  # fmt: skip
    power = matrix @ matrix.mT
    row(
        f"newton_schulz_root/float32/{batch}x{d} against plain products",
        lambda: lk.newton_schulz_root(power, quintic, 5), lambda: plain_newton.newton_schulz_root(power, quintic, 5),
        plain_newton.newton_schulz_root(power.double(), quintic, 5),
    )  # fmt: skip


def steps(device: str, small: bool) -> list[dict[str, Any]]:
    """Forward, backward and step of an MLP: LNB against fused AdamW."""
    import lnb

    width, batch = (32, 16) if small else (2048, 8192)
    rows: list[dict[str, Any]] = []
    for name in ("adamw", "lnb"):
        torch.manual_seed(0)
        hidden = [layer for _ in range(2) for layer in (torch.nn.Linear(width, width), torch.nn.GELU())]
        model = torch.nn.Sequential(*hidden, torch.nn.Linear(width, 10)).to(device)
        x, y = torch.randn(batch, width, device=device), torch.randint(10, (batch,), device=device)
        fused = torch.optim.AdamW(model.parameters(), fused=device == "cuda") if name == "adamw" else None
        optimizer: Any = fused or lnb.LNB(model, lr=0.01)

        def step(model: Any = model, optimizer: Any = optimizer, x: Any = x, y: Any = y) -> None:
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()

        rows.append({"optimizer": name, "ms": milliseconds(step, device)})
    return rows


def whole_steps(device: str, small: bool) -> dict[str, Any]:
    """Twenty steps of the default preset on the device against the CPU's, from one seed, and the same from CUDA graphs.

    Products of float32 accuracy: what is left is rounding, which steps magnify. The bound is a tenth of how far weights moved.
    """
    import lnb
    from lnb.graphs import GraphedStep

    def made() -> torch.nn.Sequential:
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.LayerNorm(1024),
            torch.nn.Linear(1024, 160), torch.nn.Tanh(), torch.nn.Linear(160, 10),
        )  # fmt: skip

    def batch(seed: int, where: str) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(64, 3, 8, 8, generator=generator), torch.randint(10, (64,), generator=generator)
        return x.to(where), y.to(where)

    def trained(where: str, graphs: bool) -> list[torch.Tensor]:
        model = made().to(where)
        optimizer = lnb.LNB(model, lr=0.02, products="tf32x3")

        def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(model(x), y)

        step: GraphedStep | None = lnb.graphed_step(optimizer, loss, batch(0, where)) if graphs else None
        for seed in range(20):
            if step is not None:
                step(*batch(seed, where))
                continue
            optimizer.zero_grad()
            loss(*batch(seed, where)).backward()
            optimizer.step()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    start = [parameter.detach() for parameter in made().parameters()]
    expected, found = trained("cpu", False), trained(device, False)
    moves = [float((x - y).norm()) for x, y in zip(expected, start, strict=True)]
    errors = [float((x - y).norm()) for x, y in zip(found, expected, strict=True)]
    report = {"ok": all(error <= 0.1 * move for error, move in zip(errors, moves, strict=True))}
    report["output"] = f"distance of parameters from the CPU's {errors}, moved {moves}"
    if device == "cuda":
        captured = trained(device, True)
        same = all(map(torch.equal, captured, found))
        report = {"ok": report["ok"] and same, "output": f"{report['output']}; replayed to the bit: {same}"}
    return report


def large_models(device: str, small: bool) -> list[dict[str, Any]]:
    """Training steps of the models of ``bench/device_step.py``: LNB's default, fused AdamW, torch's Muon, and the prediction.

    A time is the mean of two cycles of refreshes, as in the prediction. Muon moves the weights of layers and AdamW the
    others. A dry run rehearses all of it on a small model.
    """
    sys.path.append(str(ROOT / "bench"))
    from meter.models import CASES, Case

    import lnb
    from lnb_bench.training.optimizers import OptimizerConfig, build_optimizer

    def optimizer_of(name: str, model: torch.nn.Module) -> Any:
        if name == "adamw":
            return torch.optim.AdamW(model.parameters(), fused=True)
        if name == "muon":
            return build_optimizer(OptimizerConfig("muon", lr=1e-3, settings={}), model, "constant", 1)
        return lnb.LNB(model, lr=0.01)

    def rehearsal() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.LayerNorm(12), torch.nn.Linear(12, 4))

    predicted = json.loads((ROOT / "bench" / "results" / "device_step.json").read_text())
    cases = {"rehearsal": Case(rehearsal, lambda model: model(torch.ones(4, 8)).square().mean())} if small else CASES
    rows: list[dict[str, Any]] = []
    for name, case in cases.items():
        times = {}
        for optimizer_name in ("adamw", "muon", "lnb"):
            with torch.device(device):
                model = case.model()
            optimizer = optimizer_of(optimizer_name, model)

            def step(model: Any = model, optimizer: Any = optimizer, case: Any = case) -> None:
                optimizer.zero_grad()
                with torch.autocast(device, torch.bfloat16):
                    loss = case.loss(model)
                loss.backward()
                optimizer.step()

            times[optimizer_name] = milliseconds(step, device, cycle=10)
            del model, optimizer
        rows.append({"model": name, **times, "ratio": times["lnb"] / times["adamw"], "of muon": times["muon"] / times["adamw"],
                     "predicted": predicted.get(name, {}).get("simulated step / fused AdamW's")})  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, small shapes, no build and only one test file"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "gpu_report.json")
    options = parser.parse_args()
    dry = options.dry_run
    if not dry and not torch.cuda.is_available():
        print("no GPU is visible to torch; use --dry-run to rehearse without one", file=sys.stderr)
        return 2
    device = "cpu" if dry else "cuda"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    plan: dict[str, Callable[[], Any]] = {}
    if not dry:
        plan["build"] = lambda: command([sys.executable, "setup.py", "build_ext", "--inplace"], 180)
    names = ("kernels", "gram") if not dry else ("kernels",)
    hardware_tests = [f"tests/ops/test_triton_{name}.py" for name in names]
    hardware_tests += ["-k", "geometry or routes"] if dry else ["tests/ops/test_newton_schulz.py"]
    cuda_tests = ["tests/ops/test_cuda_kernels.py", "-m", "gpu"]
    if not dry:
        plan["CUDA module"] = lambda: command([*pytest, *cuda_tests], 120)
    plan["kernels"] = lambda: kernels(device, dry)
    plan["steps"] = lambda: steps(device, dry)
    plan["whole steps"] = lambda: whole_steps(device, dry)
    plan["large models"] = lambda: large_models(device, dry)
    plan["tests"] = lambda: command([*pytest, *hardware_tests], 240)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer and not dry:
        plan["sanitizer"] = lambda: command(
            [sanitizer, "--error-exitcode", "9", *pytest, *hardware_tests, "-k", "7-7 or chunks"], 120
        )
        plan["sanitizer, CUDA module"] = lambda: command(
            [sanitizer, "--error-exitcode", "9", *pytest, *cuda_tests], 120
        )
    if not dry:
        at_once = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
        plan["all tests"] = lambda: command([*pytest, *at_once, "tests/ops", "tests/optimizer"], 300)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "torch": torch.__version__, "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "dry_run": dry, "results": {}, "failures": [],
    }  # fmt: skip
    for name, run in plan.items():
        try:
            result = run()
        except Exception:
            result = {"ok": False, "output": traceback.format_exc()}
        report["results"][name] = result
        rows = result if isinstance(result, list) else []
        if isinstance(result, dict) and not result["ok"]:
            report["failures"] += [f"{name}: {line}" for line in result.get("failed") or [result["output"][-600:]]]
        for entry in rows:
            print(
                name,
                *(f"{key}={value:.4g}" if isinstance(value, float) else f"{value}" for key, value in entry.items()),
            )
            if not entry.get("correct", True):
                report["failures"].append(f"{entry['kernel']}: error {entry['error']}, so no time is given")
        print(f"{name}: done after {time.monotonic() - STARTED:.0f} s", flush=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(report['failures'])} failures; report in {options.out}")
    print(*report["failures"], sep="\n")
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
