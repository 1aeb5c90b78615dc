"""`zoo top` on the screen, by textual. What it shows comes from `figures.py`; what it does are calls of `AsyncClient`.

It looks once a second, and at what changes seldom (priorities, problems) every fifth time, which costs a broker of 22
models 0.5 ms a second. While no broker answers, what was seen last stays, and is said to be old.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from zoo.client.aio import AsyncClient
from zoo.errors import ZooError
from zoo.system.program import one_line
from zoo.top import figures

EVERY_S = 1.0
SELDOM = 5  # looks from one question for the models to the next
LOOK_S, WORK_S = 3.0, 60.0  # how long a question, and a load, may take
COLORS = ("green", "cyan", "yellow", "magenta", "blue", "bright_green", "bright_cyan", "bright_yellow")
LOOKS = {"ending": ("▒", "red"), "free": ("·", "bright_black"), "others": ("░", "bright_black")}
STATE_COLORS = {"loaded": "green", "loading": "yellow", "draining": "yellow", "evicting": "red", "failed": "red"}
NAME = 30  # characters of a model's
# heads and widths, together less than 80; figures stand at the right of their column
WORDS = (("MODEL", NAME + 1), ("STATE", 9), ("PIN", 4), ("PRIO", 5))
FIGURES = (("MB", 7), ("RUN", 4), ("WAIT", 5), ("LEASE", 6), ("REQ/S", 7))
RANKS = {"CRITICAL": "CRIT", "MEDIUM": "MED"}


class Confirm(ModalScreen[bool]):
    """Asks before something is done to a model."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
    ]
    CSS = """
    Confirm { align: center middle; }
    #question { width: auto; max-width: 70; height: auto; padding: 1 2; border: round $warning; background: $surface; }
    """

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        yield Static(Text(f"{self._question}\n\ny yes   n no"), id="question")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class Top(App[None]):
    """The screen: a line on the broker, a bar for each device, the models, and a line on what happened last."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head, #devices, #said { height: auto; }
    #said { max-height: 2; color: $warning; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "load", "load"),
        Binding("u", "unload", "unload"),
        Binding("p", "pin", "pin/unpin"),
        Binding("r", "look", "look now"),
        Binding("q,ctrl+c", "quit", "quit"),
    ]

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._zoo: AsyncClient | None = None
        self._seen: figures.Seen | None = None
        self._rows: dict[str, figures.Shown] = {}
        self._models: list[dict[str, Any]] = []
        self._looks = 0
        self._looking = False
        self._said = self._about = self._trouble = ""
        self._head, self._devices, self._lowest = Static(id="head"), Static(id="devices"), Static(id="said")
        self._table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=True, cell_padding=0)

    def compose(self) -> ComposeResult:
        with Vertical():
            yield self._head
            yield self._devices
            yield self._table
            yield self._lowest
        yield Footer()

    def on_mount(self) -> None:
        table = self._table
        for head, width in WORDS:
            table.add_column(Text(head), width=width, key=head)
        for head, width in FIGURES:
            table.add_column(Text(head, justify="right"), width=width, key=head)
        table.focus()
        self._zoo = AsyncClient(self._endpoint, timeout=LOOK_S)
        self.set_interval(EVERY_S, self.action_look)
        self.action_look()

    async def on_unmount(self) -> None:
        if self._zoo is not None:
            await self._zoo.close()

    # ------------------------------------------------------------ looking

    @work(group="look")
    async def action_look(self) -> None:
        if self._looking:
            return  # a broker that is slow is not asked more often
        self._looking = True
        try:
            await self._look()
        finally:
            self._looking = False

    async def _look(self, again: bool = False) -> None:
        """`again`: ask for the models, whenever that was done last."""
        if self._zoo is None:
            return
        try:
            if again or not self._models or self._looks % SELDOM == 0:
                self._models = await self._zoo.models()
            self._looks += 1
            status, processes = await self._zoo.get_status(), await self._zoo.processes()
        except ZooError as e:
            self._trouble, self._models = f"{one_line(str(e))}; what is shown is old", []
            self._show()
            return
        before, self._trouble = self._seen, ""
        self._seen = figures.Seen(time.monotonic(), status, processes, self._models)
        same = before is not None and before.status["broker"]["boot"] == status["broker"]["boot"]
        seconds = self._seen.at - before.at if before is not None and same else 0.0
        found = figures.rows(self._seen, self._rows if same else None, seconds)
        self._rows = {row.name: row for row in found}
        self._show()

    # ------------------------------------------------------------ showing

    def _show(self) -> None:
        self._tell()
        if self._seen is None:
            self._head.update(Text(f"zoo top  {self._endpoint}"))
            return
        width = max(40, self.size.width)
        self._head.update(Text(self._line(), no_wrap=True, overflow="ellipsis"))
        devices = self._seen.status["devices"]
        named = max(len(device["name"]) for device in devices) + 1
        bars = [self._bar(device, width, named) for device in devices]
        self._devices.update(Text("\n").join(bars))
        self._fill()

    def _line(self) -> str:
        assert self._seen is not None
        status = self._seen.status
        rate = sum(row.rate for row in self._rows.values())
        loaded = f"{len(status['loaded_models'])}/{len(status['registered_models'])} loaded"
        waiting = sum(row.waiting for row in self._rows.values())
        counts = f"{status['running']} running, {waiting} waiting, {rate:.1f} req/s"
        stopping = "  STOPPING" if status["stopping"] else ""
        return f"zoo top  {loaded}  {counts}  {status['leases']} leases  pid {status['broker']['pid']}{stopping}"

    def _bar(self, device: dict[str, Any], width: int, named: int) -> Text:
        """`width`: of the line; `named`: of the name at its beginning."""
        assert self._seen is not None
        label = f"{device['name']:<{named}}"
        figure = f" {device['used_mb']:,.0f}/{device['budget_mb']:,.0f} MB"
        line = Text(label, no_wrap=True)
        for part in figures.bar(device, self._seen.processes, max(1, width - len(label) - len(figure) - 1)):
            sign, color = LOOKS.get(part.kind, ("█", self._color(part.name)))
            line.append(sign * part.cells, color)
        return line.append(figure)

    def _color(self, name: str) -> str:
        """The same for a model as long as the list of models is."""
        names: list[str] = list(self._seen.status["registered_models"]) if self._seen is not None else []
        return COLORS[(names.index(name) if name in names else 0) % len(COLORS)]

    def _fill(self) -> None:
        """Rows keep their keys, so that the cursor stays on its model when the order changes."""
        table, chosen = self._table, self.chosen
        table.clear()
        for row in self._rows.values():
            table.add_row(*self._cells(row), key=row.name)
        if chosen in self._rows:
            table.move_cursor(row=list(self._rows).index(chosen), animate=False)

    def _cells(self, row: figures.Shown) -> list[Text]:
        name = row.name if len(row.name) <= NAME else f"{row.name[: NAME - 1]}…"
        words = (
            Text(name, self._color(row.name) if row.charged_mb else ""),
            Text(row.state, STATE_COLORS.get(row.state, "bright_black")),
            Text("pin" if row.pinned else ""),
            Text(RANKS.get(row.priority, row.priority)),
        )
        counts = (f"{row.charged_mb:,.0f}", str(row.running), str(row.waiting), str(row.leases), f"{row.rate:.1f}")
        return [*words, *(Text(count, justify="right") for count in counts)]

    @property
    def chosen(self) -> str:
        """The model under the cursor; "" where there is none."""
        table = self._table
        if not table.row_count or not 0 <= table.cursor_row < table.row_count:
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    # ------------------------------------------------------------ doing

    def action_load(self) -> None:
        self._do("load", "loaded", lambda zoo, name: zoo.get_model(name, timeout=WORK_S))

    def action_unload(self) -> None:
        self._do("unload", "unloaded", lambda zoo, name: zoo.unload(name, timeout=WORK_S))

    def action_pin(self) -> None:
        row = self._rows.get(self.chosen)
        if row is not None and row.pinned:
            self._do("unpin", "unpinned", lambda zoo, name: zoo.unpin(name))
        else:
            self._do("pin", "pinned", lambda zoo, name: zoo.pin(name))

    def _do(self, what: str, done: str, call: Callable[[AsyncClient, str], Awaitable[Any]]) -> None:
        """Asks, and then does it to the model that was chosen when the key was pressed."""
        if name := self.chosen:

            def answered(yes: bool | None) -> None:
                if yes:
                    self._call(what, done, name, call)

            self.push_screen(Confirm(f"{what} {name}?"), answered)

    @work(group="do")
    async def _call(self, what: str, done: str, name: str, call: Callable[[AsyncClient, str], Awaitable[Any]]) -> None:
        if self._zoo is None:
            return
        self._say(f"{what} {name} …")
        try:
            await call(self._zoo, name)
        except ZooError as e:
            self._say(f"{what} {name}: {one_line(str(e))}")
        else:
            self._say(f"{name} is {done}")
        await self._look(again=True)

    def _say(self, text: str) -> None:
        self._said = text
        self._tell()

    def _tell(self) -> None:
        """The lowest line: what is wrong, else what was done, else what keeps the chosen model from being served."""
        row = self._rows.get(self.chosen)
        if self.chosen != self._about:  # what was done to another one is not told any more
            self._about, self._said = self.chosen, ""
        problem = one_line(f"{row.name}: {row.problem}") if row is not None and row.problem else ""
        self._lowest.update(Text(self._trouble or self._said or problem))

    def on_data_table_row_highlighted(self) -> None:
        self._tell()
