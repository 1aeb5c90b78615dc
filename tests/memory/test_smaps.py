"""What counts as a process's own memory, on this very process."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from zoo.system.smaps import unique_mb
from zoo.wire.arena import MappedArena, OwnedArena

SIZE_MB = 64
LIMIT = 1 << 30


def own() -> float:
    mb = unique_mb(os.getpid())
    assert mb is not None
    return mb


@pytest.fixture
def arena() -> Iterator[OwnedArena]:
    made = OwnedArena(SIZE_MB << 20)
    yield made
    made.close()


def test_an_arena_of_ours_counts(arena: OwnedArena) -> None:
    counted = own()
    arena.memory.close()
    assert counted - own() == pytest.approx(SIZE_MB, abs=8)


def test_an_arena_of_others_does_not_count_when_they_are_gone(arena: OwnedArena) -> None:
    arena.memory.close()
    before = own()
    mapped = MappedArena(os.dup(arena.fd), LIMIT)
    assert own() == pytest.approx(before, abs=8)
    del mapped


def test_a_copy_that_is_mapped_privately_counts(arena: OwnedArena) -> None:
    arena.memory.close()
    before = own()
    copy = mmap.mmap(arena.fd, arena.size, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
    assert own() - before == pytest.approx(SIZE_MB, abs=8)
    copy.close()


def test_of_a_process_that_is_gone_nothing_is_known() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert unique_mb(pid) is None
