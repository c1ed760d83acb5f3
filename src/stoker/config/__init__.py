"""Configuration: `stoker.yaml` → frozen settings, with every problem reported at once."""
