"""The architecture that no single module can keep: imports go down only, nothing is unpickled, torch stays where it is.

ARCHITECTURE.md holds the table of floors; this test reads it from there, so the two cannot disagree.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
MODULES = sorted((PROJECT / "ltrr").rglob("*.py"))
ENTRIES = sorted([*PROJECT.glob("*.py"), *(PROJECT / "scripts").rglob("*.py")])  # train.py, serve.py and scripts

TORCH = {"torch", "pytorch_lightning", "transformers", "sentence_transformers"}  # each takes torch along
LIGHTNING = {"cli.fit", "data.pairs"}  # Lightning's own classes, beside encoders, learners and rankers
PICKLE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
ONLY = {"types": {"numpy"}, "protocols": {"numpy"}, "files": set()}  # module -> packages beside the standard library


def read_table(text: str) -> tuple[list[set[str]], dict[str, set[str]]]:
    """Floors from the lowest, and what a package may import beside those below it, from ARCHITECTURE.md."""
    section = text.partition("## Floors")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    floors = [set(re.findall(r"`([\w.]+)`", packages)) for packages, _ in rows[2:]]
    pairs = re.findall(r"`([\w.]+)` imports `([\w.]+)`", section)
    return floors, {who: {what for name, what in pairs if name == who} for who, _ in pairs}


FLOORS, EXCEPTIONS = read_table((PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


def imports_of(source: str) -> Iterator[str]:
    """Dotted names of all that a file imports, at whatever depth it stands (functions, TYPE_CHECKING)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that floors can be read off them"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def module_of(path: Path) -> str:
    """ltrr/arms/lexical.py -> arms.lexical; a package's __init__ is the package."""
    parts = path.relative_to(PROJECT / "ltrr").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def packages_of(source: str) -> set[str]:
    """Names right below `ltrr` that a file imports; `from ltrr import __version__` is none."""
    below = {name.split(".")[1] for name in imports_of(source) if name.startswith("ltrr.")}
    return {name for name in below if not name.startswith("__")}


def wrong_imports(module: str, source: str) -> set[str]:
    """Packages that a module imports and must not: those above it, and others on its floor without an exception."""
    own = module.split(".")[0]
    level = next((n for n, floor in enumerate(FLOORS) if own in floor), None)
    assert level is not None, f"{own!r} has no floor in ARCHITECTURE.md: put it into the table, or the file elsewhere"
    allowed = {own}.union(*FLOORS[:level], EXCEPTIONS.get(own, set()), EXCEPTIONS.get(module, set()))
    return packages_of(source) - allowed


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Circles among modules, each as the modules that it runs through."""
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(edges.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    return found


def unsafe_loads(source: str) -> list[int]:
    """Lines that call numpy's load without allow_pickle=False or torch's without weights_only=True."""
    wanted = {"np": ("allow_pickle", False), "numpy": ("allow_pickle", False), "torch": ("weights_only", True)}
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(function := node.func, ast.Attribute) and function.attr == "load":
            key, value = wanted.get(ast.unparse(function.value), ("", None))
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if key and given.get(key) is not value:
                lines.append(node.lineno)
    return lines


named = pytest.mark.parametrize("path", MODULES, ids=module_of)


@named
def test_imports_go_down_only(path: Path) -> None:
    if path != PROJECT / "ltrr" / "__init__.py":
        assert wrong_imports(module_of(path), path.read_text()) == set()


@named
def test_torch_stays_where_models_are(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports_of(path.read_text())}
    package = module_of(path).split(".")[0]
    if package not in {"encoders", "learners", "rankers"} and module_of(path) not in LIGHTNING:
        assert tops.isdisjoint(TORCH)
    if package in ONLY:
        assert tops - set(sys.stdlib_module_names) - {"ltrr"} <= ONLY[package]


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {module_of(path): path.read_text() for path in MODULES}
    edges: dict[str, set[str]] = {}
    for module, source in modules.items():
        names = {name.removeprefix("ltrr.") for name in imports_of(source) if name.startswith("ltrr.")}
        longest = {max((m for m in modules if m and f"{n}.".startswith(f"{m}.")), key=len, default="") for n in names}
        edges[module] = longest - {module, ""}
    assert circles(edges) == []


@pytest.mark.parametrize("path", [*MODULES, *ENTRIES], ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_nothing_is_unpickled(path: Path) -> None:
    source = path.read_text()
    assert {name.split(".")[0] for name in imports_of(source)}.isdisjoint(PICKLE)
    assert unsafe_loads(source) == []


PARTS = {"arms", "learners", "policies", "rankers"}
PLUGGED = [
    path
    for path in MODULES
    if module_of(path).split(".")[0] in {"funnel", "policies", "serving", "simulation", "system"}
]


def asks_for_classes(source: str) -> list[int]:
    """Lines that call `hasattr`, or `isinstance` with a class of arms, learners, policies or rankers."""
    tree, owner = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            owner |= {name.asname or name.name: node.module for name in node.names}
        elif isinstance(node, ast.ClassDef):
            owner[node.name] = "ltrr.policies"  # the file's own: a protocol would stand in ltrr/protocols.py
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            modules = [(owner.get(name) or "").split(".") for name in names]
            parts = any(module[:1] == ["ltrr"] and module[1:2] and module[1] in PARTS for module in modules)
            if node.func.id == "hasattr" or (node.func.id in ("isinstance", "issubclass") and parts):
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", PLUGGED, ids=module_of)
def test_what_a_part_may_do_is_asked_by_protocols(path: Path) -> None:
    """Through `ltrr.protocols.offers`, so that a part of one's own has an ability by having its methods."""
    assert asks_for_classes(path.read_text()) == []


def test_a_test_module_mirrors_each_package() -> None:
    packages = {path.parent.relative_to(PROJECT / "ltrr").parts[0] for path in MODULES if path.parent.name != "ltrr"}
    tested = {path.parent.relative_to(PROJECT / "tests").parts[0] for path in (PROJECT / "tests").rglob("*/test_*.py")}
    assert packages <= tested


def test_the_rules_catch_what_breaks_them() -> None:
    inside = "def f():\n    from ltrr.index.faiss import FaissIndex\n"
    assert wrong_imports("data.beir", inside) == {"index"}  # an import within a function is an import
    assert wrong_imports("arms.dense", inside) == set()
    assert wrong_imports("arms.lexical", "import ltrr.system.system as s\nfrom ltrr import funnel") == {
        "system",
        "funnel",
    }
    assert wrong_imports("arms.dense", "from ltrr.policies import cut") == {"policies"}
    assert wrong_imports("learners.relevance", "from ltrr.policies.explorers import x") == set()
    assert wrong_imports("index.manifest", "from ltrr import __version__\nfrom ltrr.index import text") == set()
    assert unsafe_loads("np.load(p)\nnp.load(p, allow_pickle=False)\ntorch.load(p)\njson.load(f)") == [1, 3]
    named = "from ltrr.policies.cut import CutPolicy as Cut\nfrom ltrr.protocols import Priced\n"
    assert asks_for_classes(f"{named}isinstance(p, int | Cut)\nhasattr(p, 'x')\nisinstance(p, Mapping)") == [3, 4]
    assert asks_for_classes(f"{named}issubclass(c, Priced)\nclass Own: ...\nisinstance(p, (str, Own))") == [5]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    with pytest.raises(AssertionError, match="no floor"):
        wrong_imports("helpers.strings", "")
