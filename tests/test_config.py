"""Configs: overrides, mistakes that are named, and the YAML files that come with the project."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltrr.config import INJECTED, KEYS, ConfigError, check_known, construct, find_class, load_config
from ltrr.data.beir import Corpus, Document
from ltrr.system.parts import LOADERS

INJECTABLE = {"corpus": Corpus.from_documents([Document("d", "title", "text", {})])}
CONFIGS = Path(__file__).parents[1] / "configs"
KNOWN: dict[str, set[str] | None] = {"data": {"path", "fields"}, "arms": None, "policy": {"depths", "cut"}}
YAML = """
data: {path: here}
arms:
  lexical: {class: some.Lexical, k1: 1.2}
policy:
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "one.yaml"
    path.write_text(YAML)
    return path


def test_without_overrides_it_is_the_file(path: Path) -> None:
    assert load_config(path, [], KNOWN) == yaml.safe_load(YAML)


@pytest.mark.parametrize(
    ("overrides", "where", "value"),
    [
        (["--data.path", "there"], ["data", "path"], "there"),
        (["--arms.lexical.k1", "0.9"], ["arms", "lexical", "k1"], 0.9),  # values are YAML
        (["--arms.lexical.boosts", "{title: 2}"], ["arms", "lexical", "boosts"], {"title": 2}),
        (["--data.fields", "null"], ["data", "fields"], None),
        (["--policy.cut", "50"], ["policy", "cut"], 50),  # below a null
        (["--policy.depths.lexical", "7"], ["policy", "depths", "lexical"], 7),  # two new levels
        (["--arms.new.class", "my.Arm"], ["arms", "new", "class"], "my.Arm"),
        (["--data.path", "--strange"], ["data", "path"], "--strange"),
        (["--data.path", "a", "--data.path", "b"], ["data", "path"], "b"),  # the last one wins
        (["--arms.my-arm.k", "1"], ["arms", "my-arm", "k"], 1),  # a name is kept as it is
    ],
)
def test_overrides(path: Path, overrides: list[str], where: list[str], value: Any) -> None:
    changed: Any = load_config(path, overrides, KNOWN)
    for key in where:
        changed = changed[key]
    assert changed == value
    assert load_config(path, overrides, KNOWN)["arms"]["lexical"]["class"] == "some.Lexical"  # the rest stays


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--data.path"], "overrides come in pairs `--key.key value`, got: --data.path"),
        (["--data.path", "a", "left"], "overrides come in pairs"),
        (["data.path", "a"], "overrides come in pairs"),
        (["--data.path=a"], "overrides come in pairs"),
        (["--date.path", "a"], "unknown key 'date'; did you mean 'data'?"),
        (["--data.paths", "a"], "data: unknown key 'paths'; did you mean 'path'? Known: fields, path"),
        (["--data.path.deeper", "a"], "'path' holds a value, nothing can be set below it"),
        (["--data", "a"], "data is 'a', must be a mapping of fields, path"),
        (["--policy.cut", "[1"], "--policy.cut: '[1' is not YAML"),
    ],
)
def test_a_wrong_override_is_named(path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, KNOWN)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  - [", "one.yaml: not YAML: "),
        ("data:\n  - [", "line 2"),
        ("", "one.yaml: must be a mapping of data, arms, policy"),
        ("- data", "one.yaml: must be a mapping"),
        ("arm: {}", "one.yaml: unknown key 'arm'; did you mean 'arms'?"),
        ("quantum: {}", "unknown key 'quantum'. Known: arms, data, policy"),
        ("data: {pth: x}", "one.yaml: data: unknown key 'pth'; did you mean 'path'?"),
        ("policy: fixed", "policy is 'fixed', must be a mapping of cut, depths"),
        ("1: {}", "unknown key 1"),
    ],
)
def test_a_wrong_file_is_named(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [], KNOWN)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file; .* in configs/"):
        load_config(tmp_path / "nowhere.yaml", [], KNOWN)


class Part:
    def __init__(self, size: int, *, name: str = "x"):
        if size < 0:
            raise ValueError("size is below 0")
        self.size, self.name = size, name


def test_construct_checks_arguments_against_the_signature() -> None:
    assert construct("arms.p", Part, {"size": 3, "name": "y"}).name == "y"
    with pytest.raises(ConfigError, match=r"arms\.p: unknown key 'sise'; did you mean 'size'"):
        construct("arms.p", Part, {"sise": 3})
    with pytest.raises(ConfigError, match=r"arms\.p: .*missing 1 required positional argument: 'size'"):
        construct("arms.p", Part, {})
    with pytest.raises(ValueError, match="size is below 0"):  # what a constructor says itself comes through
        construct("arms.p", Part, {"size": -1})


def test_find_class() -> None:
    assert find_class("arms.a", "ltrr.config.ConfigError") is ConfigError
    for wrong in ("ltrr.config.Nothing", "ltrr.nowhere.Arm", "Arm", ""):
        with pytest.raises(ConfigError, match=f"arms.a.class: cannot import '{wrong}'.*package.module.Class"):
            find_class("arms.a", wrong)


def test_check_known() -> None:
    check_known("here", "a", ["a", "b"])
    with pytest.raises(ConfigError, match=r"here: unknown key 'c'\. Known: a, b"):
        check_known("here", "c", ["b", "a"])


# The files that come with the project. Those with a `model` are read by others: test_train.py and
# test_simulate_policy.py parse and run them.


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.glob("**/*.yaml")) if "model" not in yaml.safe_load(path.read_text())],
    ids=lambda path: path.stem,
)
def test_every_config_loads_and_its_parts_construct(path: Path) -> None:
    config = load_config(path, [], KEYS)
    assert config["arms"]
    parts = {f"arms.{name}": (spec, "search") for name, spec in config["arms"].items()}
    parts |= {"ranker": (config["ranker"], "rank")} if config.get("ranker") else {}
    for where, (spec, method) in parts.items():
        arguments = dict(spec)
        cls = find_class(where, arguments.pop("class"))
        asked = set(inspect.signature(cls).parameters)
        if asked & set(LOADERS):  # the system makes it from these two
            arguments = {key: value for key, value in arguments.items() if key not in ("model", "encoder")}
        if hasattr(cls, "tune") or hasattr(cls, "tune_on"):
            arguments = {key: value for key, value in arguments.items() if key != "tune" and value is not None}
        injected = {name: INJECTABLE.get(name, object()) for name in asked & set(INJECTED)}
        assert callable(getattr(construct(where, cls, arguments | injected), method))
    named = [*((config.get("fusion") or {}).get("arms") or ()), *((config.get("policy") or {}).get("depths") or ())]
    assert set(named) <= set(config["arms"])


def test_the_service_starts_on_what_quickstart_built() -> None:
    serve, quickstart = (load_config(CONFIGS / f"{name}.yaml", [], KEYS) for name in ("serve", "quickstart"))
    assert serve["arms"].pop("memory")  # which learns from what the service keeps
    for section in ("data", "cache", "arms", "tune", "fusion", "ranker"):  # a cache is keyed by these
        assert serve[section] == quickstart[section]
    assert set(serve) == set(quickstart) | {"serve"}


def test_configs_wait_for_models_that_training_makes() -> None:
    """One config serves before and after: two overrides turn the sparse arm and the ranker on."""
    for name in ("funnel", "serve", "quickstart"):
        config = load_config(CONFIGS / f"{name}.yaml", [], KEYS)
        assert config["arms"]["sparse"]["model"] is None
        assert config["ranker"]["model"] is None
