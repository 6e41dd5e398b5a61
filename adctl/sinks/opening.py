"""Opening of sinks by their addresses."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from adctl.errors import UsageError
from adctl.sinks.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.sinks.base import Sink

_SINKS = {
    **dict.fromkeys(("http", "https"), "adctl.sinks.webhook:WebhookSink"),
    **dict.fromkeys(("mqtt", "mqtts"), "adctl.sinks.mqtt:MqttSink"),
    "modbus-tcp": "adctl.sinks.modbus:ModbusSink",
    "opc.tcp": "adctl.sinks.opcua:OpcUaSink",
    "csv": "adctl.sinks.csv_file:CsvSink",
}
"""Class of each scheme, as `module:class`."""


def open_sinks(texts: Sequence[str]) -> list[Sink]:
    """Return the sinks of addresses; none connects yet.

    Raises:
        UsageError: An address is not valid, or is given twice.
        MissingExtraError: A package is not installed.
    """
    addresses = [parse_address(text) for text in texts]
    names = [address.name for address in addresses]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"The sink {twice[0]} is given twice.", "Give each address once.")
    return [pkgutil.resolve_name(_SINKS[address.scheme])(address) for address in addresses]
