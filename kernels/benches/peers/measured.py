"""What the scripts of this folder share: how a row is timed, and how it is said."""

import json
import resource
import time


def rates(items, run, seconds):
    """Items per second of each run for about so many seconds, at least of two, after one that warms up."""
    run()
    found, begun = [], time.perf_counter()
    while len(found) < 2 or time.perf_counter() - begun < seconds:
        at = time.perf_counter()
        run()
        found.append(items / (time.perf_counter() - at))
    return found


def report(program, row, found):
    """Prints a row as one JSON object: the best run and the median one."""
    found = sorted(found)
    print(
        json.dumps(
            {
                "program": program,
                "row": row,
                "tokens_per_second": found[-1],
                "median": found[len(found) // 2],
                "runs": len(found),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


def with_torch(name):
    """The name of a program that runs on PyTorch."""
    import torch

    return f"{name} (torch {torch.__version__}, {torch.get_num_threads()} threads)"
