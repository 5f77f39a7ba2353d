import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_history import CUT

from e2e_runner.cli.listing import Machine, document, render
from e2e_runner.cli.probing import probe
from e2e_runner.config import Resolved, resolve
from e2e_runner.discovery import make_plan
from e2e_runner.model import Containment, NetworkMode, NetworkTier, Past, Plan

SCRIPT = "examples/a.py"
OWN = Machine(processes=Containment.CGROUP, network=NetworkTier.NAMESPACE)
SHARED = Machine(
    processes=Containment.SCAN,
    process_notes=("cgroup: read-only",),
    network=NetworkTier.HOST,
    network_notes=("network namespace: unshare: Operation not permitted", "user namespace: no"),
)


@pytest.fixture
def resolved(tmp_path: Path) -> Resolved:
    (tmp_path / "examples").mkdir()
    return resolve({}, (), {}, tmp_path)


def plan_of(resolved: Resolved, metadata: str = "") -> Plan:
    lines = "".join(f"# {line}\n" for line in metadata.splitlines())
    source = f"# /// script\n# [tool.e2e-run]\n{lines}# ///\nprint('localhost:8001')\n"
    (resolved.run.root / SCRIPT).write_text(source, "utf-8")
    plan = make_plan(resolved)
    assert [example.problems for example in plan.examples] == [()]
    return plan


def shown(
    resolved: Resolved,
    metadata: str = "",
    past: Past | None = None,
    machine: Machine | None = None,
    *,
    verbose: bool = False,
) -> str:
    known = {} if past is None else {SCRIPT: past}
    plan = plan_of(resolved, metadata)
    return render(plan, resolved.run, past=known, verbose=verbose, width=200, machine=machine)


@pytest.mark.parametrize(
    ("metadata", "past", "details"),
    [
        ("", None, "60s; uses port 8001"),
        ("", Past(duration=1.934), "60s; takes 1.93s; uses port 8001"),
        ("", Past(duration=61, failed=True), "60s; takes 1m01s; failed last time; uses port 8001"),
        (
            "ports = [8000]",
            # Those that are known already, and those that the system chose, are not learned.
            Past(ports=(8000, 8001, 8002, 8003)),
            "60s; needs port 8000; uses port 8001; opens port 8002, 8003",
        ),
        ("network = 'host'", None, "60s; uses port 8001; host network"),
        ("network = 'isolated'", None, "60s; uses port 8001; network of its own"),
        ("", Past(network=NetworkMode.HOST), "60s; uses port 8001; host network"),
        (
            "network = 'isolated'",
            Past(network=NetworkMode.HOST),
            "60s; uses port 8001; network of its own",
        ),
        (
            "exclusive = true\nlocks = ['gpu', 'mail']\ntags = ['slow']",
            None,
            "60s; uses port 8001; exclusive; locks gpu, mail; slow",
        ),
    ],
)
def test_the_details_of_an_example(
    resolved: Resolved, metadata: str, past: Past | None, details: str
) -> None:
    assert f"\n  {SCRIPT}  {details}\n" in shown(resolved, metadata, past)


@pytest.mark.parametrize(
    ("metadata", "past", "machine", "why"),
    [
        ("", None, OWN, "runs on a network of its own: namespace"),
        (
            "",
            None,
            replace(OWN, network=NetworkTier.USER_NAMESPACE),
            "runs on a network of its own: user-namespace",
        ),
        ("", None, SHARED, "runs on the host network: this machine gives no other"),
        (
            "",
            Past(network=NetworkMode.HOST),
            OWN,
            "runs on the host network: learned: it failed in one of its own, and not on this one",
        ),
        ("network = 'host'", None, OWN, "runs on the host network: network = host"),
        ("network = 'host'", None, SHARED, "runs on the host network: network = host"),
        ("network = 'isolated'", None, OWN, "runs on a network of its own: network = isolated"),
        (
            "network = 'isolated'",
            None,
            SHARED,
            "will be blocked: it wants a network of its own, and this machine gives none",
        ),
    ],
)
def test_verbose_says_on_which_network_an_example_runs_and_why(
    resolved: Resolved, metadata: str, past: Past | None, machine: Machine, why: str
) -> None:
    assert f"\n      {why}\n" in shown(resolved, metadata, past, machine, verbose=True)
    assert why not in shown(resolved, metadata, past, machine)
    assert why not in shown(resolved, metadata, past, verbose=True)


