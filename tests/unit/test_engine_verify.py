"""`exoflow verify`: a whole store is told to be whole, and whatever is changed in it is told where."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import exoflow
from exoflow import cli
from exoflow.blobs import blob_folder
from exoflow.controller import expander
from exoflow.dag import Node
from exoflow.effects import effect_key
from exoflow.errors import DefinitionError, WorkflowNotFound
from exoflow.journal import JournalObject, decode_object, encode_object, journal_folder, journal_key, plan_key
from exoflow.plan import Plan, build
from exoflow.records import Cleared, Committed, Finished, Intended, Record, Started, Status
from exoflow.steps import drive
from exoflow.storage import LocalStore, MemoryStore
from exoflow.testing import WORKFLOW_ID, Simulation
from exoflow.testing.workflows import draw as drawn
from exoflow.testing.workflows import emit, join
from exoflow.verify import Problem, Verifier, verify
from tests.simulation import flows

LARGE = 70_000


def chain() -> Plan:
    """A nondeterministic task, an effect made of it, and a result."""
    source = drawn.options(name="source", checkpoint="async").bind(LARGE)
    told = emit.options(name="told").bind(0, source)
    return build(join.options(name="result").bind(0, told))


def loop() -> Plan:
    body = functools.partial(flows.body, "async", 5, 1, 2)
    return build(exoflow.loop(body, [], max_in_flight=2))


def large_body(carry: Node, i: int) -> Node:
    source = drawn.options(name="source", checkpoint="async").bind(LARGE)
    return join.options(name="joined", checkpoint="async").bind(i, carry, source)


def stored(plan: Plan, fold_every: int = 2) -> MemoryStore:
    """Return a store in which a workflow has run to its end."""
    simulation = Simulation(plan, seed=1, fold_every=fold_every)
    assert simulation.run() is Status.SUCCESSFUL
    store = simulation.store
    assert isinstance(store, MemoryStore)
    store.put(plan_key(WORKFLOW_ID, plan.digest), json.dumps(plan.to_json()).encode())
    return store


def problems(store: MemoryStore) -> list[Problem]:
    return drive(verify(WORKFLOW_ID, expander()), store)


def objects(store: MemoryStore) -> list[JournalObject]:
    return [decode_object(key, store.objects[key]) for key in store.list(journal_folder(WORKFLOW_ID))]


def checked(plan: Plan, given: Sequence[JournalObject]) -> list[str]:
    """Verify objects, chained anew so that only their content can be wrong."""
    verifier = Verifier(plan, expander())
    previous, base = "", 1
    for number, found in enumerate(given, 1):
        base = number if found.header.kind == "fold" else base
        header = dataclasses.replace(found.header, number=number, previous=previous, base=base)
        data, previous = encode_object(header, found.records)
        verifier.add(decode_object("object", data))
    return [problem.what for problem in verifier.problems]


def unfolded(plan: Plan) -> list[JournalObject]:
    """Return the journal of a workflow, with one record in each object."""
    simulation = Simulation(plan, seed=1, fold_every=1000)
    simulation.run()
    assert isinstance(simulation.store, MemoryStore)
    made = []
    for found in objects(simulation.store):
        if found.header.kind == "claim":
            made.append(found)
        else:
            made += [dataclasses.replace(found, records=(record,)) for record in found.records]
    return made


@pytest.mark.parametrize("plan", [chain, loop])
def test_what_the_engine_writes_is_one_whole_history(plan: Callable[[], Plan]) -> None:
    assert problems(stored(plan())) == []
    assert checked(plan(), unfolded(plan())) == []


def test_every_missing_damaged_or_cut_object_is_told_where() -> None:
    whole = stored(loop())
    base = objects(whole)[-1].header.base
    needed = {journal_key(WORKFLOW_ID, found.header.number) for found in objects(whole) if found.header.number >= base}
    needed.add(plan_key(WORKFLOW_ID, loop().digest))
    for key in sorted(needed - {max(needed & set(whole.list(journal_folder(WORKFLOW_ID))))}):
        data = whole.objects[key]
        for damaged in (None, data[: len(data) // 2], data.replace(b"ledger", b"lodger", 1)):
            if damaged == data:
                continue
            store = MemoryStore({**whole.objects, key: damaged or b""})
            if damaged is None:
                store.delete(key)
            assert any(key in str(problem) for problem in problems(store)), (key, damaged is None)


def test_a_missing_and_a_damaged_blob_are_told_with_the_task_that_needs_them() -> None:
    whole = stored(chain())
    (key,) = whole.list(blob_folder(WORKFLOW_ID))
    gone = MemoryStore({name: data for name, data in whole.objects.items() if name != key})
    assert problems(gone) == [Problem(key, "the blob is missing; 'source' needs it")]
    damaged = MemoryStore({**whole.objects, key: b"x" * LARGE})
    assert problems(damaged) == [Problem(key, "the blob is damaged; 'source' needs it")]


def test_no_workflow_is_not_a_problem_of_one() -> None:
    with pytest.raises(WorkflowNotFound):
        problems(MemoryStore())


def place(given: Sequence[JournalObject], wanted: Callable[[Record], bool]) -> int:
    return next(n for n, found in enumerate(given) if any(wanted(record) for record in found.records))


def is_a(kind: type, task: str | None = None) -> Callable[[Record], bool]:
    return lambda record: isinstance(record, kind) and task in (None, getattr(record, "task", None))


def without(given: Sequence[JournalObject], wanted: Callable[[Record], bool]) -> list[JournalObject]:
    at = place(given, wanted)
    return [*given[:at], *given[at + 1 :]]


def test_a_commit_before_its_ancestor() -> None:
    given = unfolded(chain())
    source = place(given, is_a(Committed, "source"))
    late = [*given[:source], given[source + 1], given[source], *given[source + 2 :]]
    assert "the intent of 'told' comes before its ancestor 'source' is committed" in checked(chain(), late)


def test_a_task_committed_again() -> None:
    given = unfolded(chain())
    source = place(given, is_a(Committed, "source"))
    (record,) = given[source].records
    assert isinstance(record, Committed)
    other = dataclasses.replace(given[source], records=(dataclasses.replace(record, attempt=9),))
    again = [*given[: source + 1], other, *given[source + 1 :]]
    assert "'source' is committed again, with another outcome" in checked(chain(), again)


def test_an_effect_that_was_never_announced() -> None:
    told = checked(chain(), without(unfolded(chain()), is_a(Intended)))
    assert "the effect of 'told' is complete and was never announced" in told


def test_an_effect_under_another_key() -> None:
    given = unfolded(chain())
    at = place(given, is_a(Intended))
    (intent,) = given[at].records
    assert isinstance(intent, Intended)
    other = dataclasses.replace(intent, key=effect_key("another", "told", 0, 0))
    changed = [*given[:at], dataclasses.replace(given[at], records=(other,)), *given[at + 1 :]]
    assert any("has the key" in problem for problem in checked(chain(), changed))


def test_an_effect_rolled_back_has_the_next_generation() -> None:
    given = unfolded(chain())
    at = place(given, is_a(Intended))
    (intent,) = given[at].records
    started = next(record for record in given[0].records if isinstance(record, Started))
    assert isinstance(intent, Intended)
    cleared = dataclasses.replace(given[at], records=(Cleared("told", 1),))
    second = dataclasses.replace(intent, generation=1, key=effect_key(started.nonce, "told", 0, 1))
    for record, wrong in ((second, False), (intent, True)):
        again = dataclasses.replace(given[at], records=(record,))
        found = checked(chain(), [*given[: at + 1], cleared, again, *given[at + 1 :]])
        assert bool(found) is wrong


def test_success_with_an_effect_in_doubt() -> None:
    told = checked(chain(), without(unfolded(chain()), is_a(Committed, "told")))
    assert any("nothing says what became of the effect of 'told'" in problem for problem in told)


def test_a_record_after_the_end() -> None:
    given = unfolded(chain())
    end = place(given, is_a(Finished))
    source = place(given, is_a(Committed, "source"))
    assert any("comes after the end" in problem for problem in checked(chain(), [*given[: end + 1], given[source]]))


def test_a_record_past_the_end_of_a_loop() -> None:
    given = unfolded(loop())
    stop = place(given, lambda record: isinstance(record, Committed) and record.stop)
    (record,) = given[stop].records
    assert isinstance(record, Committed)
    beyond = dataclasses.replace(record, task="step[6]", iteration=6, stop=False)
    late = [*given[:stop], dataclasses.replace(given[stop], records=(beyond,)), *given[stop:]]
    assert any("lies past iteration 5" in problem for problem in checked(loop(), late))


def test_a_generation_written_by_somebody_else() -> None:
    given = unfolded(chain())
    stranger = dataclasses.replace(given[1].header.owner, nonce="somebody else")
    other = dataclasses.replace(given[1], header=dataclasses.replace(given[1].header, owner=stranger))
    assert any("does not own" in problem for problem in checked(chain(), [given[0], other, *given[2:]]))


def test_a_fold_that_loses_or_changes_a_record() -> None:
    given = unfolded(chain())
    end = place(given, is_a(Finished))
    everything = [record for found in given[:end] for record in found.records]
    header = dataclasses.replace(given[1].header, kind="fold")
    fold = JournalObject(header, tuple(everything), "")
    assert checked(chain(), [*given[:end], fold, given[end]]) == []
    lost = JournalObject(header, tuple(record for record in everything if not is_a(Intended)(record)), "")
    assert "the fold loses the intent of 'told'" in checked(chain(), [*given[:end], lost])
    changed = tuple(
        dataclasses.replace(record, attempt=9) if isinstance(record, Committed) else record for record in everything
    )
    assert any(
        "the fold changes" in told for told in checked(chain(), [*given[:end], JournalObject(header, changed, "")])
    )


def test_code_that_cannot_be_loaded_leaves_all_else_checked() -> None:
    def expand(*_: object) -> Any:
        message = "no module named 'gone'"
        raise DefinitionError(message)

    store = stored(build(exoflow.loop(large_body, [], iterations=5)), fold_every=1000)
    (found,) = drive(verify(WORKFLOW_ID, expand), store)
    assert found.where == "plan"
    assert "no module named 'gone'" in found.what
    blobs = store.list(blob_folder(WORKFLOW_ID))
    assert blobs
    for key in blobs:
        store.delete(key)
    told = drive(verify(WORKFLOW_ID, expand), store)
    assert told[0] == found
    assert {problem.where for problem in told[1:]} == set(blobs)


# --- the command --------------------------------------------------------------------------------------------


def run(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["exoflow", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    for key, data in stored(chain()).objects.items():
        store.put(key, data)
    asked = functools.partial(run, capsys=capsys, monkeypatch=monkeypatch)
    assert asked("verify", "--store", str(tmp_path)) == (0, f"{WORKFLOW_ID}: whole\n", "")
    code, out, _ = asked("verify", WORKFLOW_ID, "--store", str(tmp_path), "--json")
    assert (code, json.loads(out)) == (0, {"workflow_id": WORKFLOW_ID, "problems": []})
    (key,) = store.list(blob_folder(WORKFLOW_ID))
    store.delete(key)
    code, out, _ = asked("verify", "--store", str(tmp_path))
    assert (code, out) == (1, f"{WORKFLOW_ID}: {key}: the blob is missing; 'source' needs it\n")
    code, out, _ = asked("verify", WORKFLOW_ID, "--store", str(tmp_path), "--json")
    told = {"where": key, "what": "the blob is missing; 'source' needs it"}
    assert (code, json.loads(out)) == (1, {"workflow_id": WORKFLOW_ID, "problems": [told]})
    code, _, err = asked("verify", "unknown", "--store", str(tmp_path))
    assert code == 2
    assert "unknown" in err
