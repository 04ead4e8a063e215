"""What a ``kafka://`` URI says: brokers, topic, what part of it to read, and how to connect. Nothing is connected here.

Secrets stand in no URI, for a run records its sources: they come from the environment (`ENVIRONMENT`).
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ingest.source import SourceError

EARLIEST: Final = "earliest"
LATEST: Final = "latest"
FORMATS: Final = ("txt", "tsv", "csv", "json")
KAFKA_PYTHON: Final = "kafka-python"
CONFLUENT: Final = "confluent"
CLIENTS: Final = (KAFKA_PYTHON, CONFLUENT)
DEFAULT_PATIENCE_SECONDS: Final = 600.0

_SECURITY: Final = {
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.kerberos.service.name": "sasl_kerberos_service_name",
    "ssl.cafile": "ssl_cafile",
    "ssl.certfile": "ssl_certfile",
    "ssl.keyfile": "ssl_keyfile",
    "ssl.check.hostname": "ssl_check_hostname",
}
"""Query parameters about the connection, and kafka-python's names for them."""

_SECRETS: Final = {"sasl.password": "sasl_plain_password", "ssl.password": "ssl_password"}

ENVIRONMENT: Final = {
    f"KAFKA_{name.replace('.', '_').upper()}": option for name, option in {**_SECURITY, **_SECRETS}.items()
}
"""Environment variables that say the same where the URI does not, and those that hold secrets."""

_PARAMETERS: Final = ("from", "until", "format", "group", "patience", "client")


@dataclass(frozen=True, slots=True)
class KafkaUri:
    """A topic and how to read it.

    Attributes
    ----------
    servers
        ``HOST:PORT`` of one or more brokers; the others are learnt from them.
    topic
        Its name.
    begin
        ``earliest``, ``latest``, or Unix seconds: the first message that is not older.
    ends
        Whether to end where the topic ends when the run begins.
    format
        What a message is: a line of ``txt``, ``tsv`` or ``csv``, or a ``json`` object.
    group
        The consumer group that is told what has been committed, or None.
    patience_seconds
        How long to wait for a broker that does not answer.
    client
        Which client reads it, or None: see `ingest.kafka_client.client_name`.
    security
        Options of kafka-python about the connection, without secrets.
    """

    servers: tuple[str, ...]
    topic: str
    begin: str | float = EARLIEST
    ends: bool = False
    format: str = "txt"
    group: str | None = None
    patience_seconds: float = DEFAULT_PATIENCE_SECONDS
    client: str | None = None
    security: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def parse(uri: str) -> "KafkaUri":
        """Read a URI.

        Raises
        ------
        SourceError
            It says nothing that could be read, or holds a secret.
        """
        parts = urlsplit(uri)
        topic = unquote(parts.path.removeprefix("/"))
        if "@" in parts.netloc:
            detail = (
                "no user and password in a URI, for runs record it: set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
            )
            without = f"kafka://{parts.netloc.rpartition('@')[2]}{parts.path}"
            raise SourceError(without, detail)
        if not parts.netloc or not topic or "/" in topic or parts.fragment:
            raise SourceError(uri, "a topic is named as kafka://HOST:PORT[,HOST:PORT]/TOPIC")
        given = _parameters(uri, parts.query)
        for name in _SECRETS:
            if name in given:
                shown = uri.partition("?")[0]
                variable = f"KAFKA_{name.replace('.', '_').upper()}"
                raise SourceError(shown, f"{name} is a secret, and runs record their URIs: set {variable} instead")
        unknown = [name for name in given if name not in _PARAMETERS and name not in _SECURITY]
        if unknown:
            known = ", ".join([*_PARAMETERS, *_SECURITY])
            raise SourceError(uri, f"unknown parameter {unknown[0]!r}; known are {known}")
        if given.get("until", "end") != "end":
            raise SourceError(uri, f"until must be end, not {given['until']!r}; leave it out to read on for ever")
        if given.get("format", "txt") not in FORMATS:
            raise SourceError(uri, f"format must be one of {', '.join(FORMATS)}, not {given['format']!r}")
        if given.get("client", KAFKA_PYTHON) not in CLIENTS:
            raise SourceError(uri, f"client must be one of {', '.join(CLIENTS)}, not {given['client']!r}")
        return KafkaUri(
            servers=tuple(_server(uri, server) for server in parts.netloc.split(",")),
            topic=topic,
            begin=_begin(uri, given.get("from", EARLIEST)),
            ends="until" in given,
            format=given.get("format", "txt"),
            group=given.get("group") or None,
            patience_seconds=_seconds(uri, given.get("patience")),
            client=given.get("client"),
            security={_SECURITY[name]: _option(name, value) for name, value in given.items() if name in _SECURITY},
        )

    def connection(self, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
        """Return kafka-python's options about the connection: servers, protocol, credentials."""
        names = {option: name for name, option in _SECURITY.items()}
        from_environment = {
            option: _option(names.get(option, ""), environment[variable])
            for variable, option in ENVIRONMENT.items()
            if environment.get(variable)
        }
        return {"bootstrap_servers": list(self.servers), **from_environment, **self.security}


def _parameters(uri: str, query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in given:
            raise SourceError(uri, f"parameter {name!r} is given twice")
        given[name] = value
    return given


def _server(uri: str, server: str) -> str:
    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SourceError(uri, f"{server!r} is no broker: name it as HOST:PORT")
    return server


def _begin(uri: str, text: str) -> str | float:
    if text in (EARLIEST, LATEST):
        return text
    try:
        seconds = float(text)
    except ValueError:
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            time = None
        if time is None or time.tzinfo is None:
            detail = (
                f"from must be earliest, latest, Unix seconds or a time such as 2026-11-22T15:30:00Z, not {text!r} "
                "(in a URI a plus sign is written %2B)"
            )
            raise SourceError(uri, detail) from None
        seconds = time.timestamp()
    if not 0 <= seconds < 2**43:
        raise SourceError(uri, f"from={text} is no time after 1970")
    return seconds


def _seconds(uri: str, text: str | None) -> float:
    try:
        seconds = DEFAULT_PATIENCE_SECONDS if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise SourceError(uri, f"patience must be seconds, at least 0, not {text!r}")
    return seconds


def _option(name: str, value: str) -> str | bool:
    return value.lower() not in ("false", "no", "0") if name == "ssl.check.hostname" else value
