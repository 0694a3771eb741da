"""The same weights through optimum's `ORTModelForSequenceClassification`, in an environment of its own.

That environment sees torch, onnx and onnxruntime of this one, so that both run on the same ONNX Runtime; optimum and the
transformers that it wants are its own. Only sizes with all heads can be compared: with fewer, heads of transformers' own BERT
would be larger.

    python -m benchmarks.text.rival FOLDER    within it: compares what lies in FOLDER, and prints the figures as JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environments import environment as made
from benchmarks.text.data import WORK
from benchmarks.text.timing import Feed, Figures, texts, times_as_fast

if TYPE_CHECKING:
    from benchmarks.text.bundles import Made
    from trainer import SubModel

ROOT = Path(__file__).parents[2]
PACKAGES = ("optimum", "optimum-onnx", "transformers<5")
SIZES = 6
LENGTHS = (16, 128)
OPENINGS, ROUNDS = 3, 21
HEADS = "num_attention_heads"

NOTES = {
    "optimum_ratio": f"tokens per second over those of optimum's ORTModelForSequenceClassification with the same weights, "
    f"batch 1, {' and '.join(map(str, LENGTHS))} tokens, arrays in and out, processor time of 1 thread; the median of {SIZES} "
    "sizes with all heads of each task and these lengths",
    "optimum_max_error": "largest difference of their answers, relative to the largest logit",
}


def measure() -> Figures:
    """Nothing where optimum cannot be installed, which is said."""
    from benchmarks.text.bundles import of_task
    from benchmarks.text.data import TASKS

    try:
        python = environment()
    except subprocess.CalledProcessError as error:
        print(f"optimum: left out, it cannot be installed: {(error.stderr or '').strip().splitlines()[-1:]}")
        return {}
    found = []
    for task in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            prepare(of_task(task), Path(folder))
            command = [str(python), "-m", "benchmarks.text.rival", folder]
            ran = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(ran.stdout.splitlines()[-1]))
    return figures(found)


def figures(found: Sequence[dict[str, Any]]) -> Figures:
    """Of what the comparisons of all tasks printed."""
    import numpy as np

    ratios = [ratio for one in found for ratio in one["ratios"].values()]
    return {
        "optimum_ratio": float(np.median(ratios)),
        "optimum_ratio_min": min(ratios),
        "optimum_ratio_max": max(ratios),
        "optimum_max_error": max(one["error"] for one in found),
    }


def environment() -> Path:
    """Its Python, made if it is not there. Raises CalledProcessError where packages cannot be installed."""
    return made(WORK / "optimum", PACKAGES)


def prepare(made: Made, folder: Path) -> None:
    """Writes each size's checkpoint as transformers does, and where the graph of the bundle lies that has the same weights."""
    for name, sub in comparable(made).items():
        module: Any = made.nested.extract(sub)
        module.save_pretrained(folder / name)
        about = {"bundle": str(made.bundle.path.absolute()), "vocabulary": made.vocabulary}
        (folder / name / "ours.json").write_text(json.dumps(about), encoding="utf-8")


def comparable(made: Made) -> dict[str, SubModel]:
    """Sizes with all heads, evenly spaced."""
    sizes = made.sizes()
    most = made.nested.family.largest.axes.get(HEADS)
    names = [name for name, sub in sizes.items() if sub.axes.get(HEADS) == most]
    count = min(SIZES, len(names))
    return {names[i]: sizes[names[i]] for i in sorted({round(k * (len(names) - 1) / max(1, count - 1)) for k in range(count)})}


def compared(folder: Path) -> dict[str, Any]:
    """Within optimum's environment: by size and length how many times as fast ours is, and how far answers are apart."""
    import numpy as np
    import onnxruntime as ort
    from optimum.onnxruntime import ORTModelForSequenceClassification

    from exporter.bundle import Bundle
    from exporter.bundle.session import CPU, SessionOptions
    from selector.run.program import program_opener

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    ratios: dict[str, list[float]] = {}
    error = 0.0
    for place in sorted(folder.iterdir()):
        about = json.loads((place / "ours.json").read_text(encoding="utf-8"))
        opened = program_opener(Bundle(Path(about["bundle"]), verify=False), SessionOptions(threads=1), False)
        ORTModelForSequenceClassification.from_pretrained(place, export=True).save_pretrained(place / "onnx")
        for _ in range(OPENINGS):
            ours = opened(place.name)
            theirs = ORTModelForSequenceClassification.from_pretrained(place / "onnx", provider=CPU, session_options=options)
            for length in LENGTHS:
                feed: Feed = texts(1, length, length, about["vocabulary"])
                more = {name: np.zeros_like(feed["input_ids"]) for name in theirs.input_names if name not in feed}
                given = {**feed, **more}
                first, second = ours.run(feed).outputs["logits"], theirs(**given).logits
                error = max(error, float(np.abs(first - second).max() / np.abs(second).max()))
                ratio = times_as_fast(lambda p=ours, f=feed: p.run(f), lambda m=theirs, g=given: m(**g), ROUNDS)  # type: ignore[misc]
                ratios.setdefault(f"{place.name}.{length}", []).append(ratio)
    return {"ratios": {name: float(np.median(values)) for name, values in ratios.items()}, "error": error}


if __name__ == "__main__":
    print(json.dumps(compared(Path(sys.argv[1]))))
