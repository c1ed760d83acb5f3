"""The `stoker` command: the only place that prints. Nothing heavy is imported before a command needs it."""
