"""What is told of memory, from files as Linux writes them, and from this process."""

import os
import subprocess
import sys

import pytest

from plugin import memory

MEMINFO = "MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    2048000 kB\n"


def machine(root, meminfo: str | None = MEMINFO, **group: str):
    """A folder that looks like / in part."""
    (root / "proc").mkdir()
    (root / "sys/fs/cgroup").mkdir(parents=True)
    if meminfo is not None:
        (root / "proc/meminfo").write_text(meminfo)
    for name, text in group.items():
        (root / f"sys/fs/cgroup/memory.{name}").write_text(text)
    return root


def test_what_the_machine_has_left(tmp_path):
    assert memory.available(machine(tmp_path)) == 2000


@pytest.mark.parametrize(
    ("group", "left"),
    [
        ({"max": "314572800\n", "current": "209715200\n", "stat": "anon 5\ninactive_file 20971520\n"}, 120),
        ({"max": "209715200\n", "current": "314572800\n", "stat": "inactive_file 0\n"}, 0),
        ({"max": "max\n", "current": "314572800\n", "stat": "inactive_file 0\n"}, 2000),
        ({"max": "99999999999999\n", "current": "0\n", "stat": "inactive_file 0\n"}, 2000),
        ({"current": "314572800\n"}, 2000),
    ],
)
def test_a_container_may_have_less_than_its_machine(tmp_path, group, left):
    assert memory.available(machine(tmp_path, **group)) == left


@pytest.mark.parametrize("meminfo", [None, "", "MemTotal: 8000000 kB\n", "MemAvailable: soon\n"])
def test_where_linux_tells_nothing_the_system_is_asked_and_may_not_know(tmp_path, monkeypatch, meminfo):
    root, told = machine(tmp_path, meminfo), {"SC_AVPHYS_PAGES": 1024, "SC_PAGE_SIZE": 4096}

    def sysconf(name):
        if name not in told:
            raise ValueError("unrecognized configuration name")
        return told[name]

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert memory.available(root) == 4
    told["SC_AVPHYS_PAGES"] = -1
    assert memory.available(root) is None
    del told["SC_AVPHYS_PAGES"]
    assert memory.available(root) is None
    monkeypatch.delattr(os, "sysconf")
    assert memory.available(root) is None


def test_what_this_process_holds_grows_with_what_it_takes():
    if memory.resident() is None:
        pytest.skip("this system does not tell")
    # in a process of its own: another that ran many tests may have freed as much, and be given that
    program = (
        "import numpy as np; from plugin.memory import resident; before = resident();"
        "taken = np.ones(64 << 20, np.uint8); print(resident() - before, taken[0])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(told.split()[0]) > 40
