"""Worker processes end with the process that they read for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ABANDONED = """
import sys
import torch
from trainer.data import Batch
from trainer.data.loading import Asked, read

class Files:
    reads_files = True

    def __len__(self):
        return 100

    def batch(self, indices):
        return Batch({"input": indices.float()}, indices)

sys.batches = read(Files(), (Asked(torch.arange(5)) for _ in range(100)), workers=2)  # alive until the very end
print(len(next(sys.batches).targets))
raise SystemExit(3)
"""


def test_a_process_that_exits_does_not_wait_for_workers_that_nobody_has_told_to_end() -> None:
    """They leave SIGTERM to their parent, and that is what Python sends them at its exit, before it waits for them."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", ABANDONED], cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (3, "5\n"), done.stderr
