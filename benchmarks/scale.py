"""Time and memory of the quantiles of 10 million requests with 128 chunks each, from the files of a run.

    python -m benchmarks.scale write FOLDER   40 trials of 250,000 requests: 5 GB
    python -m benchmarks.scale read FOLDER [--threads 2]

The requests of four trials are drawn (log-normal times), and each is copied to nine more. The first three
row groups of one trial are checked against all their gaps, sorted. The last line of the output is JSON.
"""

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TRIALS, REQUESTS, CHUNKS, DRAWN = 40, 250_000, 128, 4


def drawn_records(seed: int, requests: int) -> Any:
    """Requests whose first chunk comes after about 50 ms, and each later one after about 20 ms."""
    import numpy as np

    from sweep.base.records import UNKNOWN, Records

    chance, records = np.random.default_rng(seed), Records()
    gaps = chance.lognormal(9.9, 0.5, (requests, CHUNKS)).astype(np.float32)
    gaps[:, 0] *= 2.5
    stamps = np.cumsum(gaps, axis=1, dtype=np.float64).astype(np.uint32)
    sent = np.arange(requests) / 500
    records.request_id = [f"{seed}-{index}" for index in range(requests)]
    records.phase = ["measured"] * requests
    records.error, records.finish_reason = [None] * requests, ["length"] * requests
    records.token_source = ["running usage"] * requests
    for name in ("scheduled", "released", "sent"):
        getattr(records, name).frombytes(sent.tobytes())
    records.ended.frombytes((sent + stamps[:, -1] / 1e6).tobytes())
    records.first_answer.frombytes(np.full(requests, np.nan).tobytes())
    counts = {"batch": UNKNOWN, "hidden_tokens": 0, "recounted_tokens": UNKNOWN, "cached_tokens": UNKNOWN}
    counts |= dict.fromkeys(("input_tokens", "asked_input_tokens"), 365)
    counts |= dict.fromkeys(("output_tokens", "asked_output_tokens", "streamed_tokens"), CHUNKS)
    for name, value in counts.items():
        getattr(records, name).frombytes(np.full(requests, value, np.int32).tobytes())
    records.gateway_answer.frombytes(bytes(requests))
    records.chunk_us.frombytes(stamps.tobytes())
    records.chunk_tokens.frombytes(np.ones(requests * CHUNKS, np.uint16).tobytes())
    records.offsets.frombytes((np.arange(1, requests + 1, dtype=np.int64) * CHUNKS).tobytes())
    return records


def write(folder: Path, trials: int, requests: int) -> None:
    from sweep.disk import run_files
    from sweep.disk.run_files import RunPaths

    paths = RunPaths(folder)
    rows = [
        {"trial_id": f"t{index}", "deployment_id": "d", "attempt": "a", "outcome": "ok", "backend": "simulated"}
        for index in range(trials)
    ]
    files = [paths.trial("d", "a", f"t{index}").requests for index in range(trials)]
    for seed in range(min(DRAWN, trials)):
        run_files.write_requests(paths.trial("d", "a", f"t{seed}"), drawn_records(seed, requests))
        for target in files[seed + DRAWN :: DRAWN]:
            target.parent.mkdir(parents=True)
            shutil.copyfile(files[seed], target)
    run_files.write_plan(paths, [{"kind": "experiment", "name": "scale", "axes": []}])
    run_files.write_trials(paths, rows)


def read(folder: Path, threads: int) -> dict[str, Any]:
    import analysis

    began = time.perf_counter()
    result = analysis.quantiles(folder, threads=threads)
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = sum(path.stat().st_size for path in folder.rglob("requests.parquet"))
    return {
        "requests": int(result.table["requests"].sum()),
        "gaps": result.gaps,
        "gigabytes": sizes / 1e9,
        "threads": threads,
        "seconds": seconds,
        "peak_mb": memory / 1000,
        "itl": result.all_gaps,
        "largest_error": _largest_error(folder),
        "damaged": len(result.damaged),
    }


def _largest_error(folder: Path) -> float:
    """The largest relative error of a histogram's quantile among the gaps of a part of one trial."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sweep.numbers.gap_histogram import count_gaps, quantile_of_counts

    file = pq.ParquetFile(next(iter(sorted(folder.rglob("requests.parquet")))))
    groups = range(min(3, file.num_row_groups))
    column = pa.concat_arrays([file.read_row_group(group, ["chunk_us"])["chunk_us"].chunk(0) for group in groups])
    stamps, offsets = column.flatten().to_numpy(), column.offsets.to_numpy()
    exact = np.diff(stamps.reshape(-1, CHUNKS).astype(np.int64), axis=1).ravel()
    counts = count_gaps(stamps, offsets - offsets[0])
    shares = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
    return max(float(abs(quantile_of_counts(counts, share) * 1e6 / np.quantile(exact, share) - 1)) for share in shares)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["write", "read"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of a trial")
    options = parser.parse_args(arguments)
    if options.step == "write":
        write(options.folder, options.trials, options.requests)
        return
    measured = read(options.folder, options.threads)
    print("| requests | gaps | files | threads | time | memory | largest error |")
    print("|---|---|---|---|---|---|---|")
    sizes = f"{measured['requests']:,} | {measured['gaps']:,} | {measured['gigabytes']:.1f} GB | {measured['threads']}"
    print(f"| {sizes} | {measured['seconds']:.1f} s | {measured['peak_mb']:.0f} MB | {measured['largest_error']:.2%} |")
    print(json.dumps(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
