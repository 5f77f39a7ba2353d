"""The pages under docs are true: a reader who pastes their blocks sees what they show."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import AS_USERS, REPOSITORY, Outcome, Project, project
from pages import (
    Block,
    assert_printed,
    blocks_of,
    link_environment,
    run_all,
    without_blocks,
)

from e2e_runner import docs, kit
from e2e_runner.cli.probing import probe
from e2e_runner.config import resolve
from e2e_runner.metadata import read_metadata
from e2e_runner.model import NetworkTier, Plan

FOLDER = REPOSITORY / "docs"
PAGES = {file.name: file.read_text("utf-8") for file in sorted(FOLDER.glob("*.md"))}
WRITING = PAGES["writing-examples.md"]
KIT = PAGES["kit.md"]

pytestmark = pytest.mark.timeout(400)  # a test may have to wait for the port of another worker's


def every_block() -> list[tuple[str, Block]]:
    return [(name, block) for name, page in PAGES.items() for block in blocks_of(page)]


def files_of(page: str) -> list[Block]:
    return [block for block in blocks_of(page) if block.file]


# --- pasted --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make the empty folder of a reader, with an environment."""
    made = tmp_path / "shop"
    made.mkdir()
    link_environment(made)
    return made


def gives_networks(folder: Path) -> bool:
    run = resolve({}, (".",), {}, folder).run
    return probe(Plan(examples=()), run).network is not NetworkTier.HOST


@pytest.mark.usefixtures("demo_port")
@pytest.mark.parametrize("name", PAGES)
def test_blocks_do_what_the_page_says(name: str, folder: Path) -> None:
    if name == "isolation.md" and not gives_networks(folder):
        pytest.skip("the page shows networks of examples' own, and this machine gives none")
    blocks = [block for block in blocks_of(PAGES[name]) if not block.reason and not block.signature]
    pasted = [block for block in blocks if block.language != "text"]
    printed = iter(run_all(pasted, folder, timeout=300))

    output = ""
    for block in blocks:
        if block.language == "text":
            shown = block.text  # of the block before
        else:
            output = next(printed)
            if block.language != "console":
                continue
            shown = block.output
        assert_printed(shown, output, folder)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    for name, page in PAGES.items():
        blocks = blocks_of(page)
        assert len(re.findall(r"^ *```", page, re.MULTILINE)) == 2 * len(blocks), name
        for before, block in zip([None, *blocks], blocks, strict=False):
            if block.file or block.signature or block.reason:
                continue
            if block.language == "text":  # what the block before prints
                assert before is not None
                assert before.language == "python", (name, block.line)
                assert not before.file
            else:
                assert block.language in {"console", "python", "sh"}, (name, block.line)


def test_only_blocks_that_cannot_run_are_left_out() -> None:
    left_out = [(name, block.text.splitlines()[0]) for name, block in every_block() if block.reason]
    assert left_out == [
        ("isolation.md", "sudo sysctl --write kernel.apparmor_restrict_unprivileged_userns=0"),
        ("isolation.md", "- name: Allow user namespaces"),
        ("isolation.md", "container:"),
        ("isolation.md", "docker run --security-opt seccomp=unconfined IMAGE e2e-run examples/"),
        ("isolation.md", "[[runners]]"),
        ("writing-examples.md", "python3 -m venv .venv"),
    ]


# --- the examples --------------------------------------------------------------------------------


@pytest.fixture
def shop() -> Iterator[Project]:
    """Make a project of the files that the reader saves."""
    with project() as made:
        (made.root / "e2e-run.toml").unlink()
        for block in files_of(WRITING):
            made.write(block.file, block.text)
        yield made


def run(shop: Project, *args: str) -> Outcome:
    return shop.run("--python", str(shop.python), *args, env=AS_USERS)


@pytest.mark.usefixtures("demo_port")  # and with it whatever other ports the page uses
def test_examples_pass_and_leave_nothing_behind(shop: Project) -> None:
    outcome = run(shop, "--strict")
    assert outcome.code == 0, outcome.stdout
    assert outcome.statuses == {
        "examples/example_backup.sh": "passed",
        "examples/example_first_order.py": "passed",
        "examples/example_prices.py": "passed",
        "examples/example_shipping.py": "passed",
        "examples/price_server.py": "served",
    }
    assert [step["title"] for step in outcome.examples["examples/example_shipping.py"]["steps"]]
    assert shop.survivors() == []


def test_files_with_metadata_are_understood() -> None:
    declared = [block for block in files_of(WRITING) if "/// script" in block.text]
    assert len(declared) == 6
    for block in declared:
        metadata = read_metadata(block.text, block.file)
        assert metadata.declared
        assert metadata.problems == (), block.file


@pytest.mark.parametrize("block", [b for _, b in every_block() if b.language == "toml" and b.file])
def test_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    assert block.file == "e2e-run.toml"
    (tmp_path / block.file).write_text(block.text, "utf-8")
    (tmp_path / "schema.sql").touch()
    (tmp_path / "examples").mkdir()
    resolved = resolve({}, (), {}, tmp_path)
    assert resolved.warnings == ()
    assert resolved.run.config_file == tmp_path / block.file


# --- the kit -------------------------------------------------------------------------------------


def test_every_name_of_the_kit_is_described_with_its_signature() -> None:
    described = [block.signature for block in blocks_of(KIT) if block.signature]
    assert sorted(described) == sorted(kit.__all__)
    assert docs.update(KIT) == KIT, "run: python -m e2e_runner.docs docs/kit.md"


def test_every_name_of_the_kit_is_used_in_an_example_of_its_page() -> None:
    code = "".join(b.text for b in blocks_of(KIT) if b.language == "python" and not b.signature)
    used = {name for name in kit.__all__ if re.search(rf"\b{name}\b", code)}
    assert used == set(kit.__all__)


# --- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", [*(FOLDER / name for name in PAGES), REPOSITORY / "README.md"], ids=lambda f: f.name
)
def test_links_lead_somewhere(file: Path) -> None:
    prose = without_blocks(file.read_text("utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (file.parent / name) if name else file
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


def anchors(page: str) -> set[str]:
    """Give the names that GitHub gives headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
