"""A topic through kafka-python, and how whatever else uses kafka-python connects."""

import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition, errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from ingest.kafka_client import (
    ANSWER_SECONDS,
    BOOTSTRAP_SECONDS,
    FETCH_BYTES,
    FETCH_WAIT_SECONDS,
    RECONNECT_SECONDS,
    REFRESH_SECONDS,
    REQUEST_SECONDS,
    SPLIT_FETCH_BYTES,
    Batch,
    BrokersRefuse,
    BrokersUnavailable,
    files_of,
    reach,
)
from ingest.kafka_uri import EARLIEST, LATEST, KafkaUri

_POLL_RECORDS: Final = 2**31
"""Messages taken from the client at a time: all that it has. A part of a fetch that it keeps for a partition which
is paused meanwhile is not always given out when that is resumed (kafka-python 3.0.12)."""
_REFUSALS: Final = (
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.AuthorizationError,
)


class PythonClient:
    """See `ingest.kafka_client.Client`."""

    def __init__(self, kafka: KafkaUri) -> None:
        self._topic = kafka.topic
        self._followed: dict[TopicPartition, int] = {}
        self._options = connection_options(kafka)
        try:
            with translated():
                self._consumer = KafkaConsumer(
                    **self._options,
                    group_id=None,
                    enable_auto_commit=False,
                    auto_offset_reset="none",
                    isolation_level="read_committed",
                    allow_auto_create_topics=False,
                    max_poll_records=_POLL_RECORDS,
                    fetch_max_bytes=FETCH_BYTES,
                    max_partition_fetch_bytes=SPLIT_FETCH_BYTES,
                    fetch_max_wait_ms=int(FETCH_WAIT_SECONDS * 1000),
                    request_timeout_ms=int(REQUEST_SECONDS * 1000),
                    metadata_max_age_ms=int(REFRESH_SECONDS * 1000),
                    bootstrap_timeout_ms=int(BOOTSTRAP_SECONDS * 1000),
                    reconnect_backoff_max_ms=int(RECONNECT_SECONDS * 1000),
                    metrics_enabled=False,
                )
        except BrokersUnavailable as error:
            message = f"{error}; somebody listens there, so the cause may be security.protocol"
            raise BrokersUnavailable(message) from error

    def partitions(self) -> int:
        """Return how many there are; of a topic that is read the client keeps it at hand, and up to date."""
        with translated():
            return len(self._consumer.partitions_for_topic(self._topic) or ())

    def offsets(self, numbers: Sequence[int], at: str | float) -> dict[int, int]:
        """Return where the partitions begin, end, or come to a time."""
        partitions = [TopicPartition(self._topic, number) for number in numbers]
        with translated():
            found = self._offsets(partitions, at)
        return {partition.partition: offset for partition, offset in found.items()}

    def _offsets(self, partitions: list[TopicPartition], at: str | float) -> Mapping[TopicPartition, int]:
        timeout_ms = ANSWER_SECONDS * 1000
        if at == EARLIEST:
            return self._consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)  # type: ignore[no-any-return]
        ends = self._consumer.end_offsets(partitions, timeout_ms=timeout_ms)
        if at == LATEST:
            return ends  # type: ignore[no-any-return]
        times = {partition: int(float(at) * 1000) for partition in partitions}
        found = self._consumer.offsets_for_times(times, timeout_ms=timeout_ms)
        return {each: ends[each] if found[each] is None else found[each].offset for each in partitions}

    def is_compacted(self) -> bool | None:
        """Ask for the topic's policy; who may not know it is told nothing."""
        asked = ConfigResource(ConfigResourceType.TOPIC, self._topic, ["cleanup.policy"])
        with translated():
            admin = KafkaAdminClient(**self._options, request_timeout_ms=ANSWER_SECONDS * 1000)
            with contextlib.closing(admin):
                policies = admin.describe_configs([asked], config_filter="all")["topic"][self._topic]
        return "compact" in policies["cleanup.policy"]["value"] if policies else None

    def follow(self, number: int, offset: int) -> None:
        """Begin to read a partition, or go on elsewhere."""
        partition = TopicPartition(self._topic, number)
        if partition not in self._followed:
            self._followed[partition] = offset
            self._consumer.assign(list(self._followed))
            self._consumer.resume(partition)
        self._followed[partition] = offset
        self._consumer.seek(partition, offset)

    def leave(self, number: int) -> None:
        """Read a partition no more."""
        del self._followed[TopicPartition(self._topic, number)]
        self._consumer.assign(list(self._followed))

    def pause(self, number: int) -> None:
        """Let no messages come."""
        self._consumer.pause(TopicPartition(self._topic, number))

    def resume(self, number: int) -> None:
        """Let them come again."""
        self._consumer.resume(TopicPartition(self._topic, number))

    def poll(self, seconds: float) -> dict[int, Batch]:
        """Return what has come; after a wait for nothing, how far the gaps go."""
        with translated():
            try:
                found = self._consumer.poll(timeout_ms=int(seconds * 1000), max_records=_POLL_RECORDS)
            except errors.OffsetOutOfRangeError as error:
                return {each.partition: Batch([], [], wanted, wanted) for each, wanted in error.args[0].items()}
        batches = {}
        for partition, messages in found.items():
            values, offsets = [each.value for each in messages], [each.offset for each in messages]
            self._followed[partition] = offsets[-1] + 1
            since = messages[0].timestamp / 1000 if messages[0].timestamp > 0 else None
            batches[partition.partition] = Batch(values, offsets, offsets[-1] + 1, since=since)
        if not found and seconds > 0:
            for partition, known in self._followed.items():
                reached = self._consumer.position(partition, timeout_ms=0) or 0
                if reached > known:
                    self._followed[partition] = reached
                    batches[partition.partition] = Batch([], [], reached)
        return batches

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False, timeout_ms=ANSWER_SECONDS * 1000)


