"""Permutations of a network's units that leave what it computes as it is: which there are, and units in another order."""

from trainer.symmetry.groups import Group, Symmetry, find_symmetry, scores_by_unit

__all__ = ["Group", "Symmetry", "find_symmetry", "scores_by_unit"]
