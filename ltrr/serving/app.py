"""The funnel behind HTTP: POST /search, GET /healthz, OpenAPI at /docs.

Knows the funnel, the corpus's ids and titles, and JSON; a request chooses a query, a length and a context, never a
class, a model or a path.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ltrr.core import Context, Query
from ltrr.funnel import Funnel


class SearchContext(BaseModel):
    """Who asks, where and when; all of it optional."""

    model_config = ConfigDict(extra="forbid")
    customer: str | None = Field(default=None, max_length=200)
    locale: str | None = Field(default=None, max_length=35, description="for example en-GB")
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


class Health(BaseModel):
    """What is being served."""

    status: str
    dataset: str
    documents: int
    arms: list[str]


def create_app(
    funnel: Funnel, dataset: str, num_docs: int, describe: Callable[[int], tuple[str, str]], *, max_k: int = 100
) -> FastAPI:
    """The application. `describe(row)` gives a document's id and title; `max_k` bounds a page."""
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
        query = Query("http", request.query, Context(**request.context.model_dump()))
        page = funnel.search([query], request.k)
        results = [
            Result(id=name, title=title, score=float(score), arms=page.returned_by(0, position))
            for position, (row, score) in enumerate(zip(page.shown.docs[0], page.shown.scores[0], strict=True))
            if row >= 0
            for name, title in [describe(int(row))]
        ]
        return SearchResponse(impression=page.impressions[0], results=results)

    @app.get("/healthz")
    def healthz() -> Health:
        return Health(status="ok", dataset=dataset, documents=num_docs, arms=list(funnel.arms))

    return app
