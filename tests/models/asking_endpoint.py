"""A stub of an endpoint that samples replies, and what asks it."""

from __future__ import annotations

from typing import Any

from serving import Stub

from dpo_recipes import Endpoint
from dpo_recipes.models.endpoint import Client
from dpo_recipes.models.endpoint_replies import sampled


class Sampler(Stub):
    """It replies with the number of the reply behind the prompt; at most `most` replies at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 99
        self.finish = "stop"
        self.count = 0

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        choices = []
        for _ in range(min(body["n"], self.most)):
            self.count += 1
            if path == "/v1/completions":
                choices.append({"text": f" {body['prompt']} {self.count}", "finish_reason": self.finish})
            else:
                said = f"{body['messages'][-1]['content']} {'aeiou' * (self.count % 7)} {self.count}"
                choices.append({"message": {"content": said}, "finish_reason": self.finish})
        return {"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 5 * len(choices)}}


def replies_of(stub: Stub, prompts: list, samples: int = 3, **changes: Any) -> tuple[list, Client, list]:
    client = Client(Endpoint(stub.url, model="served", **changes.pop("endpoint", {})), "endpoint")
    told: list = []
    settings = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 40, "chat_template_kwargs": {}, "seed": 5}
    replies = sampled(client, prompts, samples=samples, progress=lambda *done: told.append(done), **settings | changes)
    return replies, client, told


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
