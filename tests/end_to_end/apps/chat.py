"""Answers a question and continues a sentence, with a text-generation pipeline."""

from __future__ import annotations

import sys

from transformers import pipeline

generator = pipeline("text-generation", model=sys.argv[1])
settings = {"max_new_tokens": 12, "do_sample": False}
chat = [{"role": "user", "content": "What is the capital of France?"}]
print(generator(chat, **settings)[0]["generated_text"][-1]["content"])
print(generator("Zebras are striped because", **settings)[0]["generated_text"])
