"""The engine on a real Ray: every mode and shape, losses of workers and actors, refusals and resumes."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

import exoflow
from exoflow.executor import RayExecutor
from exoflow.journal import journal_folder, read_journal
from exoflow.storage import LocalStore
from tests.integration import engine_flows as flows

MODES = ("none", "async", "sync")
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def run(node: Any, store: str, workflow_id: str = "w", **options: Any) -> Any:
    return exoflow.run(node, workflow_id=workflow_id, store=store, **options)


def blob_count(store: str, workflow_id: str = "w") -> int:
    return len(LocalStore(store).list(f"workflows/{workflow_id}/blobs"))


# --- shapes in every mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_dag_with_large_outputs(mode, store):
    task = flows.padded.options(checkpoint=mode)
    left, right = task.bind("left", flows.BIG), task.bind("right", 0)
    result = run(task.bind("root", flows.BIG, left, right), store)
    assert result == ["root", "x" * flows.BIG, ["left", "right"]]
    assert blob_count(store) == (1 if mode == "none" else 2)
    if mode != "none":
        assert exoflow.get_output("w", task="padded", store=store) == ["left", "x" * flows.BIG, []]


@pytest.mark.parametrize("mode", MODES)
def test_loop_over_a_durable_actor_until_it_stops(mode, store):
    node = exoflow.loop(functools.partial(flows.adding, mode, 8), 0)
    assert run(node, store) == 36


@pytest.mark.parametrize("mode", MODES)
def test_loop_of_a_given_number_of_iterations(mode, store):
    node = exoflow.loop(functools.partial(flows.adding, mode, -1), 0, iterations=5)
    assert run(node, store) == 15


@pytest.mark.parametrize("mode", MODES)
def test_replicated_actor_exchanges_messages(mode, store):
    node = exoflow.loop(functools.partial(flows.swapping, mode, 2, 4), 0)
    assert run(node, store) == [[10, 400, 410], [10, 401, 411]]


@pytest.mark.parametrize("mode", MODES)
def test_branches_get_snapshots(mode, store, tmp_path):
    node = exoflow.loop(functools.partial(flows.branching, mode, str(tmp_path), 6), 0)
    assert run(node, store) == 21
    told = sorted(line.split()[1] + " " + line.split()[3] for line in flows.noted(tmp_path))
    assert told == ["2 3", "4 10", "6 21"]
    assert exoflow.get_output("w", task="report[6]", store=store) == 21


@pytest.mark.parametrize("mode", MODES)
def test_large_outputs_of_an_actor(mode, store):
    call = flows.adder(mode).wide.bind(7)
    assert run(call, store) == "y" * flows.BIG + "7"


# --- errors, retries, resumes -------------------------------------------------------------------------------


@exoflow.task(retries=3, backoff=0.01, num_cpus=0)
def fails_twice(folder: str) -> int:
    flows.note(folder, "try")
    if len(flows.noted(folder)) < 3:
        message = "not yet"
        raise ValueError(message)
    return len(flows.noted(folder))


def test_a_task_is_retried_with_backoff(store, tmp_path):
    assert run(fails_twice.bind(str(tmp_path)), store) == 3


@exoflow.task(num_cpus=0)
def fails_until_told(folder: str, value: Any) -> str:
    if not (Path(folder) / "told").exists():
        message = "nobody told me"
        raise LookupError(message)
    return f"{value} and told"


@exoflow.task(num_cpus=0)
def counted(folder: str) -> str:
    flows.note(folder, "counted")
    return "counted"


def test_a_failed_workflow_says_why_and_can_be_resumed(store, tmp_path):
    node = fails_until_told.bind(str(tmp_path), counted.bind(str(tmp_path)))
    with pytest.raises(exoflow.TaskFailed, match="LookupError: nobody told me") as caught:
        run(node, store)
    assert caught.value.task == "fails_until_told"
    assert "in fails_until_told" in caught.value.detail
    assert exoflow.get_status("w", store=store) is exoflow.Status.FAILED
    with pytest.raises(exoflow.TaskFailed, match="nobody told me"):
        exoflow.get_output("w", store=store)
    (tmp_path / "told").touch()
    assert exoflow.resume("w", store=store) == "counted and told"
    assert exoflow.get_status("w", store=store) is exoflow.Status.SUCCESSFUL
    assert flows.noted(tmp_path) == ["counted"]


def test_the_same_plan_again_returns_the_recorded_result(store, tmp_path):
    assert run(counted.bind(str(tmp_path)), store) == "counted"
    before = LocalStore(store).list("workflows")
    assert run(counted.bind(str(tmp_path)), store) == "counted"
    assert exoflow.resume("w", store=store) == "counted"
    assert flows.noted(tmp_path) == ["counted"]
    assert LocalStore(store).list("workflows") == before


def test_another_plan_under_the_same_id_is_refused_with_the_difference(store, tmp_path):
    run(counted.bind(str(tmp_path)), store)
    with pytest.raises(exoflow.PlanMismatch, match="elsewhere"):
        run(counted.bind("elsewhere"), store)


def test_arguments_named_like_fields_of_the_plan_count_too(store):
    run(takes.bind(replicas=1, pickled=1), store)
    with pytest.raises(exoflow.PlanMismatch):
        run(takes.bind(replicas=2, pickled=1), store)


@exoflow.task(num_cpus=0)
def takes(**given: int) -> int:
    return sum(given.values())


def test_an_unknown_id_writes_nothing(store):
    with pytest.raises(exoflow.WorkflowNotFound):
        exoflow.resume("nobody", store=store)
    assert LocalStore(store).list("") == []


def test_changed_code_is_refused_unless_told_to_go_on(store, tmp_path, monkeypatch):
    source = tmp_path / "changing_module.py"
    text = (
        "import exoflow\n\n@exoflow.task(num_cpus=0)\n"
        "def f(path):\n    assert open(path).read() == 'go'\n    return {}\n"
    )
    source.write_text(text.format(1))
    (tmp_path / "gate").write_text("stay")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import changing_module

    with pytest.raises(exoflow.TaskFailed):
        run(changing_module.f.bind(str(tmp_path / "gate")), store)
    (tmp_path / "gate").write_text("go")
    source.write_text(text.format(2) + "\n# a longer file\n")
    import importlib
    import linecache

    linecache.clearcache()
    importlib.reload(changing_module)
    with pytest.raises(exoflow.PlanMismatch, match=r"code of f .*on_change='continue'"):
        exoflow.resume("w", store=store)


# --- losses -------------------------------------------------------------------------------------------------


@exoflow.task(num_cpus=0)
def kills_its_worker(folder: str) -> str:
    if flows.once(folder, "kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_worker_is_replaced_and_its_consumers_too(mode, store, tmp_path):
    first = kills_its_worker.options(checkpoint=mode).bind(str(tmp_path))
    assert run(flows.padded.options(checkpoint=mode).bind("root", 0, first), store) == ["root", "", ["a"]]


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_actor_is_rolled_back_to_the_same_answer(mode, store, tmp_path):
    node = exoflow.loop(functools.partial(flows.dying, mode, str(tmp_path), 5, 8), 0)
    assert run(node, store) == 36


@exoflow.actor(deterministic=True, checkpoint="sync", num_cpus=0)
class Fragile:
    """Dies while it persists a state, when nothing else runs."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.total = 0

    def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    def capture(self) -> int:
        return self.total

    def persist(self, total: int) -> int:
        if flows.once(self.folder, "persist"):
            until(lambda: (Path(self.folder) / "produced").exists())
            os._exit(1)
        return total

    def restore(self, total: int) -> None:
        self.total = total


