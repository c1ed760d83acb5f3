"""Stoker: a self-hosted hybrid inference platform for large language models."""

__version__ = "0.1.0"
