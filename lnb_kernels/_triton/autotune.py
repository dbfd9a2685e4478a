"""An optional cache of measured launch configurations. Off by default: the heuristics decide, nothing is measured.

With a path in the environment variable ``LNB_AUTOTUNE_CACHE``, or given to :func:`set_autotune_cache`, the first call of
a kernel in each shape bucket times its configurations on the caller's own arguments and keeps the fastest in that JSON
file. Entries are keyed by GPU, Triton version, kernel and bucket, so that one file serves several machines. Only launches
that may be repeated take part: none that reads what it writes, and none while a CUDA graph is captured.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lnb_kernels._backend import KernelUnavailable
from lnb_kernels._triton.launch import raised_by_triton

Config = tuple[int, ...]

_path: Path | None = Path(os.environ["LNB_AUTOTUNE_CACHE"]) if os.environ.get("LNB_AUTOTUNE_CACHE") else None
_entries: dict[str, Config] | None = None  # of the file at _path; None until it is read


def set_autotune_cache(path: str | os.PathLike[str] | None) -> None:
    """Measure launch configurations at their first use and keep the fastest in the JSON file ``path``; None: do not.

    A file that exists is used and added to. Raises ``TypeError`` if ``path`` is no path.
    """
    global _path, _entries
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"set_autotune_cache: path must be a path or None, got {path!r}")
    _path, _entries = None if path is None else Path(path), None


def enabled() -> bool:
    """Whether configurations are to be measured here and now."""
    return _path is not None and not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def bucket(rows: int) -> int:
    """The power of two from which rows share an entry."""
    return 1 << max(rows, 1).bit_length() - 1


def key(kernel: str, device: torch.device, *shape: object) -> str:
    """The name of an entry."""
    import triton

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return " | ".join((gpu, f"triton {triton.__version__}", kernel, *map(str, shape)))


def milliseconds(call: Callable[[], object]) -> float:
    """Median of seven runs by CUDA events, after two that compile and warm up."""
    times: list[float] = []
    for repeat in range(9):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        if repeat >= 2:
            times.append(start.elapsed_time(stop))
    return float(sorted(times)[len(times) // 2])


def fastest(name: str, configs: Sequence[Config], run: Callable[[Config], object]) -> Config:
    """The recorded configuration of entry ``name``, else the fastest of ``configs`` by ``run``, which is then recorded.

    A configuration that does not compile, or needs more memory than there is, is passed over; if all do, the first is
    returned and nothing recorded.
    """
    entries = _load()
    if entries.get(name) in configs:
        return entries[name]
    times: dict[Config, float] = {}
    for config in configs:
        time = _time(config, run)
        if time is not None:
            times[config] = time
    if not times:
        return configs[0]
    best = min(times, key=lambda config: times[config])
    entries[name] = best
    _save(entries)
    return best


def _time(config: Config, run: Callable[[Config], object]) -> float | None:
    """Milliseconds of ``run``, or None where it fails."""
    try:
        return milliseconds(lambda: run(config))
    except (KernelUnavailable, torch.OutOfMemoryError):
        return None
    except Exception as error:  # not what the device or this package's own code is at fault for
        if not raised_by_triton(error):
            raise
        return None


def _load() -> dict[str, Config]:
    global _entries
    if _entries is None:
        _entries = {}
        assert _path is not None
        try:
            _entries = {name: tuple(map(int, config)) for name, config in json.loads(_path.read_text()).items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _warn("read", error)
    return _entries


def _save(entries: dict[str, Config]) -> None:
    """Replace the file in one step, so that no process reads half of it."""
    assert _path is not None
    try:
        _path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=_path.parent, suffix=".tmp", delete=False) as file:
            json.dump(entries, file, indent=1, sort_keys=True)
        os.replace(file.name, _path)
    except OSError as error:
        _warn("written", error)


def _warn(what: str, error: Exception) -> None:
    warnings.warn(
        f"lnb_kernels: the autotune cache {_path} cannot be {what} ({type(error).__name__}: {error}); "
        "measured configurations are kept for this process only. Remedy: remove the file, or choose another path",
        RuntimeWarning,
        stacklevel=4,
    )
