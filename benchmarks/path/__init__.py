"""Figures of the whole path: export time, bundle size, latency of cut graphs, cost of a step, cost of a decision."""
