"""Runs the embedded llama.cpp server in this process. Run as a script by path; imports `xllamacpp` and nothing of ours.

Argument: JSON `{"import_path": DIR, "model": FILE, "socket": FILE, "params": {"cpuparams.n_threads": 2, …}}`;
parameters are attributes of `xllamacpp.CommonParams` by their dotted names.
"""

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
        if last == "pooling_type":
            value = xllamacpp.llama_pooling_type(value)  # noqa: PLW2901
        setattr(holder, last, value)
    server = xllamacpp.Server(params)
    sys.stdout.write(f"ready at {server.listening_address}\n")
    sys.stdout.flush()
    while True:
        signal.pause()


def _read_ahead(path: str) -> None:
    """Have the kernel fetch the weights while the interpreter imports and the vocabulary is parsed."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return  # The engine says it better.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    os.close(fd)


main()
