#!/usr/bin/env python3
"""Many streaming chats at once, some of whose clients leave in the middle.

It needs Python's standard library and a server that holds the demo model. What
is asked comes from the demo model's evaluation prompts, by a seed; greedy
answers are held against those that are known. One JSON report goes to standard
output. The exit status is 1 if anything went wrong that was not the client's
doing, if sequences or pages were left behind, or if the server's memory grew.
Pages of the KV cache count as memory when they are first written to, so a server
whose memory is watched should have a cache (`--kv-cache-memory`) so small that a
quarter of the run fills it.

    python streams.py http://127.0.0.1:8000 [--streams 500] [--seconds 300] [--leave 0.1]
        [--seed 1] [--pid PID] [--growth-mib 32]
"""

import argparse
import asyncio
import collections
import json
import pathlib
import random
import statistics
import sys
import time
import urllib.parse
import urllib.request

EVALS = pathlib.Path(__file__).parent.parent / "fixtures" / "demo-model" / "evals.json"

# Kinds of requests, and how many of a hundred are of each.
KINDS = {"greedy": 45, "sampled": 25, "tools": 15, "schema": 15}
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 40}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}
MAX_TOKENS = 320
FINISH_REASONS = {"stop", "length", "tool_calls"}

# Clients that leave do so after so many events, or so many seconds.
LEAVE_AFTER_EVENTS_MAX = 30
LEAVE_AFTER_SECONDS_MAX = 20.0

# A stream that takes longer is an error: the queue is at most this long.
STREAM_SECONDS_MAX = 600.0
# How long the server may take to notice that nobody is left.
IDLE_SECONDS_MAX = 15.0
MEMORY_EVERY_SECONDS = 5.0
ERRORS_KEPT = 20

GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_usage": "vllm:kv_cache_usage_perc",
}
PREEMPTIONS = "vllm:num_preemptions_total"


class Wrong(Exception):
    """What a server should not have done."""


class Left(Exception):
    """The client went away, as it meant to."""


