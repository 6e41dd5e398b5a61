"""Sinks against real peers on loopback: order, acknowledgement, outages, hangs and kills."""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from conftest import ROOT
from peers import Broker, OpcUa, Plc, Web, free_port, wait_until

from adctl.errors import UsageError
from adctl.sinks import spool
from adctl.sinks.address import parse_address
from adctl.sinks.base import DeliveryError, PartVerdict
from adctl.sinks.delivery import Outbox
from adctl.sinks.opening import open_sinks
from adctl.tracking import database

PART = PartVerdict(
    "01J", "2026-11-28T10:00:00.000+00:00", "2026-11-28T09:59:59.900+00:00", "cam1", "P1", "L7", "line3", "ab" * 32,
    "reject", 2.5, 1.0, 0.01, 0.9,
)  # fmt: skip


def messages(count: int, start: int = 0, **changes) -> list[dict]:
    return [replace(PART, id=f"{number:026}", **changes).to_json() for number in range(start, start + count)]


def numbers(found: list[str]) -> list[int]:
    return [int(identifier) for identifier in found]


def sink(text: str):
    return open_sinks([text])[0]


# ---- addresses


@pytest.mark.parametrize(
    "text",
    ["nothing", "ftp://host/x", "mqtt:///topic", "mqtt://host/a?qos=5", "mqtt://host/+/x", "mqtt://host/a?colour=red",
     "modbus-tcp://host?unit=one", "http://host:x/"],
)  # fmt: skip
def test_a_wrong_address_is_refused_with_a_remedy(text):
    with pytest.raises(UsageError) as raised:
        open_sinks([text])
    assert raised.value.remedy


def test_no_password_is_in_a_name(monkeypatch):
    monkeypatch.setenv("ADCTL_SINK_PASSWORD", "from-environment")
    assert parse_address("mqtt://anna:secret@host/a?qos=0").name == "mqtt://host:1883/a"
    assert parse_address("mqtt://anna@host/a").password == "from-environment"
    assert "secret" not in repr(parse_address("mqtt://anna:secret@host/a"))
    with pytest.raises(UsageError, match="twice"):
        open_sinks(["mqtt://host/a", "mqtt://anna@host:1883/a"])


# ---- each sink and its peer


def test_mqtt_delivers_in_order_and_says_whether_it_is_online(tmp_path):
    with Broker(tmp_path) as broker:
        line = sink(f"mqtt://127.0.0.1:{broker.port}/line3/verdicts")
        line.send(messages(30))
        wait_until(lambda: len(broker.verdicts("line3/verdicts")) == 30)
        assert numbers([found["id"] for found in broker.verdicts("line3/verdicts")]) == list(range(30))
        assert broker.verdicts("line3/verdicts")[0] | {"id": "01J"} == PART.to_json()
        line.close()
        wait_until(lambda: broker.messages[-1] == ("line3/verdicts/status", b"offline"))
        assert ("line3/verdicts/status", b"online") in broker.messages
        broker.stop()
        with pytest.raises(DeliveryError, match="refused"):
            line.send(messages(1))
        broker.start()
        line.send(messages(1))
        line.close()


@pytest.mark.parametrize("secret", ["plain", "whsec_" + base64.b64encode(b"key").decode()])
def test_a_webhook_is_signed_as_the_specification_says(secret, monkeypatch):
    monkeypatch.setenv("ADCTL_SINK_SECRET", secret)
    with Web() as web:
        hook = sink(f"http://anna:pw@127.0.0.1:{web.port}/hook?line=3")
        hook.send(messages(3))
        hook.close()
    headers, body = web.requests[0]
    assert json.loads(body)["part"] == "P1"
    key = b"key" if secret.startswith("whsec_") else b"plain"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"
    assert headers["Authorization"] == f"Basic {base64.b64encode(b'anna:pw').decode()}"
    assert numbers(web.ids()) == [0, 1, 2]


def test_a_webhook_that_answers_with_an_error_has_taken_what_came_before():
    with Web() as web:
        hook = sink(f"http://127.0.0.1:{web.port}/")
        hook.send(messages(1))
        web.status = 500
        with pytest.raises(DeliveryError, match="500") as raised:
            hook.send(messages(2))
        assert raised.value.delivered == 0


