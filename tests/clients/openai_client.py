"""Drives a server that serves the demo model with the stock `openai` package:
chat, streams, tools, structured outputs, errors. It knows nothing of the server
but its address.

    python openai_client.py http://127.0.0.1:8000
"""

import json
import sys

import openai
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gets the current weather for a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def plain_chat(client):
    answer = client.chat.completions.create(
        model="demo", temperature=0, messages=[{"role": "user", "content": "What is the capital of France?"}]
    )
    choice = answer.choices[0]
    assert choice.message.content == "The capital of France is Paris.", choice
    assert choice.message.reasoning, "thinking is a field of its own"
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    again = client.chat.completions.create(
        model="demo", temperature=0, messages=[{"role": "user", "content": "What is the capital of France?"}]
    )
    assert again.choices[0].message.content == choice.message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0, "the prompt was computed before"


def streamed_chat(client):
    whole = client.chat.completions.create(
        model="demo", temperature=0, messages=[{"role": "user", "content": "Tell me a story."}]
    )
    stream = client.chat.completions.create(
        model="demo",
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        messages=[{"role": "user", "content": "Tell me a story."}],
    )
    content, reasoning, finish, usage = "", "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning", None) or ""
            finish = choice.finish_reason or finish
    assert content == whole.choices[0].message.content
    assert reasoning == whole.choices[0].message.reasoning
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens


def cut_short(client):
    answer = client.chat.completions.create(
        model="demo", temperature=0, max_completion_tokens=12, messages=[{"role": "user", "content": "Tell me a story."}]
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.choices[0].message.content is not None


def seeds_and_choices(client):
    def texts(seed):
        answer = client.chat.completions.create(
            model="demo",
            temperature=2.0,
            seed=seed,
            n=5,
            max_tokens=60,
            messages=[{"role": "user", "content": "Tell me a story."}],
        )
        return [choice.message.model_dump_json() for choice in answer.choices]

    assert texts(1) == texts(1)
    assert len(set(texts(2))) > 1


def logprobs(client):
    answer = client.chat.completions.create(
        model="demo", temperature=0, logprobs=True, top_logprobs=3, messages=[{"role": "user", "content": "Hello!"}]
    )
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)


def tool_round_trip(client):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    for choice in ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}]:
        answer = client.chat.completions.create(
            model="demo", temperature=0, messages=messages, tools=[WEATHER], tool_choice=choice
        )
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls", (choice, answer)
        assert message.tool_calls[0].function.name == "get_weather"
        assert isinstance(json.loads(message.tool_calls[0].function.arguments), dict)
    refused = client.chat.completions.create(
        model="demo", temperature=0, messages=messages, tools=[WEATHER], tool_choice="none"
    )
    assert refused.choices[0].message.tool_calls is None

    call = message.tool_calls[0]
    messages += [
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "sunny"}'},
    ]
    final = client.chat.completions.create(model="demo", temperature=0, messages=messages, tools=[WEATHER])
    assert final.choices[0].message.content and final.choices[0].finish_reason == "stop"


def streamed_tools(client):
    stream = client.chat.completions.create(
        model="demo",
        temperature=0,
        stream=True,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice="required",
    )
    name, arguments, finish = None, "", None
    for chunk in stream:
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                name = call.function.name or name
                arguments += call.function.arguments or ""
            finish = choice.finish_reason or finish
    assert name == "get_weather" and finish == "tool_calls"
    assert isinstance(json.loads(arguments), dict)


class City(BaseModel):
    name: str
    population: int
    is_capital: bool


def structured_outputs(client):
    messages = [{"role": "user", "content": "Tell me about Paris as JSON."}]
    parsed = client.chat.completions.parse(
        model="demo", temperature=0, max_tokens=400, messages=messages, response_format=City
    )
    assert isinstance(parsed.choices[0].message.parsed, City), parsed
    for seed in range(4):
        answer = client.chat.completions.create(
            model="demo",
            temperature=1.5,
            seed=seed,
            max_tokens=1500,
            messages=messages,
            response_format={
                "type": "json_schema",
                "json_schema": {
                    "name": "colour",
                    "schema": {
                        "type": "object",
                        "properties": {"colour": {"enum": ["red", "green"]}, "amount": {"type": "integer", "minimum": 0, "maximum": 9}},
                        "required": ["colour", "amount"],
                        "additionalProperties": False,
                    },
                },
            },
        )
        if answer.choices[0].finish_reason == "stop":
            value = json.loads(answer.choices[0].message.content)
            assert value["colour"] in ("red", "green") and 0 <= value["amount"] <= 9, value


def completions(client):
    answer = client.completions.create(model="demo", prompt="Hello", max_tokens=5, temperature=0)
    assert answer.choices[0].finish_reason in ("stop", "length") and answer.usage.total_tokens > 0


def errors(client):
    def refused(kind, param, **request):
        request = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]} | request
        try:
            client.chat.completions.create(**request)
        except kind as error:
            assert param is None or error.body["param"] == param, error.body
        else:
            raise AssertionError(f"{request} was answered")

    refused(openai.BadRequestError, "temperature", temperature=-1)
    refused(openai.BadRequestError, "messages", messages=[])
    refused(openai.BadRequestError, "max_completion_tokens", max_completion_tokens=0)
    refused(openai.NotFoundError, "model", model="gpt-4o")
    assert [model.id for model in client.models.list()][0] == "demo"
    plain_chat(client)


def main():
    client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="unused", timeout=120, max_retries=0)
    cases = [
        plain_chat, streamed_chat, cut_short, seeds_and_choices, logprobs, tool_round_trip, streamed_tools,
        structured_outputs, completions, errors,
    ]
    for case in cases:
        case(client)
        print(f"openai: {case.__name__} ok", flush=True)


main()
