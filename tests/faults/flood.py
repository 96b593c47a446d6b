"""A controller gone mad: it answers an engine's hello as it should, then sends a million messages at once and is silent.

``python flood.py ENDPOINT MESSAGES``; it says ``sent`` when its socket has taken them all, and then waits to be killed.
"""

from __future__ import annotations

import sys
import time

import zmq

from store.records import EngineRules, Hello, IndexTable, Settings, Welcome, decode_engine_message, encode


def main(endpoint: str, messages: int) -> None:
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.bind(endpoint)
    while True:
        connection, frame = socket.recv_multipart()
        if isinstance(decode_engine_message(frame), Hello):
            break
    prior = IndexTable(request_id=None, attained_tokens=(0,), index_s=(1.0,), growth_tokens=(0.0,))
    settings = Settings(revision=1, mode="on", lease_s=2.0, rules=EngineRules())
    for message in (Welcome(controller_id="mad", durable_batch=0), settings, prior):
        socket.send_multipart([connection, encode(message)])
    unknown = encode(IndexTable(request_id="nobody", attained_tokens=(0,), index_s=(1.0,), growth_tokens=(0.0,)))
    for _ in range(messages):
        socket.send_multipart([connection, unknown])
    sys.stdout.write("sent\n")
    sys.stdout.flush()
    time.sleep(600.0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