def test_modbus_writes_verdict_score_number_and_heartbeat():
    with Plc() as plc:
        line = sink(f"modbus-tcp://127.0.0.1:{plc.port}")
        line.send(messages(1))
        coil, words = plc.read()
        assert coil
        assert words == [2, *struct.unpack(">HH", struct.pack(">f", 2.5)), 1, 0]
        line.beat()
        line.send(messages(1, start=1, verdict="good", score=0.5))
        assert plc.read() == (False, [0, *struct.unpack(">HH", struct.pack(">f", 0.5)), 2, 1])
        line.close()
        line.send(messages(1, start=2, verdict="error", score=None))  # a part without a verdict must not pass
        coil, words = plc.read()
        assert coil
        assert (words[0], words[3]) == (3, 3)
        assert math.isnan(struct.unpack(">f", struct.pack(">HH", *words[1:3]))[0])
        wrong = sink(f"modbus-tcp://127.0.0.1:{plc.port}?register=90")
        with pytest.raises(DeliveryError, match="refuses the address, at read holding registers 93 of unit 1"):
            wrong.send(messages(1))
        line.close()
    with pytest.raises(DeliveryError, match="does not answer"):
        line.send(messages(1))


def test_opc_ua_writes_its_variables():
    with OpcUa() as server:
        line = sink(f"opc.tcp://127.0.0.1:{server.port}/line?node={server.prefix}")
        line.send(messages(2))
        line.beat()
        found = {name: server.read(name) for name in ("Id", "Part", "Lot", "Verdict", "Score", "Reject", "Number")}
        assert found == {"Id": f"{1:026}", "Part": "P1", "Lot": "L7", "Verdict": "reject", "Score": 2.5,
                         "Reject": True, "Number": 2}  # fmt: skip
        assert server.read("Heartbeat") == 1
        line.close()
        wrong = sink(f"opc.tcp://127.0.0.1:{server.port}/line?node=ns=2;s=other.")
        with pytest.raises(DeliveryError, match=r"Bad.*ns=2;s=other\."):
            wrong.send(messages(1))
        wrong.close()


@pytest.mark.parametrize("kind", ["modbus", "opcua"])
def test_a_verdict_whose_answer_was_lost_is_no_other_part(kind):
    with Plc() as plc, OpcUa() as server:
        addresses = {
            "modbus": f"modbus-tcp://127.0.0.1:{plc.port}",
            "opcua": f"opc.tcp://127.0.0.1:{server.port}/line?node={server.prefix}",
        }
        line = sink(addresses[kind])
        first, second, third = messages(3)
        line.send([first])
        name = {"modbus": "_ask", "opcua": "_write"}[kind]
        real = getattr(line, name)

        def lose(*arguments):
            real(*arguments)
            if kind == "opcua" or arguments[0] == "write_registers":
                line.close()
                raise DeliveryError("the answer was lost")

        setattr(line, name, lose)
        with pytest.raises(DeliveryError):
            line.send([second])
        setattr(line, name, real)
        line.send([second, third])
        assert (plc.read()[1][3] if kind == "modbus" else server.read("Number")) == 3
        line.close()


def test_csv_appends_whole_rows_and_repairs_half_a_row(tmp_path):
    path = tmp_path / "new" / "verdicts.csv"
    sink(f"csv:{path}").send(messages(2, part="=1+1"))
    with path.open("ab") as stream:
        stream.write(b"half a ro")
    sink(str(path)).send(messages(1, start=2))
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert numbers([row["id"] for row in rows]) == [0, 1, 2]
    assert rows[0]["part"] == "'=1+1"
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="first line"):
        sink(str(tmp_path / "other.csv"))


def test_csv_has_the_kind_and_a_file_of_before_keeps_its_columns(tmp_path):
    new, old = tmp_path / "new.csv", tmp_path / "old.csv"
    before = PART.to_json()
    del before["kind"], before["kind_probability"]  # from the spool of an earlier version
    sink(f"csv:{new}").send([*messages(1, kind="crack", kind_probability=0.75), before])
    with new.open(newline="") as stream:
        assert [(row["kind"], row["kind_probability"]) for row in csv.DictReader(stream)] == [
            ("crack", "0.75"),
            ("", ""),
        ]
    header = new.read_text().splitlines()[0].removesuffix(",kind,kind_probability")
    old.write_text(f"{header}\n")
    sink(f"csv:{old}").send(messages(1, kind="crack"))
    assert [line.count(",") for line in old.read_text().splitlines()] == [header.count(",")] * 2


