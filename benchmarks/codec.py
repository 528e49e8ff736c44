"""The codec's cost, compared with a bare TypeAdapter and with the SDK's pydantic serde, and the cost of verification.

    python benchmarks/codec.py

Every number is the median of many short repetitions. The candidates of a row take turns, so that changes in the
machine's speed affect all of them.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import BaseModel, TypeAdapter
from restate.ext.pydantic._serde import PydanticTypeAdapter

from restate_steps.codec import DEFAULT_CODEC
from restate_steps.codec._compare import find_difference

ROUNDS = 301
SLICE_SECONDS = 0.002


class Point(BaseModel):
    x: int
    y: int
    label: str


class Line(BaseModel):
    sku: str
    quantity: int
    price: Decimal
    tags: list[str]


class Order(BaseModel):
    id: UUID
    created: datetime
    customer: Point
    lines: list[Line]
    note: str | None = None
    weight: float = 0.0


@dataclass
class Parcel:
    length: float
    width: float
    label: str
    fragile: bool


def shapes() -> list[tuple[str, Any, Any]]:
    point = Point(x=1, y=2, label="here")
    order = Order(
        id=UUID(int=7),
        created=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        customer=point,
        lines=[Line(sku=f"sku-{i}", quantity=i, price=Decimal("9.90"), tags=["a", "b"]) for i in range(10)],
        weight=1.5,
    )
    found: list[tuple[str, Any, Any]] = [
        ("int", int, 7),
        ("small model", Point, point),
        ("nested model", Order, order),
        ("list of 1,000 models", list[Point], [Point(x=i, y=-i, label=f"p{i}") for i in range(1000)]),
        ("dataclass", Parcel, Parcel(1.5, 2.5, "box", True)),
        ("dict[str, float] of 100", dict[str, float], {f"key-{i}": i * 1.1 for i in range(100)}),
    ]
    try:
        from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    except ImportError:
        return found
    # restate.ext.pydantic records one of these for every turn of an agent.
    parts = [TextPart("Let me look that up."), ToolCallPart("search", {"query": "restate"}, "call-1")]
    response = ModelResponse(parts=parts, model_name="a-model", timestamp=order.created)
    return [*found, ("an agent's ModelResponse", ModelResponse, response)]


def medians(candidates: list[Callable[[], object]]) -> list[float]:
    """Return the seconds per call of each candidate; the candidates take turns."""
    counts: list[int] = []
    for call in candidates:
        call()
        start = time.thread_time()
        call()
        counts.append(max(1, int(SLICE_SECONDS / max(time.thread_time() - start, 1e-7))))
    samples: list[list[float]] = [[] for _ in candidates]
    gc.collect()
    order = random.Random(0)
    entries = list(zip(candidates, counts, samples, strict=True))
    for _ in range(ROUNDS):
        # Shuffle the order, because each candidate affects the one after it.
        order.shuffle(entries)
        for call, count, sample in entries:
            repeats = range(count)
            # Like timeit: a collection would add to the time of the candidate that happens to trigger it.
            gc.disable()
            start = time.thread_time()
            for _ in repeats:
                call()
            sample.append((time.thread_time() - start) / count)
            gc.enable()
    return [statistics.median(sample) for sample in samples]


def main() -> int:
    print("codec: CPU time per call in microseconds; ratios to a bare TypeAdapter (dump_json, validate_json)\n")
    head = f"{'shape':<24} {'dump':>8} {'bare':>8} {'ratio':>6}  {'load':>8} {'bare':>8} {'ratio':>6}"
    head += f"  {'verify':>8} = {'decode':>8} + {'compare':>8}  {'SDK serde':>10} {'ours':>8} {'times':>6}"
    print(head)
    print("-" * len(head))
    ratios: list[float] = []
    gains: list[float] = []
    for name, type_, value in shapes():
        bare: TypeAdapter[Any] = TypeAdapter(type_)
        data = bare.dump_json(value)
        decoded = bare.validate_json(data)
        serde: PydanticTypeAdapter[Any] = PydanticTypeAdapter(type_)
        dump, bare_dump, load, bare_load, compare, theirs, ours = medians(
            [
                lambda type_=type_, value=value: DEFAULT_CODEC.dump(type_, value),
                lambda bare=bare, value=value: bare.dump_json(value),
                lambda type_=type_, data=data: DEFAULT_CODEC.load(type_, data),
                lambda bare=bare, data=data: bare.validate_json(data),
                lambda value=value, decoded=decoded: find_difference(value, decoded),
                lambda serde=serde, value=value: serde.deserialize(serde.serialize(value)),
                lambda type_=type_, value=value: DEFAULT_CODEC.load(type_, DEFAULT_CODEC.dump(type_, value)),
            ]
        )
        ratios += [dump / bare_dump, load / bare_load]
        gains.append(theirs / ours)
        us = 1e6
        print(
            f"{name:<24} {dump * us:8.2f} {bare_dump * us:8.2f} {dump / bare_dump:6.2f}"
            f"  {load * us:8.2f} {bare_load * us:8.2f} {load / bare_load:6.2f}"
            f"  {(load + compare) * us:8.2f} = {load * us:8.2f} + {compare * us:8.2f}"
            f"  {theirs * us:10.2f} {ours * us:8.2f} {theirs / ours:6.1f}"
        )
    print(
        f"\nlargest ratio: {max(ratios):.2f} (goal: at most 1.10); {min(gains):.1f} to {max(gains):.1f} times as fast "
        "(goal: 5 times) as the SDK's pydantic serde, which builds an adapter for every value it writes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
