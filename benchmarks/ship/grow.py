"""What growing to a larger size transfers, over what the two sizes differ by."""

from __future__ import annotations

from benchmarks.ship.bundles import shipped
from exporter.bundle import Bundle
from exporter.bundle.verify import self_test
from selector.ship.signed import read_signed

NOTES = {
    "grow_bytes_ratio": "the bytes that a pull fetches of the size w1.00-d2 on a device that has w0.50-d1, over those of the "
    "graph and of the ranges of the weights that it reads and the smaller one does not; the worst of the two steps over "
    "w0.75-d1 and at once. Bodies of the answers, the signature's included",
    "grow_bytes_ratio_to_whole": "the same bytes, at once, over those of the larger size fetched anew",
}


def measure() -> dict[str, float]:
    with shipped(channels=(64, 96, 128)) as bundles:
        signed = read_signed((bundles.first / "signed.json").read_bytes())
        bundle = Bundle(bundles.first)

        def reads(name: str) -> dict[int, int]:
            graph, weights = bundle.submodel(name).graph, bundle.manifest.weights
            ranges = signed.ranges[weights]
            return {place: ranges[place].end - ranges[place].begin for place in signed.needs[graph][weights]}

        ratios = []
        at_once = 0
        for number, steps in enumerate((["w0.50-d1", "w1.00-d2"], ["w0.50-d1", "w0.75-d1", "w1.00-d2"])):
            out = bundles.scratch / f"device{number}" / "digits"
            bundles.fetch(bundles.first, out, steps[0])
            for place in range(1, len(steps)):
                done, client = bundles.fetch(bundles.first, out, *steps[: place + 1])
                fetched = sum(size for _, size in client.asked)
                had = {one for name in steps[:place] for one in reads(name)}
                difference = sum(size for one, size in reads(steps[place]).items() if one not in had)
                difference += bundle.manifest.files[bundle.submodel(steps[place]).graph].bytes
                ratios.append(fetched / difference)
                at_once = at_once or fetched
                self_test(done.bundle)
        _, client = bundles.fetch(bundles.first, bundles.scratch / "anew" / "digits", "w1.00-d2")
        return {
            "grow_bytes_ratio": max(ratios),
            "grow_bytes_ratio_to_whole": at_once / sum(size for _, size in client.asked),
        }
