"""Figures of the whole path: export time, bundle size, latency of cut graphs, cost of a step, cost of a decision."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as `sortednet train` does, before anything imports torch
