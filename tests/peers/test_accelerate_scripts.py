"""accelerate's ``test_script.py`` and ``test_sync.py`` with LNB as the optimizer, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peers.left_out import LEFT_OUT

pytest.importorskip("accelerate", reason="accelerate is not installed")

WITH_OPTIMIZER = {"test_script": "training_check", "test_sync": "test_gradient_accumulation_with_opt_and_scheduler"}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("script", WITH_OPTIMIZER)
def test_accelerates_own_script(script: str, ranks: int, tmp_path: Path, record_property: Any) -> None:
    tests = Path(__file__).parents[1]
    launch = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path]), "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launch, str(tests / "peers" / "accelerate_scripts.py"), script, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    assert all(each == found[0] for each in found)
    checks, ran = found[0]
    assert WITH_OPTIMIZER[script] in ran
    left_out = " ".join(LEFT_OUT["accelerate"])
    assert [check for check in checks if check not in ran and check not in left_out] == []
    record_property("checks", len(ran))
