"""The options of a command line that name a store."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from exoflow.storage.location import with_endpoint

Command = TypeVar("Command", bound=Callable[..., Any])


def store_option(
    help_text: str, check: Callable[[click.Context, click.Parameter, str], str] | None = None
) -> Callable[[Command], Callable[..., Any]]:
    """Give a command ``--store`` and ``--s3-endpoint``; its parameter ``store`` gets one URI made of both.

    So the endpoint goes wherever the store goes: to workers, whose environment is not that of the command,
    and back into the commands that users are told to type (`exoflow.storage.location.as_options`).

    Parameters
    ----------
    help_text : str
        What the store keeps.
    check : callable, optional
        Click's callback for ``--store``.
    """

    def decorate(command: Command) -> Callable[..., Any]:
        @functools.wraps(command)
        def joined(*args: Any, store: str, s3_endpoint: str | None, **kwargs: Any) -> Any:
            return command(*args, store=with_endpoint(store, s3_endpoint), **kwargs)

        endpoint = click.option(
            "--s3-endpoint", metavar="URL", help="Server of a store on S3.  [default: AWS_ENDPOINT_URL, else Amazon's]"
        )
        place = click.option("--store", required=True, metavar="DIR|s3://BUCKET/PREFIX", callback=check, help=help_text)
        return place(endpoint(joined))

    return decorate
