"""Shipping: what kills, altered bytes and bad versions leave, and what an update and a growing bundle transfer."""
