"""Times fmtut against Hugging Face's Trainer, a plain loop and PyTorch's optimizer; writes results/*.json and the table of README.md.

    python benchmarks/measure.py                # what `make bench` does: 5 rounds, one thread
    python benchmarks/measure.py --threads 2    # wall-clock time
    python benchmarks/measure.py --only memory_vs_hf weak_scaling_2
    python benchmarks/measure.py --small        # tiny sizes, to see that all of it runs; writes nothing

Gates come first: what is not equal is not timed. On a machine with a GPU everything runs there, and the file is named after it.
"""

import argparse
import datetime
import json
import os
import re
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore", message=".*pin_memory.*")

import table
import torch
from common import FOREIGN, ForeignLoad, cpu_name, load_average, versions
from gates import GATES
from rows import FINETUNE, FINETUNE_NEEDS, NEEDS, ROWS, Setting, clocks, finetune
from work import FULL, SMALL, device, missing_reason

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    "What the command line says."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds A-B-B-A (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="of this process (default 1; more are timed by the wall clock)")
    parser.add_argument("--only", nargs="+", choices=[*FINETUNE, *ROWS], help="rows to measure; the others keep what the file has")
    parser.add_argument("--small", action="store_true", help="tiny sizes, two rounds; its ratios mean nothing and are not written")
    parser.add_argument("--force", action="store_true", help=f"measure although other programs use more than {FOREIGN} cores; the file says so")
    args = parser.parse_args()
    if args.rounds < 2 or args.threads < 1:
        parser.error("at least 2 rounds and 1 thread")
    return args


def result_name() -> str:
    "cpu, or the model of the GPU, as h200."
    if device() == "cpu":
        return "cpu"
    words = re.findall(r"[a-z]*\d+[a-z]*", torch.cuda.get_device_name().lower())
    return words[0] if words else "gpu"


def wait_for_quiet(force: bool) -> float | None:
    "Cores that others use, over three seconds; ends the script if they are too many."
    watch = ForeignLoad()
    time.sleep(3)
    cores = watch.cores()
    if cores is not None and cores > FOREIGN and not force:
        raise SystemExit(f"other programs use {cores:.2f} cores, more than {FOREIGN}: wait, or --force a provisional result")
    return cores


def pass_gates(names: set[str], work) -> dict[str, dict]:
    "The gates' reports; one line each."
    found = {}
    for name, gate in GATES.items():
        if name in names:
            found[name] = gate(work)
            print(f"gate {name}: {'passed' if found[name]['passed'] else 'FAILED, ' + found[name]['why']}", flush=True)
    return found


def measure(setting: Setting, wanted: list[str], gates: dict[str, dict]) -> tuple[list[dict], dict]:
    "All wanted rows, in the order of the table; those behind a failed gate without a number."
    rows, details = [], {}

    def closed(names: list[str]) -> str | None:
        "Why this is not timed."
        return next((f"gate {name}: {gates[name]['why']}" for name in names if not gates[name]["passed"]), None)

    for name, function in ROWS.items():
        if name in wanted:
            why = closed(NEEDS[name])
            rows += [{"name": name, "ratio": None, "why": why}] if why else attempt(name, lambda function=function: function(setting))
            say(rows[-1])
    asked = [name for name in FINETUNE if name in wanted]
    if asked:
        missing = {name: reason for name in asked if (reason := closed(FINETUNE_NEEDS) or missing_reason(name.removeprefix("finetune_vs_")))}
        rows += [{"name": name, "ratio": None, "why": why} for name, why in missing.items()]
        if len(missing) < len(asked):
            found, details = finetune(setting)
            rows += [row for row in found if row["name"] in asked]
        for row in rows[-len(asked):]:
            say(row)
    for row in rows:
        row["gates"] = {name: gates[name]["passed"] for name in NEEDS.get(row["name"], FINETUNE_NEEDS)}
    return sorted(rows, key=lambda row: list(table.TARGETS).index(row["name"])), details


def attempt(name: str, function) -> list[dict]:
    "The rows; or one without a number, and why."
    try:
        return function()
    except (ImportError, RuntimeError) as error:
        return [{"name": name, "ratio": None, "why": f"{type(error).__name__}: {error}"}]


def say(row: dict):
    "One line."
    if row["ratio"] is None:
        print(f"{row['name']:24} not measured: {row['why']}", flush=True)
    else:
        print(f"{row['name']:24} {row['ratio']:7.3f}  ({row['low']:.3f} - {row['high']:.3f})  {table.verdict(row['name'], row['ratio'])}", flush=True)


def main():
    "Gates, rows, file, table."
    args = arguments()
    started = time.perf_counter()
    torch.set_num_threads(args.threads)
    load = {"average": load_average(), "foreign_cores_before": None if args.small else wait_for_quiet(args.force)}
    print(f"{cpu_name()}, {os.cpu_count()} cores, {device()}, load average {load['average']}, torch {torch.__version__}", flush=True)
    wanted = args.only or [*FINETUNE, *ROWS]
    work = SMALL if args.small else FULL
    needed = {gate for name in wanted for gate in NEEDS.get(name, FINETUNE_NEEDS)}
    watch = ForeignLoad()
    gates = pass_gates(needed, work)
    clock, clock_name = clocks(args.threads)
    rows, details = measure(Setting(work, 2 if args.small else args.rounds, clock, clock_name), wanted, gates)
    load["foreign_cores"] = watch.cores()
    noisy = not args.small and load["foreign_cores"] is not None and load["foreign_cores"] > FOREIGN
    result = {
        "date": datetime.date.today().isoformat(), "command": "python " + " ".join(["benchmarks/measure.py", *sys.argv[1:]]),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "gpu": torch.cuda.get_device_name() if device() == "cuda" else None},
        "versions": versions("torch", "transformers", "accelerate", "tokenizers", "numpy", "fmtut"), "threads": args.threads, "clock": clock_name,
        "rounds": args.rounds, "work": work._asdict(), "load": load, "forced": noisy or (load["foreign_cores_before"] or 0) > FOREIGN, "gates": gates, **details, "rows": rows,
        "minutes": (time.perf_counter() - started) / 60,
    }
    print(f"{result['minutes']:.1f} minutes; other programs used {load['foreign_cores'] or 0:.2f} cores", flush=True)
    if noisy and not args.force:
        raise SystemExit(f"more than {FOREIGN} cores meanwhile: not written; wait for a quiet machine, or --force a provisional result")
    if not args.small:
        write(result)
        print("\n".join(table.write_readme()))
    if any(row["ratio"] is None for row in rows):
        raise SystemExit("some rows were not measured, see above")


def write(result: dict):
    "Into results/; rows that were not asked for stay as the file had them."
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result_name()}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new = {row["name"] for row in result["rows"]}
    kept = [row for row in old.get("rows", []) if row["name"] not in new]
    result = {**{key: old[key] for key in ("arms", "peak_gflops") if key in old}, **result, "gates": old.get("gates", {}) | result["gates"], "rows": kept + result["rows"]}
    result["rows"].sort(key=lambda row: list(table.TARGETS).index(row["name"]))
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
