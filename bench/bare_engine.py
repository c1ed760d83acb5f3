"""The embedded engine on its own, as the wheel serves it: the contender that Stoker's cold start is held against.

Run as a script: `python bench/bare_engine.py MODEL SOCKET STAMPS_FILE FLAGS_JSON`. Touches the engine library, one
socket and the stamps file, to which it writes one line `name monotonic_ns` for each step of its own start.
"""

# ruff: noqa: E402  (the first stamp must precede the imports: it tells interpreter start from import)
import time

STARTED_NS = time.monotonic_ns()

import json
import os
import sys


def set_flag(params: object, dotted_name: str, value: object) -> None:
    """Set `a.b` on the parameters; a string value names a member of the flag's enumeration."""
    *parents, name = dotted_name.split(".")
    for parent in parents:
        params = getattr(params, parent)
    if isinstance(value, str):
        current = getattr(params, name)
        if not isinstance(current, str):
            value = type(current)[value]
    setattr(params, name, value)


def main(model: str, socket_path: str, stamps_path: str, flags_json: str) -> None:
    """Serve the model on the UNIX socket until killed, or until whoever started this is gone."""
    parent = os.getppid()
    import xllamacpp

    imported_ns = time.monotonic_ns()
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = [socket_path]
    for dotted_name, value in json.loads(flags_json).items():
        set_flag(params, dotted_name, value)
    server = xllamacpp.Server(params)
    loaded_ns = time.monotonic_ns()
    with open(stamps_path, "w") as stamps:
        stamps.write(f"interpreter_started {STARTED_NS}\nimported {imported_ns}\nloaded {loaded_ns}\n")
    while server is not None and os.getppid() == parent:
        time.sleep(1)
    os._exit(0)  # the server's threads would be waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
