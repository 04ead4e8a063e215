"""A Spark session that leaves nothing behind: no output, no files outside its scratch folder, no process.

PySpark runs Spark in a Java process of its own and talks to it through a gateway. That process is told to end
when its standard input closes, which happens on every death of this process, SIGKILL included; an orderly
`close_session` ends it and waits for it. Importing this module needs neither PySpark nor Java.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MINIMUM_JAVA = 17
LOG_NAME = "spark.log"
GATEWAY_END_SECONDS = 20.0

#: What ``clusters/spark/spark-defaults.conf`` says, for an installation that comes without the file.
DEFAULTS: Mapping[str, str] = {
    "spark.driver.memory": "2g",
    "spark.driver.defaultJavaOptions": "-XX:+UseParallelGC -XX:-UsePerfData -XX:TieredStopAtLevel=1",
    "spark.executor.defaultJavaOptions": "-XX:+UseParallelGC -XX:-UsePerfData",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.cleaner.periodicGC.interval": "2min",
    "spark.sql.session.timeZone": "UTC",
}
DEFAULTS_FILE = Path(__file__).resolve().parents[1] / "clusters" / "spark" / "spark-defaults.conf"


class SparkUnavailable(RuntimeError):
    """Spark cannot be started here; the message says what to do."""


class JavaMissing(SparkUnavailable):
    """There is no Java runtime that Spark can use."""


def require_java() -> int:
    """Check for a Java runtime that Spark can use, without starting Spark.

    Looks where Spark itself looks: ``$JAVA_HOME/bin/java`` if ``JAVA_HOME`` is set, else ``java`` on the
    ``PATH``.

    Returns
    -------
    int
        Its major version.

    Raises
    ------
    JavaMissing
        There is none, it does not run, or it is older than Java 17.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(os.path.join(home, "bin", "java") if home else "java")
    if java is None:
        place = f"JAVA_HOME is {home}, where there is no bin/java" if home else "there is no java on the PATH"
        raise JavaMissing(_java_message(place))
    try:
        answer = subprocess.run(
            [java, "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise JavaMissing(_java_message(f"{java} does not run ({error})")) from error
    major = java_major_version(answer.stderr + answer.stdout)
    if major is None or major < MINIMUM_JAVA:
        found = "does not tell its version" if major is None else f"is Java {major}"
        raise JavaMissing(_java_message(f"{java} {found}"))
    return major


def java_major_version(text: str) -> int | None:
    """Find the major version in what ``java -version`` prints; 8 for ``1.8.0_402``, None if there is none."""
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(found[1]) if found else None


def default_settings() -> dict[str, str]:
    """Return the settings every session starts from.

    Those of ``$SPARK_CONF_DIR/spark-defaults.conf``, else of this project's
    ``clusters/spark/spark-defaults.conf``, over `DEFAULTS`.
    """
    own_folder = os.environ.get("SPARK_CONF_DIR")
    file = Path(own_folder, "spark-defaults.conf") if own_folder else DEFAULTS_FILE
    if not file.is_file():
        return dict(DEFAULTS)
    return {**DEFAULTS, **parse_settings(file.read_text(encoding="utf-8"))}


def parse_settings(text: str) -> dict[str, str]:
    """Parse spark-defaults.conf: lines of a name, blanks or ``=``, a value; ``#`` starts a comment line."""
    lines = (line.strip() for line in text.splitlines())
    entries = (re.split(r"\s*=\s*|\s+", line, maxsplit=1) for line in lines if line and not line.startswith("#"))
    return {entry[0]: entry[1] if len(entry) > 1 else "" for entry in entries}


def session_settings(
    master: str, app_name: str, scratch: Path, cores: int | None, extra: Mapping[str, str]
) -> dict[str, str]:
    """Decide all settings of a session; see `open_session` for the parameters."""
    settings = {**default_settings(), "spark.app.name": app_name, "spark.master": master}
    local = re.fullmatch(r"local(?:\[(\*|\d+)\])?", master)
    if local:
        count = cores or (len(os.sched_getaffinity(0)) if local[1] == "*" else int(local[1] or 1))
        settings["spark.master"] = f"local[{count}]"
        # Driver and executor are one process, so nobody else has to reach it.
        settings |= {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
    elif cores:
        settings["spark.cores.max"] = str(cores)
    settings |= {
        "spark.local.dir": str(scratch / "local"),
        "spark.sql.warehouse.dir": f"file:{scratch / 'warehouse'}",
        **extra,
    }
    java_options = [
        settings.get("spark.driver.extraJavaOptions", ""),
        f'"-Djava.io.tmpdir={scratch / "tmp"}"',
        f'"-XX:ErrorFile={scratch / "java-crash.log"}"',
    ]
    settings["spark.driver.extraJavaOptions"] = " ".join(java_options).strip()
    return settings


def open_session(
    master: str = "local[*]",
    app_name: str = "exoflow",
    *,
    scratch: Path,
    cores: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> SparkSession:
    """Start Spark and return its session; end it with `close_session`.

    May be called from any thread of any process, a Ray worker included; signal handlers stay as they are. A
    process has room for one session at a time.

    Parameters
    ----------
    master
        ``local[N]``, ``local[*]`` (as many cores as this process may use), or a cluster such as
        ``spark://host:7077``.
    app_name
        Name of the application, as a cluster shows it.
    scratch
        Folder for everything Spark writes by itself, its log (``spark.log``) included; created if absent. It
        is the caller's to remove after the session is closed.
    cores
        Number of cores to use; overrides the number in a local `master`.
    settings
        Spark settings over those of spark-defaults.conf.

    Raises
    ------
    JavaMissing
        There is no Java runtime of version 17 or newer.
    SparkUnavailable
        PySpark is not installed, a session is open already, or Spark does not start.
    """
    require_java()
    try:
        from pyspark import SparkConf, SparkContext
        from pyspark.java_gateway import launch_gateway
        from pyspark.sql import SparkSession
    except ImportError as error:
        message = "PySpark is not installed: pip install 'exoflow[spark]'"
        raise SparkUnavailable(message) from error
    if SparkContext._active_spark_context is not None:
        message = "this process has an open Spark session already: close that one first, or use it"
        raise SparkUnavailable(message)

    scratch = Path(scratch).resolve()
    for name in ("local", "warehouse", "tmp"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    conf = SparkConf(loadDefaults=False)
    conf.setAll(list(session_settings(master, app_name, scratch, cores, settings or {}).items()))
    gateway = None
    try:
        with (scratch / LOG_NAME).open("ab") as log:
            gateway = launch_gateway(conf, {"stdout": log, "stderr": subprocess.STDOUT})
        # PySpark would also print every failed query as JSON; the exception says the same.
        for name in ("DataFrameQueryContextLogger", "SQLQueryContextLogger"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        logging.root.addFilter(_is_not_py4j)
        with _interrupt_handler_kept():
            return SparkSession(SparkContext(conf=conf, gateway=gateway))
    except BaseException as error:
        _end_gateway(gateway)
        if not isinstance(error, Exception):
            raise
        log_end = (scratch / LOG_NAME).read_text(encoding="utf-8", errors="replace")[-2000:]
        message = f"Spark does not start: {error}\nIts log {scratch / LOG_NAME} ends with:\n{log_end}"
        raise SparkUnavailable(message) from error


def is_alive(session: SparkSession) -> bool:
    """Tell whether `session` can still run jobs: its Java process runs and its context is not stopped."""
    context = session.sparkContext
    process = getattr(context._gateway, "proc", None)
    return context._jsc is not None and (process is None or process.poll() is None)


def close_session(session: SparkSession) -> None:
    """Stop `session` and its Java process, and wait until that is gone; works on a dead session too.

    Another session can be opened afterwards.
    """
    gateway = session.sparkContext._gateway
    # Whatever fails here, the process that holds all of it is ended next.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session.stop()
    _end_gateway(gateway)


def _end_gateway(gateway: Any) -> None:
    """End the Java process behind `gateway` and make PySpark forget it."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    with SparkContext._lock:
        SparkContext._active_spark_context = None
        SparkContext._gateway = None
        SparkContext._jvm = None
    SparkSession._instantiatedSession = None
    if gateway is None:
        return
    with contextlib.suppress(Exception):
        gateway.shutdown()
    process: subprocess.Popen[bytes] | None = gateway.proc
    if process is None:
        return
    with contextlib.suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(GATEWAY_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_not_py4j(record: logging.LogRecord) -> bool:
    """Tell whether somebody else logs.

    Py4J logs through the root logger that a Java process has ended, from any thread and at any time. Whoever asked
    something of the process gets an exception, and nobody else needs to know.
    """
    return Path(record.pathname).parent.name != "py4j"


@contextlib.contextmanager
def _interrupt_handler_kept() -> Iterator[None]:
    """Undo PySpark's replacement of the SIGINT handler, which it makes in a main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _java_message(problem: str) -> str:
    return (
        f"Spark needs Java {MINIMUM_JAVA} or newer, and {problem}. Install it, for example with "
        "'sudo apt-get install openjdk-17-jre-headless' (Debian, Ubuntu) or "
        "'brew install openjdk@17' (macOS), "
        "and put it on the PATH or set JAVA_HOME. Everything but the Spark batches works without it."
    )
