"""What `init` chose for this process: the store, and how Ray is started if it must be."""

from __future__ import annotations

from typing import Any

from exoflow.errors import DefinitionError
from exoflow.storage import Store, open_store

_chosen: dict[str, Any] = {}


def init(
    store: str,
    *,
    num_cpus: int | None = None,
    object_store_bytes: int | None = None,
    log_to_driver: bool = True,
) -> None:
    """Choose the store that the other functions use, and how Ray is started if it must be.

    Parameters
    ----------
    store : str
        A folder (a path or ``file://``), or ``s3://BUCKET/PREFIX``.
    num_cpus, object_store_bytes : int, optional
        For a Ray that this process starts: CPU slots (default: all cores) and shared memory.
    log_to_driver : bool
        Show what tasks print.
    """
    _chosen.update(
        store=store,
        ray={
            "num_cpus": num_cpus,
            "object_store_bytes": object_store_bytes,
            "log_to_driver": log_to_driver,
        },
    )


def ray_options() -> dict[str, Any]:
    """Return the options with which to start Ray."""
    options: dict[str, Any] = _chosen.get("ray", {})
    return options


def chosen_store(uri: str | None, *, create: bool = True) -> Store:
    """Open the store that ``uri`` names, or the one given to `init`; raises DefinitionError when there is neither."""
    uri = _chosen.get("store") if uri is None else uri
    if uri is None:
        message = "no store: call exoflow.init(store=...) first, or pass store="
        raise DefinitionError(message)
    return open_store(uri, create=create)
