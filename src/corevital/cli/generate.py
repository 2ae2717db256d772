"""Generates the text, and prints it as it comes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from corevital.cli.arguments import Decoding
from corevital.cli.errors import USAGE, CommandError
from corevital.cli.load import LoadedModel
from corevital.cli.prompts import Messages


def prompt_inputs(loaded: LoadedModel, prompt: str | Messages) -> dict[str, Any]:
    """The inputs of ``generate`` for ``prompt``, through the chat template if there is one.

    Raises:
        CommandError: the prompt is a conversation, and there is none.
    """
    tokenizer = loaded.tokenizer
    if loaded.has_chat_template:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    elif isinstance(prompt, str):
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        raise CommandError("messages need a chat template, which this model does not have", USAGE)
    # Some tokenizers give more, which some models refuse.
    names = [name for name in ("input_ids", "attention_mask") if name in inputs]
    return {name: inputs[name].to(loaded.device) for name in names}


def generate(
    loaded: LoadedModel,
    inputs: dict[str, Any],
    options: Decoding,
    write: Callable[[str], None] | None,
) -> list[int]:
    """Generate and return the new tokens; ``write`` gets each piece of text as soon as it is final.

    Raises:
        CommandError: the model has no room for prompt and text.
    """
    from transformers import set_seed

    config, prompt_tokens = loaded.model.config, inputs["input_ids"].shape[-1]
    _check_room(config, prompt_tokens, options.max_new_tokens)
    if options.seed is not None:
        set_seed(options.seed)
    output = loaded.model.generate(
        **inputs,
        **_decoding(options),
        max_new_tokens=options.max_new_tokens,
        streamer=None if write is None else _streamer(loaded.tokenizer, write),
    )
    generated: list[int] = output[0, 0 if config.is_encoder_decoder else prompt_tokens :].tolist()
    return generated


def _decoding(options: Decoding) -> dict[str, Any]:
    """Sampling if anything was said about it, else greedy, whatever the checkpoint suggests."""
    given = {
        name: value
        for name in ("temperature", "top_k", "top_p")
        if (value := getattr(options, name)) is not None
    }
    return {"do_sample": bool(given), "num_beams": 1, **given}


def _check_room(config: Any, prompt_tokens: int, new_tokens: int) -> None:
    room = getattr(config, "max_position_embeddings", None) or math.inf
    if not config.is_encoder_decoder and prompt_tokens + new_tokens > room:
        raise CommandError(
            f"the prompt's {prompt_tokens} tokens and --max-new-tokens {new_tokens} exceed the "
            f"{room} tokens that the model can hold",
            USAGE,
        )


def _streamer(tokenizer: Any, write: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class WritingStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            write(printable(text) + ("\n" if stream_end else ""))

    return WritingStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def printable(text: str) -> str:
    """``text`` without the control characters through which it could command a terminal."""
    return "".join(
        character
        for character in text
        if character in "\n\t" or not (ord(character) < 0x20 or 0x7F <= ord(character) <= 0x9F)
    )
