"""What the documents say is there, is there, and what is there, they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import exoflow.cli
import graph_stream.cli

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("*/README.md")])
PACKAGES = ("exoflow", "graph_stream", "ingest", "spark")
MODULES = sorted(str(path.relative_to(PROJECT)) for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))
ARCHITECTURE = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a command's leaves with what one types for each."""
    if isinstance(command, click.Group):
        for sub, each in command.commands.items():
            yield from commands(each, f"{name} {sub}")
    else:
        yield name, command


COMMANDS = dict([*commands(exoflow.cli.cli, "exoflow"), *commands(graph_stream.cli.cli, "graph-stream")])
OPTIONS = [
    pytest.param(name, option, id=f"{name} {option.opts[0]}")
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option)
]


def sections(text: str) -> dict[str, str]:
    """Return the second-level sections of a document by title."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


REFERENCE = sections((PROJECT / "docs" / "cli.md").read_text(encoding="utf-8"))


def mentioned_options(text: str) -> set[str]:
    """Return the options that a text names in backticks."""
    spans = re.findall(r"`([^`]*)`", text)
    return {option for span in spans for option in re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", span)}


def test_the_reference_has_a_section_per_command() -> None:
    assert set(REFERENCE) == set(COMMANDS)


@pytest.mark.parametrize(("name", "command"), COMMANDS.items(), ids=COMMANDS)
def test_the_reference_names_exactly_the_options_of_a_command(name: str, command: click.Command) -> None:
    there = {option for each in command.params if isinstance(each, click.Option) for option in each.opts}
    assert mentioned_options(REFERENCE[name]) == there
    assert command.help


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_an_option_has_help(name: str, option: click.Option) -> None:
    assert option.help


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_an_option_has_a_variable_of_its_name(name: str, option: click.Option, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, *command = name.split()
    group = exoflow.cli.cli if tool == "exoflow" else graph_stream.cli.cli
    context = click.Context(group, info_name=tool, **group.context_settings)
    for word in command:
        context = click.Context(COMMANDS[name], info_name=word, parent=context)
    words = [tool, *command, option.opts[0].lstrip("-")]
    monkeypatch.setenv("_".join(words).replace("-", "_").upper(), "given")
    assert option.resolve_envvar_value(context) == "given"


@pytest.mark.parametrize("module", MODULES)
def test_the_file_map_names_every_module(module: str) -> None:
    rows = re.findall(r"^\| `([^`]+\.py)` \| (.+) \|$", ARCHITECTURE, flags=re.MULTILINE)
    assert [text for path, text in rows if path == module], f"{module} is missing from docs/architecture.md"


def test_the_file_map_names_nothing_else() -> None:
    assert set(re.findall(r"^\| `([^`]+\.py)` ", ARCHITECTURE, flags=re.MULTILINE)) == set(MODULES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if not (document.parent / target.split("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_document_names_a_folder_of_one_machine(document: Path) -> None:
    found = re.findall(r"(?<![\w.])/(?:root|home|work|tmp|Users)/\S*", document.read_text(encoding="utf-8"))
    assert found == []


def test_the_python_of_the_readme_is_the_example() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    example = (PROJECT / "examples" / "nightly.py").read_text(encoding="utf-8")
    assert block == example


@pytest.mark.parametrize(("example", "said"), [("nightly", "published 499500"), ("counter", "counted to 105")])
def test_examples_run_and_run_again(example: str, said: str, tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / "examples" / f"{example}.py")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == said
    published = [path.read_text() for path in tmp_path.glob("published-*.txt")]
    assert published == (["499500\n"] if example == "nightly" else [])


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ ((?:graph-stream|exoflow) .+)$", README, flags=re.MULTILINE), ids=lambda line: line[:40]
)
def test_commands_of_the_readme_exist_with_their_options(line: str) -> None:
    first = re.split(r"\s+[|>&;]", line)[0]
    name = max((name for name in COMMANDS if first.startswith(f"{name} ")), key=len, default=None)
    assert name is not None, f"no such command: {first}"
    there = {option for each in COMMANDS[name].params for option in each.opts}
    assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", first)) <= there


def test_targets_of_the_readme_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z0-9]+)", README))
    assert targets >= {"demo", "test"}
    assert targets <= set(re.findall(r"^([a-z0-9]+):", makefile, flags=re.MULTILINE))
