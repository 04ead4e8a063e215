"""A streaming influence ranking: TunkRank kept up to date over a never-ending stream of follows."""

from graph_stream.config import RunConfig
from graph_stream.pipeline import Pipeline
from ingest import open_source

__all__ = ["Pipeline", "RunConfig", "open_source"]
