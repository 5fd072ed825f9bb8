"""Writes the table of benchmarks/README.md from benchmarks/results/*.json.

    python benchmarks/table.py
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
# name -> what it is, bound, aim, whether more is better; None where the row is no contest
TARGETS = {
    "finetune_vs_hf_default": ("fine-tuning, pieces per second: fmtut / Hugging Face Trainer as it is", 1.6, 2.2, True),
    "finetune_vs_hf_grouped": ("the same / Trainer that groups by length (on a GPU also bf16 and tf32)", 1.05, 1.3, True),
    "finetune_vs_plain_loop": ("the same / plain loop with random batches", 1.5, 2.1, True),
    "optimizer_vs_torch": ("optimizer step with clipping, in the loop: time / torch's fused AdamW and clip_grad_norm_", 0.90, 0.60, False),
    "memory_vs_hf": ("peak memory / Trainer as it is", 0.88, 0.65, False),
    "weak_scaling_2": ("one process / two that do as much each: time of a step", 0.80, 0.93, True),
    "trainer_overhead_ms": ("what the Trainer adds to a step of ten lines, in ms", 0.5, 0.2, False),
    "save_cost": ("one checkpoint / one file of as many bytes: time", 1.5, 1.1, False),
    "hf_accumulation": ("loss of a batch in 8 parts / as a whole, Hugging Face Trainer (fmtut: 1)", None, None, None),
}
BEGIN, END = "<!-- table: written by benchmarks/table.py -->", "<!-- end of the table -->"


def verdict(name: str, value: float) -> str:
    "aim, floor or missed; nothing where there is no contest."
    _, floor, aim, more = TARGETS[name]
    if floor is None:
        return ""
    sign = 1 if more else -1
    return "aim reached" if sign * value >= sign * aim else "floor reached" if sign * value >= sign * floor else "missed"


def number(value: float) -> str:
    "Two digits after the point, three below a tenth."
    return f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"


def cell(name: str, result: dict) -> str:
    "What one machine measured in one row."
    row = next((row for row in result["rows"] if row["name"] == name), None)
    if row is None or row["ratio"] is None:
        return "not measured" + (f": {row['why']}" if row and row.get("why") else "")
    spread = "" if row["low"] == row["high"] else f" ({number(row['low'])} - {number(row['high'])})"
    return f"**{number(row['ratio'])}**{spread} {verdict(name, row['ratio'])}".strip()


def machine(result: dict) -> str:
    "One line about a result: where, when, with what."
    found, versions = result["machine"], result["versions"]
    place = found["gpu"] or f"{found['cpu']}, {found['cores']} cores"
    load = result["load"]
    foreign = "unknown" if load["foreign_cores"] is None else f"{load['foreign_cores']:.2f} cores"
    forced = "; **taken on a busy machine (--force): provisional**" if result["forced"] else ""
    return (f"{place}; {result['date']}; Python {versions['python']}, torch {versions['torch']}, transformers {versions['transformers']}, "
            f"accelerate {versions['accelerate']}; {result['rounds']} rounds, {result['threads']} thread(s), {result['clock']} time; other programs used {foreign}{forced}")


def arm_lines(result: dict) -> list[str]:
    "The arms of one result, as a table."
    lines = ["| arm | pieces per second | padding tax | MFU | HFU |", "|---|---|---|---|---|"]
    for name, arm in result.get("arms", {}).items():
        lines.append(f"| {name} | {arm['pieces_per_second']:,.0f} ({arm['low']:,.0f} - {arm['high']:,.0f}) | {arm['padding_tax']:.2f} | {arm['mfu']:.2f} | {arm['hfu']:.2f} |")
    return lines if len(lines) > 2 else []


def write_lines(results: dict[str, dict]) -> list[str]:
    "The whole text between the two marks; `results` by the name of the file."
    columns = results | ({} if any(result["machine"]["gpu"] for result in results.values()) else {"a GPU": None})
    lines = ["| row | at least | aim | " + " | ".join(columns) + " |", "|---|---|---|" + "---|" * len(columns)]
    for name, (text, floor, aim, more) in TARGETS.items():
        bounds = ["", ""] if floor is None else [f"{'' if more else 'at most '}{value}" for value in (floor, aim)]
        cells = [cell(name, result) if result else "not measured" for result in columns.values()]
        lines.append(f"| `{name}`: {text} | {bounds[0]} | {bounds[1]} | " + " | ".join(cells) + " |")
    for name, result in results.items():
        lines += ["", f"**{name}**: {machine(result)}.", *([""] + arm_lines(result) if arm_lines(result) else [])]
    return lines


def write_readme(folder: Path = HERE) -> list[str]:
    "Replaces what stands between the marks in README.md."
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "results").glob("*.json"))}
    readme = folder / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = write_lines(results)
    readme.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")
    return lines


if __name__ == "__main__":
    print("\n".join(write_readme()))