class Items:
    """The evaluation prompts, by what they are good for."""

    def __init__(self):
        items = json.loads(EVALS.read_text())["items"]
        self.plain = [item for item in items if not item["tools"] and not item["response_schema"]]
        self.with_tools = [item for item in items if item["tools"]]

    def request(self, rng):
        """A body, and the content that it must be answered with, where that is known."""
        (kind,) = rng.choices(list(KINDS), weights=list(KINDS.values()))
        item = rng.choice(self.with_tools if kind == "tools" else self.plain)
        body = {
            "model": None,
            "messages": item["messages"],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": MAX_TOKENS,
            "reasoning_effort": item["reasoning_effort"],
            "temperature": 1 if kind == "sampled" else rng.choice([0, 1]),
            "seed": rng.getrandbits(31),
            "chat_template_kwargs": {
                name: item[name] for name in ("model_identity", "knowledge_cutoff", "current_date")
            },
        }
        expected = None
        if kind == "greedy":
            body["temperature"] = 0
            expected = item["parsed"]["content"] if item["correct"] else None
        elif kind == "tools":
            body["tools"] = item["tools"]
            body["tool_choice"] = rng.choice(["auto", "auto", "required"])
        elif kind == "schema":
            format = {"name": "answer", "strict": True, "schema": SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": format}
        return kind, body, expected


class Connection:
    """HTTP/1.1 on one connection that is kept open."""

    def __init__(self, host, port):
        self.host, self.port = host, port
        self.reader = self.writer = None

    async def post(self, path, body):
        """Sends a request; gives the status and the headers of the response."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        self.writer.write(head.encode() + data)
        await self.writer.drain()
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def body(self, headers):
        """The pieces of the response's body as they come."""
        if headers.get("transfer-encoding") != "chunked":
            yield await self.reader.readexactly(int(headers["content-length"]))
            return
        while True:
            size = int((await self.reader.readline()).split(b";")[0], 16)
            data = await self.reader.readexactly(size + 2)
            if size == 0:
                return
            yield data[:-2]

    def close(self, abruptly=False):
        """Ends the connection, politely or with a reset."""
        if self.writer is not None:
            if abruptly:
                self.writer.transport.abort()
            else:
                self.writer.close()
        self.reader = self.writer = None


async def events(pieces):
    """The events of a stream, without comments."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n\n")
        for event in whole:
            if event.startswith(b":"):
                continue
            if not event.startswith(b"data: "):
                raise Wrong(f"not an event: {event[:80]!r}")
            yield event.removeprefix(b"data: ")
    if rest:
        raise Wrong(f"half an event: {rest[:80]!r}")


class Answer:
    """What the chunks of one stream say, held against the form they must have."""

    def __init__(self):
        self.id = self.finish = self.usage = None
        self.num_chunks = 0
        self.content = ""
        self.calls = {}
        self.is_done = False

    def take(self, event):
        if self.is_done:
            raise Wrong("something follows [DONE]")
        if event == b"[DONE]":
            self.is_done = True
            return
        chunk = json.loads(event)
        if "error" in chunk:
            raise Wrong(f"an error chunk: {json.dumps(chunk['error'])[:200]}")
        if chunk["object"] != "chat.completion.chunk" or chunk["id"] != (self.id or chunk["id"]):
            raise Wrong("the chunk is of another answer")
        self.id = chunk["id"]
        if chunk.get("usage"):
            self.usage = chunk["usage"]
        for choice in chunk["choices"]:
            self.take_choice(choice)
        self.num_chunks += 1

    def take_choice(self, choice):
        delta = choice["delta"]
        if self.finish is not None:
            raise Wrong("a delta follows the finish reason")
        if (self.num_chunks == 0) != (delta.get("role") == "assistant"):
            raise Wrong("the role is not said at the beginning, once")
        self.content += delta.get("content") or ""
        for call in delta.get("tool_calls") or []:
            whole = self.calls.setdefault(call["index"], {"name": "", "arguments": ""})
            whole["name"] += call["function"].get("name") or ""
            whole["arguments"] += call["function"].get("arguments") or ""
        self.finish = choice["finish_reason"]

    def check(self, kind, body, expected):
        if not self.is_done:
            raise Wrong("there is no [DONE]")
        if self.finish not in FINISH_REASONS:
            raise Wrong(f"the finish reason is {self.finish!r}")
        if not self.usage or not 1 <= self.usage["completion_tokens"] <= MAX_TOKENS:
            raise Wrong(f"the usage is {self.usage}")
        if (self.finish == "tool_calls") and not self.calls:
            raise Wrong("there are no calls to finish with")
        if self.finish == "length":
            return
        if kind != "tools" and self.calls:
            raise Wrong("a call without tools")
        if kind == "tools" and body["tool_choice"] == "required" and not self.calls:
            raise Wrong("a call was required")
        for call in self.calls.values():
            if call["name"] not in [tool["function"]["name"] for tool in body["tools"]]:
                raise Wrong(f"nobody offered {call['name']!r}")
        if kind == "schema":
            answer = json.loads(self.content)
            if sorted(answer) != ["answer", "sure"] or not isinstance(answer["sure"], bool):
                raise Wrong(f"not of the schema: {self.content[:80]!r}")
        if expected is not None and self.content != expected:
            raise Wrong(f"{self.content[:80]!r} is not {expected[:80]!r}")


class Load:
    """The clients and what became of their requests."""

    def __init__(self, options, model):
        self.options = options
        self.model = model
        self.items = Items()
        self.address = urllib.parse.urlsplit(options.url)
        self.counts = collections.Counter()
        self.kinds = collections.Counter()
        self.finishes = collections.Counter()
        self.errors = []
        self.num_tokens = 0
        self.first_s, self.whole_s = [], []
        self.until = time.monotonic() + options.seconds

    async def client(self, index):
        """One request after the other, until the time is over."""
        rng = random.Random(f"{self.options.seed}/{index}")
        connection = Connection(self.address.hostname, self.address.port)
        while time.monotonic() < self.until:
            kind, body, expected = self.items.request(rng)
            body["model"] = self.model
            leaves = rng.random() < self.options.leave
            self.counts["started"] += 1
            self.kinds[kind] += 1
            try:
                chat = self.chat(connection, kind, body, expected, rng if leaves else None)
                await asyncio.wait_for(chat, STREAM_SECONDS_MAX)
                self.counts["completed"] += 1
            except Left:
                self.counts["left"] += 1
                connection.close(abruptly=rng.random() < 0.5)
            except Exception as error:
                self.counts["errors"] += 1
                if len(self.errors) < ERRORS_KEPT:
                    asked = json.dumps(body["messages"])[-160:]
                    self.errors.append({"kind": kind, "error": f"{type(error).__name__}: {error}", "asked": asked})
                connection.close()
        connection.close()

    async def chat(self, connection, kind, body, expected, leaver):
        """One chat; with a `leaver`, it is left before its end if it lasts so long."""
        if leaver is None:
            return await self.whole_chat(connection, kind, body, expected, None)
        if leaver.random() < 0.5:
            num_events = leaver.randrange(LEAVE_AFTER_EVENTS_MAX)
            return await self.whole_chat(connection, kind, body, expected, num_events)
        seconds = leaver.uniform(0, LEAVE_AFTER_SECONDS_MAX)
        try:
            chat = self.whole_chat(connection, kind, body, expected, None)
            return await asyncio.wait_for(chat, seconds)
        except asyncio.TimeoutError:
            raise Left from None

    async def whole_chat(self, connection, kind, body, expected, num_events_max):
        started = time.monotonic()
        first = None
        status, headers = await connection.post("/v1/chat/completions", body)
        pieces = connection.body(headers)
        if status != 200:
            text = b"".join([piece async for piece in pieces])
            raise Wrong(f"status {status}: {text[:200]!r}")
        if not headers["content-type"].startswith("text/event-stream"):
            raise Wrong(f"content-type {headers['content-type']}")
        answer = Answer()
        num_events = 0
        async for event in events(pieces):
            if num_events == num_events_max:
                raise Left
            first = first or time.monotonic()
            answer.take(event)
            num_events += 1
        answer.check(kind, body, expected)
        self.finishes[answer.finish] += 1
        self.num_tokens += answer.usage["completion_tokens"]
        self.first_s.append(first - started)
        self.whole_s.append(time.monotonic() - started)


def metrics(url):
    """The gauges, each as the sum over its labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    found = collections.defaultdict(float)
    for line in lines:
        if line and not line.startswith("#"):
            name, value = line.split("{")[0].split(" ")[0], line.rsplit(" ", 1)[1]
            found[name] += float(value)
    missing = [name for name in GAUGES.values() if name not in found]
    if missing:
        raise SystemExit(f"/metrics has no {', '.join(missing)}")
    gauges = {key: found[name] for key, name in GAUGES.items()}
    return gauges | {"preemptions": found.get(PREEMPTIONS, 0.0)}


def memory_mib(pid):
    """The memory that the process has in RAM, as Linux tells it."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} has no memory")


async def watch(options, load, samples):
    """Looks at the memory and the gauges until it is cancelled."""
    started = time.monotonic()
    while True:
        gauges = await asyncio.to_thread(metrics, options.url)
        sample = {"at_s": round(time.monotonic() - started, 1), **gauges}
        if options.pid:
            sample["rss_mib"] = round(memory_mib(options.pid), 1)
        samples.append(sample)
        counts = dict(load.counts)
        print(json.dumps(sample | counts), file=sys.stderr, flush=True)
        await asyncio.sleep(MEMORY_EVERY_SECONDS)


async def until_idle(url):
    """The gauges once nothing runs and waits, or after a while."""
    started = time.monotonic()
    while True:
        gauges = await asyncio.to_thread(metrics, url)
        waited = time.monotonic() - started
        is_idle = not any(gauges[key] for key in GAUGES)
        if is_idle or waited > IDLE_SECONDS_MAX:
            return gauges, is_idle, waited
        await asyncio.sleep(0.1)


def growth_mib(samples):
    """How much more memory the last quarter took than the second one, in medians:
    the first is for caches and pages to fill."""
    rss = [sample["rss_mib"] for sample in samples if "rss_mib" in sample]
    quarter = len(rss) // 4
    if quarter == 0:
        return None
    return statistics.median(rss[-quarter:]) - statistics.median(rss[quarter : 2 * quarter])


def quantiles(values):
    values = sorted(values)
    at = lambda share: round(values[min(int(share * len(values)), len(values) - 1)], 3)
    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)} if values else None


async def run(options):
    with urllib.request.urlopen(f"{options.url}/v1/models", timeout=10) as response:
        model = json.load(response)["data"][0]["id"]
    before = metrics(options.url)
    load = Load(options, model)
    samples = []
    watching = asyncio.create_task(watch(options, load, samples))
    started = time.monotonic()
    await asyncio.gather(*(load.client(index) for index in range(options.streams)))
    took_s = time.monotonic() - started
    watching.cancel()
    after, is_idle, waited_s = await until_idle(options.url)

    growth = growth_mib(samples) if options.pid else None
    is_flat = growth is None or growth <= options.growth_mib
    is_ok = load.counts["errors"] == 0 and load.counts["completed"] > 0 and is_idle and is_flat
    rss = [sample["rss_mib"] for sample in samples if "rss_mib" in sample]
    report = {
        "ok": is_ok,
        "streams": options.streams,
        "seconds": round(took_s, 1),
        "seed": options.seed,
        **{key: load.counts[key] for key in ("started", "completed", "left", "errors")},
        "kinds": dict(load.kinds),
        "finish_reasons": dict(load.finishes),
        "completion_tokens_per_s": round(load.num_tokens / took_s, 1),
        "first_event_s": quantiles(load.first_s),
        "whole_s": quantiles(load.whole_s),
        "metrics_before": before,
        "metrics_after": after,
        "running_max": max(sample["running"] for sample in samples),
        "waiting_max": max(sample["waiting"] for sample in samples),
        "idle": is_idle,
        "idle_after_s": round(waited_s, 2),
        "rss_mib": {"first": rss[0], "max": max(rss), "last": rss[-1]} if rss else None,
        "growth_mib": None if growth is None else round(growth, 1),
        "growth_mib_allowed": options.growth_mib,
        "first_errors": load.errors,
    }
    print(json.dumps(report, indent=2))
    return 0 if is_ok else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="the server, as http://HOST:PORT")
    parser.add_argument("--streams", type=int, default=500, help="chats at once")
    parser.add_argument("--seconds", type=float, default=300, help="how long new ones begin")
    parser.add_argument("--leave", type=float, default=0.1, help="the share that disconnects")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pid", type=int, help="the server's process, to watch its memory")
    parser.add_argument("--growth-mib", type=float, default=32, help="how much its memory may grow")
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
