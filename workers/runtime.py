"""One worker: waits to be told its model, loads it, answers one dispatch (a batch of requests) at a time, and goes
when its broker goes.

Two threads only. This one blocks on its channel to the broker and runs the adapter; the other blocks on the lifeline
(`lifeline.py`). While there is no request, the copy that is wanted of the model is made (`copies.py`).
"""

from __future__ import annotations

import gc
import socket
import traceback
from typing import NoReturn

import msgspec

from workers import copies, lifeline, loading, process
from workers.dispatches import Dispatches
from zoo.errors import ZooError
from zoo.system.kernel import set_name
from zoo.wire import channel, protocol
from zoo.wire.launch import Launch, Seat


class Runtime:
    """The loop around one adapter, once the broker has said which. Until then everything waits that needs no model."""

    def __init__(self, seat: Seat) -> None:
        self._lifeline = lifeline.WorkerLifeline(seat)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel = channel.Channel(ours)
        with theirs:
            self._lifeline.send(protocol.LifelineChannel(), theirs.fileno())

    def run(self) -> None:
        if (told := self._channel.receive()) is None:
            return  # the broker has no use for this process any more
        launch = msgspec.msgpack.decode(told[0], type=Launch)
        set_name(f"zoo:{launch.model}")
        process.show_device(launch.visible)
        loaded = self._load(launch)
        gc.collect()  # what the load left over, and only that: the nursery's objects are frozen
        gc.freeze()  # the model's are not looked at again either
        dispatches = Dispatches(launch, loaded, self._lifeline)
        copying = copies.CopyMaker(loaded.adapter, 0 if loaded.copied else launch.copy_bytes, self._lifeline)
        self._send(
            protocol.Loaded(loaded.seconds, stand_in=loaded.stand_in, max_batch=loaded.max_batch, copied=loaded.copied),
            *(() if loaded.labels is None else (loaded.labels,)),
        )
        while (parts := self._receive(copying)) is not None:
            self._channel.send(dispatches.answer(parts))

    def _load(self, launch: Launch) -> loading.LoadedModel:
        """The model; where that cannot be, the process ends when the broker has been told why."""
        try:
            return loading.load(launch, self._lifeline.take_copy)
        except BaseException as e:
            told = loading.failure(e, launch.device)
            self._send(told)
            if told.short is not None:
                self._channel.receive()  # to be ended: until then the broker can see what it took
            process.exit_now(1)

    def _receive(self, copying: copies.CopyMaker) -> list[bytes] | None:
        """The next dispatch."""
        while copying.wanted and self._channel.is_quiet(copying.after_s):
            copying.make_piece()
        return self._channel.receive()

    def _send(self, message: protocol.Message, *body: bytes) -> None:
        self._channel.send((protocol.pack(message), *body))


def main(seat: Seat) -> NoReturn:
    """Entered in a fresh fork of the nursery."""
    try:
        Runtime(seat).run()
    except (OSError, ZooError):
        traceback.print_exc()
    process.exit_now(1)
