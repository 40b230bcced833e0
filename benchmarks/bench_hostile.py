"""Honest devices on a server under attack: their ack latency, the server's memory, and what it counts.

    python benchmarks/bench_hostile.py                      # about five minutes; writes results/hostile.md
    python benchmarks/bench_hostile.py --only reconnects    # quiet, and this attack; table only
    python benchmarks/bench_hostile.py --only flood --keep FILE    # the same, each row kept in FILE
    python benchmarks/bench_hostile.py --keep FILE --report        # no run; the report of all that is kept there

One `headrace run benchmarks/edge.toml` on one core; the honest devices (wsload) and the attackers share the other core. So that the
figure is the server's, the honest devices run there under SCHED_FIFO and the attackers under SCHED_IDLE, and latency counts from a
message's send() to the moment when the kernel had its ack in the device's socket, however late the device came to look. Each attack is
run against a sink too, a process on the attackers' core that does nothing but read: what that does to the honest devices is the
kernel's and that core's share. Linux only; SCHED_FIFO takes a privilege.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from generator import LoadError, build
from load.attackers import KINDS
from machine import Used, facts, process_cpu_s, process_rss_mb
from prometheus_client.parser import text_string_to_metric_families

from headrace.testing.site import SiteProcess
from headrace_ingest_ws.auth.token_file import TokenFile
from headrace_ingest_ws.auth.tokens import new_token

HERE = Path(__file__).parent
SITE = HERE / "edge.toml"
REPORT = HERE / "results" / "hostile.md"
DEVICES = 500
#: A row is measured again while other processes kept more than so much of the cores busy; the quietest counts.
OTHERS_CORES_MAX = 0.1
WARMUP_S = 3.0  # the honest devices are connected, and the attack is under way when the measuring begins
AFTER_S = 1.5  # what an attack has left behind is closed
#: Attacks that need more time than the others: 10,000 handshakes are seconds of work.
SECONDS_MIN = {"reconnects": 20.0}
#: When the sink hangs up (`load/sink.py`): after so many bytes, and after so many seconds. Not attacked: by bad-tokens.
CONTROLS = {
    "silent": (1 << 60, 4.0),
    "slow-headers": (1 << 60, 4.0),
    "slow-frames": (1 << 60, 4.0),
    "half-messages": (1 << 60, 4.0),
    "never-read": (1 << 60, 1e6),
    "huge-frames": (65_536, 1e6),
    "bombs": (500_000, 1e6),
    "reconnects": (1 << 60, 1e6),
    "garbage": (200, 1e6),  # as long as an upgrade: who sent one is answered first
    "flood": (1 << 60, 1e6),
}
AT_A_SINK = ", at a sink"
#: What may be refused or cut off, and under which label its reason stands.
REASONS = {
    "ingest_refused_connections_total": "reason",
    "ingest_refused_requests_total": "reason",
    "ingest_rejected_events_total": "reason",
    "ingest_connections_closed_total": "code",
}


@dataclass(frozen=True)
class Figures:
    """One attack, or none. `p50_ms`, `p99_ms`: sent until the kernel had the ack; `seen_p99_ms`: due until the device had read it.
    `reasons` are what the server counted meanwhile.
    """

    name: str
    acked: int
    p50_ms: float
    p99_ms: float
    seen_p99_ms: float
    late_max_ms: float
    cpu_percent: float
    rss_mb: float
    rss_peak_mb: float
    opened_per_s: float
    sent_mb_per_s: float
    others_cores: float
    reasons: dict[str, int]


def overrides(tokens: Path | None) -> list[str]:
    """What differs from edge.toml: free ports, bounds for the attack, and tokens where they are attacked."""
    source = "tiers.edge.sources.devices"
    words = [
        "admin.listen=127.0.0.1:0",
        f"{source}.listen=127.0.0.1:0",
        f"{source}.connections_max=12000",
        f"{source}.device_events_per_s_max=1000",
        f"{source}.write_timeout_s=3",
        f"{source}.message_timeout_s=4",
        f"{source}.request_timeout_s=4",
        f"{source}.unfinished_bytes_max={64 << 20}",
    ]
    return words if tokens is None else [*words[:3], *words[4:], f"{source}.auth=tokens", f"{source}.tokens.file={tokens}"]


@contextmanager
def site_on(core: int, folder: Path, tokens: Path | None) -> Iterator[SiteProcess]:
    with SiteProcess(SITE, folder, overrides(tokens)) as site:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        try:
            site.start()
        finally:
            os.sched_setaffinity(0, before)
        yield site


def measure(
    site: SiteProcess, kind: str | None, options: argparse.Namespace, core: int, header: str | None, target: tuple[str, int] | None = None
) -> Figures:
    """Honest devices for so long, with an attack or without; the quietest of some attempts.

    target: port and pid of another process to attack.
    """
    found: list[Figures] = []
    while len(found) < options.attempts and (not found or found[-1].others_cores > OTHERS_CORES_MAX):
        found.append(attempt(site, kind, options.rate, options.seconds, core, header, target))
        print(found[-1], file=sys.stderr)
    quietest = min(found, key=lambda one: one.others_cores)
    if options.keep:
        with options.keep.open("a") as out:
            out.write(json.dumps(asdict(quietest)) + "\n")
    return quietest


def attempt(
    site: SiteProcess, kind: str | None, rate: int, seconds: float, core: int, header: str | None, target: tuple[str, int] | None
) -> Figures:
    assert site.process is not None
    seconds = max(seconds, SECONDS_MIN.get(kind or "", 0.0))
    program, pid = build(), site.process.pid
    if program is None:
        raise LoadError("expected a C compiler: the honest devices are load/wsload.c")
    port = (site.url("devices") or "").rpartition(":")[2]
    before, opened_before = counted(site), connections_opened(site)
    used, noise, sink_s = process_cpu_s(pid), Used.now(pid), process_cpu_s(target[1]) if target else 0.0
    reset_peak(pid)
    path = f"/v1/devices/dev-{1 if header else '%CONN%'}/events"
    words = [str(program), "--port", port, "--path", path, "--conns", str(DEVICES), "--rate", str(rate), "--src-spread", "50"]
    words += ["--warmup", str(WARMUP_S), "--seconds", str(seconds), "--drain", "10", "--realtime", "--stamps"]
    words += [*(["--header", header] if header else [])]
    attackers = attack(kind, target[0] if target else port, WARMUP_S + seconds, core)
    with subprocess.Popen(["taskset", "-c", str(core), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as honest:
        assert honest.stderr is not None
        assert honest.stdout is not None
        connected = honest.stderr.readline()
        if attackers is not None:
            assert attackers.stdin is not None
            attackers.stdin.write(b"go\n")
            attackers.stdin.flush()
        output, errors = honest.stdout.read(), connected + honest.stderr.read()
        honest.wait()
    cpu = 100 * (process_cpu_s(pid) - used) / (time.monotonic() - noise.at_s)
    rss_mb, rss_peak_mb = process_rss_mb(pid)
    opened = sent = 0
    if attackers is not None:
        said = json.loads(attackers.communicate(timeout=60)[0])
    after_s = Used.now(pid)
    others = after_s.others_cores_since(noise) - ((process_cpu_s(target[1]) - sink_s) / (after_s.at_s - noise.at_s) if target else 0.0)
    if attackers is not None:
        opened, sent = said["opened"], said["sent_bytes"]
        if kind == "reconnects" and not target:
            opened = connections_opened(site) - opened_before - DEVICES
        time.sleep(AFTER_S)
    after = counted(site)
    if honest.returncode != 0:
        raise LoadError(f"{kind}: an honest device was hurt: {output[-800:]} {errors[-500:]}")
    result = json.loads(output)
    return Figures(
        name=f"{kind}{AT_A_SINK}" if target else kind or "quiet",
        acked=result["ack_us"]["n"],
        p50_ms=result["server_us"]["p50"] / 1e3,
        p99_ms=result["server_us"]["p99"] / 1e3,
        seen_p99_ms=result["ack_us"]["p99"] / 1e3,
        late_max_ms=result["late_max_us"] / 1e3,
        cpu_percent=cpu,
        rss_mb=rss_mb,
        rss_peak_mb=rss_peak_mb,
        opened_per_s=opened / (WARMUP_S + seconds),
        sent_mb_per_s=sent / 1e6 / (WARMUP_S + seconds),
        others_cores=max(0.0, others),
        reasons={key: grown for key, count in after.items() if (grown := count - before.get(key, 0)) and key != "closed 1006"},
    )


def attack(kind: str | None, port: str, seconds: float, core: int) -> subprocess.Popen[bytes] | None:
    """The attackers, ready: they begin with the next line that they are sent."""
    if kind is None:
        return None
    words = [sys.executable, str(HERE / "load" / "attackers.py"), kind, "--port", port, "--seconds", str(seconds)]
    attackers = subprocess.Popen(["taskset", "-c", str(core), "chrt", "--idle", "0", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert attackers.stdout is not None
    attackers.stdout.readline()
    return attackers


@contextmanager
def sink(bytes_max: int, seconds_max: float, core: int) -> Iterator[tuple[str, int]]:
    """Port and pid of a sink that shares the attackers' core and its scheduling."""
    words = ["taskset", "-c", str(core), "chrt", "--idle", "0", sys.executable, str(HERE / "load" / "sink.py")]
    words += [str(bytes_max), str(seconds_max)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


def connections_opened(site: SiteProcess) -> int:
    """WebSocket connections so far, honest ones too."""
    families = text_string_to_metric_families(site.probe("/metrics")[1])
    return sum(int(one.value) for family in families for one in family.samples if one.name == "headrace_ingest_connections_opened_total")


def reset_peak(pid: int) -> None:
    """Let VmHWM begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def counted(site: SiteProcess) -> dict[str, int]:
    """Refusals so far, by reason."""
    found: dict[str, int] = {}
    for family in text_string_to_metric_families(site.probe("/metrics")[1]):
        for sample in family.samples:
            name = sample.name.removeprefix("headrace_")
            if name in REASONS:
                label = sample.labels[REASONS[name]]
                key = f"closed {label}" if name == "ingest_connections_closed_total" else label
                found[key] = found.get(key, 0) + int(sample.value)
    return found


def table(results: list[Figures]) -> str:
    """The measured figures; ratios against the quiet row above, and against the same attack on a sink."""
    lines = [
        "| attack | p50 ms | p99 ms | p99 / quiet | p99 / at a sink | seen p99 ms | late max ms | CPU % | RSS MB | RSS peak MB | opened/s "
        "| sent MB/s | others' cores | refused, closed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    quiet = results[0]
    controls = {one.name: one for one in results}
    for one in results:
        quiet = one if one.name == "quiet" else quiet
        control = controls.get(f"{one.name}{AT_A_SINK}")
        reasons = ", ".join(f"{key} {count:,}" for key, count in sorted(one.reasons.items()))
        cells = [one.name, f"{one.p50_ms:.2f}", f"{one.p99_ms:.2f}", f"{one.p99_ms / quiet.p99_ms:.1f}"]
        cells += [f"{one.p99_ms / control.p99_ms:.1f}" if control else "", f"{one.seen_p99_ms:.2f}", f"{one.late_max_ms:.2f}"]
        cells += [f"{one.cpu_percent:.0f}", f"{one.rss_mb:.0f}", f"{one.rss_peak_mb:.0f}"]
        cells += [f"{one.opened_per_s:,.0f}", f"{one.sent_mb_per_s:.1f}", f"{one.others_cores:.2f}", reasons]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(results: list[Figures], options: argparse.Namespace, command: str) -> str:
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    kinds = [f"- `{name}`: {(kind.__doc__ or '').strip()}" for name, kind in KINDS.items() if name in {one.name for one in results}]
    return "\n".join([
        "# Honest devices under attack",
        "",
        f"`{command}`, {date}. {DEVICES} honest devices send {options.rate:,} messages per second, {options.seconds:g} s for each row",
        f"({', '.join(f'{kind} {least:g} s' for kind, least in SECONDS_MIN.items())}).",
        "",
        table(results),
        "",
        *(f"- {name}: {value}" for name, value in facts(Path(tempfile.gettempdir())).items()),
        "- server: `headrace run benchmarks/edge.toml` on one core, one process for all rows with these options:",
        f"  `{' '.join(word.rpartition('.')[2] for word in overrides(None)[2:])}`;",
        "  `bad-tokens`, and the quiet row before it, in a process with `auth = \"tokens\"`",
        "- honest devices under SCHED_FIFO and attackers under SCHED_IDLE on the other core",
        "- p50, p99: from the send() of a message to the moment when the kernel had its ack in the device's socket",
        "- seen p99: from the moment when a message was due until the device had read its ack, its waits for its own core included;",
        "  late max: how late it sent at most",
        "- p99 / quiet: against the quiet row above it",
        "- others' cores: cores that neither the server nor the load kept busy, what the hypervisor took included;",
        f"  above {OTHERS_CORES_MAX:g} a row is measured again, up to {options.attempts} times in all, and the quietest stands here",
        "- opened/s, sent MB/s: of the attackers; of `reconnects` what the server counted, without bytes",
        "- `..., at a sink`: the same attackers against another process on their own core, which only reads, and the honest devices on the",
        "  server: what that does to p99 is that core's and the kernel's share; the rates differ, as a sink reads fast",
        "- `closed N`: WebSocket connections ended with that close code; the other reasons are those of `docs/operations.md`",
        "",
        *kinds,
        "",
    ])  # fmt: skip


def main() -> int:
    """Measure, print the table, write the report; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(KINDS), help="these attacks; no report is written")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="add each row to FILE")
    parser.add_argument("--report", action="store_true", help="no run: the report of the rows in the FILE of --keep")
    parser.add_argument("--attempts", type=int, default=3, help="of each row while other processes are busy (default 3)")
    parser.add_argument("--rate", type=int, default=5000, help="messages per second of all honest devices (default 5000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of each row (default 5)")
    options = parser.parse_args()
    if options.report and not options.keep:
        parser.error("--report needs the FILE of --keep")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print(f"expected at least 2 cores, got {len(cores)}", file=sys.stderr)
        return 2
    kinds = [kind for kind in KINDS if not options.only or kind in options.only]
    try:
        results = kept(options.keep) if options.report else measure_all(kinds, options, cores)
    except LoadError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return 1
    print(table(results))
    command = "python " + " ".join(["benchmarks/bench_hostile.py", *sys.argv[1:]])
    if options.keep:
        results, command = kept(options.keep), command.replace(str(options.keep), "FILE")
    if options.report or not options.only:
        REPORT.write_text(report(results, options, command))
    return 0


def kept(file: Path) -> list[Figures]:
    """The rows in a file of `--keep`."""
    return [Figures(**json.loads(line)) for line in file.read_text().splitlines()]


def measure_all(kinds: list[str], options: argparse.Namespace, cores: list[int]) -> list[Figures]:
    results = []
    with tempfile.TemporaryDirectory(prefix="headrace-hostile-") as name, site_on(cores[0], Path(name), None) as site:
        for kind in [None, *(kind for kind in kinds if kind != "bad-tokens"), None]:
            results.append(measure(site, kind, options, cores[1], None))
            if kind in CONTROLS:
                with sink(*CONTROLS[kind], cores[1]) as target:
                    results.append(measure(site, kind, options, cores[1], None, target))
    if "bad-tokens" in kinds:
        with tempfile.TemporaryDirectory(prefix="headrace-hostile-") as name:
            token, record = new_token("dev-1")
            tokens = Path(name) / "tokens.csv"
            TokenFile(tokens).add([record])
            with site_on(cores[0], Path(name), tokens) as site:
                for kind in (None, "bad-tokens"):
                    results.append(measure(site, kind, options, cores[1], f"Authorization: Bearer {token}"))
    return results


if __name__ == "__main__":
    sys.exit(main())
