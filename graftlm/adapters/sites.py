"""The sites of a base: which adapters have a part where. A site exists as long as an adapter uses its place."""

from __future__ import annotations

from graftlm.adapters.attention import AttentionSite
from graftlm.adapters.method import Adapter
from graftlm.adapters.module_site import ModuleSite
from graftlm.adapters.sublayer_site import SublayerSite
from graftlm.adapters.virtual import EmbeddingSite
from graftlm.base.places import Places
from graftlm.errors import UserError


class Sites:
    """Attaches the parts of adapters to the places of one base, and takes them away again."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.modules: dict[str, ModuleSite] = {}
        self.sublayers: dict[str, SublayerSite] = {}
        self.embedding: EmbeddingSite | None = None
        self.attention: AttentionSite | None = None

    def attach(self, name: str, adapter: Adapter) -> None:
        """Put every part of an adapter at its place, under ``name``.

        Raises:
            UserError: the base lacks one of the adapter's places, has no input embedding that virtual tokens could be
                looked up in, or computes attention in a way that takes no keys and values beside its own.
        """
        sublayers = {sublayer.key: sublayer for sublayer in self.places.sublayers}
        known = self.places.linears.keys() | self.places.leaves.keys() | sublayers.keys()
        unknown = next((key for key in (*adapter.linear, *adapter.sublayers) if key not in known), None)
        if unknown is not None:
            raise UserError(
                f"the adapter '{name}' changes {unknown}, which {type(self.places.model).__name__} does not have",
                hint="It was made for another base.",
            )
        if adapter.virtual is not None:
            if self.places.embedding is None:
                raise UserError(f"{type(self.places.model).__name__} has no input embedding for virtual tokens")
            self.embedding = self.embedding or EmbeddingSite(self.places.embedding, self.places.model)
            self.embedding.tokens[name] = adapter.virtual
        if adapter.prefix is not None:
            self.attention = self.attention or AttentionSite(self.places)
            self.attention.prefixes[name] = adapter.prefix
        for path, update in adapter.linear.items():
            if path not in self.modules:
                self.modules[path] = ModuleSite(self.places.linears.get(path) or self.places.leaves[path])
            self.modules[path].updates[name] = update
        for key, change in adapter.sublayers.items():
            if key not in self.sublayers:
                self.sublayers[key] = SublayerSite(sublayers[key], self.places.model)
            self.sublayers[key].updates[name] = change

    def detach(self, name: str, adapter: Adapter) -> None:
        """Take an adapter's parts away; places that no adapter uses any more are as they were."""
        for key in adapter.sublayers:
            del self.sublayers[key].updates[name]
            if not self.sublayers[key].updates:
                self.sublayers.pop(key).detach()
        for path in adapter.linear:
            del self.modules[path].updates[name]
            if not self.modules[path].updates:
                self.modules.pop(path).detach()
        if adapter.virtual is not None and self.embedding is not None:
            del self.embedding.tokens[name]
            if not self.embedding.tokens:
                self.embedding.detach()
                self.embedding = None
        if adapter.prefix is not None and self.attention is not None:
            del self.attention.prefixes[name]
            if not self.attention.prefixes:
                self.attention.detach()
                self.attention = None
