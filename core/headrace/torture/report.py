"""A trial's outcome as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from headrace.torture.outcome import Outcome


def report(outcome: Outcome) -> str:
    """Counts by tier and link, then the properties with what speaks against them."""
    lines = [
        f"faults for {outcome.fault_s:.0f} s, settled in {outcome.settle_s:.0f} s"
        + ("" if outcome.fresh_s is None else f"; a fresh event was acked in {outcome.fresh_s:.2f} s"),
        f"acked {outcome.acked:,} events ({outcome.resumed:,} messages settled by a hello, {outcome.resent:,} sent again), "
        f"refused {outcome.refused:,} that were none, stored {outcome.stored:,}",
        "",
    ]
    rows = [["tier", "killed", "of these at points", "paused", "drained", "points passed"]]
    for name, run in outcome.tiers.items():
        at_points = sum(run.points_hit.values())
        rows.append([name, f"{run.kills}", f"{at_points}", f"{run.done['pause']}", f"{run.done['drain']}", f"{len(run.points_hit)}"])
    lines += [*_table(rows), ""]
    rows = [["link", "cut", "stalled", "one way stalled", "connections"]]
    for name, weather in outcome.links.items():
        one_way = weather["stall_there"] + weather["stall_back"]
        rows.append([name, f"{weather['cut']}", f"{weather['stall']}", f"{one_way}", f"{outcome.connections[name]}"])
    lines += [*_table(rows), ""]
    for name, run in outcome.tiers.items():
        lines.append(f"{name} died at: {_counted(run.points_hit)}")
        if never := run.points_not_passed:
            lines.append(f"{name} did not pass in time, and was killed from outside: {_counted(never)}")
    lines.append("")
    rows = [["", "property", "checked", "violations"]]
    rows += [
        ["ok" if not finding.violations else "FAILED", f"{number}. {finding.title}", f"{finding.checked:,}", f"{finding.violations:,}"]
        for number, finding in enumerate(outcome.findings, 1)
    ]
    lines += _table(rows)
    for number, finding in enumerate(outcome.findings, 1):
        lines += [f"   {number}. {example}" for example in finding.examples]
        if finding.violations > len(finding.examples):
            lines.append(f"   {number}. ... and {finding.violations - len(finding.examples):,} more")
    return "\n".join(lines)


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} x{count}" if count > 1 else name for name, count in sorted(counter.items())) or "none"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