def test_verbose_begins_with_the_tiers_and_why_there_are_no_better_ones(
    resolved: Resolved,
) -> None:
    said = shown(resolved, machine=SHARED, verbose=True)
    assert said.startswith(
        "On this machine:\n"
        "      processes: scan\n"
        "        cgroup: read-only\n"
        "      network: host\n"
        "        network namespace: unshare: Operation not permitted\n"
        "        user namespace: no\n"
        "        docs/isolation.md of e2e-run says what allows a better one\n"
        "      jobs: 1\n"
        "\nSettings of the run:\n"
    )
    wanting = replace(OWN, jobs=8, postgres="embedded, for 1 example")
    assert shown(resolved, machine=wanting, verbose=True).startswith(
        "On this machine:\n"
        "      processes: cgroup\n"
        "      network: namespace\n"
        "      jobs: 8\n"
        "      PostgreSQL: embedded, for 1 example\n"
        "\nSettings of the run:\n"
    )
    assert "On this machine" not in shown(resolved, machine=SHARED)


def test_a_shard_says_what_part_it_is(resolved: Resolved) -> None:
    words = "shard 1/2: 1 of 2 examples, balanced by the history (basis 3f9a2c)"
    plan = replace(plan_of(resolved), cut=CUT, shard=words)
    assert render(plan, resolved.run, past={}, verbose=False, width=80).startswith(
        f"{words}\n\nWould run 1 example:\n"
    )
    made = document(plan, resolved.run, past={}, verbose=False)
    assert made["shard"] == {"index": 1, "count": 2, "basis": "3f9a2c", "by": "timings"}
    assert made["last_failed"] is False


def test_what_failed_the_last_time_has_a_line_of_its_own(resolved: Resolved) -> None:
    plan = replace(plan_of(resolved), last_failed="last failed: 1 of 9 examples")
    assert render(plan, resolved.run, past={}, verbose=False, width=80).startswith(
        "last failed: 1 of 9 examples\n\nWould run 1 example:\n"
    )
    both = replace(plan, cut=CUT, shard="shard 1/2: 9 of 20 examples")
    assert render(both, resolved.run, past={}, verbose=False, width=80).startswith(
        "shard 1/2: 9 of 20 examples\nlast failed: 1 of 9 examples\n\nWould run 1 example:\n"
    )
    made = document(plan, resolved.run, past={}, verbose=False)
    assert (made["shard"], made["last_failed"]) == (None, True)


def test_the_document_tells_what_is_known_and_wanted(resolved: Resolved) -> None:
    plan = plan_of(
        resolved,
        "reach = ['localhost:6379', '[::1]:8125']\nlocks = ['gpu']\nexclusive = true\n"
        "network = 'isolated'\nretries = 2",
    )
    past = {
        SCRIPT: Past(duration=1.5, failed=True, ports=(8001, 8002), network=NetworkMode.HOST),
        "examples/other.py": Past(duration=9),
    }
    made = document(plan, resolved.run, past=past, verbose=True, machine=SHARED)
    (example,) = made["examples"]
    expected: dict[str, Any] = {
        "found_ports": [8001],
        "learned_ports": [8002],
        "last_duration": 1.5,
        "failed_last_time": True,
        "network": "isolated",
        "network_learned": "host",
        "reach": ["localhost:6379", "[::1]:8125"],
        "exclusive": True,
        "locks": ["gpu"],
        "retries": 2,
    }
    assert {key: example[key] for key in expected} == expected
    assert example["settings"]["reach"]["value"] == expected["reach"]
    assert made["isolation"] == {
        "network": "host",
        "processes": "scan",
        "notes": ["cgroup: read-only"],
        "network_notes": list(SHARED.network_notes),
    }
    assert (made["jobs"], made["postgres"]) == (1, None)
    assert json.loads(json.dumps(made)) == made
    assert "isolation" not in document(plan, resolved.run, past=past, verbose=False)


def test_a_given_shard_is_a_setting_of_the_document(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    resolved = resolve({"shard": "2/3"}, (), {}, tmp_path)
    made = document(plan_of(resolved), resolved.run, past={}, verbose=True)
    assert made["settings"]["shard"]["value"] == "2/3"


def test_the_probe_finds_a_tier_of_each_kind(resolved: Resolved) -> None:
    found = probe(plan_of(resolved), resolved.run)
    assert found.processes is Containment.CGROUP or found.process_notes
    assert found.network is NetworkTier.NAMESPACE or found.network_notes
    assert (found.jobs, found.postgres) == (1, "")


def test_the_probe_tries_the_tier_that_is_wanted(resolved: Resolved) -> None:
    run = replace(resolved.run, containment=Containment.PROCESS_GROUP)
    assert probe(plan_of(resolved), run).processes is Containment.PROCESS_GROUP
