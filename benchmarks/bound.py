"""A proven lower bound on the seconds spent loading, for requests that are answered in the order asked.

Between two requests for one model, either it is kept, or it is loaded again: a variable from 0 to 1 for each such pair.
At every request, what is kept and the model that is asked for have to fit. The least cost of that linear programme is
at most that of any policy, since a policy is a solution of it in whole numbers: flow-based offline optimal (FOO;
Berger, Beckmann and Harchol-Balter 2018, arXiv 1711.03709). Solved by HiGHS.

The bound does not hold for a policy that answers out of order: requests for one model that are answered together need
one load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from zoo.config.schema import ModelConfig


def load_time(
    requests: Sequence[str], models: Sequence[ModelConfig], budget_mb: float, load_s: Mapping[str, float]
) -> float:
    """No policy that answers `requests` in their order spends fewer seconds loading.

    Raises:
        ValueError: a model that is asked for does not fit alone.
    """
    mb = {m.name: m.vram_mb for m in models}
    if too_large := sorted({name for name in requests if mb[name] > budget_mb}):
        raise ValueError(f"{', '.join(too_large)}: more MB than the whole budget of {budget_mb:g}")
    first = sum(load_s[name] for name in set(requests))
    begins, ends = _pairs(requests, mb)
    if not len(begins):
        return first
    names = [requests[i] for i in begins]
    sizes, costs = np.array([mb[n] for n in names]), np.array([load_s[n] for n in names])
    return float(first + costs.sum() - _saved(requests, mb, budget_mb, (begins, ends, sizes, costs)))


def _pairs(requests: Sequence[str], mb: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of consecutive requests for one model that has to be kept while others are asked for."""
    last: dict[str, int] = {}
    found = []
    for i, name in enumerate(requests):
        before = last.get(name, i - 1)
        if before < i - 1 and mb[name] > 0:
            found.append((before, i))
        last[name] = i
    begins, ends = np.array(found, dtype=int).reshape(-1, 2).T
    return begins, ends


def _saved(
    requests: Sequence[str],
    mb: Mapping[str, float],
    budget_mb: float,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> float:
    """The most seconds of loading that keeping can save.

    Beside a variable for each pair there is one for each request: the megabytes kept across it. It differs from the one
    before by the pairs that begin and end there, so that each row has few entries.
    """
    begins, ends, sizes, costs = pairs
    count, steps = len(begins), len(requests)
    columns = np.arange(count)
    rows = np.concatenate([begins + 1, ends, np.arange(steps), np.arange(1, steps)])
    places = np.concatenate([columns, columns, count + np.arange(steps), count + np.arange(steps - 1)])
    values = np.concatenate([-sizes, sizes, np.ones(steps), -np.ones(steps - 1)])
    free = budget_mb - np.array([mb[name] for name in requests])
    solved = linprog(
        np.concatenate([-costs, np.zeros(steps)]),
        A_eq=csr_array((values, (rows, places)), shape=(steps, count + steps)),
        b_eq=np.zeros(steps),
        bounds=np.column_stack([np.zeros(count + steps), np.concatenate([np.ones(count), free])]),
        method="highs",
    )
    if solved.status != 0:
        raise RuntimeError(f"HiGHS found no solution: {solved.message}")
    return float(-solved.fun)
