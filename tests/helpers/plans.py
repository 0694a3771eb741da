"""Candidates for battery plans, and the moment at which these begin."""

from __future__ import annotations

from datetime import UTC, datetime

from selector.choose.candidates import Candidate

ENERGIES = (2.0, 4.0, 7.0, 12.0, 20.0, 35.0)


ACCURACIES = (0.80, 0.86, 0.89, 0.905, 0.915, 0.92)


def candidates(energies: tuple[float, ...] = ENERGIES, accuracies: tuple[float, ...] = ACCURACIES) -> list[Candidate]:
    return [
        Candidate(f"s{i}", "bench", accuracy, 1.0 + i, energy, 1.0)
        for i, (energy, accuracy) in enumerate(zip(energies, accuracies, strict=True))
    ]


NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
