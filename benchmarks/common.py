"What all benchmark scripts share: who measures, how rounds are taken, and when a number is refused."

import importlib.metadata
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

FOREIGN = 0.3 # cores that other programs may use while we measure


def cpu_name() -> str:
    "The processor as the system calls it."
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(*packages: str) -> dict[str, str]:
    "Python's version and those of the packages; `missing` where there is none."
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def load_average() -> float | None:
    "Of the last minute; None where the system does not tell."
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


class ForeignLoad:
    "Cores that programs other than this one and its children used since `begin`, counted from /proc/stat; None without it."

    def __init__(self):
        self.begin()

    def begin(self):
        "Starts to count."
        self.start = self.now()

    @staticmethod
    def now() -> tuple[float, float, float] | None:
        "Seconds on the clock, busy seconds of all cores, and our own: ended children and this process."
        try:
            fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, steal = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[:8])
        own = os.times()
        return time.perf_counter(), user + nice + system + irq + softirq + steal, sum(own[:4])

    def cores(self) -> float | None:
        "Mean number of busy foreign cores."
        if self.start is None:
            return None
        wall, busy, own = (after - before for after, before in zip(self.now(), self.start))
        return max(0.0, busy - own) / max(wall, 1e-9)


def refuse_unequal(name: str, weights: list[tuple], others: list[tuple]):
    "Ends the script if the two sides do not agree; a NaN never agrees."
    worst = max((float((a - b).abs().max()) for a, b in weights), default=0.0, key=lambda gap: (gap != gap, gap))
    relative = max((float((a - b).norm() / b.norm()) for a, b in others), default=0.0, key=lambda gap: (gap != gap, gap))
    if not (worst <= 1e-6 and relative <= 1e-6):
        raise SystemExit(f"{name}: fmtut and torch disagree, weights by {worst:.1e}, losses or gradients by {relative:.1e} of their norm; not timed")


def seconds(work: Callable[[], object], prepare: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.perf_counter) -> float:
    "Time of one call of `work`, after `prepare`, which does not count."
    prepare()
    begin = clock()
    work()
    return clock() - begin


def compare(ours: Callable, theirs: Callable, prepare: Callable, rounds: int) -> tuple[list[float], float, float]:
    "The ratio of each round A-B-B-A, and the median seconds of both, after one round to warm up."
    ratios, times = [], ([], [])
    for turn in range(rounds + 1):
        first, second, third, fourth = (seconds(work, prepare) for work in (ours, theirs, theirs, ours))
        if turn:
            ratios.append((first + fourth) / (second + third))
            times[0].extend((first, fourth))
            times[1].extend((second, third))
    return ratios, statistics.median(times[0]), statistics.median(times[1])


def quartiles(values: list[float]) -> tuple[float, float, float]:
    "Lower quartile, median, upper quartile; one value stands for all three."
    if len(values) == 1:
        return values[0], values[0], values[0]
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def wall_clock() -> float:
    "Seconds; on a GPU all that was started is waited for."
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_flops(device: str, size: int, dtype: torch.dtype = torch.float32, clock: Callable[[], float] = wall_clock) -> float:
    "Operations a second of the best of several square matrix products, about 20 ms each on two cores."
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a
    return 2 * size**3 / min(seconds(lambda: a @ a, clock=clock) for _ in range(5))


def run_child(*arguments: str, processes: int = 1, threads: int = 1, limit: float = 600) -> dict:
    "Runs `child.py` in fresh processes; what the first one printed last, as JSON. RuntimeError with its last words if one fails."
    script = str(Path(__file__).with_name("child.py"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if torch.cuda.device_count() < processes:
        shared["CUDA_VISIBLE_DEVICES"] = "" # too few GPUs: the processes meet on the CPU
    children = []
    try:
        for rank in range(processes):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            children.append(subprocess.Popen([sys.executable, "-W", "ignore", script, *arguments], env=shared | (ranks if processes > 1 else {}),
                                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        outputs = [child.communicate(timeout=limit)[0] for child in children]
    finally:
        for child in children:
            child.poll() is None and child.kill()
    for child, output in zip(children, outputs):
        if child.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with {child.returncode}: {output.strip()[-500:]}")
    return json.loads(outputs[0].strip().splitlines()[-1])


def memory(name: str) -> float:
    "VmRSS (now) or VmHWM (the most so far) of this process in MB. `getrusage` would count the parent's pages, too."
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
