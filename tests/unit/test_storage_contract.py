"""The contract of stores, on those that need no server."""

from __future__ import annotations

import pytest

from exoflow.storage import Store
from tests.storage_contract import StoreContract


class TestMemoryAndLocal(StoreContract):
    @pytest.fixture
    def store(self, stores: Store) -> Store:
        return stores
