"""Keyset pagination: a page is found by the last row's sort value, so that page 10,000 costs the same as page 1."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, Row, Select, bindparam, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from arwkv_api.errors import BadCursor

CURSOR_LIMIT_CHARACTERS = 1000
# The range of a BIGINT column in both databases; a larger number in a cursor is not ours.
INTEGER_LIMIT = 1 << 63

# Columns of any type: the type of a sort column is the caller's knowledge.
Column = InstrumentedAttribute[Any]


@dataclass(frozen=True)
class Order:
    """A column to sort by, the direction, and the unique column that breaks ties."""

    name: str
    column: Column
    descending: bool
    tie_break: Column

    @classmethod
    def parse(cls, sort: str, columns: Mapping[str, Column], tie_break: Column) -> "Order":
        """Understand `name` or `-name`, where `name` is one of `columns`."""
        return cls(sort, columns[sort.removeprefix("-")], sort.startswith("-"), tie_break)

    def page(self, query: Select[Any], follows: bool) -> Select[Any]:
        """`query` in this order, to be executed with the values of `place`. `follows`: after a cursor."""
        way = [self.column.desc(), self.tie_break.desc()] if self.descending else [self.column, self.tie_break]
        if follows:
            # Compared as a row: both databases find such a place in the index of the order at once.
            row = tuple_(self.column, self.tie_break)
            place = tuple_(
                bindparam("after", type_=self.column.type), bindparam("after_tie", type_=self.tie_break.type)
            )
            query = query.where(row < place if self.descending else row > place)
        return query.order_by(*way).limit(bindparam("rows", type_=Integer))

    def place(self, cursor: str | None, limit: int) -> dict[str, Any]:
        """The values of a page: after `cursor`, one row more than `limit`, to tell if a page follows."""
        value, tie = (None, None) if cursor is None else self._decode(cursor)
        return {"after": value, "after_tie": tie, "rows": limit + 1}

    def fetch(
        self,
        session: Session,
        page: Select[Any],
        values: Mapping[str, Any],
        fitting: Callable[[Sequence[Row[Any]]], int] = len,
    ) -> tuple[Sequence[Row[Any]], str | None]:
        """The rows of a `page` and the cursor of the next one, or None at the end.

        `fitting` returns how many of the rows fit the page: at least one if there is any.
        """
        # Plain rows, which the connection makes sooner than the session does.
        rows = session.connection().execute(page, values).all()
        fit = min(fitting(rows), values["rows"] - 1)
        if len(rows) <= fit:
            return rows, None
        last = rows[fit - 1]
        return rows[:fit], self._encode(getattr(last, self.column.key), getattr(last, self.tie_break.key))

    def _encode(self, value: Any, tie: Any) -> str:
        text = json.dumps([self.name, value, tie], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def _decode(self, cursor: str) -> tuple[Any, Any]:
        message = f"cursor={cursor[:40]!r}: not a cursor of this list in this order; start again without a cursor"
        if len(cursor) > CURSOR_LIMIT_CHARACTERS or not cursor.isascii():
            raise BadCursor(message)
        try:
            decoded = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        except (binascii.Error, ValueError, RecursionError):
            raise BadCursor(message) from None
        if not isinstance(decoded, list) or len(decoded) != 3 or decoded[0] != self.name:
            raise BadCursor(message)
        _, value, tie = decoded
        if not (_fits(self.column, value) and _fits(self.tie_break, tie)):
            raise BadCursor(message)
        return value, tie


def _fits(column: Column, value: object) -> bool:
    expected = column.type.python_type
    if expected is str:
        return isinstance(value, str) and "\0" not in value and value.isprintable()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if expected is int:
        return isinstance(value, int) and -INTEGER_LIMIT <= value < INTEGER_LIMIT
    return abs(value) < INTEGER_LIMIT
