"""Fixtures of tests that talk to servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.services import S3, Kafka, kafka_service, s3_credentials, s3_service


@pytest.fixture(scope="session", autouse=True)
def _credentials() -> Iterator[None]:
    """Before anything else, for a Ray hands its workers the environment that it was started with."""
    with s3_credentials():
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """Return an S3 server; no mock, so that races are real."""
    with s3_service(tmp_path_factory.mktemp("s3")) as service:
        yield service


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Return a Kafka broker; a real one."""
    with kafka_service(tmp_path_factory.mktemp("kafka")) as service:
        yield service
