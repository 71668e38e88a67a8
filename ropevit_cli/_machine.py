"""Facts of the machine: Python, system, cores, memory, GPUs, processes. Standard library."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
NVIDIA_SMI = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver knows it; memory in MiB."""

    name: str
    memory: int
    driver: str


@dataclass(frozen=True)
class Machine:
    """Memory in bytes, None where the system does not say."""

    python: str
    executable: str
    system: str
    cores: int
    memory: int | None
    shared_memory: int | None
    gpus: tuple[Gpu, ...]


def this_machine() -> Machine:
    """Facts of the machine, and of the container if there is one, that this process runs on."""
    return Machine(
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory=_memory(),
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        gpus=_gpus(),
    )


def _memory() -> int | None:
    """Of the machine, or what a container may take of it if that is less."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # Linux, control groups of version 2
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _gpus() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run([program, *NVIDIA_SMI], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ()  # a driver that does not answer: torch cannot use it either, and says why
    if done.returncode:
        return ()
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines()]
    return tuple(
        Gpu(name, int(memory) if memory.isdigit() else 0, driver) for name, memory, driver in rows
    )
