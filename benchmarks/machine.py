"""The machine that a figure was taken on, and what a process on it has used. Linux only: it reads /proc."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LIBRARIES = ("aiohttp", "uvloop", "msgspec", "cbor2", "pyarrow", "cffi", "SQLAlchemy", "pluggy", "duckdb")


def facts(folder: Path) -> dict[str, str]:
    """What has to be said beside a figure. `folder` is where the data was written; its path is not among the facts."""
    cores = sorted(os.sched_getaffinity(0))
    return {
        "machine": f"{cpu_model()}, {len(cores)} cores, {memory_gb():.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "filesystem": f"{filesystem(folder)} under the data",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": ", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
        "headrace": f"{_version('headrace')}, commit {commit()}",
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The checkout's commit, with a mark when files that git knows differ from it."""
    folder = Path(__file__).parent
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} with changes" if dirty else name


def cpu_model() -> str:
    """The processor's name as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory_gb() -> float:
    """Memory of the machine in GB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def filesystem(folder: Path) -> str:
    """The type of the file system that a folder lies on: the mount with the longest path above it."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, fstype, *_ = line.split()
        if len(mount) >= len(best) and folder.resolve().is_relative_to(mount):
            best, kind = mount, fstype
    return kind


def process_cpu_s(pid: int) -> float:
    """Seconds of processor that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def process_rss_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process in MB: now, and the most it ever was. Mapped queue files count."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kb = {name: float(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if name in ("VmRSS", "VmHWM")}
    return kb["VmRSS"] / 1000, kb["VmHWM"] / 1000


@dataclass(frozen=True)
class Used:
    """Processor seconds up to a moment: of the whole machine and of the processes of the benchmark."""

    at_s: float
    machine_s: float
    server_s: float
    generator_s: float

    @classmethod
    def now(cls, server: int) -> Used:
        """`generator_s` counts this process and the children it has waited for, the generator among them."""
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
        busy = (user + nice + system + irq + softirq + steal) / TICKS_PER_S
        own = os.times()
        return cls(time.monotonic(), busy, process_cpu_s(server), own.user + own.system + own.children_user + own.children_system)

    def others_cores_since(self, earlier: Used) -> float:
        """How many cores everybody else kept busy since then: the noise in a figure. About 0 on a quiet machine."""
        mine = self.server_s - earlier.server_s + self.generator_s - earlier.generator_s
        return max(0.0, self.machine_s - earlier.machine_s - mine) / (self.at_s - earlier.at_s)
