"""One import, and `load` of what it wrote, in a process of its own: its peak of memory is then the import's.

For `maskdit bench import`: takes the time at which the process was started, in seconds since 1970, and the arguments of
`maskdit import`, OUT third; prints one line of JSON.
"""

import json
import pathlib
import resource
import sys
import time

from maskdit import cli
from maskdit.training.allocator import keep_pages


def memory(field: str) -> int:
    """Bytes of this process in memory, now (`VmRSS`) or at most (`VmHWM`); without /proc at most in either case."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # what getrusage tells can be of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(started: float, arguments: list[str]) -> int:
    """Runs the command and loads the result; the exit code is the command's."""
    keep_pages()  # as the command does, before jax is there
    import jax

    import maskdit
    import maskdit.importing  # what the command imports, so that it counts as what was there before

    jax.devices()
    before = memory("VmRSS")
    if code := cli.main(["import", *arguments]):
        return code
    seconds, peak = time.time() - started, memory("VmHWM")
    begin = time.perf_counter()
    jax.block_until_ready(maskdit.load(arguments[2]).variables)
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak, "load": time.perf_counter() - begin}))
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