class Touch:
    """An observer that tells by a file that the controller knows of an output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def produced(self, event: Any) -> None:
        (self.folder / "produced").touch()

    def committed(self, records: Any, at: float) -> None:
        """Nothing depends on commits here."""

    def told(self, actor: str, text: str) -> None:
        with (self.folder / "told").open("a") as lines:
            lines.write(f"{actor}: {text}\n")


@exoflow.actor(num_cpus=0)
class Patient:
    """Waits inside a call until it has been heard, and until a query has let it go."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def wait(self) -> int:
        exoflow.context().tell("waiting")
        self._wait_for("told")
        self._wait_for("let go")
        return 1

    def let_go(self) -> int:
        self._wait_for("told")
        (self.folder / "let go").touch()
        return 2

    def capture(self) -> None:
        pass

    def restore(self, state: None) -> None:
        pass

    def _wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 30
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.01)


def test_a_call_that_waits_is_heard_and_a_query_runs_beside_it(store, tmp_path):
    patient = Patient.bind(str(tmp_path))
    query = patient.let_go.options(query=True).bind()
    assert run(takes.bind(waited=patient.wait.bind(), queried=query), store, observer=Touch(tmp_path)) == 3
    assert (tmp_path / "told").read_text() == "Patient: waiting\n"


def test_an_interrupt_that_another_thread_gets_ends_the_wait(store, tmp_path):
    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not (tmp_path / "told").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)  # nothing more happens: the owner waits
        sent.append(time.monotonic())
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    sent: list[float] = []
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(Patient.bind(str(tmp_path)).wait.bind(), store, observer=Touch(tmp_path))
    # The call would give up, and be heard of, after 30 seconds.
    assert time.monotonic() - sent[0] < 15
    thread.join()


