"""Nodes: what a machine offers."""
