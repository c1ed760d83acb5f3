"""The numbered changes of the ledger's tables, and which number this Stoker writes. Pure."""

HEAD = "0001"
"""Revision that this Stoker reads and writes; revisions are numbers, so a greater one comes from a newer Stoker."""
