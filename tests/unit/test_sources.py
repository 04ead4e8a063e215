"""The sources of a run across releases: what older ones recorded still means the same."""

from __future__ import annotations

import dataclasses

from graph_stream import sources
from graph_stream.config import RunConfig
from ingest import EpochReader, open_source

URI = "rmat://?scale=6&edges=500"


def test_options_of_this_release_leave_an_older_runs_plan_as_it_was():
    shown = RunConfig((URI,)).to_json()
    assert not {"epoch_seconds", "on_lost_offset", "settled"} & shown.keys()
    assert RunConfig.from_json(shown) == RunConfig((URI,))


def test_newer_options_are_recorded_where_given():
    given = RunConfig((URI,), epoch_seconds=2.0, on_lost_offset="skip", settled={"a": {"0": [1, None]}})
    shown = given.to_json()
    assert (shown["epoch_seconds"], shown["on_lost_offset"], shown["settled"]) == (2.0, "skip", {"a": {"0": [1, None]}})
    assert RunConfig.from_json(shown) == given
    assert given.difference(RunConfig((URI,))) == ["--epoch-seconds: 2.0 -> None", "--on-lost-offset: skip -> fail"]


def test_what_was_settled_is_nobodys_wish():
    recorded = RunConfig((URI,), settled={"a": {"0": [1, None]}})
    assert recorded.asks_for(RunConfig((URI,)))
    assert not recorded.asks_for(RunConfig((URI,), epoch_edges=5))


def test_files_and_generators_settle_nothing():
    config = RunConfig((URI,))
    assert sources.settled(config) == config


def test_an_epoch_that_an_older_release_has_cut_is_read_again():
    with EpochReader(sources.opened(RunConfig((URI,))), 100) as reader:
        first = reader.read(reader.start())
        second = reader.read(first.end)
    cuts = [{"begin": first.end}, {"ranges": second.ranges}]
    for cut in cuts:
        again = sources.records_of(EpochReader([open_source(URI)], 100), cut)
        for field in dataclasses.fields(again):
            if field.name in ("src", "dst", "op"):
                assert getattr(again, field.name).tolist() == getattr(second, field.name).tolist()
