"""`make bench`: measures everything and writes `results/`."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from benchmarks.path import decision, demo, exports, hugging_face, pictures, step
from benchmarks.summary import write_summary

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    torch.set_num_threads(2)
    figures: dict[str, float] = {}
    notes: dict[str, str] = {}
    rows: list[dict[str, object]] = []
    for part in (decision.measure, hugging_face.measure, step.measure, exports.measure, pictures.measure, demo.measure):
        found = part()
        figures |= found.figures
        notes |= found.notes
        rows += found.rows
    RESULTS.mkdir(exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (RESULTS / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    write_summary(RESULTS, "make bench", figures, notes)
    for name, value in figures.items():
        print(f"{name:45} {value:.4g}")


if __name__ == "__main__":
    main()
