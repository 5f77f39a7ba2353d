"""Makes the plan of a run: what runs, what does not, and why."""

import os
from collections.abc import Iterable, Iterator, Sequence

from e2e_runner.config import Resolved
from e2e_runner.discovery.examples import Builder
from e2e_runner.discovery.postgres import marks_of
from e2e_runner.discovery.scripts import Modules, Script, read_script
from e2e_runner.discovery.walk import Folders, read_source, relative_path, walk
from e2e_runner.globs import fixed_start, matches
from e2e_runner.model import Deselected, Example, NotExample, Plan, RunSettings


def make_plan(resolved: Resolved) -> Plan:
    """Search the paths of the run and decide what becomes of each file. In path order.

    Whatever the files hold, this raises nothing: what is wrong with an example is in its
    `problems`, and what cannot be read or parsed is left to fail when it runs.
    """
    folders = Folders()
    walked = walk(resolved.run)
    marks = marks_of(resolved.run.postgres)
    candidates = [read_script(each, read_source(each.file), marks) for each in walked.candidates]
    importers = [read_script(each, read_source(each.file), marks) for each in walked.importers]
    modules = Modules(
        [*candidates, *importers], root=str(resolved.run.root), folders=folders, marks=marks
    )
    helpers = modules.helpers()

    not_examples = list(walked.not_examples)
    builder = Builder(resolved, folders, modules, marks)
    examples: list[Example] = []
    named: set[str] = set()
    for script in candidates:
        reason = _refuse(script, helpers)
        if reason:
            not_examples.append(NotExample(path=script.found.path, reason=reason))
            continue
        if script.found.named:
            named.add(script.found.path)
        examples.append(builder.build(script))

    warnings = [*resolved.warnings, *walked.warnings]
    idle = _idle_overrides(resolved, candidates, not_examples)
    examples, companions = _without_companions(examples, named)
    not_examples += companions
    chosen, deselected = _select(examples, resolved.run)
    warnings += _about_scripts(candidates, chosen, deselected, builder, resolved.run)
    warnings += idle
    return Plan(
        examples=tuple(sorted(chosen, key=lambda each: _order(each.path))),
        deselected=tuple(sorted(deselected, key=lambda each: _order(each.example.path))),
        not_examples=tuple(sorted(not_examples, key=lambda each: _order(each.path))),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _order(path: str) -> list[str]:
    return path.split("/")


def _refuse(script: Script, helpers: dict[str, str]) -> str:
    """Say why a script is not an example by what it holds; an empty string where it is one.

    A file that was named, or that has metadata for e2e-run, is one whatever it holds.
    """
    if script.found.named or script.metadata.declared or script.facts.guarded:
        return ""
    importer = helpers.get(script.found.file)
    if importer is not None:
        folder, name = os.path.split(importer)
        beside = folder == os.path.dirname(script.found.path)  # noqa: PTH120 - a Path costs more
        return f"imported by {name if beside else importer}"
    return script.facts.passive


def _without_companions(
    examples: Sequence[Example], named: set[str]
) -> tuple[list[Example], list[NotExample]]:
    """Leave out what only serves other examples: it would run for ever on its own.

    A companion that declares `serve` ends by itself and says something; it stays.
    """
    needed: dict[str, str] = {}
    for example in examples:
        for companion in example.companions:
            needed.setdefault(companion.path, example.path)
    kept = []
    left_out = []
    for example in examples:
        by = needed.get(example.path)
        if by is None or example.path in named or example.settings.serve is not None:
            kept.append(example)
        else:
            left_out.append(NotExample(path=example.path, reason=f"companion of {by}"))
    return kept, left_out


def _idle_overrides(
    resolved: Resolved, candidates: Iterable[Script], not_examples: Iterable[NotExample]
) -> list[str]:
    """Tell of the overrides that fit no file, as far as what was searched can tell."""
    run = resolved.run
    if not resolved.overrides or not all(path.is_dir() for path in run.paths):
        return []
    root = str(run.root)
    paths = [script.found.path for script in candidates]
    paths += [each.path for each in not_examples]
    searched = ["" if path == run.root else relative_path(str(path), root) for path in run.paths]
    unsearched = [path.rstrip("/") for path in paths if path.endswith("/")]

    def idle(pattern: str) -> bool:
        start = fixed_start(pattern)
        if any(matches(pattern, path) for path in paths) or any(
            _is_below(start, folder) for folder in unsearched
        ):
            return False
        if not start:
            return resolved.searches_all or "" in searched
        return any(_is_below(start, folder) for folder in searched) or not os.path.lexists(
            f"{root}/{start}"
        )

    return [
        f"{override.place}: match: {', '.join(map(repr, override.match))} fits no file that was "
        "found, so the override does nothing; accepted: globs relative to the folder of this file, "
        "or of names"
        for override in resolved.overrides
        if all(map(idle, override.match))
    ]


def _is_below(path: str, folder: str) -> bool:
    return not folder or f"{path}/".startswith(f"{folder}/")


def _select(
    examples: Iterable[Example], run: RunSettings
) -> tuple[list[Example], list[Deselected]]:
    chosen = []
    deselected = []
    for example in examples:
        reason = _deselect(example, run)
        if reason:
            deselected.append(Deselected(example=example, reason=reason))
        else:
            chosen.append(example)
    return chosen, deselected


def _deselect(example: Example, run: RunSettings) -> str:
    """Say why an example is not selected; an empty string where it is."""
    tags = example.settings.tags
    if not _has_keyword(example.path, run):
        return f"path does not contain {run.keyword!r} ({run.origins['keyword'].where})"
    if not _is_among_only(example, run):
        wanted = " or ".join(run.only)
        return f"not tagged {wanted} ({run.origins['only'].where})"
    skipped = [tag for tag in run.skip if tag in tags]
    if skipped:
        return f"tagged {', '.join(skipped)} ({run.origins['skip'].where})"
    return example.settings.skip or ""


def _has_keyword(path: str, run: RunSettings) -> bool:
    return run.keyword is None or run.keyword.casefold() in path.casefold()


def _is_among_only(example: Example, run: RunSettings) -> bool:
    return not run.only or not set(run.only).isdisjoint(example.settings.tags)


def _about_scripts(
    candidates: Iterable[Script],
    chosen: Iterable[Example],
    deselected: Iterable[Deselected],
    builder: Builder,
    run: RunSettings,
) -> Iterator[str]:
    """Give the warnings about what is selected, and about what is not perhaps because of them.

    That is what metadata would have made an example, or given a tag of `only`, had it been understood.
    """
    selected = {each.path for example in chosen for each in _with_companions(example)}
    left_out = {each.example.path: each.example for each in deselected}

    def may_be_missed(path: str) -> bool:
        example = left_out.get(path)
        return _has_keyword(path, run) and (example is None or not _is_among_only(example, run))

    for script in candidates:
        path = script.found.path
        if path in selected or may_be_missed(path):
            yield from script.warnings
    for path, told in builder.warnings.items():
        if path in selected:
            yield from told


def _with_companions(example: Example) -> Iterator[Example]:
    yield example
    for companion in example.companions:
        yield from _with_companions(companion)
