"""Serves the files of a bundle, whole or in ranges, and the subsets of it that devices ask for."""
