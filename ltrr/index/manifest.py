"""Builds and opens sealed index folders: builds switch atomically, and a damaged or unsuitable index is refused.

Knows folders, files, JSON and locks; does not know the contents of an engine's files.

    <root>/CURRENT            the id of the current build
    <root>/<build id>/        the engine's files and manifest.json; never changed once CURRENT names it
    <root>/.tmp-*/            an unfinished build, running or killed
    <root>/.work/<key>/       partial work that the next build with the same key resumes
    <root>/.private/<pid>-<n> copies for engines that change their own files
    <root>/.lock              held by the builder

A build id is a checksum of the manifest, and the manifest holds the files' checksums: CURRENT determines every byte.
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
_LEFTOVERS = re.compile(rf"{_BUILD_ID.pattern}|\.tmp-.*")  # names that a killed builder can leave in a root
_BLOCK = 1 << 16  # bytes
_REBUILD = "Rebuild it: python scripts/index.py --config FILE --data DATA --out DIR"


class IndexRefused(ValueError):
    """Raised for an index that must not be used; the message names the folder, the cause and the fix."""


class IndexMissing(IndexRefused):
    """Raised if nothing was ever built in this root."""


@dataclass(frozen=True)
class Manifest:
    """Sources and files of a build."""

    format: int
    kind: str  # "dense", "lexical", …
    corpus: str  # fingerprint of the corpus
    model: str | None  # encoder id, weights' sha256 included; None = no model
    config: dict  # JSON-able build options
    counts: dict[str, int]  # reported by the engine, e.g. documents
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
    """Builds an index, makes it current, and returns its folder.

    `write(folder)` puts the files into an empty folder and returns its counts. If the process is killed, the previous
    build stays current. Builders of the same root run one after another, and the last one wins. Readers of the
    previous build keep their open files after it is deleted.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / ".lock"):
        # 1) Remove the leftovers of killed builders: nobody else builds while we hold the lock.
        _sweep(root)

        # 2) Write under a temporary name.
        folder = root / f".tmp-{uuid.uuid4().hex}"
        folder.mkdir()
        counts = write(folder)
        assert not (folder / "manifest.json").exists(), "the name is reserved: an engine's own goes into a subfolder"
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

        # 3) Flush to disk: files before the folders that list them.
        _fsync(folder / "manifest.json")
        for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
            _fsync(path)

        # 4) Switch: the previous build stays current until the last os.replace.
        final = root / _build_id(text)
        folder.rename(final)
        pointer = root / f".tmp-{uuid.uuid4().hex}"
        pointer.write_text(final.name, encoding="utf-8")
        _fsync(pointer)
        _fsync(root)
        os.replace(pointer, root / "CURRENT")
        _fsync(root)

        # 5) Remove the previous build and the partial work.
        _sweep(root)
        shutil.rmtree(root / ".work", ignore_errors=True)
    return final


def open_index(
    root: Path, *, kind: str, corpus: str | None = None, model: str | None = None, config: dict | None = None
) -> tuple[Path, Manifest]:
    """Checks every file of the current build, and returns its folder and manifest. Arguments of None are not compared.

    Raises `IndexMissing` if nothing was built, and `IndexRefused` for another format, kind, corpus, model or config,
    or if a file is missing, truncated or altered.
    """
    expected = {"kind": kind, "corpus": corpus, "model": model, "config": config}
    name = _current(root)
    while True:
        try:
            return root / name, _verified(root / name, expected)
        except IndexRefused:
            newer = _current(root)  # a builder may have switched and deleted this build while we read it
            if newer == name:
                raise
            name = newer


def work_folder(root: Path, key: str) -> Path:
    """Returns the folder for partial work of this key, with what a killed build left; deletes those of other keys.

    Call it inside `write`, where the lock excludes other builders. `build` deletes the folder when it succeeds.
    """
    folder = root / ".work" / hashlib.sha256(key.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


_copy_numbers = itertools.count()


def private_copy(folder: Path, root: Path) -> Path:
    """Copies a sealed folder under root/.private, for an engine that changes its files.

    The copy is deleted when this process exits (the caller may delete it earlier). Each call deletes the copies of
    killed processes, whose locks the kernel has released.
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
    assert descriptor is not None, "the name contains our pid, so no other process can hold the lock"
    atexit.register(_discard, copy, lock, descriptor, os.getpid())
    copy_folder(folder, copy)
    return copy


def copy_folder(source: Path, target: Path) -> None:
    """Copies like shutil.copytree, but turns blocks of zeros into holes: engines reserve more space than they fill."""
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
    """Checks a build's manifest, sources and files, and returns the manifest."""

    def refuse(problem: str) -> IndexRefused:
        return IndexRefused(f"index {folder}: {problem}.\n{_REBUILD}")

    # 1) Check the manifest itself.
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
        actual = fields.get("format") if isinstance(fields, dict) else None
        raise refuse(f"format: built as {actual!r}, this version of ltrr reads {FORMAT!r}")
    if _build_id(text) != folder.name:
        raise refuse("manifest.json was altered after the build")
    manifest = Manifest(**fields)

    # 2) Check what it was built from.
    for name, wanted in expected.items():
        actual = getattr(manifest, name)
        if wanted is None:
            continue
        if name != "config":
            if actual != wanted:
                raise refuse(f"{name}: built from {actual!r}, asked for {wanted!r}")
            continue
        wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in the file
        for key in sorted(actual.keys() | wanted.keys()):
            if actual.get(key) != wanted.get(key):
                raise refuse(f"config {key}: built with {actual.get(key)!r}, asked for {wanted.get(key)!r}")

    # 3) Check every file: presence and size first, which is cheap.
    for check in ("bytes", "sha256"):
        for name, seal in manifest.files.items():
            try:
                actual = (folder / name).stat().st_size if check == "bytes" else _sha256(folder / name)
            except FileNotFoundError:
                raise refuse(f"file {name} is missing") from None
            if actual != seal[check]:
                raise refuse(f"file {name} was altered: {check} {actual}, expected {seal[check]}")
    return manifest


def _current(root: Path) -> str:
    """Reads the build id in CURRENT."""
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
    """Flushes a file to disk and returns its size and checksum."""
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
    """Deletes every build except the current one, and ignores failures. The caller must hold the lock."""
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
    """Holds an exclusive lock, which the kernel releases if the process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(path: Path) -> int | None:
    """Locks this file and returns the descriptor that holds the lock, or None if it is locked already."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _discard(copy: Path, lock: Path, descriptor: int, owner: int) -> None:
    """Deletes a private copy in the process that owns it; forked children run the same exit hooks and must not."""
    if os.getpid() == owner:
        shutil.rmtree(copy, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)
