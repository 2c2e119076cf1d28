"""Python, cores, memory, disks and the clock."""

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ript_ray.cli.doctor.finding import GIB, Finding
from ript_ray.runtime.host import memory_bytes, num_cpus

SHARED_MEMORY = Path("/dev/shm")
MAX_SKEW_S = 5.0
"""By which two clocks may differ: more than what asking takes."""

RAY_FULL = 0.95
"""How full a disk may be before Ray writes nothing more to it. Source: its `local_fs_capacity_threshold`."""

SET_CLOCK = "set the clock of this machine (timedatectl set-ntp true)"


def machine() -> Iterator[Finding]:
    """Check Python, cores, memory, shared memory, Ray's disk and the clock."""
    version = ".".join(map(str, sys.version_info[:3]))
    enough = sys.version_info >= (3, 11)
    yield Finding("Python", version, good=enough, needed=True, fix="apt-get install python3.11 python3.11-venv")
    cores = num_cpus()
    yield Finding("cores", str(cores), good=cores >= 2, fix="one core also works, at half the speed")
    memory = memory_bytes() / GIB
    fix = "the quickstart needs a machine with 6 GiB"
    yield Finding("memory", f"{memory:.1f} GiB", good=memory >= 5.5, needed=True, fix=fix)
    if SHARED_MEMORY.exists():
        yield shared_memory(SHARED_MEMORY)
    yield ray_disk(Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())))
    yield clock(Path(__file__))


def shared_memory(folder: Path) -> Finding:
    """Check the memory that Ray keeps objects in; Docker's default are 64 MiB."""
    usage = shutil.disk_usage(folder)
    return Finding(
        "shared memory",
        f"{usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB free",
        good=usage.free >= GIB,
        fix="docker run --shm-size=4g, in Kubernetes an emptyDir of medium Memory at /dev/shm, elsewhere mount -o "
        "remount,size=4G /dev/shm; otherwise Ray stores objects on disk",
    )


def ray_disk(folder: Path) -> Finding:
    """Check the disk that Ray's logs are on, and objects that its memory has no room for."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding("Ray's disk", f"{folder}: {error.strerror}", good=False, needed=True, fix="set RAY_TMPDIR")
    return Finding(
        "Ray's disk",
        f"{usage.free / GIB:.1f} GiB free at {folder}",
        good=usage.used < RAY_FULL * usage.total and os.access(folder, os.W_OK),
        fix=f"let RAY_TMPDIR name a folder on a disk that is less than {RAY_FULL:.0%} full",
    )


def clock(code: Path) -> Finding:
    """Check that the clock is not before the date of our own code."""
    now, installed = time.time(), code.stat().st_mtime
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now >= installed - MAX_SKEW_S:
        return Finding("clock", found)
    date = time.strftime("%Y-%m-%d", time.gmtime(installed))
    return Finding("clock", f"{found}, before ript-ray was installed ({date})", good=False, fix=SET_CLOCK)


def skew(thing: str, seconds: float) -> Finding:
    """Check how far another clock is ahead of this one."""
    found = f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    return Finding(thing, found, good=abs(seconds) <= MAX_SKEW_S, fix=f"{SET_CLOCK}, or the other one's")


def runs_folder(runs: Path) -> Iterator[Finding]:
    """Check that runs can be written to a folder: rights, space, file locks and the clock of its file system."""
    folder = next(each for each in (runs.absolute(), *runs.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(folder).free / GIB
    fix = "free 2 GiB for logs and checkpoints"
    yield Finding("disk", f"{free:.1f} GiB free at {folder}", good=free >= 2, needed=True, fix=fix)
    fix = "--runs DIR names another folder: one that can be written to, with file locks (NFS 4, Lustre with -o flock)"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seconds = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError as error:
        yield Finding("folder of the runs", f"{folder}: {error.strerror}", good=False, needed=True, fix=fix)
        return
    yield Finding("folder of the runs", f"{folder} can be written to and has file locks")
    yield skew("clock of its file system", seconds)
