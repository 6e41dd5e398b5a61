"""Sink that writes each verdict to coils and registers of a PLC, by Modbus TCP.

| address            | content                                                                    |
|--------------------|----------------------------------------------------------------------------|
| coil               | 1 if the part must not pass: it is rejected, or could not be judged         |
| register           | verdict: 0 good, 1 warn, 2 reject, 3 error, 4 uncalibrated                  |
| register + 1, + 2  | score, 32-bit floating point, high word first; NaN if there is none         |
| register + 3       | number of the verdict, 1 to 65535 and again 1: it changes with each verdict |
| register + 4       | heartbeat, changes about once a second                                      |

The coil is written first. The other values of a verdict are written in one request after it, so that a PLC that waits
for a new number reads the right coil. A verdict that is sent again because its answer was lost keeps its number.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

from adctl.errors import MissingExtraError
from adctl.sinks.base import REJECTED, DeliveryError, Sink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.sinks.address import Address

CODES = {"good": 0, "warn": 1, "reject": 2, "error": 3, "uncalibrated": 4}

_TIMEOUT = 3.0
_NUMBER, _HEARTBEAT = 3, 4
_WORD = 0xFFFF
_ERRORS = {1: "the function", 2: "the address", 3: "the value", 4: "the request, by a failure of the device"}
"""Meaning of Modbus exceptions, after `it refuses`."""


class ModbusSink(Sink):
    """PLC; options: `unit` 1, `coil` 0, `register` 0, `max_age` 5 seconds."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        address.require_known("unit", "coil", "register", "max_age")
        self.max_age = address.option("max_age", 5.0)
        self._unit, self._coil = address.option("unit", 1), address.option("coil", 0)
        self._register = address.option("register", 0)
        try:
            from pymodbus.client import ModbusTcpClient
            from pymodbus.exceptions import ModbusException
        except ImportError as error:
            raise MissingExtraError("pymodbus", "line") from error
        self._client_class: Any = ModbusTcpClient
        self._exception = ModbusException
        self._client: Any = None
        self._number = self._beats = 0
        self._tried: tuple[str, int] = ("", 0)

    def send(self, messages: Sequence[dict[str, Any]]) -> None:
        """Write the coil and the registers of each message."""
        for number, message in enumerate(messages):
            try:
                self._write(message)
            except DeliveryError as error:
                raise DeliveryError(str(error), number) from error

    def beat(self) -> None:
        """Change the heartbeat register."""
        self._beats = (self._beats + 1) & _WORD
        self._ask("write_registers", self._register + _HEARTBEAT, [self._beats])

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _write(self, message: dict[str, Any]) -> None:
        score = math.nan if message["score"] is None else message["score"]
        if self._client is None:  # numbers go on where the PLC saw the last one
            self._number = self._ask("read_holding_registers", self._register + _NUMBER).registers[0]
        # A verdict whose answer was lost comes again; if the PLC has it already, it must not count as another part.
        repeated = self._tried == (message["id"], self._number)
        number = self._number if repeated else self._number % _WORD + 1
        self._tried = message["id"], number
        self._ask("write_coil", self._coil, message["verdict"] in REJECTED)
        values = [CODES[message["verdict"]], *struct.unpack(">HH", struct.pack(">f", score)), number]
        self._ask("write_registers", self._register, values)
        self._number = number

    def _ask(self, method: str, place: int, *values: Any) -> Any:
        if self._client is None:
            client = self._client_class(self.address.host, port=self.address.port, timeout=_TIMEOUT, retries=0)
            if not client.connect():
                client.close()
                raise DeliveryError("it does not answer")
            self._client = client
        try:
            answer = getattr(self._client, method)(place, *values, device_id=self._unit)
        except (self._exception, OSError) as error:
            self.close()
            raise DeliveryError(str(error)) from error
        if answer.isError():
            self.close()
            refused = _ERRORS.get(answer.exception_code, f"with code {answer.exception_code}")
            raise DeliveryError(f"it refuses {refused}, at {method.replace('_', ' ')} {place} of unit {self._unit}")
        return answer
