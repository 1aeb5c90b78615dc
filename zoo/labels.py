"""Labels: the names that a checkpoint gives to its classes, how they are compared, and how a message lists them.

Checkpoints of one and the same model spell them differently: in the case of letters, and as "glass_shatter",
"glass shatter" or "glass-shatter". So they are compared as `folded`, wherever labels are compared, and always whole:
"male" is found inside "female". What is answered is spelled as the checkpoint spells it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zoo.errors import InvalidInput

LISTED = 1500  # characters of the labels in one message


def folded(label: str) -> str:
    """What all spellings of one label have in common."""
    return " ".join(label.casefold().replace("_", " ").replace("-", " ").split()) or label


def listed(labels: Sequence[str], most: int = LISTED) -> str:
    """As many as fit into a line of `most` characters, and how many more there are."""
    shown, used = 0, 0
    while shown < len(labels) and (used := used + len(labels[shown]) + 2) <= most:
        shown += 1
    more = len(labels) - shown
    return ", ".join(labels[:shown]) + (f" and {more:,} more (`zoo ls --labels` lists them)" if more else "")


class Classes:
    """The classes of a model by number, to be asked for by number or by label.

    Args:
        names: the checkpoint's label of each class; several classes may have the same.
    """

    def __init__(self, names: Sequence[str] | Mapping[int, str]) -> None:
        self._names = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        self._numbers: dict[str, list[int]] = {}
        for number, name in self._names.items():
            self._numbers.setdefault(folded(name), []).append(number)

    def numbers(self, wanted: Sequence[int | str] | None) -> list[int] | None:
        """The numbers of these classes, all that a label has; None for None.

        Raises:
            InvalidInput: one of them is none of the model's.
        """
        if wanted is None:
            return None
        found = []
        for one in wanted:
            numbers = self._numbers.get(folded(one)) if isinstance(one, str) else [one] if one in self._names else None
            if numbers is None:
                raise InvalidInput(f"options: classes: {one!r:.100} is none of {listed([*self._names.values()])}")
            found += numbers
        return found
