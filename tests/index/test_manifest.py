"""Index folders: whole or refused, whatever is altered and whenever the builder is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ltrr.index.manifest import IndexMissing, IndexRefused, build, copy_folder, open_index, private_copy, work_folder

PROJECT = Path(__file__).parents[2]

# A builder of one index whose content is the number it was given, three files of which one is in a folder.
BUILDER = """
import sys, time
from pathlib import Path
from ltrr.index.manifest import build

def make(root, content, pause=0.0):
    def write(folder):
        (folder / "deep").mkdir()
        for name in ("a", "b", "deep/c"):
            with (folder / name).open("w") as file:
                for _ in range(50):
                    file.write(content)
                    time.sleep(pause)
        return {"documents": int(content)}
    build(Path(root), kind="fake", corpus="corpus-1", model=None, config={"n": 1}, write=write)
"""


def fake_build(root: Path, content: str = "1", **changed) -> Path:
    def write(folder: Path) -> dict[str, int]:
        (folder / "deep").mkdir()
        for name in ("a", "b", "deep/c"):
            (folder / name).write_text(content * 50)
        return {"documents": int(content)}

    made_from = {"kind": "fake", "corpus": "corpus-1", "model": "model-1", "config": {"n": 1, "fields": ("x",)}}
    return build(root, **{**made_from, **changed}, write=write)


def python(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def visible(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {".lock"}


def test_opens_what_was_built(tmp_path):
    folder = fake_build(tmp_path / "new" / "root", "3")
    config = {"n": 1, "fields": ("x",)}  # a tuple in the caller's config is the list in the file
    opened, manifest = open_index(tmp_path / "new" / "root", kind="fake", corpus="corpus-1", config=config)
    assert opened == folder
    assert manifest.counts == {"documents": 3}
    assert sorted(manifest.files) == ["a", "b", "deep/c"]
    assert (opened / "deep" / "c").read_text() == "3" * 50


def test_the_next_build_replaces_and_an_open_file_survives(tmp_path):
    with (fake_build(tmp_path, "1") / "a").open() as old:
        new = fake_build(tmp_path, "2")
        assert old.read() == "1" * 50  # a reader of the old build is not disturbed
    assert visible(tmp_path) == {"CURRENT", new.name}


def truncate(folder: Path) -> None:
    os.truncate(folder / "deep" / "c", 49)


def alter(folder: Path) -> None:
    (folder / "b").write_text("1" * 49 + "2")


def remove(folder: Path) -> None:
    (folder / "a").unlink()


def other_format(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))


def other_seal(folder: Path) -> None:  # whoever alters a file may also alter its checksum in the manifest
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    fields["files"]["a"]["sha256"] = "0" * 64
    path.write_text(json.dumps(fields))


def half_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 40)


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def other_current(folder: Path) -> None:
    (folder.parent / "CURRENT").write_text("build-" + "0" * 24)


def outside_current(folder: Path) -> None:
    (folder.parent / "CURRENT").write_text("../somewhere")


def empty_current(folder: Path) -> None:
    (folder.parent / "CURRENT").write_text("")


@pytest.mark.parametrize(
    ("damage", "culprit"),
    [
        (truncate, r"deep/c was altered: bytes 49, expected 50"),
        (alter, r"file b was altered: sha256"),
        (remove, r"file a is missing"),
        (other_format, r"format: built as 99"),
        (other_seal, r"manifest\.json was altered"),
        (half_manifest, r"manifest\.json is not JSON"),
        (no_manifest, r"has no manifest\.json"),
        (other_current, r"build-0{24}: CURRENT names this build, but it is missing"),
        (outside_current, r"CURRENT holds '\.\./somewhere'"),
        (empty_current, r"CURRENT holds ''"),
    ],
)
def test_damage_is_refused_with_the_culprit_and_the_fix(tmp_path, damage, culprit):
    damage(fake_build(tmp_path))
    with pytest.raises(IndexRefused, match=culprit) as refusal:
        open_index(tmp_path, kind="fake")
    assert str(tmp_path) in str(refusal.value)
    assert "scripts/index.py" in str(refusal.value)


@pytest.mark.parametrize(
    ("asked", "culprit"),
    [
        ({"kind": "other"}, "kind: built from 'fake', asked for 'other'"),
        ({"corpus": "corpus-2"}, "corpus: built from 'corpus-1', asked for 'corpus-2'"),
        ({"model": "model-2"}, "model: built from 'model-1', asked for 'model-2'"),
        ({"config": {"n": 2, "fields": ["x"]}}, "config n: built with 1, asked for 2"),
        ({"config": {"n": 1}}, "config fields: built with .*, asked for None"),
    ],
)
def test_another_origin_is_refused(tmp_path, asked, culprit):
    fake_build(tmp_path)
    with pytest.raises(IndexRefused, match=culprit):
        open_index(tmp_path, **{"kind": "fake", **asked})


def test_nothing_built_is_told_apart(tmp_path):
    with pytest.raises(IndexMissing, match="nothing was built here"):
        open_index(tmp_path / "nowhere", kind="fake")
    (fake_build(tmp_path).parent / "CURRENT").unlink()
    with pytest.raises(IndexMissing, match="CURRENT"):
        open_index(tmp_path, kind="fake")


def test_a_failed_write_leaves_the_old_build(tmp_path):
    old = fake_build(tmp_path)

    def write(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        build(tmp_path, kind="fake", corpus="c", model=None, config={}, write=write)
    assert open_index(tmp_path, kind="fake")[0] == old


# Kills itself before its n-th file operation, for every n until the build gets through, and opens the index each time.
EVERY_MOMENT = (
    BUILDER
    + """
