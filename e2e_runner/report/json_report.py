"""The ``json`` report: one document."""

from collections.abc import Iterable, Iterator

from e2e_runner.model import Result
from e2e_runner.report.shape import (
    SCHEMA,
    Shape,
    attempt_shape,
    finished_run_shape,
    not_example_shape,
    result_shape,
    to_json,
    totals_shape,
)
from e2e_runner.state import RunState


def render_json(state: RunState) -> Iterator[str]:
    """Give the document in parts: an example a line, which reads and searches well at any size."""
    yield f'{{"schema": "{SCHEMA}",\n'
    yield f'"run": {to_json(finished_run_shape(state))},\n'
    yield f'"totals": {to_json(dict(totals_shape(state.counts)))},\n'
    results = sorted(state.results.values(), key=lambda result: result.path)
    yield '"examples": ['
    yield from _lines(_example(result, state) for result in results)
    yield '],\n"not_examples": ['
    yield from _lines(not_example_shape(file) for file in state.plan.not_examples)
    warnings = [
        *({"message": message, "path": None} for message in state.plan.warnings),
        *({"message": warned.message, "path": warned.path} for warned in state.warnings),
    ]
    yield '],\n"warnings": ['
    yield from _lines(warnings)
    yield "]}\n"


def _example(result: Result, state: RunState) -> Shape:
    earlier = state.failed_attempts(result.path)
    return result_shape(result) | {"failed_attempts": [attempt_shape(each) for each in earlier]}


def _lines(shapes: Iterable[Shape]) -> Iterator[str]:
    separator = "\n"
    for shape in shapes:
        yield separator + to_json(shape)
        separator = ",\n"
