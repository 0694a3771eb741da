"""What Python's selection answers, written down for ports of it: see README.md."""
