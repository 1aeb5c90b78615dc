"""An adapter that speaks to the broker in its worker's place, and says damaged things."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from typing import Any

import msgspec

from tests.fuzz import samples
from tests.fuzz.mutate import message
from workers.models.base import Input, Spec
from zoo.wire import lifeline, protocol
from zoo.wire.channel import Channel


class Liar:
    """Answers the first request of a process rightly; with the option `seed`, tells lies first."""

    def load(self, spec: Spec, device: str) -> None:
        self.told = False

    def predict(self, inputs: list[Input]) -> list[Any]:
        seed = inputs[0].options.get("seed")
        if seed is not None:
            self._lie(random.Random(seed))
        return [{"told": True} for _ in inputs]

    def _lie(self, dice: random.Random) -> None:
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError, ValueError), socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family != socket.AF_UNIX:
                    continue
                if sock.type == socket.SOCK_STREAM:
                    self._on_the_channel(dice, Channel(sock))
                elif sock.type == socket.SOCK_SEQPACKET:
                    self._on_the_lifeline(dice, sock)

    def _on_the_channel(self, dice: random.Random, channel: Channel) -> None:
        for _ in range(dice.randrange(1, 12)):
            parts = [message(dice, samples.FROM_WORKER), *(dice.randbytes(20) for _ in range(dice.randrange(3)))]
            channel.send(parts)
        if dice.random() < 0.3:
            channel.sock.sendall(dice.randbytes(dice.randrange(200)))

    def _on_the_lifeline(self, dice: random.Random, sock: socket.socket) -> None:
        for _ in range(dice.randrange(6)):
            raw = message(dice, samples.LIFELINE)
            if dice.random() < 0.5:
                socket.send_fds(sock, [raw], [dice.choice([0, sock.fileno()])])
            else:
                sock.send(raw)
        lifeline.send(sock, protocol.LifelineFingerprint(1, msgspec.msgpack.encode([dice.random()])))
