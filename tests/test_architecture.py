"""What may know what: read from the sources, so that it holds for code no test runs."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("engine", "transports", "plugin")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


#: What only an engine on a GPU imports, and that one module alone asks for, inside a function.
GPU = {"engine.renderer.torch_batch"}
HEAVY = {"torch", "onnx", "onnxscript", "mediapipe", "dlib", "matplotlib"}


def at_start(tree: ast.AST) -> Iterator[ast.AST]:
    """What importing a module runs: all but the insides of its functions."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_start(node)


def imports(path: Path, nodes: Callable[[ast.AST], Iterator[ast.AST]] = ast.walk) -> Iterator[str]:
    """The modules that a file imports, anywhere in it; `from a import b` gives a and a.b."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def reachable(start: str) -> set[str]:
    """Our modules that importing `start`, and calling anything in it, can bring in."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in MODULES or name in seen:
            continue
        seen.add(name)
        parts = name.split(".")
        waiting += [".".join(parts[:n]) for n in range(1, len(parts))]
        waiting += imports(MODULES[name])
    return seen


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_dependencies_point_one_way(path):
    forbidden = {"engine": {"transports", "plugin"}, "transports": {"engine", "plugin"}, "plugin": set()}
    assert not top_level(path) & (forbidden[path.relative_to(ROOT).parts[0]] | {"tests"})


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("engine") and "training" not in n])
def test_the_engine_knows_no_network_no_settings_and_no_command_line(name):
    known = top_level(MODULES[name])
    assert not known & {"aiortc", "aiohttp", "asyncio", "http", "socket", "ssl", "urllib", "requests"}
    assert not known & {"argparse", "pydantic", "pydantic_settings", "tomllib", "pyvirtualcam", "sounddevice"}


@pytest.mark.parametrize("start", ["plugin.render", "plugin.run", "plugin.doctor"])
def test_the_way_from_a_voice_to_a_picture_is_free_of_torch(start):
    way = reachable(start)
    assert {"plugin.settings", "transports.file", "engine.portrait", "engine.speech"} <= way
    assert {name: found for name in way - GPU if (found := top_level(MODULES[name]) & HEAVY)} == {}
    assert not [name for name in way if name.startswith("engine.training")]


def test_only_the_choice_of_a_gpu_leads_to_torch():
    """Whoever can import a module of GPU does it inside a function of engine.backend, or is one of them."""
    for name, path in MODULES.items():
        if name not in GPU:
            assert not GPU & set(imports(path, at_start)), name
            assert name == "engine.backend" or not GPU & set(imports(path)), name
    assert {"torch"} == set.union(*(top_level(MODULES[name]) & HEAVY for name in GPU))


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_nothing_unpickles(path):
    assert not top_level(path) & {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}
    for call in ast.walk(ast.parse(path.read_text())):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if ast.unparse(call.func) == "torch.load":
            assert given.get("weights_only") == "True", f"line {call.lineno}"
        if call.func.attr == "load" and ast.unparse(call.func.value) in ("np", "numpy"):
            assert given.get("allow_pickle", "False") == "False", f"line {call.lineno}"


def test_every_dependency_is_pinned_to_a_version_that_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}
    assert len(pinned) == len(pins)
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)[0]
        assert re.sub(r"[-_.]+", "-", name).lower() in pinned, requirement
