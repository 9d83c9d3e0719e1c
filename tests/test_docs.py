"""The reference of docs/ covers all packages, files named in texts exist; `make docs` checks links and docstrings."""

import re

from tests.helpers import ROOT
from tests.test_floors import FLOORS


def test_every_package_has_a_page_in_the_reference() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md")}
    shown = {name: re.findall(r"^::: ltrr\.(\w+)$", text, re.M) for name, text in texts.items() if name != "index"}
    assert shown == {f"ltrr.{name}": [name] for name in set.union(*FLOORS)}


def test_files_that_texts_and_docstrings_name_exist() -> None:
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    texts += [path for folder in ("ltrr", "scripts") for path in (ROOT / folder).rglob("*.py")]
    for path in texts:
        for name in re.findall(r"\b(?:configs|ltrr|scripts)/[\w/]+\.(?:py|yaml)", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path} names {name}"
