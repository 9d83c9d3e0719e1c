"""The architecture that no single module can keep: imports go down only, files stay small, nothing is unpickled."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
MODULES = sorted((PROJECT / "ltrr").rglob("*.py"))
ENTRIES = sorted([*PROJECT.glob("*.py"), *(PROJECT / "scripts").glob("*.py")])  # train.py, serve.py and scripts

# Floor -> what it may import of ltrr beside itself (ARCHITECTURE.md has the same table). `models` is in no list: an
# encoder arrives as a protocol. `config` and `system` are for the entries alone.
_LOW = {"core", "metrics"}
_MIDDLE = _LOW | {"fuse", "data", "index", "policy", "feedback"}
FLOORS: dict[str, set[str]] = {
    "core": set(),
    "config": set(),
    "metrics": {"core"},
    **dict.fromkeys(("fuse", "data", "models", "index", "policy", "feedback"), _LOW),
    **dict.fromkeys(("arms", "ranking", "evaluate"), _MIDDLE),
    "funnel": {"core", "fuse"},
    "serving": {"core", "funnel", "feedback"},
}
EXCEPTIONS = {
    "models.arms": {"fuse", "policy"},
    "models.bandit": {"policy"},
    "models.clicked": {"data", "policy"},
    "models.depth_network": {"policy"},
    "models.fusion": {"policy"},
    "data.rounds": {"feedback"},
}  # module -> floors beside its floor's
ANYTHING = {
    "system",
    "settings",
    "learned",
    "tuning",
    "cli",
    "context",
}  # the composition roots: of search and of training
ONLY = {
    "core": {"numpy"},
    "config": {"yaml", "pydantic"},
}  # floor -> third-party packages, where the rest is the standard library
TORCH = {"torch", "pytorch_lightning", "transformers", "sentence_transformers"}  # each takes torch along
TRAINING = {"cli", "data.pairs", "data.rounds"}  # Lightning's own, beside models
PICKLE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


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


def floors_of(source: str) -> set[str]:
    """Names right below `ltrr` that a file imports; `from ltrr import __version__` is none."""
    below = {name.split(".")[1] for name in imports_of(source) if name.startswith("ltrr.")}
    return {name for name in below if not name.startswith("__")}


def wrong_imports(module: str, source: str) -> set[str]:
    floor = module.split(".")[0]
    if floor in ANYTHING:
        return set()
    assert floor in FLOORS, f"{floor!r} is no floor of ARCHITECTURE.md: put it into the table, or the file elsewhere"
    return floors_of(source) - FLOORS[floor] - EXCEPTIONS.get(module, set()) - {floor}


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
def test_torch_stays_in_models(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports_of(path.read_text())}
    if module_of(path).split(".")[0] != "models" and module_of(path) not in TRAINING:
        assert tops.isdisjoint(TORCH)
    if (floor := module_of(path)) in ONLY:
        assert tops - set(sys.stdlib_module_names) - {"ltrr"} <= ONLY[floor]


@pytest.mark.parametrize("path", [*MODULES, *ENTRIES], ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_nothing_is_unpickled(path: Path) -> None:
    source = path.read_text()
    assert {name.split(".")[0] for name in imports_of(source)}.isdisjoint(PICKLE)
    assert unsafe_loads(source) == []


def test_files_can_be_read_in_one_sitting() -> None:
    lines = {module_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {module: num for module, num in lines.items() if num > 350} == {}
    assert sum(n for module, n in lines.items() if not module.startswith("data.catalogue")) <= 15_000  # ARCHITECTURE.md
    assert lines["funnel"] <= 150
    scripts = {path.name: len(path.read_text().splitlines()) for path in ENTRIES}
    assert {name: num for name, num in scripts.items() if num > 350} == {}


def test_the_rules_catch_what_breaks_them() -> None:
    inside = "def f():\n    from ltrr.index.faiss import FaissIndex\n"
    assert wrong_imports("data.beir", inside) == {"index"}  # an import within a function is an import
    assert wrong_imports("arms.dense", inside) == set()
    assert wrong_imports("arms.lexical", "import ltrr.system as s\nfrom ltrr import config") == {"system", "config"}
    assert wrong_imports("arms.dense", "from ltrr.models import backbone") == {"models"}
    assert wrong_imports("models.dense", "from ltrr.policy.explore import x") == {"policy"}
    assert wrong_imports("models.bandit", "from ltrr.policy.explore import x") == set()
    assert wrong_imports("index.manifest", "from ltrr import __version__\nfrom ltrr.index import text") == set()
    assert unsafe_loads("np.load(p)\nnp.load(p, allow_pickle=False)\ntorch.load(p)\njson.load(f)") == [1, 3]
    with pytest.raises(AssertionError, match="no floor"):
        wrong_imports("helpers.strings", "")