def connection_options(kafka: KafkaUri) -> dict[str, Any]:
    """Return kafka-python's options about the connection, once somebody has listened and shown a good certificate.

    The client itself takes a bad certificate for a broker that is not there, and asks again, and again with a password
    that was refused; and one that cannot connect leaves its thread behind.

    Raises
    ------
    BrokersUnavailable, BrokersRefuse
        Nobody listens, or the certificate is not trusted; a file is not there.
    """
    # What it has to say about connections is told by whoever waits, once.
    logging.getLogger("kafka").addHandler(logging.NullHandler())
    options = kafka.connection()
    context = _ssl_context(options) if options.get("security_protocol") in ("SSL", "SASL_SSL") else None
    host, connection = reach(kafka.servers)
    with connection:
        if context is not None:
            _shake_hands(host, connection, context)
            options["ssl_context"] = context
    return {**options, "kafka_client": _net_client}


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """Connections that tell who refuses them, which the library means to, and forgets (kafka-python 3.0.12)."""

    def __init__(self, net: NetworkSelector, **options: Any) -> None:
        self._refusals: dict[Any, Exception] = {}
        super().__init__(net, **options)

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        transport = await super()._build_transport(node, timeout_at)
        receive = transport._sock_recv

        def receive_before_the_end() -> tuple[bytes, Exception | None]:
            # What a broker says last, as why it refuses, comes with the end of the connection, for which
            # the library throws it away. The end is still there the next time.
            data, error = receive()
            return data, None if data else error

        transport._sock_recv = receive_before_the_end
        return transport

    def get_connection(self, node_id: Any, timeout_ms: float | None = None, **options: Any) -> Any:
        if node_id in self._refusals:
            raise self._refusals.pop(node_id)
        is_new = node_id not in self._conns
        connection = super().get_connection(node_id, timeout_ms, **options)
        if is_new:
            connection.init_future.add_errback(lambda error: self._note(node_id, error))
        return connection

    def _note(self, node_id: Any, error: Exception) -> None:
        if isinstance(error, _REFUSALS):
            self._refusals[node_id] = error


def _net_client(**options: Any) -> KafkaNetClient:
    net = NetworkSelector(**options)
    return KafkaNetClient(net, _Connections(net, **options))


def _ssl_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Return what the client would make of its options, but with an error that names what is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = options.get("ssl_check_hostname", True)
    try:
        if "ssl_cafile" in options:
            context.load_verify_locations(options["ssl_cafile"])
        else:
            context.load_default_certs()
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password"))
    except OSError as error:  # of ssl, too
        message = f"the connection cannot be made{files_of(options)}: {error}"
        raise BrokersRefuse(message) from error
    return context


def _shake_hands(host: str, connection: socket.socket, context: ssl.SSLContext) -> None:
    try:
        context.wrap_socket(connection, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        message = f"the certificate of {host} is not trusted: {error.verify_message} (ssl.cafile names whom to trust)"
        raise BrokersRefuse(message) from error
    except OSError as error:
        message = f"no TLS with {host}: {error}; is security.protocol right?"
        raise BrokersUnavailable(message) from error


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Let errors of kafka-python say whether to try again."""
    try:
        yield
    except errors.KafkaError as error:
        raise (BrokersUnavailable if error.retriable else BrokersRefuse)(str(error)) from error
    except (AssertionError, ValueError, OSError) as error:  # what the client makes of wrong options and files
        message = f"the connection cannot be made: {error}"
        raise BrokersRefuse(message) from error
