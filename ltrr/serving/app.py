"""The funnel behind HTTP: POST /search and /feedback, DELETE /customers/ID, GET /policy and /healthz, OpenAPI at /docs.

Knows the funnel, the corpus's ids and titles, the loop that keeps events, and JSON; a request chooses a query, a length
and a context, never a class, a model or a path. The gateway in front decides who may ask for which customer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from ltrr.feedback.events import Action, Kind, digest_of
from ltrr.feedback.loop import Loop
from ltrr.funnel import Funnel
from ltrr.protocols import Priced, Reporting, offers
from ltrr.serving.recorder import Recorder
from ltrr.types import Context, Query

_AHEAD = timedelta(minutes=5)  # of clients' clocks
_NO_NUL = r"^[^\x00]*$"  # which no database keeps
Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_NO_NUL)]


class SearchContext(BaseModel):
    """Who asks, where and when; all of it optional."""

    model_config = ConfigDict(extra="forbid")
    customer: Id | None = None
    locale: str | None = Field(default=None, max_length=35, pattern=_NO_NUL, description="for example en-GB")
    time: datetime | None = Field(default=None, description="ISO 8601")
    device: str | None = Field(default=None, max_length=100)
    attributes: dict[str, Annotated[str, StringConstraints(max_length=1000)]] = Field(
        default_factory=dict, max_length=50
    )


class SearchRequest(BaseModel):
    """What to search."""

    model_config = ConfigDict(extra="forbid")
    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
    k: int = Field(default=10, ge=1, description="results wanted")
    session: Id | None = Field(default=None, description="what a customer asks in one go")
    context: SearchContext = SearchContext()


class Result(BaseModel):
    """One document shown."""

    id: str
    title: str
    score: float
    arms: list[str] = Field(description="arms that returned it")


class SearchResponse(BaseModel):
    """One impression."""

    impression: str
    results: list[Result]


class CustomerAction(BaseModel):
    """What a customer did with one result."""

    model_config = ConfigDict(extra="forbid")
    id: Id = Field(
        description="made by the client, one for each action on an impression; sent again it changes nothing"
    )
    impression: Id
    entity: Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=_NO_NUL)]
    kind: Kind
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="played")
    time: AwareDatetime | None = Field(
        default=None,
        description="ISO 8601 with a zone; by default when it comes, so give it where it may be sent again",
    )


class FeedbackRequest(BaseModel):
    """Actions, in any order, late or twice."""

    model_config = ConfigDict(extra="forbid")
    actions: list[CustomerAction] = Field(min_length=1, max_length=1000)


class FeedbackResponse(BaseModel):
    """Sent when all of it is on disk and learned (while a snapshot is made, which takes seconds: learned after it)."""

    stored: int


class Erased(BaseModel):
    """How much of a customer was removed."""

    impressions: int
    actions: int


class PolicyStatus(BaseModel):
    """The policy that is served, what it pays for, and what it has learned."""

    id: str
    prices: dict[str, float] = Field(description="what a unit of cost must bring, by budget")
    status: dict[str, Any] = Field(description="what it has learned so far, and whether and why it fell back")


class Health(BaseModel):
    """What is being served."""

    status: str
    dataset: str
    documents: int
    arms: list[str]


def create_app(
    funnel: Funnel,
    dataset: str,
    num_docs: int,
    describe: Callable[[int], tuple[str, str]],
    *,
    max_k: int = 100,
    recorder: Recorder | None = None,
) -> FastAPI:
    """The application. `describe(row)` gives a document's id and title; `max_k` bounds a page.

    Without a recorder nothing is kept and /feedback says so.
    """
    app = FastAPI(title="ltrr", description="Learning to rank and retrieve")

    @app.exception_handler(RequestValidationError)
    def refuse(request: Request, problem: RequestValidationError) -> JSONResponse:
        """As FastAPI does, without echoing the input, which need not even be text (half a surrogate pair)."""
        errors = [{key: error[key] for key in ("type", "loc", "msg")} for error in problem.errors()]
        return JSONResponse({"detail": errors}, 422)

    @app.post("/search")
    def search(request: SearchRequest) -> SearchResponse:
        if request.k > max_k:
            raise HTTPException(422, f"k: {request.k} is above {max_k}, the most that this service returns")
        context = request.context.model_dump()
        if request.session:
            context["attributes"].setdefault("session", request.session)  # where the personal arm looks for it
        query = Query("http", request.query.replace("\0", " "), Context(**context))
        page = funnel.search([query], request.k)
        if recorder:
            recorder.show(page, request.session)
        results = [
            Result(id=name, title=title, score=float(score), arms=page.returned_by(0, position))
            for position, (row, score) in enumerate(zip(page.shown.docs[0], page.shown.scores[0], strict=True))
            if row >= 0
            for name, title in [describe(int(row))]
        ]
        return SearchResponse(impression=page.impressions[0], results=results)

    def kept() -> Loop:
        if recorder is None:
            raise HTTPException(404, "this service keeps no feedback: serve.events of its config is null")
        return recorder.loop

    @app.post("/feedback")
    def feedback(request: FeedbackRequest) -> FeedbackResponse:
        now = datetime.now(UTC)
        for i, a in enumerate(request.actions):
            if a.time and a.time > now + _AHEAD:
                raise HTTPException(422, f"actions.{i}.time: {a.time.isoformat()} is in the future")
        try:
            kept().record(
                [
                    Action(_own(a.impression, a.id), a.impression, a.entity, a.kind, a.time or now, a.seconds)
                    for a in request.actions
                ]
            )
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return FeedbackResponse(stored=len(request.actions))

    @app.delete("/customers/{customer:path}")
    def erase(customer: Id) -> Erased:
        impressions, actions = kept().erase(customer)
        return Erased(impressions=impressions, actions=actions)

    @app.get("/policy")
    def policy() -> PolicyStatus:
        priced, reporting = offers(funnel.policy, Priced), offers(funnel.policy, Reporting)
        prices = dict(priced.prices) if priced is not None else {}
        status = dict(reporting.status()) if reporting is not None else {}
        return PolicyStatus(id=funnel.policy.id, prices=prices, status=status)

    @app.get("/healthz")
    def healthz() -> Health:
        return Health(status="ok", dataset=dataset, documents=num_docs, arms=list(funnel.arms))

    return app


def _own(impression: str, action: str) -> str:
    """The stored id of an action: clients' ids need only differ within an impression, so nobody takes another's."""
    name = f"{impression}/{action}"
    return name if len(name) <= 200 else digest_of(name)
