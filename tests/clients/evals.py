"""Asks a server that serves the demo model each prompt of its evaluations and
compares the answers token for token with the oracle's: one after the other, and
many at once, streamed and not. Ends by reading `/metrics` as a scraper does.

    python evals.py http://127.0.0.1:8000 evals.json
"""

import concurrent.futures
import json
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

AT_ONCE = 32


def request_of(item):
    """The item as a chat request; its system message is pinned."""
    messages = []
    for message in item["messages"]:
        message = dict(message)
        messages.append(message)
    request = {
        "model": "demo",
        "temperature": 0,
        "messages": messages,
        "reasoning_effort": item["reasoning_effort"],
        "chat_template_kwargs": {
            "model_identity": item["model_identity"],
            "knowledge_cutoff": item["knowledge_cutoff"],
            "current_date": item["current_date"],
        },
        "max_tokens": 600,
        "return_token_ids": True,
    }
    if item["tools"]:
        request["tools"] = item["tools"]
    return request


def post(url, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return response.read().decode()


def whole(url, item):
    answer = json.loads(post(url + "/v1/chat/completions", request_of(item)))
    message = answer["choices"][0]["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]
    return {
        "content": message.get("content") or "",
        "reasoning": message.get("reasoning") or "",
        "tool_calls": calls,
        "finish_reason": answer["choices"][0]["finish_reason"],
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "completion_tokens": answer["usage"]["completion_tokens"],
    }


def streamed(url, item):
    body = request_of(item) | {"stream": True, "stream_options": {"include_usage": True}}
    found = {"content": "", "reasoning": "", "tool_calls": [], "finish_reason": None}
    events = [line[6:] for line in post(url + "/v1/chat/completions", body).splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    for event in events[:-1]:
        chunk = json.loads(event)
        if chunk.get("usage"):
            found["prompt_tokens"] = chunk["usage"]["prompt_tokens"]
            found["completion_tokens"] = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            found["content"] += delta.get("content") or ""
            found["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or []:
                if "id" in call:
                    found["tool_calls"].append([call["function"]["name"], ""])
                found["tool_calls"][call["index"]][1] += call["function"].get("arguments") or ""
            found["finish_reason"] = choice["finish_reason"] or found["finish_reason"]
    found["tool_calls"] = [tuple(call) for call in found["tool_calls"]]
    return found


def expected_of(item):
    parsed = item["parsed"]
    calls = []
    for call in parsed["tool_calls"]:
        call = call.get("function", call)
        calls.append((call["name"], call["arguments"]))
    return {
        "content": parsed["content"] or "",
        "reasoning": parsed["reasoning"] or "",
        "tool_calls": calls,
        "finish_reason": parsed["finish_reason"],
        "prompt_tokens": len(item["prompt_token_ids"]),
        "completion_tokens": len(item["completion_token_ids"]),
    }


def tokens_of(url, item):
    """The same prompt as tokens: the answer's tokens, one by one."""
    body = {
        "model": "demo", "prompt": item["prompt_token_ids"], "temperature": 0, "max_tokens": 600,
        "skip_special_tokens": False,
    }
    answer = json.loads(post(url + "/v1/completions", body))
    return answer["choices"][0]["text"]


def check(url, item, ask):
    found, expected = ask(url, item), expected_of(item)
    assert found == expected, f"{item['id']}: {found} is not {expected}"


def scrape(url):
    with urllib.request.urlopen(url + "/metrics", timeout=30) as response:
        families = {family.name: family for family in text_string_to_metric_families(response.read().decode())}
    for name in ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]:
        assert families[name].samples[0].value == 0, families[name]
    generated = families["vllm:generation_tokens"].samples[0].value
    assert generated > 1000, generated
    assert families["vllm:time_to_first_token_seconds"].type == "histogram"


def main():
    url, path = sys.argv[1], sys.argv[2]
    with open(path) as file:
        items = json.load(file)["items"]
    for item in items[:20]:
        check(url, item, whole)
    print("evals: alone ok", flush=True)
    for ask in (whole, streamed):
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda item: check(url, item, ask), items))
        print(f"evals: {len(items)} {ask.__name__}, {AT_ONCE} at once ok", flush=True)
    for item in items[:20]:
        text = tokens_of(url, item)
        assert text + "<|return|>" == item["completion_text"] or text == item["completion_text"] or text + "<|call|>" == item["completion_text"], (item["id"], text)
    print("evals: from tokens ok", flush=True)
    scrape(url)
    print("evals: metrics ok", flush=True)


main()
