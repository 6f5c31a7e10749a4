"""`make test` runs the suite in parts, and of the modules of the others it imports none."""

import re
from pathlib import Path
from types import SimpleNamespace

from conftest import BESIDE, PARTS, ROOT, WAITING, pytest_ignore_collect

MODULES = sorted((ROOT / "tests").glob("test_*.py"))


def collected(markexpr: str) -> list[Path]:
    config = SimpleNamespace(option=SimpleNamespace(markexpr=markexpr))
    return [path for path in MODULES if not pytest_ignore_collect(path, config)]


def test_every_module_is_in_one_part():
    assert not BESIDE & WAITING
    assert {path.stem for path in MODULES} >= BESIDE | WAITING
    parts = [collected(part) for part in PARTS]
    assert all(parts)
    assert sorted(path for part in parts for path in part) == MODULES


def test_the_parts_are_those_that_are_run():
    told = re.findall(r'pytest -m (?:"([^"]+)"|(\w+))', (ROOT / "Makefile").read_text())
    assert tuple(quoted or bare for quoted, bare in told) == PARTS


def test_whoever_asks_for_no_part_gets_all_modules():
    for markexpr in ("", "not waiting", "beside or waiting"):
        assert collected(markexpr) == MODULES


def test_a_module_is_in_a_part_as_a_whole():
    """Else a test with a mark of its own would be in a part whose modules are imported, and in none."""
    for path in MODULES:
        assert not re.search(r"pytest\.mark\.(beside|waiting)", path.read_text()), path.name