def test_an_actor_that_dies_while_it_persists_is_noticed(store, tmp_path):
    fragile = Fragile.bind(str(tmp_path))
    fragile.add.bind(1) >> (last := fragile.add.bind(2))
    assert run(last, store, observer=Touch(tmp_path)) == 3


@exoflow.actor(deterministic=True, num_cpus=0)
class Sore:
    """Cannot be restored."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, folder: str, amount: int) -> int:
        if amount == 2 and flows.once(folder, "sore"):
            os._exit(1)
        self.total += amount
        return self.total

    def capture(self) -> int:
        return self.total

    def restore(self, total: int) -> None:
        message = f"cannot take {total} back"
        raise ValueError(message)


def test_an_actor_that_cannot_be_restored_fails_the_workflow(store, tmp_path):
    sore = Sore.bind()
    sore.add.bind(str(tmp_path), 1) >> (last := sore.add.bind(str(tmp_path), 2))
    with pytest.raises(exoflow.TaskFailed, match="cannot take 1 back"):
        run(last, store)


@exoflow.task(num_cpus=0)
def unpicklable() -> Any:
    return (number for number in range(3))


@exoflow.task(num_cpus=0)
def node_maker() -> Any:
    return unpicklable.bind()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("task", "words"), [(unpicklable, "generator"), (node_maker, "returned a bound task")])
def test_outputs_that_are_no_values_fail_the_workflow(mode, task, words, store):
    with pytest.raises(exoflow.TaskFailed, match=words):
        run(task.options(checkpoint=mode).bind(), store)


# --- stores and readers -------------------------------------------------------------------------------------


class Broken:
    """A value that pickles, and cannot be unpickled."""

    def __reduce__(self):
        return _never, ()


def _never() -> None:
    message = "this value never comes back"
    raise ValueError(message)


@exoflow.task(num_cpus=0)
def broken():
    return Broken()


def test_an_input_that_cannot_be_unpickled_is_named_as_such(store):
    with pytest.raises(exoflow.TaskFailed, match=r"(?s)'takes' .*an input could not be unpickled.*never comes back"):
        run(takes.bind(value=broken.bind()), store)


def test_archives_hold_what_has_left_the_journal(store):
    node = exoflow.loop(functools.partial(flows.adding, "async", 200), 0, archive=flows.archive_numbers, keep=3)
    assert run(node, store) == 20100
    view = exoflow.read_loop("w", store=store)
    archived = [int(number) for data in view.archived for number in data.decode().split(",")]
    left = [iteration.number for iteration in view.iterations]
    assert archived == list(range(1, len(archived) + 1))
    assert len(archived) > 50
    assert set(archived) | set(left) == set(range(1, 201))


def test_keep_bounds_the_store(store):
    sizes = {}
    for iterations in (60, 300):
        node = exoflow.loop(flows.constant_body, None, iterations=iterations, keep=2)
        name = f"w{iterations}"
        assert run(node, store, name)["i"] == iterations
        objects = LocalStore(store).list(journal_folder(name))
        sizes[iterations] = (len(objects), blob_count(store, name))
    # A fold comes every 64 objects; a run that has not reached one yet says nothing about a bound.
    assert sizes[300][0] <= 2 * 64
    assert sizes[300][1] <= 2 * max(sizes[60][1], 4 * 64)


def test_resume_with_other_replicas(store, tmp_path):
    with pytest.raises(exoflow.TaskFailed):
        run(fan.bind(str(tmp_path), flows.adder("sync", replicas=2).add.bind(3)), store)
    (tmp_path / "told").touch()
    assert exoflow.resume("w", store=store, replicas={"adder": 3}) == [3, 3]


@exoflow.task(num_cpus=0)
def fan(folder: str, totals: list[int]) -> list[int]:
    assert (Path(folder) / "told").exists()
    return totals


def test_hints_are_for_one_owner_alone(store, tmp_path):
    with pytest.raises(exoflow.TaskFailed, match="as told"):
        run(hinted.bind(Listener.bind().told.bind()), store, hints={"patience": 0})
    assert exoflow.resume("w", store=store, hints={"patience": 3}) == [0, 0, 3]


@exoflow.actor(num_cpus=0)
class Listener:
    def __init__(self) -> None:
        self.at_start = exoflow.context().hints["patience"]

    def told(self) -> list[int]:
        return [self.at_start, exoflow.context().hints["patience"]]

    def capture(self) -> None:
        return None

    def restore(self, state: None) -> None:
        pass


@exoflow.task(num_cpus=0)
def hinted(told: list[int]) -> list[int]:
    assert exoflow.context().hints["patience"], "as told"
    return [*told, exoflow.context().hints["patience"]]


# --- owners -------------------------------------------------------------------------------------------------


@exoflow.task(num_cpus=0)
def waits_for(folder: str) -> str:
    deadline = time.monotonic() + 30
    while not (Path(folder) / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return "went"


def test_a_live_owner_is_not_disturbed(store, tmp_path):
    handle = exoflow.run_async(waits_for.bind(str(tmp_path)), workflow_id="w", store=store, lease_seconds=1.0)
    until(lambda: LocalStore(store).list(journal_folder("w")))
    with pytest.raises(exoflow.WorkflowRunning, match=str(os.getpid())):
        exoflow.resume("w", store=store, lease_seconds=1.0)
    assert exoflow.get_status("w", store=store) is exoflow.Status.RUNNING
    (tmp_path / "go").touch()
    assert handle.result(30) == "went"


def until(ready: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# --- damaged snapshots --------------------------------------------------------------------------------------


def damage(store: str, blob: exoflow.Blob) -> None:
    path = Path(store) / "workflows/w/blobs" / blob.name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def states_of(store: str) -> list[exoflow.Blob]:
    """Return the blobs of the snapshots in the journal, oldest first."""
    committed = read_journal(LocalStore(store), "w").history.committed.values()
    return [record.state.blob for record in committed if record.state is not None and record.state.blob is not None]


def stopped_in_the_middle(store: str, folder: Path, last: int = 6) -> None:
    """Commit some iterations of a loop over an actor with large states, then fail."""
    with pytest.raises(exoflow.TaskFailed, match="the gate is closed"):
        run(exoflow.loop(functools.partial(flows.wide_body, str(folder), last), 0, max_in_flight=2), store)


def test_a_damaged_newest_snapshot_falls_back_to_an_older_one_and_says_so(store, tmp_path, caplog):
    stopped_in_the_middle(store, tmp_path)
    states = states_of(store)
    assert len(states) >= 3
    for blob in states[-2:]:
        damage(store, blob)
    (tmp_path / "gate").touch()
    assert exoflow.resume("w", store=store) == sum(range(1, 7))
    assert caplog.text.count("is damaged, going back") == 2


def test_when_every_snapshot_is_damaged_the_calls_are_made_again_from_the_start(store, tmp_path):
    stopped_in_the_middle(store, tmp_path)
    for blob in states_of(store):
        damage(store, blob)
    (tmp_path / "gate").touch()
    assert exoflow.resume("w", store=store) == sum(range(1, 7))


def test_a_damaged_snapshot_without_an_older_one_is_told_and_loses_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setattr("exoflow.state.WorkflowState.__init__.__kwdefaults__", {"replicas": None, "fold_every": 4})
    stopped_in_the_middle(store, tmp_path, last=12)
    blobs = states_of(store)
    for blob in blobs:
        damage(store, blob)
    (tmp_path / "gate").touch()
    with pytest.raises(exoflow.TaskFailed, match=r"no older one is left: blob \S+ in \S+ is damaged"):
        exoflow.resume("w", store=store)
    for blob in blobs:
        damage(store, blob)  # the same bit again: as it was
    assert exoflow.resume("w", store=store) == sum(range(1, 13))


# --- short tasks that travel together -----------------------------------------------------------------------


@exoflow.task(deterministic=True)
def short(folder: str, number: int) -> list[Any]:
    if number == 150 and folder and flows.once(folder, "kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 160 and folder and flows.once(folder, "sleep"):
        time.sleep(0.5)
    return [number, "x" * (flows.BIG if number % 50 == 0 else 1), os.getpid()]


@exoflow.task(deterministic=True)
def gather(*parts: list[Any]) -> list[int]:
    assert all(len(part[1]) == (flows.BIG if part[0] % 50 == 0 else 1) for part in parts)
    return [part[0] for part in parts]


@pytest.mark.parametrize("mode", MODES)
def test_many_short_tasks_come_to_their_ends_whatever_happens_to_one(mode, store, tmp_path):
    """One dies with its process, one takes long all of a sudden, some have large values; all are what they were."""
    task = short.options(checkpoint=mode)
    node = gather.bind(*(task.bind(str(tmp_path), number) for number in range(300)))
    assert run(node, store) == list(range(300))
    assert (tmp_path / "once-kill").exists()
    assert (tmp_path / "once-sleep").exists()


def test_short_tasks_share_submissions(store, monkeypatch):
    submitted: list[int] = []
    start = RayExecutor._start_bundle

    def counted(self: RayExecutor, orders: list[Any], kind: Any) -> None:
        submitted.append(len(orders))
        start(self, orders, kind)

    monkeypatch.setattr(RayExecutor, "_start_bundle", counted)
    node = gather.bind(*(short.options(checkpoint="none").bind("", number + 1) for number in range(300)))
    assert run(node, store) == list(range(1, 301))
    assert sum(submitted) > 150


def test_a_failure_in_the_middle_of_many_is_the_one_that_failed(store):
    @exoflow.task(deterministic=True)
    def picky(number: int) -> int:
        assert number != 200, "not this one"
        return number

    with pytest.raises(exoflow.TaskFailed, match="not this one") as caught:
        run(gather.bind(*(picky.bind(number) for number in range(300))), store)
    assert caught.value.task == "picky_201"


# --- the end of a workflow ----------------------------------------------------------------------------------


@exoflow.task(num_cpus=0)
def naps(folder: str, number: int, seconds: float) -> int:
    flows.note(folder, f"{os.getpid()}")
    time.sleep(seconds)
    return number


@exoflow.task(num_cpus=0)
def fails_once_noted(folder: str, count: int) -> None:
    while len(flows.noted(folder)) < count:
        time.sleep(0.01)
    message = "enough"
    raise ValueError(message)


@pytest.fixture
def cancelled(monkeypatch) -> list[Any]:
    """Count what is ended by force, and end it."""
    outcomes: list[Any] = []
    cancel = ray.cancel

    def counted_cancel(outcome: Any, **options: Any) -> None:
        outcomes.append(outcome)
        cancel(outcome, **options)

    monkeypatch.setattr(ray, "cancel", counted_cancel)
    return outcomes


def test_what_is_about_to_return_when_a_workflow_ends_is_not_cancelled(store, tmp_path, cancelled):
    # Ray aborts the process that cancels a task whose answer is just arriving.
    others = [naps.options(checkpoint="none").bind(str(tmp_path), number, 0.3) for number in range(4)]
    with pytest.raises(exoflow.TaskFailed, match="enough"):
        run(gather.bind(fails_once_noted.bind(str(tmp_path), 4), *others), store)
    node = exoflow.loop(functools.partial(flows.adding, "async", 8), 0)
    assert run(node, store, "loop") == 36
    assert not cancelled


def test_a_long_body_is_ended_with_its_workflow(store, tmp_path, cancelled):
    others = [naps.bind(str(tmp_path), number, 600) for number in range(2)]
    with pytest.raises(exoflow.TaskFailed, match="enough"):
        run(gather.bind(fails_once_noted.bind(str(tmp_path), 2), *others), store)
    assert len(cancelled) == 2
    give_up = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in flows.noted(tmp_path)):
        assert time.monotonic() < give_up
        time.sleep(0.05)
