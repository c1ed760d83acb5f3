"""Configuration: `stoker.yaml` → frozen settings, with every problem reported at once."""

from stoker.config.loading import Loaded, load, validate
from stoker.config.settings import Settings

__all__ = ["Loaded", "Settings", "load", "validate"]