# ---- the spool


def test_an_outage_drains_in_order_and_delays_nothing(tmp_path):
    port = free_port()
    outbox = Outbox(tmp_path, [f"http://127.0.0.1:{port}/", f"csv:{tmp_path / 'a.csv'}"])
    start = time.monotonic()
    for number in range(60):
        outbox.trigger(f"{number:026}", time.monotonic())
        outbox.put(messages(1, number))
    assert time.monotonic() - start < 10
    wait_until(lambda: outbox.status()[1].waiting == 0)  # the other sink goes on
    failing = outbox.status()[0]
    assert (failing.waiting, failing.delivered) == (60, 0)
    assert "refused" in failing.error
    with Web(port) as web:
        wait_until(lambda: outbox.status()[0].waiting == 0)
        outbox.close()
        assert numbers(web.ids()) == list(range(60))
    done = outbox.status()[0]
    assert (done.delivered, done.error) == (60, "")
    assert 0 < done.median_ms <= done.p95_ms <= done.max_ms


def test_a_sink_that_hangs_delays_no_other_and_not_the_end(tmp_path):
    with Web() as web, socket.create_server(("127.0.0.1", 0)) as mute:
        hanging = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        outbox = Outbox(tmp_path, [hanging, f"http://127.0.0.1:{web.port}/"])
        outbox.put(messages(5))
        wait_until(lambda: len(web.requests) == 5, 5)
        start = time.monotonic()
        outbox.close(0.2)
        assert time.monotonic() - start < 4
    assert spool.count(tmp_path, hanging) == 5


def test_a_verdict_for_a_part_that_has_passed_moves_no_gate(tmp_path):
    with Plc() as plc:
        address = f"modbus-tcp://127.0.0.1:{plc.port}"
        with database.durable_transaction(tmp_path) as connection:  # of a process of yesterday
            spool.add(connection, [parse_address(address).name], messages(3))
        outbox = Outbox(tmp_path, [address])
        outbox.trigger(f"{7:026}", time.monotonic())
        outbox.put(messages(1, 7))
        wait_until(lambda: outbox.status()[0].delivered == 1)
        outbox.close()
        assert outbox.status()[0].expired == 3
        assert plc.read()[1][3] == 1


PRODUCER = """
import sys, time
from pathlib import Path
from adctl.sinks.delivery import Outbox
sys.path.insert(0, sys.argv[3])
from test_sinks import messages
outbox = Outbox(Path(sys.argv[1]), [sys.argv[2]])
first = int(sys.argv[4])
for number in range(first, first + 10_000):
    outbox.put(messages(1, number))
    print(number, flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_nothing_acknowledged_is_lost_over_kill_9(tmp_path, kills):
    port, acknowledged = free_port(), []
    with Web(port) as web:
        for turn in range(kills):
            process = subprocess.Popen(
                [sys.executable, "-c", PRODUCER, str(tmp_path), f"http://127.0.0.1:{port}/", str(ROOT / "tests"),
                 str(10_000 * turn)],
                stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            count = 5 + 7 * turn % 23
            acknowledged += [int(process.stdout.readline()) for _ in range(count)]
            process.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in process.communicate()[0].splitlines()]
        outbox = Outbox(tmp_path, [f"http://127.0.0.1:{port}/"])
        wait_until(lambda: outbox.status()[0].waiting == 0)
        outbox.close()
        found = numbers(web.ids())
    assert set(acknowledged) <= set(found)
    first_times = list(dict.fromkeys(found))
    assert first_times == sorted(first_times)


def test_only_one_process_sends_to_a_sink(tmp_path):
    with Web() as web:
        address = f"http://127.0.0.1:{web.port}/"
        first = Outbox(tmp_path, [address])
        second = Outbox(tmp_path, [address])
        for number in range(10):
            (first, second)[number % 2].put(messages(1, number))
        wait_until(lambda: len(web.requests) == 10)
        first.close()
        second.close()
        assert numbers(web.ids()) == list(range(10))
        assert {first.status()[0].delivered, second.status()[0].delivered} == {0, 10}
