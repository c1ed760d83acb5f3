"""Benchmarks of Stoker: `python -m bench NAME`. Touches nothing."""