import os, signal
from ltrr.index.manifest import open_index
root = Path(sys.argv[1])
watched = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")
make(root, "1")
n, dead = 0, True
while dead:
    n += 1
    child = os.fork()
    if child == 0:
        seen = 0
        def hook(event, arguments):
            global seen
            if event in watched:
                seen += 1
                if seen == n:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        make(root, "2" if n % 2 else "1")
        os._exit(0)
    dead = os.waitpid(child, 0)[1] != 0
    folder, manifest = open_index(root, kind="fake")
    assert (folder / "deep" / "c").read_text() == str(manifest.counts["documents"]) * 50
    assert dead or manifest.counts["documents"] == (2 if n % 2 else 1)
print(n - 1)
"""
)


def test_killed_before_any_file_operation_an_index_opens(tmp_path):
    output, _ = (process := python(EVERY_MOMENT, tmp_path)).communicate(timeout=60)
    assert process.returncode == 0
    assert int(output) > 30  # that many moments were tried
    assert len(visible(tmp_path)) == 2  # and the last build, which got through, swept what all the dead ones left


def test_killed_from_outside_at_random_moments_an_index_opens(tmp_path):
    moments = random.Random(7)
    old = fake_build(tmp_path, "1")
    kills = 0
    while kills < 10:
        process = python(BUILDER + "print('go', flush=True); make(sys.argv[1], '2', 0.001)", tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.16))  # the build takes .15 s or more
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        folder, manifest = open_index(tmp_path, kind="fake")
        assert folder == old or manifest.counts == {"documents": 2}
    new = fake_build(tmp_path, "3")
    assert visible(tmp_path) == {"CURRENT", new.name}


def test_concurrent_builders_take_turns(tmp_path):
    code = BUILDER + "[make(sys.argv[1], sys.argv[2]) for _ in range(5)]"
    builders = [python(code, tmp_path, content) for content in (1, 2, 3)]
    opened = 0
    while any(builder.poll() is None for builder in builders):
        if (tmp_path / "CURRENT").exists():  # readers see whole indexes only, while builds are switched under them
            open_index(tmp_path, kind="fake")
            opened += 1
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert opened > 0
    folder, manifest = open_index(tmp_path, kind="fake")
    assert (folder / "a").read_text() == str(manifest.counts["documents"]) * 50
    assert visible(tmp_path) == {"CURRENT", folder.name}


def test_partial_work_survives_until_a_build_succeeds(tmp_path):
    (work_folder(tmp_path, "a") / "part").write_text("done")
    assert (work_folder(tmp_path, "a") / "part").read_text() == "done"
    fresh = work_folder(tmp_path, "b")
    assert [path.name for path in fresh.parent.iterdir()] == [fresh.name]  # the work of another key is swept
    fake_build(tmp_path)
    assert not fresh.exists()


COPIER = """
import sys, time
from pathlib import Path
from ltrr.index.manifest import private_copy
copy = private_copy(Path(sys.argv[1]), Path(sys.argv[2]))
(copy / "a").write_text("changed")
print(copy, flush=True)
sys.stdin.read() if sys.argv[3] == "wait" else None
"""


def copier(folder: Path, root: Path, then: str) -> tuple[subprocess.Popen, Path]:
    command = [sys.executable, "-c", COPIER, str(folder), str(root), then]
    process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_private_copies_live_as_long_as_their_process(tmp_path):
    sealed = fake_build(tmp_path)
    leaver, left = copier(sealed, tmp_path, "leave")
    assert leaver.wait() == 0
    assert not left.exists()  # removed at exit

    killed, orphan = copier(sealed, tmp_path, "wait")
    killed.kill()
    killed.wait()
    assert orphan.exists()
    living, held = copier(sealed, tmp_path, "wait")
    ours = private_copy(sealed, tmp_path)
    assert not orphan.exists()  # swept by the next call
    assert held.exists()  # its process lives
    assert (ours / "a").read_text() == "1" * 50
    assert open_index(tmp_path, kind="fake")[0] == sealed  # the sealed folder was not changed by the copies' holders
    living.communicate("")
    assert private_copy(sealed, tmp_path) != ours


def test_a_copy_has_every_byte_and_no_room_for_zeros(tmp_path):
    # tails and lengths around a block, whatever its size
    rng = np.random.default_rng(0)
    parts = [b"", b"x", bytes(5), rng.bytes(70_000), bytes(3_000_000) + b"x", rng.bytes(65_536) + bytes(65_536)]
    (tmp_path / "from" / "deep").mkdir(parents=True)
    for n, content in enumerate(parts):
        (tmp_path / "from" / "deep" / str(n)).write_bytes(content)
    copy_folder(tmp_path / "from", tmp_path / "to")
    assert [(tmp_path / "to" / "deep" / str(n)).read_bytes() for n in range(len(parts))] == parts
    assert (tmp_path / "to" / "deep" / "4").stat().st_blocks * 512 < 1_000_000
