"""Joining or starting Ray: what is told when that fails."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import ray

import exoflow
from exoflow.cluster import ensure_ray


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("", "Ray does not start: overloaded"),
        ("far:6379", r"Ray at far:6379 \(RAY_ADDRESS\) cannot be joined: overloaded"),
    ],
)
def test_a_ray_that_is_not_to_be_had_is_one_clear_error(address, told, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", Mock(side_effect=Exception("overloaded")))
    with pytest.raises(exoflow.ClusterUnavailable, match=told):
        ensure_ray()
