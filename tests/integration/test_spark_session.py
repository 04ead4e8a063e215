"""Spark sessions: found or refused Java, silence, and no process left behind."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from spark.session import (
    DEFAULTS,
    JavaMissing,
    default_settings,
    java_major_version,
    open_session,
    parse_settings,
    require_java,
    session_settings,
)

PROJECT = Path(__file__).parents[2]
END_SECONDS = 60


def need_java() -> None:
    """Skip where there is no Java, except in CI, where it has to be."""
    try:
        require_java()
    except JavaMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def start(program: str, *arguments: object, cwd: Path, strict: bool = True) -> subprocess.Popen[str]:
    """Start a Python program; a strict one fails, or complains, at every warning, unclosed files included."""
    options = ["-X", "dev", "-W", "error"] if strict else []
    return subprocess.Popen(
        [sys.executable, *options, "-c", program, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment', 17),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\njava version "21" 2023-09-19 LTS', 21),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "25-ea" 2025-09-16', 25),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
    ],
)
def test_java_versions(text, major):
    assert java_major_version(text) == major


def test_settings_files_are_read_as_spark_reads_them():
    text = "# comment\n\n  spark.a   one two \nspark.b=three\nspark.c = x=y\nspark.d\n"
    assert parse_settings(text) == {"spark.a": "one two", "spark.b": "three", "spark.c": "x=y", "spark.d": ""}


def test_own_settings_override_one_by_one(tmp_path, monkeypatch):
    (tmp_path / "spark-defaults.conf").write_text("spark.driver.memory 1g\nspark.eventLog.enabled true\n")
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    changed = {"spark.driver.memory": "1g", "spark.eventLog.enabled": "true"}
    assert default_settings() == {**DEFAULTS, **changed}


def test_without_a_settings_file_the_built_in_ones_count(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    assert default_settings() == DEFAULTS


@pytest.mark.parametrize(
    ("master", "cores", "expected"),
    [
        ("local", None, "local[1]"),
        ("local[3]", None, "local[3]"),
        ("local[3]", 2, "local[2]"),
        ("local[*]", 2, "local[2]"),
        ("local[*]", None, f"local[{len(os.sched_getaffinity(0))}]"),
    ],
)
def test_local_masters_name_their_cores(tmp_path, master, cores, expected):
    settings = session_settings(master, "app", tmp_path, cores, {})
    assert settings["spark.master"] == expected
    assert settings["spark.driver.bindAddress"] == settings["spark.driver.host"] == "127.0.0.1"


def test_a_cluster_is_told_the_cores_and_can_reach_the_driver(tmp_path):
    settings = session_settings("spark://host:7077", "app", tmp_path, 8, {"spark.driver.memory": "1g"})
    assert settings["spark.master"] == "spark://host:7077"
    assert settings["spark.cores.max"] == "8"
    assert settings["spark.driver.memory"] == "1g"
    assert "spark.driver.bindAddress" not in settings


def fake_java(folder: Path, script: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "java").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "java").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (None, "no java on the PATH"),
        ("echo 'openjdk version \"11.0.2\"' >&2", "is Java 11"),
        ("echo 'no runtime present' >&2; exit 1", "does not run"),
        ("echo hello", "does not tell its version"),
    ],
)
def test_unusable_java_on_the_path(tmp_path, monkeypatch, script, problem):
    folder = tmp_path / "bin" if script is None else fake_java(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    children = psutil.Process().children()
    with pytest.raises(JavaMissing, match=problem) as raised:
        open_session(scratch=tmp_path / "scratch")
    assert "apt-get install openjdk-17-jre-headless" in str(raised.value)
    assert psutil.Process().children() == children
    assert not (tmp_path / "scratch").exists()


def test_java_home_counts_before_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "path", "echo 'version \"11\"'")))
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "home" / "bin", "echo 'version \"21\"'").parent))
    assert require_java() == 21
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(JavaMissing, match=r"JAVA_HOME is .*nowhere"):
        require_java()


LIFE = """
import json, os, signal, sys, threading
from pathlib import Path
import psutil
import py4j.java_gateway
from spark.session import SparkUnavailable, close_session, is_alive, open_session

scratch = Path(sys.argv[1])
handler = signal.getsignal(signal.SIGINT)
children = lambda: psutil.Process().children(recursive=True)
seen = {}

