"""Rows from where they are kept: files, folders and patterns of them, URLs, and data sets on the hub.

A damaged row is a ``Row`` with a ``problem``, so that it can be counted and left out; a damaged file is a DataError.
No code that comes with the data is run, and nothing is unpickled.
"""

from dpo_cli.data.sources.local import is_local
from dpo_cli.data.sources.opening import open_source
from dpo_cli.data.sources.readers import ENDINGS
from dpo_cli.data.sources.row import Place, Row, Source
from dpo_cli.data.sources.urls import is_url

__all__ = ["ENDINGS", "Place", "Row", "Source", "is_local", "is_url", "open_source"]
