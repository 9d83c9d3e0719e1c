"""Arms of one data set and their indexes: what is there, built, opened, and by what a cache tells builds apart.

Knows arms' classes, index folders and what tuning gives; does not know fusion, policies or rankers.

    <folder>/index/<arm>-<key>/   what the arm's `build` writes (index/manifest.py)
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ltrr.config import ConfigError, check_known, construct
from ltrr.data.beir import Corpus
from ltrr.files import content_key
from ltrr.index.manifest import IndexMissing, IndexRefused
from ltrr.protocols import Arm, Indexed, TunableArm, offers
from ltrr.system.parts import Parts, class_of, is_absent
from ltrr.system.tuning import Tuning, trained_on


class Indexes:
    """The arms that a config names.

    Args:
        specs: name -> section (class and arguments).
        folder: of all that is cached for this data set.
        tuning: fits what arms' arguments leave free; None = nothing is fitted.
    """

    def __init__(
        self, corpus: Corpus, specs: Mapping[str, Mapping[str, Any]], folder: Path, parts: Parts, tuning: Tuning | None
    ) -> None:
        self.corpus, self.specs, self.folder, self._parts, self.tuning = corpus, specs, folder, parts, tuning
        self.arm = cache(self._open)  # name -> opened arm
        self._plan = cache(self._planned)  # name -> class, arguments, folder

    def usable(self) -> list[str]:
        """Arms whose model is set, without metadata arms if the corpus has no metadata."""
        there = [name for name, spec in self.specs.items() if not is_absent(spec)]
        return [n for n in there if self.corpus.fields or not self._trait(n, "needs_fields", False)]

    def kind(self, name: str) -> str:
        """The kind of source that an arm is, such as `dense`; its name where its class does not say."""
        return self._trait(name, "source_kind", name)

    def gives_probabilities(self, name: str) -> bool:
        """Whether an arm's scores are probabilities, which fusion does not scale."""
        return self._trait(name, "probabilities", False)

    def _trait(self, name: str, what: str, default: Any) -> Any:
        return trait(class_of(f"arms.{name}", self.specs[name]), what, default)

    def build(self, name: str, *, report: Callable[[str], None] = print, rebuild: bool = False) -> None:
        """Builds an arm's index where it is missing or refused."""
        arm, root = self.make(name)
        if (indexed := offers(arm, Indexed)) is None:
            return
        try:
            if rebuild:
                raise IndexRefused("asked to rebuild")
            indexed.open(self.corpus, root)
            report(f"{name}: up to date in {root}")
        except IndexMissing:
            self._built(name, indexed, root, report)
        except IndexRefused as problem:
            report(f"{name}: {problem}")
            self._built(name, indexed, root, report)

    def make(self, name: str) -> tuple[Any, Path]:
        """An arm that is not opened yet, and its index folder."""
        cls, spec, root = self._plan(name)
        return construct(f"arms.{name}", cls, self._parts.arguments(f"arms.{name}", cls, spec)), root

    def identity(self, name: str) -> list[str]:
        """What an opened arm's scores depend on: class, arguments and the build in use (which vouches for a model)."""
        root = self._plan(name)[2]
        current = root / "CURRENT"
        return [root.name, current.read_text() if current.exists() else ""]

    def _built(self, name: str, arm: Indexed, root: Path, report: Callable[[str], None]) -> None:
        start = time.perf_counter()
        arm.build(self.corpus, root)
        report(f"{name}: {len(self.corpus):,} documents in {time.perf_counter() - start:.1f} s, {root}")

    def _open(self, name: str) -> Arm:
        arm, root = self.make(name)
        if (indexed := offers(arm, Indexed)) is None:
            return arm
        try:
            opened: Any = indexed.open(self.corpus, root)
        except IndexMissing:
            self.build(name)
            opened = indexed.open(self.corpus, root)
        return opened

    def _planned(self, name: str) -> tuple[type, dict[str, Any], Path]:
        """An arm's class, its arguments (tuned ones where the config leaves them free) and its index folder."""
        check_known("arms", name, self.specs)
        where, spec = f"arms.{name}", dict(self.specs[name])
        if is_absent(spec):
            raise ConfigError(f"{where}.model is null, so there is no such arm; give --{where}.model FOLDER")
        cls = class_of(where, spec)
        del spec["class"]
        if (tune := spec.pop("tune", True)) not in (True, False, "fusion"):
            raise ConfigError(f"{where}.tune: {tune!r} is none of true, false, fusion (on the queries of fusion)")
        free = inspect.signature(cls).parameters.keys() - spec.keys()
        if self.tuning and issubclass(cls, TunableArm) and tune and free:
            in_domain = trained_splits([spec], self.corpus.fingerprint)
            spec = self._tuned(name, cls, spec, "fusion" if tune == "fusion" or in_domain else "arms") | spec
        key = content_key(name, *basis(cls, spec, self.corpus), spec)
        return cls, spec, self.folder / "index" / f"{name}-{key}"

    def _tuned(self, name: str, cls: type, spec: Mapping[str, Any], purpose: str) -> dict[str, Any]:
        assert self.tuning
        judged = self.tuning.judged(purpose)
        if not judged.queries:
            return {}

        def fit() -> dict[str, Any]:
            where = f"arms.{name}"
            arm = construct(where, cls, self._parts.arguments(where, cls, spec))
            return arm.tune(self.corpus, judged.queries, judged.qrels, given=set(spec))

        return self.tuning.fitted(name, (basis(cls, spec, self.corpus), spec, judged.key), fit, judged.name)


def basis(cls: type, spec: Mapping[str, Any], corpus: Corpus) -> tuple:
    """What every cached file of a part depends on beside its arguments.

    A class bumps its `revision` when what it builds or tunes changes, so that older caches are not used, and its
    `content(arguments)` are checksums of the files that its arguments name.
    """
    content = checksums(spec) if (checksums := trait(cls, "content", None)) else ()
    return cls.__module__, cls.__qualname__, trait(cls, "revision", 1), sorted(corpus.fields.items()), *content


def trained_splits(specs: Iterable[Mapping[str, Any]], fingerprint: str) -> list[str]:
    """Splits of the data set of this fingerprint on whose queries the models of these sections were trained."""
    notes = [trained_on(value) for spec in specs for value in spec.values() if isinstance(value, str)]
    learned = [each for note in notes if note for each in (note, *note.get("origins", []))]
    return sorted({split for each in learned if each["data"] == fingerprint for split in each["splits"]})


def trait(cls: type, name: str, default: Any) -> Any:
    """What a class says of all its parts, in an attribute that it need not have."""
    return getattr(cls, name, default)
