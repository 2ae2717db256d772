"""Conversations need a model that was made for them."""

from __future__ import annotations

import pytest

from corevital.cli.errors import CommandError
from corevital.cli.generate import prompt_inputs
from corevital.cli.load import LoadedModel
from corevital.cli.prompt_file import check_chat
from corevital.cli.prompts import Prompt
from tests.cli.conftest import tiny_tokenizer
from tests.smollm2 import LoadedModel as SmolLM2

CONVERSATION = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "What is 7 + 5?"},
]
PROMPTS = [Prompt(1, "Hi"), Prompt(4, CONVERSATION)]


@pytest.fixture
def chat(smollm2: SmolLM2) -> LoadedModel:
    return LoadedModel(smollm2.model, smollm2.tokenizer, "cpu", "float32")


@pytest.fixture
def completion() -> LoadedModel:
    return LoadedModel(None, tiny_tokenizer(), "cpu", "float32")


def test_a_conversation_goes_through_the_chat_template(chat: LoadedModel) -> None:
    check_chat(chat, PROMPTS, "p.jsonl")
    text = chat.tokenizer.decode(prompt_inputs(chat, CONVERSATION)["input_ids"][0])

    turns = [f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in CONVERSATION]
    assert text.endswith("".join(turns) + "<|im_start|>assistant\n")


def test_a_text_is_a_conversation_of_one_message(chat: LoadedModel) -> None:
    text = prompt_inputs(chat, "Hi")["input_ids"].tolist()

    assert text == prompt_inputs(chat, [{"role": "user", "content": "Hi"}])["input_ids"].tolist()


def test_a_model_without_a_template_refuses_conversations(completion: LoadedModel) -> None:
    check_chat(completion, PROMPTS[:1], "p.jsonl")
    with pytest.raises(CommandError) as raised:
        check_chat(completion, PROMPTS, "p.jsonl")

    assert str(raised.value) == ("p.jsonl, line 4 has messages, and the model has no chat template")
    assert raised.value.status == 2
    with pytest.raises(CommandError, match="messages need a chat template"):
        prompt_inputs(completion, CONVERSATION)
