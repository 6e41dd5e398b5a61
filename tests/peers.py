"""Real peers of sinks and sources on loopback, for tests: a broker, a web server, a PLC and an OPC UA server."""

from __future__ import annotations

import asyncio
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

import pytest


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def wait_for_port(port: int) -> None:
    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    wait_until(answers)


class Broker:
    """Mosquitto, and a subscriber that keeps every message; the test is skipped where it is not installed."""

    def __init__(self, folder: Path, topic: str = "#", port: int = 0) -> None:
        self.program = self.is_installed()
        if self.program is None:
            pytest.skip("mosquitto is not installed")
        self.port, self.topic = port or free_port(), topic
        self.messages: list[tuple[str, bytes]] = []
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self._process: Any = None
        self.start()

    @staticmethod
    def is_installed() -> str | None:
        return shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")

    def start(self) -> None:
        import paho.mqtt.client as mqtt

        self._process = subprocess.Popen([self.program, "-c", self._config], stderr=subprocess.DEVNULL)
        wait_for_port(self.port)
        subscribed = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe(self.topic, 2)
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = lambda _c, _d, message: self.messages.append((message.topic, message.payload))
        self._client.connect("127.0.0.1", self.port)
        self._client.loop_start()
        assert subscribed.wait(10)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._process.kill()
        self._process.wait()

    def verdicts(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(payload) for name, payload in self.messages if name == topic]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Web:
    """Web server that keeps every POST request and answers with `status`."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        self.hangs = threading.Event()
        kept = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if kept.hangs.is_set():
                    time.sleep(30)
                if len(body) < int(self.headers["Content-Length"]):  # the sender was killed
                    self.close_connection = True
                    return
                if kept.status == 204:
                    kept.requests.append((dict(self.headers), body))
                self.send_response(kept.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def ids(self) -> list[str]:
        return [json.loads(body)["id"] for _, body in self.requests]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _LoopThread:
    """Event loop in a thread, in which a server runs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Plc:
    """Modbus server with coils and registers 0 to 9."""

    def __init__(self) -> None:
        self.port = free_port()
        self._thread = _LoopThread()
        self._thread.run(self._start())

    async def _start(self) -> None:
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice

        bits = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
        words = [SimData(0, values=[0] * 10, datatype=DataType.REGISTERS)]
        device = SimDevice(1, simdata=(bits, bits, words, words))
        self._server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await self._server.serve_forever(background=True)

    def read(self) -> tuple[bool, list[int]]:
        from pymodbus.client import ModbusTcpClient

        with ModbusTcpClient("127.0.0.1", port=self.port) as client:
            return client.read_coils(0, count=1).bits[0], client.read_holding_registers(0, count=5).registers

    def stop(self) -> None:
        self._thread.run(self._server.shutdown())
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class OpcUa:
    """OPC UA server with the variables that a sink writes."""

    def __init__(self) -> None:
        self.port = free_port()
        self._thread = _LoopThread()
        self._thread.run(self._start())

    async def _start(self) -> None:
        from asyncua import Server, ua

        self._server = Server()
        await self._server.init()
        self._server.set_endpoint(f"opc.tcp://127.0.0.1:{self.port}/line")
        self._server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        space = await self._server.register_namespace("https://adctl/test")
        self._variables = {}
        initial = {**dict.fromkeys(("Id", "Part", "Lot", "Verdict"), ""), "Score": 0.0, "Reject": False}
        for name, value in (*initial.items(), ("Number", 0), ("Heartbeat", 0)):
            kind = ua.VariantType.UInt32 if value == 0 and name in ("Number", "Heartbeat") else None
            variable = await self._server.nodes.objects.add_variable(
                ua.NodeId(f"adctl.{name}", space), f"{space}:{name}", value, kind
            )
            await variable.set_writable()
            self._variables[name] = variable
        self.prefix = f"ns={space};s=adctl."
        await self._server.start()

    def read(self, name: str) -> Any:
        return self._thread.run(self._variables[name].read_value())

    def stop(self) -> None:
        self._thread.run(self._server.stop())
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
