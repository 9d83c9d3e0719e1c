"""Prints what a query may mean, and what each arm and the whole funnel answer.

python scripts/explain.py "tayler love" [--config configs/quickstart.yaml] [--data FOLDER]
"""

from __future__ import annotations

from typing import Any

from ltrr.arms.structured import Structured
from ltrr.cli.arguments import arguments, main
from ltrr.protocols import Explaining, offers
from ltrr.system.system import System, open_systems
from ltrr.types import Query


def interpretations(arm: Structured, text: str) -> str:
    """A table, likeliest first: probability, readings, words left for full text."""
    lines = [f"{'likelihood':>10}  {'reading':<60}  words left"]
    for one in arm.interpret(text):
        readings = ", ".join(f"{r.field} = {r.label}" for r in one.readings) or "(full text)"
        lines.append(f"{one.likelihood:>10.2f}  {readings:<60}  {one.text}")
    return "\n".join(lines)


def answers(system: System, text: str, k: int) -> str:
    """The funnel's page with the arms that returned each document."""
    page = system.funnel().search([Query("explain", text)], k)
    lines = [f"{'score':>10}  {'document':<60}  returned by"]
    for position, (row, score) in enumerate(zip(page.shown.docs[0], page.shown.scores[0], strict=True)):
        if row >= 0:
            document = system.corpus[int(row)]
            kind = document.metadata.get("type")
            title = (document.title or document.text)[:50] + (f" ({kind})" if isinstance(kind, str) else "")
            lines.append(f"{score:>10.3f}  {title:<60}  {', '.join(page.returned_by(0, position))}")
    return "\n".join(lines)


def beliefs(system: System, explaining: Explaining, text: str, k: int) -> str:
    """What the policy believes of each candidate, in its order."""
    query = Query("explain", text)
    columns = explaining.explain(query, system.retrieve([query], system.policy()))
    names = [name for name in columns if name != "row"]
    lines = [f"{'document':<60}" + "".join(f"{name:>17}" for name in names)]
    for place, row in enumerate(columns["row"][:k].tolist()):
        document = system.corpus[row]
        cells = "".join(f"{columns[name][place]:>17.3g}" for name in names)
        lines.append(f"{(document.title or document.text)[:58]:<60}" + cells)
    return "\n".join(lines)


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/quickstart.yaml",
        extra=lambda parser: (
            parser.add_argument("query"),
            parser.add_argument("-k", type=int, default=10, help="results"),
        ),
    )
    for system in open_systems(flags.config, overrides):
        if "structured" in system.usable():
            structured: Any = system.arm("structured")
            print(interpretations(structured, flags.query), "\n")
        else:
            print(f"{system.dataset.name} has no metadata: there is nothing to interpret\n")
        print(answers(system, flags.query, flags.k))
        if (explaining := offers(system.policy(), Explaining)) is not None:
            print("\n" + beliefs(system, explaining, flags.query, flags.k))


if __name__ == "__main__":
    main(run)
