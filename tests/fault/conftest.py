"""The stream that the crash suites run over, and what an undisturbed run makes of it."""

from __future__ import annotations

import gzip
import os
from itertools import islice
from pathlib import Path

import pytest

from ingest import write_rmat
from tests.fault.command import graph_stream
from tests.fault.crashes import RECORDS, Outcome, Stream, outcome_of


@pytest.fixture(scope="package")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """Return the first records of Epinions, or as many of R-MAT where it is not at hand."""
    folder = tmp_path_factory.mktemp("stream")
    epinions = Path(os.environ.get("EXOFLOW_DATA_DIR", "")) / "soc-Epinions1.txt.gz"
    path = folder / "edges.txt.gz"
    if epinions.is_file():
        with gzip.open(epinions) as source, gzip.open(path, "wb", compresslevel=1) as cut:
            cut.writelines(islice((line for line in source if not line.startswith(b"#")), RECORDS))
    else:
        write_rmat(path, 14, RECORDS, seed=7)
    return Stream(path)


@pytest.fixture(scope="package")
def undisturbed(stream: Stream, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Return the outcome of a run that nothing happened to; it is the same in all modes."""
    store = tmp_path_factory.mktemp("undisturbed")
    graph_stream("run", *stream.options("undisturbed", store, "async", rate=None)).checked()
    return outcome_of("undisturbed", store)
