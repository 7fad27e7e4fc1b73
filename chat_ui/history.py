"""Conversations that outlive a restart: in one SQLite file.

Chainlit knows how to write and read them (`SQLAlchemyDataLayer`), and does not create its tables. They are made here
from the types that it fills them with, so that a column that a new version adds is not forgotten.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

from chainlit.data.sql_alchemy import SQLAlchemyDataLayer
from chainlit.element import Element, ElementDict
from chainlit.step import StepDict
from chainlit.types import Feedback, ThreadDict
from chainlit.user import PersistedUser

from utils.errors import UserError

_TYPES: dict[str, Any] = {
    "users": PersistedUser,
    "threads": ThreadDict,
    "steps": StepDict,
    "elements": ElementDict,
    "feedbacks": Feedback,
}
_OWN_TABLES = {"threads": {"steps", "elements"}, "steps": {"feedback"}}  # fields that are rows of other tables
_UNIQUE = {"users": "identifier"}
_LOOKED_UP = {"threads": "userId", "steps": "threadId", "elements": "threadId", "feedbacks": "forId"}


def create_tables(path: Path) -> None:
    """Makes the file and what is missing in it; a column that is new in Chainlit is added to a table that is old.

    Raises:
        UserError: the file is damaged, or cannot be written. The message says what to do.
        OSError: the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _create_tables(path)
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{path} cannot be used ({error}): is its folder yours, and is there room on the disk?"
        ) from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is damaged ({error}): move it away, and the chat begins a new one") from None


def _create_tables(path: Path) -> None:
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute("PRAGMA journal_mode = WAL")  # who reads does not wait for who writes
            for table, row_type in _TYPES.items():
                columns = [name for name in _fields(row_type) if name not in _OWN_TABLES.get(table, ())]
                connection.execute(f'CREATE TABLE IF NOT EXISTS {table} ("id" TEXT PRIMARY KEY)')
                there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                for name in columns:
                    if name not in there:
                        connection.execute(f'ALTER TABLE {table} ADD COLUMN "{name}"')  # SQLite needs no type
                for kind, names in (("UNIQUE INDEX", _UNIQUE), ("INDEX", _LOOKED_UP)):
                    if name := names.get(table, ""):
                        connection.execute(f'CREATE {kind} IF NOT EXISTS {table}_{name} ON {table} ("{name}")')
    finally:
        connection.close()


def _fields(row_type: Any) -> list[str]:
    """The names of a dataclass's or a TypedDict's fields."""
    if dataclasses.is_dataclass(row_type):
        return [field.name for field in dataclasses.fields(row_type)]
    return list(row_type.__annotations__)


class History(SQLAlchemyDataLayer):
    """The data layer of the chat.

    Args:
        path: of the SQLite file.
    """

    def __init__(self, path: Path) -> None:
        create_tables(path)
        super().__init__(f"sqlite+aiosqlite:///{path}", connect_args={"timeout": 30})
        self._one_by_one = asyncio.Lock()

    async def execute_sql(self, query: str, parameters: dict[str, Any]) -> Any:
        """One statement after another, which SQLite makes of them anyway.

        Side by side they lose count of Python's stack: SQLAlchemy runs each in a greenlet, Chainlit makes asyncio
        re-entrant, and of thirty people who come at once some got a RecursionError.
        """
        async with self._one_by_one:
            return await super().execute_sql(query, parameters)

    async def update_thread(
        self,
        thread_id: str,
        name: str | None = None,
        user_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
    ) -> None:
        """As Chainlit's, but what a closing page tells of a deleted conversation does not bring it back."""
        known = 'SELECT "id" FROM threads WHERE "id" = :id'
        if user_id is None and not await self.execute_sql(known, {"id": thread_id}):
            return
        await super().update_thread(thread_id, name, user_id, metadata, tags)

    async def get_all_user_threads(
        self, user_id: str | None = None, thread_id: str | None = None
    ) -> list[ThreadDict] | None:
        """As Chainlit's, with what SQLite gives as text turned into what it was."""
        threads = await super().get_all_user_threads(user_id, thread_id)
        for thread in threads or []:
            rows: list[Any] = [thread, *thread["steps"]]
            for row in rows:
                for name in ("metadata", "generation"):
                    if isinstance(row.get(name), str):
                        row[name] = json.loads(row[name])
        return threads

    async def create_element(self, element: Element) -> None:
        """Pictures are drawn anew when they are asked for, and not kept."""
