"""What is put by inside a forward pass, to be looked at when it has returned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from corevital.capture.attention_functions import AttentionFunction

LayerReturn = tuple[nn.Module, Any]
"""A layer and what it returned."""

AttentionReturn = tuple[int, Tensor, int, tuple[Any, ...], dict[str, Any], Tensor | None]
"""Layer position, query, key count, further arguments, keywords, and the weights returned."""


class PutBy:
    """The part of a run that is asked for between two layers.

    There the caches hold the model's weights: every piece of code, and every line of memory, comes
    from far away. What is done there is next to nothing, and what it needs has slots, where a
    dictionary would be four lines more for each.

    Attributes:
        decoder: that inside of the model; ``None`` where none is known, or it is the model itself.
        everything: whether all layers are observed, or only the last one.
        expected_keys: as of the ``AttentionReducer``.
        last_layer: the last one; ``None`` where no layers are known.
        layers_put_by: what layers returned; ``None`` while each is to be looked at at once.
        attention_put_by: what attention functions were given; ``None`` as above.
        known_attention: an interface, what it was asked for, and the answer to that.
        inside_attention: whether an attention function is being called.
    """

    __slots__ = (
        "attention_put_by",
        "decoder",
        "everything",
        "expected_keys",
        "inside_attention",
        "known_attention",
        "last_layer",
        "layers_put_by",
    )

    layers_put_by: list[LayerReturn] | None
    attention_put_by: list[AttentionReturn] | None
    known_attention: tuple[Any, tuple[Any, ...], AttentionFunction] | None

    def __init__(
        self, *, everything: bool, decoder: nn.Module | None, last_layer: nn.Module | None
    ) -> None:
        self.everything = everything
        self.decoder = decoder
        self.last_layer = last_layer
        self.inside_attention = False
        self.expected_keys: int | None = None
        self.look_at_once()

    def put_by(self, *, attention: bool) -> None:
        """Put by what layers return from now on, and what attention is given if it is asked for."""
        self.layers_put_by = []
        self.attention_put_by = [] if attention else None

    def look_at_once(self) -> None:
        """Put nothing by; let go of what was, and of what is known."""
        self.layers_put_by = self.attention_put_by = self.known_attention = None
