"""Index folders that are either whole or refused: atomic switch, checksums, leftovers swept, no pickle.

Knows folders, files, JSON and locks; knows nothing about what an engine writes into its files.

    <root>/CURRENT            the id of the build in use
    <root>/<build id>/        the engine's files and manifest.json; never changed once CURRENT names it
    <root>/.tmp-*/            a build under way, or left by a killed one
    <root>/.work/<key>/       partial work that the next build of the same key resumes
    <root>/.private/<pid>-<n> copies for engines that change their own files
    <root>/.lock              held by the one builder

A build id is a checksum of its manifest, which holds the checksums of the files, so CURRENT vouches for every byte.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ltrr import __version__

FORMAT = 1
_BUILD_ID = re.compile(r"build-[0-9a-f]{24}")
_LEFTOVERS = re.compile(rf"{_BUILD_ID.pattern}|\.tmp-.*")  # what a dead builder can leave in a root
_BLOCK = 1 << 16  # bytes
_REBUILD = "Rebuild it: python scripts/index.py --config FILE --data DATA --out DIR"


class IndexRefused(ValueError):
    """An index that must not be used; the message names the folder, the culprit and the fix."""


class IndexMissing(IndexRefused):
    """Nothing was ever built in this root."""


@dataclass(frozen=True)
class Manifest:
    """What a build was made from and what it consists of."""

    format: int
    kind: str  # "dense", "lexical", …
    corpus: str  # fingerprint of the corpus
    model: str | None  # encoder id, weights' sha256 included; None = no model
    config: dict  # JSON-able build options
    counts: dict[str, int]  # whatever the engine counted, e.g. documents
    files: dict[str, dict]  # path relative to the build -> {"bytes", "sha256"}
    created: str  # UTC, ISO 8601
    ltrr: str  # version of this package


def build(
    root: Path,
    *,
    kind: str,
    corpus: str,
    model: str | None,
    config: dict,
    write: Callable[[Path], dict[str, int]],
) -> Path:
    """Builds an index and makes it the current one; returns its folder.

    `write(folder)` puts the files into an empty folder and returns its counts. A process killed at any moment leaves
    the previous build current. Builders of the same root wait for each other, and the last one wins. A reader that
    has opened the previous build keeps its open files, although their names are gone.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / ".lock"):
        # 1) We hold the lock: whatever is neither current nor ours was left by the dead.
        _sweep(root)

        # 2) Write under a temporary name.
        folder = root / f".tmp-{uuid.uuid4().hex}"
        folder.mkdir()
        counts = write(folder)
        assert not (folder / "manifest.json").exists(), "the name is ours: an engine's own goes into a subfolder"
        manifest = Manifest(
            format=FORMAT,
            kind=kind,
            corpus=corpus,
            model=model,
            config=config,
            counts=counts,
            files={p.relative_to(folder).as_posix(): _seal(p) for p in sorted(folder.rglob("*")) if p.is_file()},
            created=datetime.now(UTC).isoformat(),
            ltrr=__version__,
        )
        text = json.dumps(asdict(manifest), indent=1)
        (folder / "manifest.json").write_text(text, encoding="utf-8")

        # 3) To the disk, files before the folders that name them.
        _fsync(folder / "manifest.json")
        for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
            _fsync(path)

        # 4) Switch: until the last os.replace the previous build is the current one.
        final = root / _build_id(text)
        folder.rename(final)
        pointer = root / f".tmp-{uuid.uuid4().hex}"
        pointer.write_text(final.name, encoding="utf-8")
        _fsync(pointer)
        _fsync(root)
        os.replace(pointer, root / "CURRENT")
        _fsync(root)

        # 5) The previous build and the partial work are of no more use.
        _sweep(root)
        shutil.rmtree(root / ".work", ignore_errors=True)
    return final


def open_index(
    root: Path, *, kind: str, corpus: str | None = None, model: str | None = None, config: dict | None = None
) -> tuple[Path, Manifest]:
    """The current build's folder and manifest, after every file was checked. What is None is not compared.

    Raises `IndexMissing` where nothing was built and `IndexRefused` for another format, kind, corpus, model or
    config, and for a file that is missing, truncated or altered.
    """
    expected = {"kind": kind, "corpus": corpus, "model": model, "config": config}
    name = _current(root)
    while True:
        try:
            return root / name, _verified(root / name, expected)
        except IndexRefused:
            newer = _current(root)  # a builder may have switched, and removed this build, while we were reading it
            if newer == name:
                raise
            name = newer


