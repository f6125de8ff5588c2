"""How many rooms the device keeps its word to: places from the device's table of costs, as ``host plan`` finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from host.errors import ConfigError

if TYPE_CHECKING:
    from host.config import Config


@dataclass(frozen=True, slots=True)
class Sustained:
    """So many rooms are answered in time. ``binding``: what allows no more.

    ``target_ms``: p95 of the response, without the endpointing delay; ``cycle_s``: how often a caller speaks.
    """

    rooms: int
    binding: str
    target_ms: float
    cycle_s: float


def with_places(config: Config) -> tuple[Config, Sustained | None]:
    """``config`` with ``inference.max_rooms`` as it was set, or, where that is 0, what the device sustains.

    None without ``inference.device_table``. Simulates for some seconds. Raises ``ConfigError`` when there is no table
    to tell the places from, when it is of other models, and when not one room is answered in time.
    """
    inference = config.inference
    if not inference.device_table:
        if inference.max_rooms == 0:
            raise ConfigError(
                "inference.max_rooms = 0 is as many as the device sustains, which inference.device_table must tell: "
                "a file of host calibrate, or a known device's name"
            )
        return config, None
    from host.device_table import read_table
    from host.plan import Question, make_plan

    table = read_table(inference.device_table)
    if table.profile != config.models.profile:
        raise ConfigError(
            f"inference.device_table = {inference.device_table}: it was measured with the profile {table.profile}, "
            f"and models.profile is {config.models.profile}; host calibrate measures this one"
        )
    question = Question(
        target_s=inference.target_ms / 1000, cycle_s=inference.cycle_s, context_tokens=inference.context_tokens
    )
    plan = make_plan(table, question)
    found = Sustained(plan.rooms, plan.binding.what, inference.target_ms, inference.cycle_s)
    if inference.max_rooms:
        return config, found
    if not found.rooms:
        raise ConfigError(
            f"inference.max_rooms = 0: by {inference.device_table} not one room is answered within "
            f"inference.target_ms = {inference.target_ms:g} ({found.binding}); allowed is a slower target"
        )
    return msgspec.structs.replace(config, inference=msgspec.structs.replace(inference, max_rooms=found.rooms)), found
