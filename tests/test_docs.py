"""The reference of docs/ covers all packages; `make docs` checks the rest (links, docstrings)."""

import re

from tests.helpers import ROOT
from tests.test_floors import FLOORS


def test_every_package_has_a_page_in_the_reference() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md")}
    shown = {name: re.findall(r"^::: ltrr\.(\w+)$", text, re.M) for name, text in texts.items() if name != "index"}
    assert shown == {f"ltrr.{name}": [name] for name in set.union(*FLOORS)}
