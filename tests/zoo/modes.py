"""The ways of decoding that every architecture of the zoo is tried with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from tests.models import GenerativeModel
from tests.telemetry.generating import AfterStep, AtStep
from tests.zoo.architectures import Architecture

NEW_TOKENS: Final = 6
# So that what a few steps keep is quantised, in groups that heads of a few numbers fill.
_QUANTISED: Final = {"backend": "quanto", "nbits": 4, "q_group_size": 8, "residual_length": 4}
_EVERY_OUTPUT: Final = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A tiny model, its architecture, and an assistant with the same vocabulary."""

    architecture: Architecture
    model: GenerativeModel
    assistant: GenerativeModel

    def inputs(self, batch: int = 2) -> dict[str, Tensor]:
        """What ``generate`` is given; fresh tensors at every call."""
        return self.architecture.inputs(batch)

    def generate(self, batch: int = 2, **settings: Any) -> Any:
        """``NEW_TOKENS`` at most, greedily, unless ``settings`` say otherwise."""
        asked = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | self.inputs(batch) | settings
        return self.model.generate(**asked)


class Inapplicable(Exception):
    """The mode makes no sense with what the architecture is given."""


class Interruption(Exception):
    """What a user's own code raises in the middle of a generation."""


class Collector(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        self.streamed: list[Tensor] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.streamed.append(value.clone())

    def end(self) -> None:
        self.ended = True


def _left_padded(subject: Subject) -> Any:
    inputs = subject.inputs()
    name, given = next(iter(inputs.items()))
    mask = torch.ones(given.shape[:2], dtype=torch.long)
    mask[0, :2] = 0
    if name == "input_ids":
        given[0, :2] = 0
    padded: dict[str, Any] = {name: given, "attention_mask": mask}
    return subject.generate(**padded)


def _prompt_ids(subject: Subject) -> Tensor:
    ids = subject.inputs().get("input_ids")
    if ids is None:
        raise Inapplicable("the prompt is not made of tokens")
    return ids


def _embedded(subject: Subject) -> Any:
    embeds = subject.model.get_input_embeddings()(_prompt_ids(subject)).detach()
    return subject.model.generate(inputs_embeds=embeds, max_new_tokens=NEW_TOKENS, do_sample=False)


def _streamed(subject: Subject) -> Any:
    collector = Collector()
    result = subject.generate(1, streamer=collector)
    return result, collector.streamed, collector.ended


def _own_processors_and_criteria(subject: Subject) -> Any:
    seen: list[str] = []
    processors = [AtStep(1, partial(seen.append, "processor"))]
    criteria = [AfterStep(2, partial(seen.append, "criterion"))]
    result = subject.generate(
        logits_processor=processors, stopping_criteria=criteria, repetition_penalty=1.2
    )
    return result, seen, len(processors), len(criteria)


def _interrupted(subject: Subject) -> Any:
    def interrupt() -> None:
        raise Interruption("after three tokens")

    return subject.generate(stopping_criteria=[AfterStep(2, interrupt)])


def _inside_another(subject: Subject) -> Any:
    inner: list[Any] = []

    def generate() -> None:
        inner.append(subject.generate(1, max_new_tokens=2))

    return subject.generate(logits_processor=[AtStep(1, generate)]), inner


def _custom(subject: Subject) -> Any:
    _prompt_ids(subject)
    return subject.generate(custom_generate=_decoding_loop)


def _decoding_loop(model: GenerativeModel, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """A user's own loop: the most probable token three times, without a cache."""
    for _ in range(3):
        next_token = model(input_ids).logits[:, -1:].argmax(-1)
        input_ids = torch.cat((input_ids, next_token), dim=-1)
    return input_ids


def _contrastive_search(subject: Subject) -> Any:
    _prompt_ids(subject)
    return subject.generate(custom_generate=_searching_loop)


def _searching_loop(
    model: GenerativeModel, input_ids: Tensor, stopping_criteria: Any, **kwargs: Any
) -> Tensor:
    """A user's own loop: tries two tokens at once, without a cache, and keeps the clearer one."""
    logits = model(input_ids).logits[:, -1]
    for _ in range(3):
        tried = logits.topk(2).indices.view(-1, 1)
        rows = torch.cat((input_ids.repeat_interleave(2, 0), tried), dim=-1)
        seen = model(rows).logits[:, -1]
        clearer = seen.amax(-1).view(-1, 2).argmax(-1)
        kept = torch.arange(0, len(rows), 2) + clearer
        input_ids, logits = rows[kept], seen[kept]
        stopping_criteria(input_ids, None)
    return input_ids


def _continued(subject: Subject) -> Any:
    first = subject.generate(1, return_dict_in_generate=True)
    more = first.sequences.new_full((1, 2), 5)
    return subject.model.generate(
        torch.cat((first.sequences, more), dim=-1),
        past_key_values=first.past_key_values,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )


def _guided(subject: Subject) -> Any:
    _prompt_ids(subject)
    negative = torch.full((1, 4), 7)
    return subject.generate(1, guidance_scale=2.0, negative_prompt_ids=negative)


def _eager(subject: Subject) -> Any:
    model = subject.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return subject.generate(**_EVERY_OUTPUT)
    finally:
        model.set_attn_implementation(before)


def _with(batch: int = 2, **settings: Any) -> Callable[[Subject], Any]:
    return lambda subject: subject.generate(batch, **settings)


MODES: Final[Mapping[str, Callable[[Subject], Any]]] = {
    "greedy": _with(),
    "sampling": _with(do_sample=True, temperature=0.8, top_p=0.9),
    "several sequences": _with(1, do_sample=True, num_return_sequences=3),
    "left padding": _left_padded,
    "every output": _with(**_EVERY_OUTPUT),
    "eager attention, every output": _eager,
    "embeddings as prompt": _embedded,
    "streamer": _streamed,
    "own processors and criteria": _own_processors_and_criteria,
    "exception inside": _interrupted,
    "generate inside generate": _inside_another,
    "no cache": _with(use_cache=False),
    "static cache": _with(cache_implementation="static"),
    "offloaded cache": _with(cache_implementation="offloaded"),
    "quantised cache": _with(cache_implementation="quantized", cache_config=_QUANTISED),
    "continued cache": _continued,
    "chunked prefill": _with(prefill_chunk_size=4),
    "beam search": _with(num_beams=3, return_dict_in_generate=True, output_scores=True),
    "beam sampling": _with(num_beams=2, do_sample=True),
    "assisted": lambda subject: subject.generate(1, assistant_model=subject.assistant),
    "prompt lookup": _with(1, prompt_lookup_num_tokens=3),
    "guidance": _guided,
    "contrastive": _with(penalty_alpha=0.6, top_k=4),
    "DoLa": _with(dola_layers="low"),
    "own decoding loop": _custom,
    "contrastive search as a loop": _contrastive_search,
}
"""What is done with a subject, by the name of the mode."""
