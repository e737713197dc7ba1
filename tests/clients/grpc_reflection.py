#!/usr/bin/env python3
"""A client that knows the gRPC API only by asking the server for it.

It needs grpcio, grpcio-reflection and protobuf, and no generated code: all
messages and methods come from reflection. It lists the services, waits until
the model is loaded, checks health, calls Chat and Generate, and exits with 0 if
all is as it should be.

    python grpc_reflection.py HOST:PORT [--key KEY] [--ca FILE] [--timeout SECONDS]
"""

import argparse
import os
import sys

# This file bears the name of a package, and would be imported in its place.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path = [path for path in sys.path if os.path.realpath(path) != HERE]

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICE = "chorale.inference.v1.Inference"
HEALTH = "grpc.health.v1.Health"
METHODS = {
    "Chat",
    "Generate",
    "Cancel",
    "ListRequests",
    "ListModels",
    "GetLoadStatus",
    "WatchLoadStatus",
    "Tokenize",
    "Detokenize",
}


class Server:
    """A channel, and what reflection says can be called on it."""

    def __init__(self, channel, key, timeout_s):
        self.channel = channel
        self.metadata = [("authorization", f"Bearer {key}")] if key else []
        self.timeout_s = timeout_s
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.database)

    def services(self):
        return set(self.database.get_services())

    def methods(self, service):
        return {method.name for method in self.pool.FindServiceByName(service).methods}

    def message(self, name, /, **fields):
        return GetMessageClass(self.pool.FindMessageTypeByName(name))(**fields)

    def call(self, service, method, /, **fields):
        """The response, or an iterator of responses."""
        found = self.pool.FindServiceByName(service).methods_by_name[method]
        request = GetMessageClass(found.input_type)(**fields)
        response = GetMessageClass(found.output_type)
        open_call = self.channel.unary_stream if found.server_streaming else self.channel.unary_unary
        invoke = open_call(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return invoke(request, timeout=self.timeout_s, metadata=self.metadata)


def check(is_so, what):
    if not is_so:
        raise AssertionError(what)
    print(f"ok    {what}")


def check_services(server):
    services = server.services()
    for name in [SERVICE, HEALTH, "grpc.reflection.v1.ServerReflection"]:
        check(name in services, f"{name} is listed")
    missing = METHODS - server.methods(SERVICE)
    check(not missing, f"{SERVICE} has its {len(METHODS)} methods")


def check_loading(server):
    """Waits until the server is ready, as it says itself."""
    statuses = [response.status for response in server.call(SERVICE, "WatchLoadStatus")]
    check(statuses[-1].state == 2, f"the load status is READY, after {len(statuses) - 1} others")
    for response in server.call(HEALTH, "Watch", service=SERVICE):
        if response.status == 1:
            break


def check_health(server):
    for name in ["", SERVICE]:
        status = server.call(HEALTH, "Check", service=name).status
        check(status == 1, f"health of {name!r} is SERVING")
    try:
        server.call(HEALTH, "Check", service="nobody")
        raise AssertionError("an unknown service is healthy")
    except grpc.RpcError as error:
        check(error.code() == grpc.StatusCode.NOT_FOUND, "health of an unknown service is NOT_FOUND")


def check_models(server):
    models = server.call(SERVICE, "ListModels").models
    check(len(models) >= 1 and models[0].max_context_tokens > 0, f"model {models[0].id} is served")
    state = server.call(SERVICE, "GetLoadStatus").status.state
    check(state == 2, "the load status still is READY")


def check_order(events, deltas):
    """One started, deltas and ends, one completed."""
    kinds = [event.WhichOneof("event") for event in events]
    check(kinds[0] == "started" and kinds[-1] == "completed", "the stream is started and completed")
    check(kinds.count("finished") == 1, "the one choice is finished once")
    found = set(kinds[1:-1]) - {"finished"}
    check(found <= set(deltas), f"between them come {sorted(found)}")
    finished = next(event.finished for event in events if event.WhichOneof("event") == "finished")
    check(events[0].started.request_id != "", "the request has an id")
    usage = finished.usage
    check(
        usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0,
        f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out, "
        f"{usage.cached_tokens} cached, {usage.reasoning_tokens} reasoning",
    )
    check(events[-1].completed.usage == usage, "the request took what its one choice took")
    return finished


def check_chat(server):
    message = server.message("chorale.inference.v1.Message", role="ROLE_USER", content="Hello!")
    fields = {
        "messages": [message],
        "reasoning_effort": "REASONING_EFFORT_LOW",
        "sampling": {"temperature": 0.0, "seed": 1},
        "limits": {"max_tokens": 64},
    }
    deltas = ["reasoning", "content", "tool_call_started", "tool_call_arguments"]
    events = list(server.call(SERVICE, "Chat", **fields))
    finished = check_order(events, deltas)
    check(finished.reason in (1, 2), "the chat stops or reaches its limit")

    def text(events):
        parts = (event.content.text for event in events if event.WhichOneof("event") == "content")
        return "".join(parts)

    print(f"      {text(events)!r}")
    again = list(server.call(SERVICE, "Chat", **fields))
    check(text(again) == text(events), "greedy decoding says the same again")


def check_generate(server):
    prompt = server.call(SERVICE, "Tokenize", text="The capital of France is").token_ids
    check(len(prompt) > 0, f"the prompt has {len(prompt)} tokens")
    events = list(
        server.call(
            SERVICE,
            "Generate",
            token_ids={"ids": prompt},
            sampling={"temperature": 0.0},
            limits={"max_tokens": 8, "ignore_eos": True},
            logprobs={"num_top": 2},
            include_text=True,
        )
    )
    finished = check_order(events, ["tokens"])
    check(finished.reason == 2, "generation reaches its limit")
    deltas = [event.tokens for event in events if event.WhichOneof("event") == "tokens"]
    tokens = [token for delta in deltas for token in delta.token_ids]
    logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
    check(len(tokens) == 8 == len(logprobs), "8 tokens come with as many log-probabilities")
    check(all(len(logprob.top) == 2 for logprob in logprobs), "each has 2 alternatives")
    text = server.call(SERVICE, "Detokenize", tokens={"ids": tokens}).text
    print(f"      {text!r}")


def check_errors(server):
    try:
        list(server.call(SERVICE, "Chat", sampling={"top_p": 3.0}))
        raise AssertionError("a chat without messages is answered")
    except grpc.RpcError as error:
        check(error.code() == grpc.StatusCode.INVALID_ARGUMENT, "a chat without messages is INVALID_ARGUMENT")
        check("messages" in error.details(), f"and says so: {error.details()}")
        trailers = {key for key, _ in error.trailing_metadata()}
        check("grpc-status-details-bin" in trailers, "with details for programs")
    try:
        server.call(SERVICE, "Cancel", request_id="nobody")
        raise AssertionError("an unknown request is cancelled")
    except grpc.RpcError as error:
        check(error.code() == grpc.StatusCode.NOT_FOUND, "an unknown request is NOT_FOUND")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--key", help="an API key")
    parser.add_argument("--ca", help="speak TLS, and trust this certificate authority")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="for each call")
    arguments = parser.parse_args()

    if arguments.ca:
        with open(arguments.ca, "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
        channel = grpc.secure_channel(arguments.address, credentials)
    else:
        channel = grpc.insecure_channel(arguments.address)
    with channel:
        grpc.channel_ready_future(channel).result(timeout=arguments.timeout)
        server = Server(channel, arguments.key, arguments.timeout)
        check_services(server)
        check_loading(server)
        check_health(server)
        check_models(server)
        check_chat(server)
        check_generate(server)
        check_errors(server)
    print("all is as it should be")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, grpc.RpcError) as failure:
        print(f"wrong {failure}", file=sys.stderr)
        sys.exit(1)
