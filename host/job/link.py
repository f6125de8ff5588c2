"""The job's way to the inference process, which may be away for a while: it is started again when it dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from inference.client import InferenceClient, InferenceRoom, InferenceUnavailableError, RoomRefusedError

logger = logging.getLogger(__name__)

AWAY_TIMEOUT_S = 300.0
"""How long a job does without an inference process before it gives up: as long as one may take to come up."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 2.0

T = TypeVar("T")


class InferenceLink:
    """Connections of one job to the inference process at ``socket_path``. ``name`` is the job's, for its log.

    What was opened is closed by ``aclose``.
    """

    def __init__(self, socket_path: str, token: str, name: str) -> None:
        self._socket_path = socket_path
        self._token = token
        self._name = name
        self._clients: list[InferenceClient] = []
        self._room_client: InferenceClient | None = None

    @property
    def context_tokens(self) -> int:
        """How much of a conversation the language model sees, in tokens. There must be a room."""
        assert self._room_client is not None
        return self._room_client.welcome.context_tokens

    async def connect(self) -> InferenceClient:
        """A connection of its own, as soon as there is an inference process.

        Raises ``InferenceUnavailableError`` when there is none for ``AWAY_TIMEOUT_S``.
        """
        client = await self._until_there(self._connect)
        self._clients.append(client)
        return client

    async def open_room(self, name: str) -> InferenceRoom:
        """Take a slot, as soon as there is an inference process.

        Raises ``RoomRefusedError`` when all slots are taken, and ``InferenceUnavailableError`` as ``connect``.
        """

        async def attempt() -> InferenceRoom:
            return await self._with_client(lambda client: client.open_room(name))

        return await self._until_there(attempt)

    async def attach(self, room: InferenceRoom) -> None:
        """Open ``room`` again, whose connection was lost, as soon as there is a process with a slot for it.

        Raises ``InferenceUnavailableError`` when there is none for ``AWAY_TIMEOUT_S``.
        """

        async def attempt() -> None:
            await self._with_client(lambda client: client.attach_room(room))

        await self._until_there(attempt, InferenceUnavailableError, RoomRefusedError)

    async def aclose(self) -> None:
        """Close every connection, and with it the room."""
        clients, self._clients = self._clients, []
        if self._room_client is not None:
            clients.append(self._room_client)
        for client in clients:
            await client.aclose()

    async def _connect(self) -> InferenceClient:
        return await InferenceClient.connect(self._socket_path, self._token, name=self._name)

    async def _with_client(self, open_room: Callable[[InferenceClient], Awaitable[T]]) -> T:
        client = await self._connect()
        try:
            result = await open_room(client)
        except BaseException:
            await client.aclose()
            raise
        before, self._room_client = self._room_client, client
        if before is not None:
            # It has lost its connection, or its room was opened for a session that did not come about.
            await before.aclose()
        return result

    async def _until_there(
        self, attempt: Callable[[], Awaitable[T]], *failures: type[InferenceUnavailableError | RoomRefusedError]
    ) -> T:
        """The result of ``attempt``, which is tried again after ``failures``. ``AWAY_TIMEOUT_S`` is for all of it."""
        failures = failures or (InferenceUnavailableError,)
        reason: Exception | None = None
        wait_s = _FIRST_WAIT_S
        try:
            async with asyncio.timeout(AWAY_TIMEOUT_S):
                while True:
                    try:
                        return await attempt()
                    except failures as exc:
                        if reason is None:
                            logger.info("waiting for the inference process: %s", exc)
                        reason = exc
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        except TimeoutError:
            raise InferenceUnavailableError(
                f"the inference process was away for {AWAY_TIMEOUT_S:g} s: {reason or 'it does not answer'}"
            ) from reason
