"""What was measured, as tables: on the terminal, and between two marks in docs/peers.md."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import common
from benchmarks.peers import servers, work

PAGE = servers.ROOT / "docs/peers.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ZOO = "zoo, copied in"

Rows = list[tuple[str, ...]]


def rows(workload: str, found: dict[str, dict[str, Any]]) -> Rows:
    """Fastest first: median of the rounds' figures, their range, and the ratio to the zoo within a round."""
    many = work.WORKLOADS[workload].clients > 1
    ordered = sorted(found, key=lambda name: statistics.median(found[name]["rounds"]), reverse=many)
    head = ("", "requests/s" if many else "p50, ms", "range", "times the zoo's time")
    return [head, *(_row(name, found[name]["rounds"], found[name]["zoo"], many) for name in ordered)]


def _row(name: str, values: list[float], base: list[float] | None, many: bool) -> tuple[str, ...]:
    shown = [value if many else value / 1000 for value in values]
    ratio = "" if base is None else f"{ratio_of(values, base, many):.2f}×"
    return name, _short(statistics.median(shown)), f"{_short(min(shown))}–{_short(max(shown))}", ratio


def ratio_of(values: list[float], base: list[float], many: bool) -> float:
    """How many times slower than `base`, by the median of the rounds."""
    pairs = zip(values, base, strict=False)
    return statistics.median(b / v if many else v / b for v, b in pairs)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rest(at_rest: dict[str, dict[str, float]]) -> Rows:
    """What the servers take while nothing is asked."""
    head = ("", "memory, MB", "processes", "CPU, % of a core")
    keys = ("mb", "processes", "cpu_percent")
    return [head, *((name, *(f"{of[key]:g}" for key in keys)) for name, of in at_rest.items())]


def sections(figures: dict[str, Any]) -> list[tuple[str, Rows]]:
    found = [(work.WORKLOADS[name].title, rows(name, of)) for name, of in figures["workloads"].items()]
    rest_of = [("At rest", rest(figures["at_rest"]))]
    return [*found, *rest_of, *([("The job itself", jobs(figures["job"]))] if "job" in figures else [])]


def jobs(found: dict[str, Any]) -> Rows:
    """Of a trace with models that do not fit the budget together."""
    head = ("", "answered", "in time", "p50, s", "p95, s", "peak, MB", "left, MB")
    rows: Rows = [head]
    for name, of in found["found"].items():
        if "failed" in of:
            rows.append((name, f"failed: {of['failed']}", *[""] * 5))
        else:
            memory = (f"{of[key]:.0f}" for key in ("peak_mb", "left_mb"))
            times = (_short(of[key]) for key in ("p50_s", "p95_s"))
            share = f"{of['in_time'] / of['asked']:.0%}"
            rows.append((name, f"{of['answered']} of {of['asked']}", share, *times, *memory))
    return rows


def text(figures: dict[str, Any]) -> str:
    parts = [f"{title}\n{common.table(of)}" for title, of in sections(figures)]
    parts += [f"FAILED {name}: {why}" for name, why in figures["failed"].items()]
    return "\n\n".join(parts)


def markdown(figures: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in figures.get("machine", common.machine()).items())
    lines = [f"Machine: {machine}. Rounds: {figures['rounds']}.", ""]
    lines += [f"* {name}: {', '.join(of)}" for name, of in figures["versions"].items()]
    for title, table in sections(figures):
        lines += ["", f"### {title}", "", "| " + " | ".join(table[0]) + " |", "|---" * len(table[0]) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table[1:]]
    lines += ["", *(f"* {name} **failed**: {why}" for name, why in figures["failed"].items())]
    lines += [f"* {name} has no row in “{work.WORKLOADS[of].title}”: {why}." for name, of, why in figures["never"]]
    return "\n".join(lines).rstrip() + "\n"


def write(figures: dict[str, Any]) -> None:
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(figures)}{END}{after}")
