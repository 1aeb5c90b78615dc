"""One sentence for each kind of line in the story. `Line.text`, and with it `zoo explain` and the log, come from here.

A function's name is the kind, with "_" for " "; its parameters are the line's fields. What a sentence does not say of
them is in the JSON log all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# ---------------------------------------------------------------- clients


def refused(request: int, message: str, untold: int = 0, **_: Any) -> str:
    more = f" ({untold} more like this since the last such line)" if untold else ""
    return f"refused request {request}: {message}{more}"


def client_gone(leases: int, requests: int) -> str:
    return f"a client went away: {leases} leases released, {requests or 'no'} requests dropped"


def unwanted() -> str:
    return "the load goes on, though no request waits for it"


def pinned(on: bool) -> str:
    return "pinned: it will not be evicted" if on else "unpinned"


def request(text: str) -> str:
    return text


# ---------------------------------------------------------------- loads


def waits(why: str, **_: Any) -> str:
    return f"waits: {why}"


def loading(device: str, waiting: int, used_mb: float, mb: float, limit_mb: float, **_: Any) -> str:
    sums = f"{used_mb - mb:g} + {mb:g} = {used_mb:g} of {limit_mb:g} MB"
    return f"loading on {device}: {waiting} waiting; {sums}"


def loaded(seconds: float, **_: Any) -> str:
    return f"loaded in {seconds:.2f} s"


def load_failed(cause: str, retry_seconds: float, **_: Any) -> str:
    return f"load failed: {cause}; no further try for {retry_seconds:g} s"


def in_doubt(device: str, seconds: float, models: int) -> str:
    return (
        f"{models} models in a row could not be loaded on {device}: for {seconds:g} s nothing is loaded there that "
        "fits elsewhere"
    )


def growing(waiting: int, workers: int, seconds: float, service_s: float, load_s: float) -> str:
    return (
        f"{waiting} waiting x {service_s:.3g} s / {workers} = {seconds:.2f} s to work off, an extra worker loads in "
        f"{load_s:.2f} s"
    )


def ahead(after: str, probability: float, device: str, need_mb: float, free_mb: float) -> str:
    return (
        f"loaded ahead: follows {after} {probability:.0%} of the time, and needs {need_mb:g} of {free_mb:g} MB that "
        f"are free on {device}"
    )


def restored(device: str, need_mb: float, free_mb: float) -> str:
    return f"loaded again, as it was before the broker's start: {need_mb:g} of {free_mb:g} MB on {device}"


def dropped(others: Sequence[str]) -> str:
    return f"its load ahead of any request ends: {', '.join(others)} waits for a load"


# ---------------------------------------------------------------- ends


def evicted(mb: float, device: str, why: str, **_: Any) -> str:
    return f"evicted, {mb:g} MB on {device}: {why}"


def spared(
    spared: Sequence[tuple[str, float, str, float]], others: Sequence[str], victims: Sequence[str], freed_mb: float,
    needed_mb: float,
) -> str:  # fmt: skip
    named = [f"{name} {mb:g} MB ({priority}, unused for {unused:.1f} s)" for name, mb, priority, unused in spared]
    more = f" and {len(others) - len(named)} more" if len(others) > len(named) else ""
    gave = f"{', '.join(victims)} gave {freed_mb:g} MB, {needed_mb:g} were needed"
    return f"spared for it: {', '.join(named)}{more}; {gave}"


def yields(needer: str) -> str:
    return f"yields: {needer} waits for its room"


def draining(why: str, reasons: str) -> str:
    return f"draining: {why} ({reasons})"


def first(device: str, **_: Any) -> str:
    return f"its primary worker is the one on {device} from now on"


def crashed(how: str, running: Sequence[int], **_: Any) -> str:
    return f"its process ended ({how})" + (f" while running {_requests(running)}" if running else "")


def killed(running: Sequence[int], limit_seconds: float, **_: Any) -> str:
    return f"killed: {_requests(running)} ran longer than dispatch_timeout ({limit_seconds:g} s)"


def _requests(numbers: Sequence[int]) -> str:
    return f"request{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def retried(request: int) -> str:
    return f"request {request} is tried once more, alone, on another process"


def quarantined(input: str, what: str, **_: Any) -> str:
    return f"input {input} {what} two processes: quarantined, until the model is unloaded or changes"


def lifted(why: str) -> str:
    return f"{why}: no input is refused any more"


def memory_stuck(device: str, mb: float) -> str:
    return f"its process is gone but {mb:g} MB on {device} have not come back; they stay charged"


def stopping(seconds: float) -> str:
    return f"shutting down: at most {seconds:g} s for what is running"


# ---------------------------------------------------------------- memory


def measured(device: str, seen_mb: float, mb: float, before_mb: float, declared_mb: float, **_: Any) -> str:
    return (
        f"measured: uses {seen_mb:g} MB on {device}, charged {mb:g} instead of {before_mb:g} MB "
        f"(declared {declared_mb:g})"
    )


def forgotten(declared_mb: float) -> str:
    return f"its footprint is forgotten: the declared {declared_mb:g} MB count until it is measured"


def grown(mb: float, before_mb: float, device: str, used_mb: float, limit_mb: float) -> str:
    return (
        f"charged {mb:g} instead of {before_mb:g} MB on {device}, {used_mb:g} of {limit_mb:g} MB in all: what ran out "
        "of memory is tried once more"
    )


def out_of_memory(what: str, **_: Any) -> str:
    return what


def smaller_batches(batch: int, most: int) -> str:
    return f"memory ran out under {batch} requests at once: at most {most} from now on"


def larger_batches(batch: int, most: int) -> str:
    return f"at most {most} requests at once again, {batch} went well for a while"


def overdrawn(device: str, used_mb: float, limit_mb: float, users: str, **_: Any) -> str:
    return (
        f"{device} is charged {used_mb:g} MB, {limit_mb:g} may be, and no model there may go: {users}; nothing is "
        "loaded there until it fits"
    )


def fits_again(device: str) -> str:
    return f"what {device} is charged fits again, or will when what is ending is gone"


def limited(
    device: str, others_mb: float, total_mb: float, reserve_mb: float, limit_mb: float, budget_mb: float
) -> str:  # fmt: skip
    return (
        f"other programs use {others_mb:g} of {device}'s {total_mb:g} MB, {reserve_mb:g} are kept free: {limit_mb:g} "
        f"of the budget's {budget_mb:g} MB may be charged"
    )


def unread(device: str, why: str) -> str:
    return f"{device} cannot be read: {why}; nothing new is started there, what is loaded serves on"


def read_again(device: str) -> str:
    return f"{device} can be read again"


def by_the_ledger(device: str, why: str) -> str:
    return f"{device}: {why}, for too long: what is started there goes by what is charged alone"


# ---------------------------------------------------------------- config.toml


def changed(text: str) -> str:
    return text


SENTENCES: dict[str, Callable[..., str]] = {
    function.__name__.replace("_", " "): function
    for function in (
        refused, client_gone, unwanted, pinned, request, waits, loading, loaded, load_failed, in_doubt, growing, ahead,
        restored, dropped, evicted, spared, yields, draining, first, crashed, killed, retried, quarantined, lifted,
        memory_stuck, stopping, measured, forgotten, grown, out_of_memory, smaller_batches, larger_batches, overdrawn,
        fits_again, limited, unread, read_again, by_the_ledger, changed,
    )
}  # fmt: skip
