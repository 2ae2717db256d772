"""Texts of prompts and tokens, read only where message content may be sent."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.util.genai.types import InputMessage, OutputMessage, TextPart
from transformers import AutoTokenizer

from corevital.capture.decoding import GenerateCall
from corevital.capture.failure import is_own_failure

CHAT: Final = "chat"
TEXT_COMPLETION: Final = "text_completion"

_logger: Final = logging.getLogger(__name__)
_MOST_CHATS: Final = 256


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt that came from a chat template; ``messages`` only where content may be sent."""

    tokenizer: Any
    messages: tuple[InputMessage, ...]


class ChatPrompts:
    """Remembers which token ids came out of a chat template.

    ``generate`` sees token ids only. It may run in another thread than the template did, so a
    prompt is recognised by its ids; the number remembered is bounded.
    """

    def __init__(self, *, keep_messages: bool) -> None:
        self._keep_messages = keep_messages
        self._lock = threading.Lock()
        self._by_ids: OrderedDict[tuple[int, ...], Chat] = OrderedDict()

    def observe_template(
        self,
        apply_chat_template: Callable[..., Any],
        tokenizer: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A ``wrapt`` wrapper of ``apply_chat_template``."""
        result = apply_chat_template(*args, **kwargs)
        try:
            conversation = args[0] if args else kwargs.get("conversation")
            self._remember(tokenizer, conversation, result)
        except Exception as error:
            if not is_own_failure(error):
                raise
            _logger.warning("A chat prompt was not recognised.", exc_info=True)
        return result

    def __len__(self) -> int:
        return len(self._by_ids)

    def _remember(self, tokenizer: Any, conversation: Any, result: Any) -> None:
        for messages, ids in _prompts(tokenizer, conversation, result):
            kept = _input_messages(messages) if self._keep_messages else ()
            with self._lock:
                self._by_ids[tuple(ids)] = Chat(tokenizer, kept)
                self._by_ids.move_to_end(tuple(ids))
                while len(self._by_ids) > _MOST_CHATS:
                    self._by_ids.popitem(last=False)

    def find(self, ids: Sequence[int]) -> Chat | None:
        """The chat whose template gave exactly these ids."""
        with self._lock:
            return self._by_ids.get(tuple(ids))


def _prompts(tokenizer: Any, conversation: Any, result: Any) -> list[tuple[Any, list[int]]]:
    """Conversations with their token ids, padding removed."""
    if isinstance(result, str) or (
        isinstance(result, list) and result and isinstance(result[0], str)
    ):
        texts = [result] if isinstance(result, str) else result
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    else:
        ids = result["input_ids"] if hasattr(result, "keys") else result
        rows = ids.tolist() if hasattr(ids, "tolist") else ids
        rows = rows if rows and isinstance(rows[0], list) else [rows]
        mask = result.get("attention_mask") if hasattr(result, "keys") else None
        if mask is not None:
            masks = mask.tolist() if hasattr(mask, "tolist") else mask
            masks = masks if masks and isinstance(masks[0], list) else [masks]
            rows = [
                [token for token, seen in zip(row, visible, strict=True) if seen]
                for row, visible in zip(rows, masks, strict=True)
            ]
    several = bool(conversation) and isinstance(conversation[0], list | tuple)
    conversations = conversation if several else [conversation]
    return list(zip(conversations, rows, strict=True))


def _input_messages(conversation: Any) -> tuple[InputMessage, ...]:
    return tuple(
        InputMessage(role=str(message.get("role", "user")), parts=_parts(message.get("content")))
        for message in conversation
    )


def _parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [TextPart(content)]
    return [
        TextPart(str(part["text"]))
        for part in content or ()
        if isinstance(part, dict) and part.get("type") == "text"
    ]


class Content:
    """The texts of one call; none is read unless it is asked for.

    ``operation`` is ``chat`` when the prompt is known to come from a chat template, else
    ``text_completion``. Of tokens that are no text, there is none.
    """

    def __init__(
        self,
        prompts: list[list[int]],
        chats: list[Chat],
        tokenizer: Callable[[], Any | None],
        *,
        generates_text: bool = True,
    ) -> None:
        self.operation = CHAT if chats else TEXT_COMPLETION
        self._generates_text = generates_text
        self._prompts = prompts
        self._chats = chats
        self._load_tokenizer = tokenizer

    def input_messages(self) -> list[InputMessage]:
        """The messages of the prompt, or its text as the user's message."""
        if self._chats:
            return [message for chat in self._chats for message in chat.messages]
        if (tokenizer := self._load_tokenizer()) is None:
            return []
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in self._prompts]
        return [InputMessage(role="user", parts=[TextPart(text)]) for text in texts]

    def output_messages(
        self, generated: list[list[int]], finish_reasons: list[str]
    ) -> list[OutputMessage]:
        """The generated texts as the assistant's messages."""
        if not self._generates_text or (tokenizer := self._load_tokenizer()) is None:
            return []
        return [
            OutputMessage(
                role="assistant",
                parts=[TextPart(tokenizer.decode(ids, skip_special_tokens=True))],
                finish_reason=reason,
            )
            for ids, reason in zip(generated, finish_reasons, strict=True)
        ]

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...] | None:
        """The text of each token by itself."""
        if not self._generates_text or (tokenizer := self._load_tokenizer()) is None:
            return None
        return tuple(tokenizer.decode([token]) for token in ids)


class PromptReader:
    """Finds out what the prompt of a call is, and with which tokenizer it can be read."""

    def __init__(self, chats: ChatPrompts, *, may_read: bool) -> None:
        self._chats = chats
        self._may_read = may_read
        self._tokenizers: dict[str, Any | None] = {}

    def read(self, call: GenerateCall) -> Content:
        """The content of a call."""
        prompts = call.prompt_ids() if self._may_read or self._chats else []
        found = [self._chats.find(ids) for ids in prompts]
        chats = [chat for chat in found if chat is not None]
        if len(chats) < len(prompts):
            chats = []
        return Content(
            prompts,
            chats,
            lambda: self._tokenizer(call, chats),
            generates_text=call.codebooks is None,
        )

    def _tokenizer(self, call: GenerateCall, chats: list[Chat]) -> Any | None:
        if not self._may_read:
            return None
        if (given := call.arguments.get("tokenizer")) is not None:
            return given
        streamer = call.arguments.get("streamer")
        if (streaming := getattr(streamer, "tokenizer", None)) is not None:
            return streaming
        return chats[0].tokenizer if chats else self._load(getattr(call.model, "name_or_path", ""))

    def _load(self, name: str) -> Any | None:
        if name not in self._tokenizers:
            try:
                self._tokenizers[name] = AutoTokenizer.from_pretrained(name, local_files_only=True)
            except Exception as error:
                if not (isinstance(error, OSError) or is_own_failure(error)) or isinstance(
                    error, TimeoutError
                ):
                    raise
                _logger.warning(
                    "No tokenizer beside %s, so content is not recorded (%s). Pass tokenizer= to "
                    "generate.",
                    name,
                    error,
                )
                self._tokenizers[name] = None
        return self._tokenizers[name]
