"""The composition root: who plays which part."""
