"""The fastest configuration at each load, from the files of a finished run: python read_results.py RESULTS_FOLDER."""

import sys

from llm_sweep import analysis


def main(folder: str) -> None:
    trials = analysis.load(folder)  # a pandas frame, a row per trial
    ok = trials[trials.outcome == "ok"]
    print(f"{len(ok)} of {len(trials)} trials have a result")

    points = analysis.open_results(folder).summary  # a row per point: its launches pooled, with intervals
    for (workload, users), task in points.groupby(["workload", "concurrency"]):
        best = task.loc[task.output_throughput.idxmax()]
        low, high = best.output_throughput_ci_low, best.output_throughput_ci_high
        chunked = best["backend.knobs.chunked_prefill"]
        speed = f"{best.output_throughput:.0f} tokens/s ({low:.0f} to {high:.0f})"
        print(f"{workload}, {users:g} users: chunked_prefill={chunked}, {speed}")

    requests = analysis.requests(folder, trial_id=ok.trial_id.iloc[0])  # a row per request, times in seconds
    print(requests.nlargest(3, "ttft")[["request_id", "ttft", "e2el"]].to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1])
