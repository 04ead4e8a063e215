"""Output folders: one commit, whoever crashes when."""

import hashlib
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spark.output import MANIFEST_NAME, POINTER_NAME, OutputCorrupt, OutputFolder

# Writes and commits an output, and dies just before its n-th change to the file system counts.
COMMIT_AND_DIE = """
import os, sys
from pathlib import Path
from tests.integration.test_spark_output import write_result
from spark.output import OutputFolder

left = int(sys.argv[2])

def dying(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return function(*arguments, **options)
    return call

for name in ("mkdir", "fsync", "link", "unlink", "rename", "replace"):
    setattr(os, name, dying(getattr(os, name)))
folder = OutputFolder(Path(sys.argv[1]))
attempt = folder.begin("key")
write_result(attempt)
folder.commit(attempt)
"""


def write_result(attempt: Path, content: bytes = b"result") -> None:
    """Write what a job would: files, then their manifest."""
    (attempt / "part-0.parquet").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    files = [{"name": "part-0.parquet", "bytes": len(content), "sha256": digest}]
    (attempt / MANIFEST_NAME).write_text(json.dumps({"files": files}))


def commit_result(root: Path, content: bytes = b"result") -> Path:
    folder = OutputFolder(root)
    attempt = folder.begin("key")
    write_result(attempt, content)
    return folder.commit(attempt)


def attempts(root: Path) -> set[str]:
    return {path.name for path in root.glob("attempt-*")}


def test_a_commit_is_found_again(tmp_path):
    root = tmp_path / "a" / "b"
    assert OutputFolder(root).committed() is None
    committed = commit_result(root)
    assert OutputFolder(root).committed() == committed
    assert (committed / "part-0.parquet").read_bytes() == b"result"


def test_an_attempt_without_commit_does_not_count(tmp_path):
    folder = OutputFolder(tmp_path)
    write_result(folder.begin("key"))
    assert folder.committed() is None


def test_the_first_commit_wins(tmp_path):
    one, two = OutputFolder(tmp_path), OutputFolder(tmp_path)
    slow, fast = one.begin("slow"), two.begin("fast")
    write_result(slow, b"slow")
    write_result(fast, b"fast")
    assert two.commit(fast) == fast
    assert one.commit(slow) == fast
    assert attempts(tmp_path) == {fast.name}


def test_committing_again_after_a_lost_answer_is_harmless(tmp_path):
    committed = commit_result(tmp_path)
    assert OutputFolder(tmp_path).commit(committed) == committed
    assert OutputFolder(tmp_path).committed() == committed


def test_of_many_at_once_one_wins(tmp_path):
    together = threading.Barrier(8)

    def attempt(number: int) -> Path:
        folder = OutputFolder(tmp_path)
        mine = folder.begin(f"key-{number}")
        write_result(mine, b"%d" % number)
        together.wait()
        return folder.commit(mine)

    with ThreadPoolExecutor(8) as pool:
        winners = set(pool.map(attempt, range(8)))
    assert len(winners) == 1
    assert attempts(tmp_path) == {winners.pop().name}


def test_killed_anywhere_leaves_nothing_or_everything(tmp_path):
    outcomes = []
    for point in range(1, 100):
        root = tmp_path / f"run-{point}"
        program = [sys.executable, "-c", COMMIT_AND_DIE, str(root), str(point)]
        done = subprocess.run(program, cwd=Path(__file__).parents[2], check=False)
        committed = OutputFolder(root).committed()
        outcomes.append(committed is not None)
        if committed is not None:
            assert (committed / "part-0.parquet").read_bytes() == b"result"
        # Whoever comes next gets a result, and none of the leftovers stays.
        winner = commit_result(root, b"repeated")
        assert winner == (committed or winner)
        OutputFolder(root).begin("sweeps")
        assert len(attempts(root)) == 2
        assert {path.name for path in root.iterdir()} - attempts(root) == {"_lock", POINTER_NAME}
        if done.returncode == 0:
            break
        assert done.returncode == 9
    assert done.returncode == 0
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) >= 5
    assert outcomes.count(True) >= 2


def test_live_attempts_are_not_swept(tmp_path):
    living = OutputFolder(tmp_path)
    attempt = living.begin("living")
    OutputFolder(tmp_path).begin("other")
    assert attempt.is_dir()
    write_result(attempt)
    assert living.commit(attempt) == attempt


def test_an_attempt_given_up_is_swept(tmp_path):
    folder = OutputFolder(tmp_path)
    given_up = folder.begin("one")
    again = folder.begin("one")
    assert attempts(tmp_path) == {again.name}
    assert again != given_up


@pytest.mark.parametrize("key", ["", "a/b", "..\n", "ü", "x" * 129])
def test_keys_that_cannot_name_a_folder(tmp_path, key):
    with pytest.raises(ValueError, match="cannot name a folder"):
        OutputFolder(tmp_path).begin(key)


def damage_pointer(committed: Path) -> Path:
    pointer = committed.parent / POINTER_NAME
    pointer.write_bytes(pointer.read_bytes()[:20] + b"\xff")
    return pointer


def name_another_format(committed: Path) -> Path:
    pointer = committed.parent / POINTER_NAME
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "format": 99}))
    return pointer


def remove_manifest(committed: Path) -> Path:
    (committed / MANIFEST_NAME).unlink()
    return committed / MANIFEST_NAME


def damage_manifest(committed: Path) -> Path:
    (committed / MANIFEST_NAME).write_text('{"files": [3]}')
    return committed / MANIFEST_NAME


def exchange_manifest(committed: Path) -> Path:
    (committed / MANIFEST_NAME).write_text('{"files": []}')
    return committed / MANIFEST_NAME


def remove_file(committed: Path) -> Path:
    (committed / "part-0.parquet").unlink()
    return committed / "part-0.parquet"


def truncate_file(committed: Path) -> Path:
    (committed / "part-0.parquet").write_bytes(b"resul")
    return committed / "part-0.parquet"


def flip_a_bit(committed: Path) -> Path:
    (committed / "part-0.parquet").write_bytes(b"sesult")
    return committed / "part-0.parquet"


@pytest.mark.parametrize(
    "damage",
    [
        damage_pointer,
        name_another_format,
        remove_manifest,
        damage_manifest,
        exchange_manifest,
        remove_file,
        truncate_file,
        flip_a_bit,
    ],
)
def test_damage_is_told_and_named(tmp_path, damage):
    damaged = damage(commit_result(tmp_path))
    with pytest.raises(OutputCorrupt) as raised:
        OutputFolder(tmp_path).committed()
    assert str(damaged) in str(raised.value)


def test_an_unfinished_attempt_cannot_be_committed(tmp_path):
    folder = OutputFolder(tmp_path)
    attempt = folder.begin("key")
    (attempt / "part-0.parquet").write_bytes(b"result")
    with pytest.raises(OutputCorrupt, match="not complete"):
        folder.commit(attempt)
    assert folder.committed() is None
