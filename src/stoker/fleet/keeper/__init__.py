"""The keeper: a small process that owns every engine. Imports the standard library and the vocabulary only."""