def in_a_thread():
    session = open_session("local[*]", scratch=scratch, cores=2)
    seen["rows"] = session.range(1000).repartition(2).where("id % 2 = 0").count()
    seen["master"] = session.sparkContext.master
    try:
        session.sql("select nothing from nowhere")
    except Exception as error:
        seen["failure"] = type(error).__name__
    try:
        open_session("local[1]", scratch=scratch)
    except SparkUnavailable as error:
        seen["second"] = str(error)
    seen["alive"] = is_alive(session)
    java, = [child for child in children() if child.name() == "java"]
    java.kill()
    java.wait()
    # What Py4J says if it was just then waiting for an answer; its finalizers may do so at any time.
    exec(compile("import logging; logging.exception('dead')", py4j.java_gateway.__file__, "exec"))
    seen["killed"] = not is_alive(session)
    close_session(session)

thread = threading.Thread(target=in_a_thread)
thread.start()
thread.join()
seen["left after kill"] = len(children())

session = open_session("local[1]", scratch=scratch)
seen["handler kept"] = signal.getsignal(signal.SIGINT) is handler
close_session(session)
seen["closed"] = not is_alive(session)
seen["left after close"] = len(children())
print(json.dumps(seen))
"""


@pytest.mark.java
def test_a_session_is_silent_and_leaves_nothing(tmp_path):
    need_java()
    cwd, scratch = tmp_path / "cwd", tmp_path / "scra tch"
    cwd.mkdir()
    process = start(LIFE, scratch, cwd=cwd)
    output, errors = process.communicate(timeout=110)
    assert errors == ""
    seen = json.loads(output)
    assert "open Spark session already" in seen.pop("second")
    assert seen == {
        "rows": 500,
        "master": "local[2]",
        "failure": "AnalysisException",
        "alive": True,
        "closed": True,
        "handler kept": True,
        "killed": True,
        "left after close": 0,
        "left after kill": 0,
    }
    assert list(cwd.iterdir()) == []
    assert (scratch / "spark.log").stat().st_size > 0


REFUSED = """
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
import psutil
from spark.session import SparkUnavailable, open_session

try:
    open_session("local[1]", scratch=Path(sys.argv[1]), settings={"spark.driver.memory": "much"})
except SparkUnavailable as error:
    print(len(psutil.Process().children(recursive=True)), error)
"""


@pytest.mark.java
def test_a_session_that_does_not_start_says_why(tmp_path):
    need_java()
    process = start(REFUSED, tmp_path, cwd=tmp_path, strict=False)
    output, errors = process.communicate(timeout=110)
    assert errors == ""
    assert output.startswith("0 Spark does not start")
    assert "-Xmxmuch" in output


BUSY = """
import sys, threading
from pathlib import Path
import psutil
from spark.session import open_session

session = open_session("local[1]", scratch=Path(sys.argv[1]))
java, = [child for child in psutil.Process().children(recursive=True) if child.name() == "java"]
print(java.pid, flush=True)
session.range(10**15).selectExpr("sum(id % 7)").collect()
"""


@pytest.mark.java
def test_java_ends_by_itself_when_python_is_killed(tmp_path):
    need_java()
    with start(BUSY, tmp_path / "scratch", cwd=tmp_path) as process:
        assert process.stdout is not None
        java = psutil.Process(int(process.stdout.readline()))
        assert java.name() == "java"
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs([java], timeout=END_SECONDS)
        assert all(left.status() == psutil.STATUS_ZOMBIE for left in alive)


IN_RAY = """
import json, sys
from pathlib import Path
import ray

@ray.remote(max_retries=0)
def work(scratch):
    import psutil
    from spark.session import close_session, open_session
    session = open_session("local[1]", scratch=Path(scratch))
    rows = session.range(10).count()
    java = [child.pid for child in psutil.Process().children(recursive=True) if child.name() == "java"]
    close_session(session)
    return rows, len(java), [pid for pid in java if psutil.pid_exists(pid)]

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])
print(json.dumps(ray.get(work.remote(sys.argv[1]))))
ray.shutdown()
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Return a folder with a short name: that of a socket has no more than 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        yield Path(folder)


@pytest.mark.java
def test_a_session_works_in_a_ray_worker(tmp_path, short_folder):
    need_java()
    process = subprocess.run(
        [sys.executable, "-c", IN_RAY, str(tmp_path / "scratch"), str(short_folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "RAY_ADDRESS": "", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == [10, 1, []]
