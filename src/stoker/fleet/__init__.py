"""The fleet: which replicas run, who may use them now, and everything that happens to their processes."""
