"""Sources of edge changes: files, also those that keep arriving, Kafka topics and generators, cut into epochs.

It knows nothing of the engine or the graph: it can be used alone. `open_source` names what to read,
`EpochReader` cuts it into epochs, and both resume from a position to exactly the next record.
"""

from ingest.epochs import EpochBatch, EpochReader, Position
from ingest.formats import IDS
from ingest.generate import write_rmat
from ingest.intervals import IDLE_SECONDS
from ingest.kafka import ON_LOST_OFFSET
from ingest.kafka_group import GroupMirror, group_mirror
from ingest.names import MAX_NAME_BYTES, Names, as_text, column_of, parts_of
from ingest.originals import FORMS, Originals, form_of
from ingest.register import Register
from ingest.schedule import Tap
from ingest.source import BadRecord, Block, IngestError, Queue, Records, Source, SourceError, SplitReader
from ingest.uri import open_source

__all__ = [
    "FORMS",
    "IDLE_SECONDS",
    "IDS",
    "MAX_NAME_BYTES",
    "ON_LOST_OFFSET",
    "BadRecord",
    "Block",
    "EpochBatch",
    "EpochReader",
    "GroupMirror",
    "IngestError",
    "Names",
    "Originals",
    "Position",
    "Queue",
    "Records",
    "Register",
    "Source",
    "SourceError",
    "SplitReader",
    "Tap",
    "as_text",
    "column_of",
    "form_of",
    "group_mirror",
    "open_source",
    "parts_of",
    "write_rmat",
]
