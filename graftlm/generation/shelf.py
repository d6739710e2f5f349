"""The adapters of an engine: added, replaced and removed between steps, and held within a limit of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from graftlm.adapters.method import Adapter
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import RowAdapters, Stack, as_stack
from graftlm.adapters.virtual import placed
from graftlm.errors import UserError, unknown_name
from graftlm.generation.filed import Filed, bytes_of, file_adapter
from graftlm.generation.statistics import Statistics

Source = str | Path | Adapter


class Shelf(AbstractSet[str]):
    """The names that requests can give, and what becomes of the adapters under them.

    A request gets the version that its name has when it is submitted: one that is replaced or removed stays, under a
    name of its own such as ``name~1``, until the last request of that time has ended. Call between steps.

    ``limit``: how many bytes adapters may take. Those from a folder leave memory for others, the least recently used
    first, and come back when a request needs them; those that are running stay, and so do all without a folder.
    Versions on their way out are the only ones that may go beyond the limit.
    """

    def __init__(
        self,
        model: AdaptedModel,
        limit: int | None,
        statistics: Statistics,
        *,
        running: Callable[[], set[Stack]],
        waiting: Callable[[], set[Stack]],
        reroute: Callable[[str, str], None],
        forget: Callable[[str], None],
    ) -> None:
        """``running`` and ``waiting`` give the stacks of requests; ``reroute`` serves those of one name by another;
        ``forget`` drops what was computed with an adapter that leaves memory or its name.
        """
        if limit is not None and limit < 1:
            raise UserError("adapter_bytes must be at least 1, or None for no limit")
        self.limit = limit
        self._model = model
        self._statistics = statistics
        self._running, self._waiting, self._reroute, self._forget = running, waiting, reroute, forget
        self._files: dict[str, Filed] = {}  # the least recently used first
        self._leaving: set[str] = set()

    # --- what there is ----------------------------------------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or name in self._leaving:
            return False
        self._sync({name})
        return name in self._model.adapters or name in self._files

    def __iter__(self) -> Iterator[str]:
        self._sync()
        names = dict.fromkeys((*self._model.adapters, *self._files))
        return (name for name in names if name not in self._leaving)

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def bytes(self) -> int:
        """How much memory the adapters take that are in it."""
        return sum(map(bytes_of, self._model.adapters.values()))

    @property
    def paged_out(self) -> frozenset[str]:
        """Those that have left memory and would come back."""
        self._sync()
        return frozenset(name for name, filed in self._files.items() if filed.out)

    def _sync(self, names: set[str] | None = None) -> None:
        """Forget folders that no longer hold what is there: another adapter has the name, or it was trained.

        Those of ``names`` suffice where no others matter: to look at all takes time.
        """
        for name in list(self._files) if names is None else names & self._files.keys():
            filed = self._files[name]
            if self._model.adapters.get(name) is not (None if filed.out else filed.adapter) or filed.changed:
                del self._files[name]

    # --- what comes and goes ----------------------------------------------------------------------------------------

    def add(self, name: str, source: Source) -> None:
        """Take in an adapter: a folder, from which it can come back, or one that was built elsewhere.

        Raises:
            UserError: the name is taken or unfit, the folder cannot be read or is for another base, or the adapter
                does not fit into ``adapter_bytes`` beside those that stay.
        """
        if name in self:
            raise UserError(f"there is already an adapter '{name}'", hint="Replace it, or choose another name.")
        self._model.check_new(name)
        self._take(name, source)

    def replace(self, name: str, source: Source) -> None:
        """Put another adapter under a name. What was submitted before is served by the old one to its end.

        Raises:
            UserError: there is no such adapter, or as :meth:`add`; the old one stays then.
        """
        self._check_known(name)
        self._take(name, source)

    def remove(self, name: str) -> None:
        """Take an adapter away. What was submitted before is served by it to its end.

        Raises:
            UserError: there is no such adapter.
        """
        self._check_known(name)
        self._retire(name)

    def _check_known(self, name: str) -> None:
        if name not in self:
            raise unknown_name("adapter", name, list(self))

    def _take(self, name: str, source: Source) -> None:
        model, filed = self._model, None
        new = self._version(f"{name}~new")
        if isinstance(source, Adapter):
            model.attach(new, source)
        else:
            filed = file_adapter(model, Path(source), new)
            self._statistics.loads += 1
        try:
            self._check_limit(name, bytes_of(model.adapters[new]), self._staying() - {new, name})
        except UserError:
            model.remove(new)
            raise
        if name in self:
            self._retire(name)
        model.rename(new, name)
        if filed is not None:
            self._files[name] = filed
        self._make_room(0, set())

    def _retire(self, name: str) -> None:
        """Free a name. The adapter goes, or stays for its requests under another one."""
        filed = self._files.pop(name, None)
        if name in _owners(self._running() | self._waiting()):
            kept = self._version(name)
            if name in self._model.adapters:
                self._model.rename(name, kept)
            if filed is not None:
                self._files[kept] = filed
            self._leaving.add(kept)
            self._reroute(name, kept)
        elif name in self._model.adapters:
            self._model.remove(name)
        self._forget(name)

    def collect(self) -> None:
        """Let the versions go that were replaced or removed and whose last request has ended."""
        if not self._leaving:
            return
        for name in self._leaving - _owners(self._running() | self._waiting()):
            self._leaving.discard(name)
            self._files.pop(name, None)
            if name in self._model.adapters:
                self._model.remove(name)
            self._forget(name)

    def _version(self, name: str) -> str:
        """A free name for a version of an adapter that has no name of its own."""
        number = 1
        while (version := f"{name}~{number}") in self._model.adapters or version in self._files:
            number += 1
        return version

    # --- memory -----------------------------------------------------------------------------------------------------

    def _staying(self) -> set[str]:
        """The adapters in memory that never make room: those without a folder that are not on their way out."""
        self._sync()
        return set(self._model.adapters) - self._files.keys() - self._leaving

    def _check_limit(self, what: str, size: int, staying: set[str]) -> None:
        """See that ``size`` bytes fit beside adapters that never make room."""
        if self.limit is None:
            return
        beside = sum(bytes_of(self._model.adapters[name]) for name in staying)
        if size + beside > self.limit:
            rest = f", of which adapters that are not from a folder take {beside:,}" if beside else ""
            raise UserError(
                f"'{what}' takes {size:,} bytes, but adapter_bytes is {self.limit:,}{rest}",
                hint="Raise adapter_bytes, or add adapters from folders, so that they can make room.",
            )

    def _make_room(self, size: int, wanted: set[str], *, wait: bool = False) -> bool:
        """Page out what is not ``wanted`` and does not run, until ``size`` bytes fit.

        False where that is too little; nothing is paged out then if others that run can be waited for.
        """
        if self.limit is None:
            return True
        self._sync()
        kept = wanted | _owners(self._running())
        able = {name: filed for name, filed in self._files.items() if not filed.out and name not in kept}
        over = self.bytes + size - self.limit
        enough = over <= sum(filed.bytes for filed in able.values())
        for name, filed in able.items():
            if over <= 0 or (wait and not enough):
                break
            filed.page_out(self._model, name)
            self._forget(name)
            self._statistics.page_outs += 1
            over -= filed.bytes
        return enough

    def bring(self, stack: Stack) -> bool:
        """See that the adapters of a stack are in memory; False where they have to wait until others have ended.

        Raises:
            UserError: one cannot come back, or they never fit.
        """
        owners = _owners({stack})
        self._sync(owners)
        used = {name: self._files.pop(name) for name in sorted(owners & self._files.keys())}
        self._files |= used  # now the most recently used
        missing = {name: filed for name, filed in used.items() if filed.out}
        if not missing:
            return True
        self._check_fits(stack)
        wait = bool(self._running())
        if not self._make_room(sum(filed.bytes for filed in missing.values()), owners, wait=wait) and wait:
            return False
        for name, filed in missing.items():
            filed.bring_back(self._model, name)
            self._statistics.loads += 1
        return True

    def _check_fits(self, stack: Stack) -> None:
        """See that the adapters of a stack fit into memory beside those that stay. If all are there, they do."""
        filed = [self._files[name] for name in _owners({stack}) & self._files.keys()]
        if self.limit is not None and any(each.out for each in filed):
            sizes = [each.bytes for each in filed]
            self._check_limit(" + ".join(stack), sum(sizes), self._staying())

    # --- what requests are checked against --------------------------------------------------------------------------

    def check(self, adapters: RowAdapters) -> None:
        """See that a new request can be served by these adapters.

        Raises:
            UserError: one does not exist, is named twice, or they do not fit into memory together.
        """
        stack = as_stack(adapters)
        for name in stack:
            if owner(name) not in self:
                raise unknown_name("adapter", name, list(self))
        self.check_there(stack)
        if len(set(stack)) != len(stack):
            raise UserError(f"the stack ({', '.join(stack)}) names an adapter twice")
        self._check_fits(stack)

    def check_there(self, stack: Stack) -> None:
        """See that no adapter of a stack was taken away from the model without us."""
        for name in stack:
            self.adapter(name)

    def adapter(self, name: str) -> Adapter:
        """An adapter or one of its forms; of one that is paged out, the outline."""
        whole, _, form = name.partition("@")
        filed = self._files.get(whole)
        if filed is None or not filed.out or whole in self._model.adapters:
            return self._model.adapter(name)
        if not form:
            return filed.adapter
        view = filed.adapter.config.view(filed.adapter, form)
        view.head = filed.adapter.head
        return view

    def head_of(self, stack: Stack) -> str | None:
        """As :meth:`AdaptedModel.head_of`."""
        return next((name for name in reversed(stack) if self.adapter(name).head is not None), None)

    def prefix_length(self, stack: Stack) -> int:
        """As :meth:`AdaptedModel.prefix_length`."""
        return sum(self.adapter(name).prefix_length for name in stack)

    def with_virtual_tokens(self, ids: Sequence[int], adapters: RowAdapters) -> tuple[int, ...]:
        """As :meth:`AdaptedModel.with_virtual_tokens`."""
        found = (self.adapter(name).virtual for name in as_stack(adapters))
        count = sum(virtual.length for virtual in found if virtual is not None)
        return placed(ids, count, self._model.first_virtual, drop_others=False)


def owner(name: str) -> str:
    """The adapter that a form of it, such as ``name@4``, belongs to."""
    return name.partition("@")[0]


def _owners(stacks: set[Stack]) -> set[str]:
    return {owner(name) for stack in stacks for name in stack}