def work_folder(root: Path, key: str) -> Path:
    """A folder for the partial work of this key, as a killed build left it; other keys' folders are removed.

    To be called inside `write`, where the lock keeps other builders out; `build` removes it when it succeeds.
    """
    folder = root / ".work" / hashlib.sha256(key.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


_copy_numbers = itertools.count()


def private_copy(folder: Path, root: Path) -> Path:
    """A copy of a sealed folder under root/.private, for an engine that changes its files.

    Removed when this process exits (its holder may remove it earlier); copies of killed processes are removed by the
    next call, which knows them by a lock that died with its process.
    """
    home = root / ".private"
    home.mkdir(parents=True, exist_ok=True)
    copy = home / f"{os.getpid()}-{next(_copy_numbers)}"
    lock = copy.with_suffix(".lock")
    with _locked(home / "lock"):
        for other in home.glob("*.lock"):
            if (descriptor := _try_lock(other)) is not None:
                _discard(other.with_suffix(""), other, descriptor, os.getpid())
        descriptor = _try_lock(lock)
    assert descriptor is not None, "the name holds our pid and is swept: nobody else can hold it"
    atexit.register(_discard, copy, lock, descriptor, os.getpid())
    copy_folder(folder, copy)
    return copy


def copy_folder(source: Path, target: Path) -> None:
    """Like shutil.copytree, but blocks of zeros become holes: engines reserve far more than a small index fills."""
    shutil.copytree(source, target, copy_function=_copy_file)


def _copy_file(source: str, target: str) -> None:
    zeros = bytes(_BLOCK)
    with open(source, "rb") as read, open(target, "wb") as write:
        while block := read.read(_BLOCK):
            if block == zeros[: len(block)]:
                write.seek(len(block), os.SEEK_CUR)
            else:
                write.write(block)
        write.truncate()
    shutil.copymode(source, target)


def _verified(folder: Path, expected: dict) -> Manifest:
    """The manifest of a folder that is whole and as expected."""

    def refuse(problem: str) -> IndexRefused:
        return IndexRefused(f"index {folder}: {problem}.\n{_REBUILD}")

    # 1) The manifest itself.
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        fields = json.loads(text)
    except FileNotFoundError:
        raise refuse(
            "CURRENT names this build, but it has no manifest.json"
            if folder.is_dir()
            else "CURRENT names this build, but it is missing"
        ) from None
    except ValueError as error:
        raise refuse(f"manifest.json is not JSON ({error})") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else None
        raise refuse(f"format: built as {found!r}, this version of ltrr reads {FORMAT!r}")
    if _build_id(text) != folder.name:
        raise refuse("manifest.json was altered after the build")
    manifest = Manifest(**fields)

    # 2) What it was built from.
    for name, wanted in expected.items():
        found = getattr(manifest, name)
        if wanted is None:
            continue
        if name != "config":
            if found != wanted:
                raise refuse(f"{name}: built from {found!r}, asked for {wanted!r}")
            continue
        wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in the file
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                raise refuse(f"config {key}: built with {found.get(key)!r}, asked for {wanted.get(key)!r}")

    # 3) Every file: presence and size first, they are cheap.
    for check in ("bytes", "sha256"):
        for name, seal in manifest.files.items():
            try:
                found = (folder / name).stat().st_size if check == "bytes" else _sha256(folder / name)
            except FileNotFoundError:
                raise refuse(f"file {name} is missing") from None
            if found != seal[check]:
                raise refuse(f"file {name} was altered: {check} {found}, expected {seal[check]}")
    return manifest


def _current(root: Path) -> str:
    """The build id that CURRENT holds."""
    try:
        name = (root / "CURRENT").read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise IndexMissing(f"index {root}: nothing was built here (no file CURRENT).\n{_REBUILD}") from None
    if not _BUILD_ID.fullmatch(name):
        raise IndexRefused(f"index {root}: CURRENT holds {name[:40]!r}, which is no build id.\n{_REBUILD}")
    return name


def _build_id(manifest_text: str) -> str:
    return f"build-{hashlib.sha256(manifest_text.encode()).hexdigest()[:24]}"


def _seal(path: Path) -> dict:
    """Size and checksum of a file, which is on the disk when this returns."""
    _fsync(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Removes every build but the current one, as far as possible. The lock must be held."""
    try:
        current = _current(root)
    except IndexRefused:
        current = None
    for path in root.iterdir():
        if path.name != current and _LEFTOVERS.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the kernel drops when the process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock on this file, or None while another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _discard(copy: Path, lock: Path, descriptor: int, owner: int) -> None:
    """In its owner only: a forked child runs the same hooks at exit."""
    if os.getpid() == owner:
        shutil.rmtree(copy, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)
