"""The wheel holds the four packages and nothing else, and works where only it and its requirements are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("exoflow", "graph_stream", "ingest", "spark")
COMMANDS = ("exoflow", "graph-stream")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the project: building leaves folders that a later build would pick up."""
    source, out = tmp_path_factory.mktemp("wheel") / "source", tmp_path_factory.mktemp("dist")
    shutil.copytree(PROJECT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that has the wheel, and its requirements by reference."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # As a plain path its own .pth files are not read, so an editable install in it stays out of sight.
    (site_packages / "requirements.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def run_outside(folder: Path, *command: str) -> str:
    """Run a command away from the checkout and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_exactly_the_four_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    (info,) = (name for name in top if name.endswith(".dist-info"))
    assert top == {*PACKAGES, info}
    folders = {"/".join(name.split("/")[:-1]) for name in names if name.endswith(".py")}
    assert folders == {*PACKAGES, "exoflow/storage", "exoflow/testing", "spark/jobs"}
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert f"{info}/licenses/LICENSE" in names


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    there = {str(path.relative_to(PROJECT)) for package in PACKAGES for path in (PROJECT / package).rglob("*.py")}
    assert inside == there


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_outside_the_checkout(clean_python: Path, tmp_path: Path, command: str) -> None:
    assert f"Usage: {command} [OPTIONS] COMMAND" in run_outside(tmp_path, str(clean_python.parent / command), "--help")


def test_everything_but_what_is_for_an_extra_imports_without_it(clean_python: Path, tmp_path: Path) -> None:
    (tmp_path / "imports.py").write_text(_IMPORT_ALL_WITHOUT_EXTRAS, encoding="utf-8")
    imported = run_outside(tmp_path, str(clean_python), "imports.py", *PACKAGES).split()
    modules = {
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*.py")
    }
    assert set(imported) == {name for name in modules if not name.startswith(("spark.jobs.", "exoflow.storage.s3"))}


_IMPORT_ALL_WITHOUT_EXTRAS = """
import importlib
import pkgutil
import sys
from pathlib import Path

EXTRAS = {"boto3", "botocore", "pyspark", "py4j", "matplotlib"}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
for package in sys.argv[1:]:
    root = importlib.import_module(package)
    assert Path(root.__file__).is_relative_to(sys.prefix), root.__file__
    print(package)
    for found in pkgutil.walk_packages(root.__path__, package + "."):
        if not found.name.startswith(("spark.jobs.", "exoflow.storage.s3")):
            importlib.import_module(found.name)
            print(found.name)
"""
