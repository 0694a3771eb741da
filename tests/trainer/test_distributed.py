"""Training on two ranks equals training on one: same sub-models, the batch shared out, gradients averaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]

# No BatchNorm and no augmentation: then the mean of two half batches' gradients is that of the whole batch.
SCRIPT = """
import sys, torch
from safetensors.torch import save_file
from tests.helpers.user_families import Branches
from trainer import NestedModel, Samples, fit
from trainer.distributed import joined
torch.set_num_threads(1)
with joined() as ranks:
    torch.manual_seed(ranks.rank)  # the ranks begin with different weights: rank 0's are taken
    nested = NestedModel(Branches())
    data = Samples(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)), torch.arange(64) % 10)
    fit(nested, data, epochs=3, batch_size=16, lr=0.05, run=sys.argv[1], show_progress=False)
    save_file(dict(nested.full.named_parameters()), f"{sys.argv[1]}/rank{ranks.rank}.safetensors")
"""


def train(folder: Path, *launcher: str) -> None:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_two_ranks_train_the_same_model_as_one(tmp_path: Path) -> None:
    train(tmp_path / "one")
    train(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    one, first, second = (
        load_file(tmp_path / name) for name in ("one/rank0.safetensors", "two/rank0.safetensors", "two/rank1.safetensors")
    )
    for name, parameter in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], parameter, rtol=1e-4, atol=1e-5)
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 3  # written by one rank only
