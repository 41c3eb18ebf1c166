"""What media processes are given of this machine: variables, memory, file sizes, CPUs.

What it reads may be hostile, and the libraries that read it are large. A mistake in one of them
should find no secret in the environment and no room to fill.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Mapping
from pathlib import Path

import psutil

# -- the environment

# What libraries, yt-dlp and what it may run (deno) need; no token, key or password of a user.
VARIABLES = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "LANG", "LANGUAGE"),
    *("TMPDIR", "XDG_CACHE_HOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),  # small letters, too
    *("ORT_DISABLE_TELEMETRY", "IMAGEIO_FFMPEG_EXE"),
}
PREFIXES = ("LC_", "PYTHON")


def environment(given: Mapping[str, str], **ours: str) -> dict[str, str]:
    """Those of the variables that media work needs, and ours.

    >>> environment({"HOME": "/h", "AWS_SECRET_ACCESS_KEY": "s", "https_proxy": "p"}, A="1")
    {'HOME': '/h', 'https_proxy': 'p', 'A': '1'}
    """
    kept = {k: v for k, v in given.items() if k.upper() in VARIABLES or k.startswith(PREFIXES)}
    return kept | ours


# -- memory, files, CPUs


def limit(memory_bytes: int, max_file_bytes: int) -> None:
    """Bound this process and each that it starts: addresses, the largest file, no core dumps.

    Addresses are more than memory: beside `memory_bytes` there are what libraries and threads
    reserve (0.6 GB measured after a video at 720p, 2.7 with torch). A limit that was lower stays.
    """
    bounds = [
        (resource.RLIMIT_AS, memory_bytes + RESERVED_BYTES),
        (resource.RLIMIT_FSIZE, max_file_bytes),
        (resource.RLIMIT_CORE, 0),
    ]
    for kind, bound in bounds:
        soft, hard = resource.getrlimit(kind)
        lowest = min(each for each in (bound, soft, hard) if each != resource.RLIM_INFINITY)
        resource.setrlimit(kind, (lowest, hard))


RESERVED_BYTES = 4 << 30
# Free of all memory. Ours: before Ray's own guard, which at 95% used kills the Ray worker.
SHORT = 0.1


def memory_share(cpus: float) -> float:
    """Bytes of this machine's memory for work that takes this many of its CPUs."""
    return machine_memory()[0] * min(1.0, cpus / (os.cpu_count() or 1))


def is_short() -> bool:
    """Whether this machine, or the container, has less than a tenth of its memory left."""
    total, free = machine_memory()
    return free < SHORT * total


def machine_memory(cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Bytes of memory that this machine, or the container, has, and those that are free.

    Pages of files that can be given back are free (`inactive_file` in cgroups(7), both versions).
    """
    machine = psutil.virtual_memory()
    for folder, most, used in (
        (cgroups, "memory.max", "memory.current"),
        (cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            total = int((folder / most).read_text())
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            pages = int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
            free = total - int((folder / used).read_text()) + pages
            if total < machine.total:
                return total, min(free, machine.available)
    return machine.total, machine.available


def machine_cpus(cgroups: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that this process may use of the machine, or of the container (cgroups(7))."""
    cpus = float(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    for quota in (
        lambda: (cgroups / "cpu.max").read_text().split(),
        lambda: [(cgroups / "cpu" / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period")],
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            allowed, period = map(int, quota())
            if allowed > 0:  # -1: none
                cpus = min(cpus, allowed / period)
    return cpus
