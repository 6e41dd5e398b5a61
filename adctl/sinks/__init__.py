"""Delivery of verdicts to other machines: MQTT, webhook, Modbus TCP, OPC UA and CSV.

Each verdict is first written to a table of the run database, the spool, in one transaction with whatever records it.
One thread for each sink sends what the spool holds, oldest first, and removes what its peer has acknowledged. A peer
that is slow, away or wrong delays no verdict, and a killed process loses none: the next one sends the rest. A verdict
may arrive twice, with the same identifier.
"""
