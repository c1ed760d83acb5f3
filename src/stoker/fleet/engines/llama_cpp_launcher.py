"""Runs the embedded llama.cpp server in this process. Run as a script by path; imports `xllamacpp` and nothing of ours.

Argument: JSON `{"import_path": DIR, "model": FILE, "socket": FILE, "params": {"cpuparams.n_threads": 2, …}}`;
parameters are attributes of `xllamacpp.CommonParams` by their dotted names.
"""

import enum
import json
import os
import signal
import sys


def main() -> None:
    """Load the model, serve until a signal ends the process."""
    order = json.loads(sys.argv[1])
    # The interpreter was started without `site`, which saves some 10 ms; the wheel's folder is all that is missing.
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(os.path.dirname(__file__))]
    sys.path.append(order["import_path"])
    # Whoever can open the socket can use the engine.
    os.umask(0o077)
    _read_ahead(order["model"])

    import xllamacpp  # noqa: PLC0415 - needs the path above

    params = xllamacpp.CommonParams()
    params.model.path = order["model"]
    params.hostnames = [order["socket"]]
    for name, value in order["params"].items():
        holder = params
        *parents, last = name.split(".")
        for parent in parents:
            holder = getattr(holder, parent)
        setattr(holder, last, _typed(getattr(holder, last), value))
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        # The engine has said why, above; where this program stood when it did says nothing.
        sys.exit(f"llama.cpp did not start with {order['model']}: {error}")
    sys.stdout.write(f"ready at {server.listening_address}\n")
    sys.stdout.flush()
    while True:
        signal.pause()


def _typed(current: object, value: object) -> object:
    """Give a value from JSON the type of the attribute it is for: JSON has neither sets nor enumerations."""
    if isinstance(current, set) and isinstance(value, list):
        return set(value)
    if isinstance(current, enum.Enum):
        kind = type(current)
        if isinstance(value, int):
            return kind(value)
        # `q8_0` for GGML_TYPE_Q8_0, as llama.cpp's own flags have it.
        for name, member in kind.__members__.items():
            if name.lower() == str(value).lower() or name.lower().endswith(f"_{value}".lower()):
                return member
        raise SystemExit(f"{value!r} is none of {', '.join(kind.__members__)}")
    return value


def _read_ahead(path: str) -> None:
    """Have the kernel fetch the weights while the interpreter imports and the vocabulary is parsed."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return  # The engine says it better.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    os.close(fd)


main()
