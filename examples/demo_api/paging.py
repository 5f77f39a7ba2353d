"""Lists in pages: ``?limit=20&offset=40``, answered with the items and how many there are in all."""

from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

from demo_api.database import Pool

_T = TypeVar("_T", bound=BaseModel)


class Slice(BaseModel):
    """Which part of a list is asked for."""

    limit: int
    offset: int


class Page(BaseModel, Generic[_T]):
    """A part of a list; `total` counts the whole of it."""

    items: list[_T]
    total: int
    limit: int
    offset: int


def _slice(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> Slice:
    return Slice(limit=limit, offset=offset)


Paging = Annotated[Slice, Depends(_slice)]


async def fetch_page(
    pool: Pool, model: type[_T], query: str, *values: object, order: str, part: Slice
) -> Page[_T]:
    """Run a SELECT for one part of what it gives; `order` is what follows ORDER BY."""
    total = await pool.fetchval(f"SELECT count(*) FROM ({query}) AS everything", *values)
    limit, offset = f"${len(values) + 1}", f"${len(values) + 2}"
    rows = await pool.fetch(
        f"{query} ORDER BY {order} LIMIT {limit} OFFSET {offset}", *values, part.limit, part.offset
    )
    return Page(
        items=[model(**row) for row in rows], total=total, limit=part.limit, offset=part.offset
    )
