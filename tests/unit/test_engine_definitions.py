"""What users write: annotations, bound nodes, names, plans and the code in them; and what is refused."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import linecache
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exoflow
from exoflow import errors, views
from exoflow.code import CodeRef, code_ref
from exoflow.dag import Node
from exoflow.errors import DefinitionError
from exoflow.options import Checkpoint, task_options
from exoflow.plan import Plan, build, difference, expand
from tests.simulation import flows


@exoflow.task
def one(*_: Any, **__: Any) -> int:
    return 1


@exoflow.actor(deterministic=True)
class Memo:
    def __init__(self, start: int = 0) -> None:
        self.start = start

    def add(self, amount: Any) -> int:
        return self.start

    def capture(self) -> int:
        return self.start

    def restore(self, start: int) -> None:
        self.start = start


@exoflow.actor
class Cache:
    def get(self, key: str) -> str:
        return key


def body(size: int, carry: Node, i: int) -> Node:
    node = one.bind(carry, i)
    for _ in range(size):
        node = one.bind(node, Memo.bind(i).add.bind(carry))
    return node


# --- annotations --------------------------------------------------------------------------------------------


def test_defaults():
    options = task_options()
    assert options.checkpoint is Checkpoint.SYNC
    assert not options.deterministic
    assert options.ray_options() == {}


def test_resources_reach_ray():
    options = task_options(num_cpus=0, num_gpus=1, resources={"disk": 2})
    assert options.ray_options() == {"num_cpus": 0, "num_gpus": 1, "resources": {"disk": 2}}


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"checkpont": "sync"}, "checkpont"),
        ({"checkpoint": "later"}, "later"),
        ({"retries": -1}, "negative"),
        ({"backoff": -0.1}, "negative"),
        ({"idempotent": True}, "external=True"),
        ({"rollback": sorted}, "external=True"),
        ({"external": True, "retries": 1}, "retries must be 0"),
        ({"timeout": 0}, "positive number of seconds"),
        ({"external": True, "idempotent": True, "checkpoint": "none"}, "async or sync"),
    ],
)
def test_annotations_that_make_no_sense_are_refused_when_given(annotations, words):
    with pytest.raises(DefinitionError, match=words):
        exoflow.task(**annotations)
    with pytest.raises(DefinitionError, match=words):
        one.options(**annotations)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Memo.bind().subtract, "no method 'subtract'"),
        (lambda: Memo.options(checkpoint="none").bind().add.options(checkpoint="sync").bind(1), "checkpoint"),
        (lambda: Memo.options(deterministic=False).bind().add.options(snapshot=False).bind(1), "deterministic"),
        (lambda: Memo.options(replicas=0), "replicas"),
        (lambda: Cache.bind().get.bind("k").snapshot(), "no snapshot"),
        (lambda: one.bind().snapshot(), "only a call"),
        (lambda: exoflow.loop(body, 0, max_in_flight=0), "max_in_flight"),
        (lambda: exoflow.loop(body, 0, iterations=0), "iterations"),
        (lambda: exoflow.loop(body, 0, keep=0), "keep"),
        (lambda: exoflow.loop(3, 0), "neither a function"),
        (lambda: build(one), "bind"),
        (lambda: build(exoflow.loop(body, [one.bind()])), "first carry"),
        (lambda: build(one.options(name="a[1]").bind()), "name"),
        (lambda: build(one.bind(), {"x": object()}), "metadata"),
        (lambda: build(one.bind(x for x in [1])), "generator"),
        (
            lambda: build(
                one.bind(Memo.options(name="m").bind(1).add.bind(0), Memo.options(name="m").bind(2).add.bind(0))
            ),
            "two different actors",
        ),
    ],
)
def test_definitions_that_are_refused(make, words):
    with pytest.raises(DefinitionError, match=words):
        make()


def test_a_cycle_is_refused():
    first, second = one.bind(), one.bind()
    first >> second >> first
    with pytest.raises(DefinitionError, match="cycle"):
        build(first)


def test_calling_a_task_runs_the_plain_function():
    assert one() == 1


# --- plans --------------------------------------------------------------------------------------------------


def test_names_follow_bind_order_and_never_collide():
    nodes = [one.bind(), one.options(name="one_2").bind(), one.bind(), one.options(name="one").bind()]
    plan = build(one.options(name="root").bind(*reversed(nodes)))
    assert len({task.id for task in plan.tasks}) == 5
    ids = {task.id for task in plan.tasks}
    assert {"one", "one_2", "root"} <= ids


def test_order_edges_and_branches_are_in_the_plan():
    first, second = one.options(name="first").bind(), one.options(name="second").bind()
    side = one.options(name="side").bind(first)
    first >> second
    plan = build(second.also(side))
    after = {task.id: task.after for task in plan.tasks}
    assert after["second"] == ("first",)
    assert plan.branches == ("side",)
    places = [task.id for task in plan.tasks]
    assert places.index("first") < min(places.index("second"), places.index("side"))


def a_plan(size: int = 2) -> Plan:
    loop = exoflow.loop(functools.partial(body, size), one.bind(), keep=3, iterations=9, archive=flows.archive)
    call = Memo.options(replicas=2, name="memo").bind(5).add.bind(loop)
    other = exoflow.loop(functools.partial(body, 1), {"carry": (1, 2)}, name="other")
    root = one.options(retries=2, checkpoint="async").bind([call, {"k": (call.snapshot(), other)}])
    return build(root.also(one.bind(b"bytes")), {"who": "me"})


def test_a_plan_survives_its_json_form():
    plan = a_plan()
    back = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert back == plan
    assert back.digest == plan.digest


def test_equal_workflows_have_equal_digests_and_replicas_do_not_count():
    assert a_plan().digest == a_plan().digest
    assert a_plan().digest != a_plan(3).digest
    alone, many = (build(Memo.options(replicas=n).bind().add.bind(1)) for n in (1, 4))
    assert alone.digest == many.digest


@pytest.mark.parametrize("name", ["replicas", "pickled", "code"])
def test_arguments_count_whatever_their_name(name):
    plans = [build(one.bind(**{name: number})) for number in (1, 2)]
    assert plans[0].digest != plans[1].digest
    assert difference(*plans)


def test_the_difference_names_path_and_values():
    stored, given_ = build(one.bind(1)), build(one.options(retries=3).bind(1))
    assert difference(stored, stored) == []
    assert difference(stored, given_) == ["plan.tasks[0].options.retries: null -> 3"]


@given(st.integers(1, 50), st.integers(0, 3))
def test_a_loops_iterations_expand_alike_and_apart(iteration, size):
    plan = build(exoflow.loop(functools.partial(body, size), 0))
    spec = plan.loops[0]
    expanded = expand(spec, spec.body.load(), iteration, "before")
    assert expanded == expand(spec, spec.body.load(), iteration, "before")
    assert all(task.id.endswith(f"[{iteration}]") for task in expanded.tasks)
    assert {task.iteration for task in expanded.tasks} == {iteration}
    assert expanded.carry == expanded.tasks[-1].id
    assert any(given_.task == "before" for task in expanded.tasks for given_ in task.inputs)


def bad_bodies() -> list[Any]:
    return [lambda carry, i: carry, lambda carry, i: 3, lambda carry, i: exoflow.loop(body, carry)]


@pytest.mark.parametrize("bad", bad_bodies(), ids=["carry", "value", "loop"])
def test_a_body_that_returns_no_task_is_refused(bad):
    spec = build(exoflow.loop(bad, 0)).loops[0]
    with pytest.raises(DefinitionError, match="body of loop 'loop'"):
        expand(spec, spec.body.load(), 1, "before")


def test_iterations_of_second_loops_are_shown_by_plain_names():
    assert views._NAME.fullmatch("loop_2/step[3]")["base"] == "step"
    assert views._NAME.fullmatch("step[3]")["base"] == "step"


@pytest.mark.parametrize(
    ("spans", "last", "expected"),
    [
        ([(1, 5), (6, 9)], 9, [(1, 5), (6, 9)]),
        ([(1, 5), (1, 7), (8, 9)], 9, [(1, 7), (8, 9)]),
        ([(1, 5), (6, 8), (6, 9)], 9, [(1, 5), (6, 9)]),
        ([(1, 5), (6, 9)], 5, [(1, 5)]),
        ([(1, 5)], None, [(1, 5)]),
        ([], None, []),
        ([(1, 3)], 0, []),
    ],
)
def test_archive_objects_of_dead_owners_are_not_counted_twice(spans, last, expected):
    def key(span: tuple[int, int]) -> str:
        return views.archive_key("w", "loop", *span)

    assert views.archive_tiles(map(key, spans), last) == [key(span) for span in expected]


# --- code ---------------------------------------------------------------------------------------------------


def test_module_level_code_is_stored_by_name():
    ref = code_ref(one)
    assert ref.pickled is None
    assert (ref.module, ref.name) == (__name__, "one")
    assert ref.load()() == 1
    assert not ref.changed()


def test_closures_and_partials_travel_by_value():
    captured = 7

    def closure(add: int) -> int:
        return captured + add

    ref = code_ref(functools.partial(closure, add=3))
    assert ref.pickled is not None
    back = CodeRef.from_json(json.loads(json.dumps(ref.to_json())))
    assert back == ref
    assert back.load()() == 10
    assert not back.changed()


def test_methods_of_nested_classes_are_found_by_their_qualified_name():
    assert code_ref(Outer.Inner.method).load()(None) == "found"


class Outer:
    class Inner:
        def method(self) -> str:
            return "found"


def test_changed_source_is_noticed_and_missing_code_named(tmp_path: Path, monkeypatch):
    path = tmp_path / "some_module_that_changes.py"
    path.write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("some_module_that_changes")
    ref = code_ref(module.f)
    assert not ref.changed()
    path.write_text("def f():\n    return 2 + 2\n")
    linecache.clearcache()
    importlib.reload(module)
    assert ref.changed()
    del module.f
    with pytest.raises(DefinitionError, match="some_module_that_changes:f"):
        ref.load()


# --- the public face ----------------------------------------------------------------------------------------


def every_error() -> list[errors.ExoflowError]:
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    return [kind(*_arguments(kind)) for kind in kinds if issubclass(kind, errors.ExoflowError)]


def _arguments(kind: type) -> tuple[str, ...]:
    if issubclass(kind, errors.TaskFailed | errors.InDoubt):
        return ("workflow", "task", "detail")
    return ("first", "second") if issubclass(kind, errors.WorkflowError | errors.StorageError) else ("words",)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_an_actor_made_one_again_is_the_same_with_the_annotations_added():
    again = exoflow.actor(Memo, checkpoint="async").bind(3)
    plain = exoflow.actor(Memo).bind(3)
    assert plain.annotations == Memo.bind(3).annotations
    assert again.annotations == Memo.options(checkpoint="async").bind(3).annotations
    assert again.code == plain.code == Memo.bind(3).code
    assert exoflow.actor(Memo.options(replicas=2)).bind().replicas == 2


def test_all_is_the_public_surface():
    public = {name for name, value in vars(exoflow).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert set(exoflow.__all__) == public


@pytest.mark.parametrize(
    "annotations",
    [
        {"external": True, "idempotent": True},
        {"timeout": 1.0},
        {"num_cpus": 1},
        {"num_gpus": 1},
        {"resources": {"disk": 1}},
    ],
)
def test_a_task_in_the_owner_takes_nothing_of_the_world(annotations: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match=r"in the owner.*leave"):
        task_options(in_owner=True, **annotations)


def test_a_call_does_not_run_in_the_owner() -> None:
    with pytest.raises(DefinitionError, match=r"Memo\.add: a call runs where its actor is"):
        Memo.bind().add.options(in_owner=True).bind(1)
