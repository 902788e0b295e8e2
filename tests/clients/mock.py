"""Two providers in this process, as mock upstreams: OpenAI's API and Anthropic's.

What they answer follows from what is asked (`deed`): a text, a call of the first tool that is offered, JSON of a
schema, an error, or a stream that stops after its first words until `Mock.let_go`. They keep the bodies that reached
them, and every answer tells the same usage.
"""

import base64
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TEXT, THOUGHT = "All is well.", "Let me think."
# Tokens of every answer that is not cut.
INPUT, OUTPUT = 12, 5
# How long an answer is held back at most, seconds.
PATIENCE = 60
# A tool is asked for with these, whichever of them its schema has.
ARGUMENTS = {"city": "Paris", "degrees": 21, "cmd": "echo seen > proof.txt", "description": "Writes the proof", "workdir": "."}
SHELLS = ("exec_command", "shell", "shell_command", "bash", "Bash")


class Mock:
    """One running provider. `address` is where it listens, `seen` all that it was asked: path, headers, body;
    `held` is how many streams have stopped and wait."""

    def __init__(self, paths):
        self.seen, self.held = [], 0
        self.gate = threading.Event()
        self.gate.set()
        handler = type("Handler", (Handler,), {"mock": self, "paths": paths})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def hold(self):
        """From now on a slow stream stops after its first words."""
        self.gate.clear()

    def let_go(self):
        self.gate.set()

    def stop(self):
        self.let_go()
        self.server.shutdown()
        self.server.server_close()


class Deed:
    """What is to be answered: a text, or the call of a tool, or an error's status."""

    def __init__(self, text=None, call=None, status=200, slow=False, thinks=False):
        self.text, self.call, self.status, self.slow, self.thinks = text, call, status, slow, thinks


def deed(last, answered, tools, schema, thinks=False, must=False):
    """`last` is what was said last, `answered` what a tool did last, if that came after it; `must` a tool be called."""
    if "fail with " in last:
        return Deed(status=int(last.split("fail with ")[1][:3]))
    if answered is not None:
        return Deed(text=f"The tool said: {answered}", thinks=thinks)
    if schema:
        return Deed(text=json.dumps({"city": "Paris", "degrees": 21}))
    if tools and (must or "tool" in last):
        return Deed(call=called(tools), thinks=thinks)
    return Deed(text=TEXT, slow="slowly" in last, thinks=thinks)


def called(tools):
    """The call of a tool: of a shell where there is one. `tools` are (name, schema)."""
    name, schema = next((tool for tool in tools if tool[0] in SHELLS), tools[0])
    known = (schema or {}).get("properties", {})
    arguments = {field: ARGUMENTS[field] for field in known if field in ARGUMENTS}
    if "command" in known:
        as_list = known["command"].get("type") == "array"
        arguments["command"] = ["bash", "-c", ARGUMENTS["cmd"]] if as_list else ARGUMENTS["cmd"]
    return name, arguments


def text_of(content):
    """All text of a content, whichever way it is written."""
    if isinstance(content, list):
        return " ".join(text_of(part) for part in content)
    if isinstance(content, dict):
        return text_of(content.get("text") or content.get("content") or "")
    return content or ""


def pieces(text):
    """A text as a stream tells it: word by word."""
    words = text.split(" ")
    return [word if at == 0 else " " + word for at, word in enumerate(words)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mock = paths = None

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.mock.seen.append((self.path, dict(self.headers), body))
        answer = self.paths.get(self.path.split("?")[0])
        if answer is None:
            return self.whole(404, {"error": {"type": "not_found_error", "message": f"no {self.path}"}})
        return answer(self, body)

    def whole(self, status, told):
        text = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def events(self, told):
        """A stream. `told` are events, (name, data) or data alone; None is where a slow one stops."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in told:
            if event is None:
                self.mock.held += 1
                self.mock.gate.wait(PATIENCE)
                self.mock.held -= 1
                continue
            name, data = event if isinstance(event, tuple) else (None, event)
            data = data if isinstance(data, str) else json.dumps(data)
            self.chunk((f"event: {name}\n" if name else "") + f"data: {data}\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, text):
        text = text.encode()
        self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
        self.wfile.flush()


# OpenAI


def chat(handler, body):
    messages = body["messages"]
    spoken = [text_of(message.get("content")) for message in messages if message["role"] == "user"]
    answered = text_of(messages[-1]["content"]) if messages[-1]["role"] == "tool" else None
    tools = [(tool["function"]["name"], tool["function"].get("parameters")) for tool in body.get("tools", [])]
    schema = body.get("response_format", {}).get("type") == "json_schema"
    last = spoken[-1] if spoken else ""
    must = body.get("tool_choice", "auto") not in ("auto", "none")
    does = deed(last, answered, tools, schema, "Think" in last, must)
    if does.status != 200:
        return handler.whole(does.status, openai_error(does.status))
    usage = {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    finish = "tool_calls" if does.call else "stop"
    call = does.call and {"id": "call_1", "type": "function",
                          "function": {"name": does.call[0], "arguments": json.dumps(does.call[1])}}
    if not body.get("stream"):
        message = {"role": "assistant", "content": does.text, **({"tool_calls": [call]} if call else {})}
        if does.thinks:
            message["reasoning_content"] = THOUGHT
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return handler.whole(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    deltas = [{"role": "assistant", "content": ""}]
    if does.thinks:
        deltas += [{"reasoning_content": piece} for piece in pieces(THOUGHT)]
    if call:
        empty = {**call["function"], "arguments": ""}
        deltas.append({"tool_calls": [{"index": 0, **call, "function": empty}]})
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
                   for piece in pieces(call["function"]["arguments"])]
    else:
        deltas += [{"content": piece} for piece in pieces(does.text)]
    chunks = [{**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
              for delta in deltas]
    chunks.append({**chunks[0], "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if body.get("stream_options", {}).get("include_usage"):
        chunks.append({**chunks[0], "choices": [], "usage": usage})
    if does.slow:
        chunks.insert(2, None)
    return handler.events(chunks + ["[DONE]"])


def openai_error(status):
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": f"the mock was asked to fail with {status}", "type": kind, "param": None, "code": None}}


def responses(handler, body):
    items = body["input"] if isinstance(body["input"], list) else [{"role": "user", "content": body["input"]}]
    spoken = [text_of(item.get("content")) for item in items if item.get("role") == "user"]
    answered = None
    if items[-1].get("type") in ("function_call_output", "custom_tool_call_output"):
        answered = text_of(items[-1]["output"])
    tools = [(tool["name"], tool.get("parameters")) for tool in body.get("tools", []) if tool["type"] == "function"]
    schema = body.get("text", {}).get("format", {}).get("type") == "json_schema"
    must = body.get("tool_choice", "auto") not in ("auto", "none")
    does = deed(spoken[-1] if spoken else "", answered, tools, schema, must=must)
    if does.status != 200:
        return handler.whole(does.status, openai_error(does.status))
    usage = {"input_tokens": INPUT, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": OUTPUT,
             "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": INPUT + OUTPUT}
    item = response_item(does)
    whole = {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": body["model"],
        "output": [item], "usage": usage, "error": None, "incomplete_details": None, "instructions": None,
        "metadata": {}, "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto",
        "tools": body.get("tools", []), "top_p": 1.0, "store": False, "text": body.get("text", {}),
    }
    if not body.get("stream"):
        return handler.whole(200, whole)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    told = [("response.created", {"response": begun}), ("response.in_progress", {"response": begun})]
    told += response_item_events(item) + [("response.completed", {"response": whole})]
    numbered = [(kind, {"type": kind, "sequence_number": at, **data}) for at, (kind, data) in enumerate(told)]
    if does.slow:
        numbered.insert(5, None)
    return handler.events(numbered)


def response_item(does):
    if does.call:
        return {"id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1",
                "name": does.call[0], "arguments": json.dumps(does.call[1])}
    part = {"type": "output_text", "text": does.text, "annotations": []}
    return {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def response_item_events(item):
    at = {"output_index": 0, "item_id": item["id"]}
    empty = {**item, "status": "in_progress", **({"arguments": ""} if "arguments" in item else {"content": []})}
    told = [("response.output_item.added", {"output_index": 0, "item": empty})]
    if "arguments" in item:
        told += [("response.function_call_arguments.delta", {**at, "delta": piece}) for piece in pieces(item["arguments"])]
        told.append(("response.function_call_arguments.done", {**at, "arguments": item["arguments"], "name": item["name"]}))
    else:
        at["content_index"] = 0
        part = item["content"][0]
        told.append(("response.content_part.added", {**at, "part": {**part, "text": ""}}))
        told += [("response.output_text.delta", {**at, "delta": piece, "logprobs": []}) for piece in pieces(part["text"])]
        told.append(("response.output_text.done", {**at, "text": part["text"], "logprobs": []}))
        told.append(("response.content_part.done", {**at, "part": part}))
    return told + [("response.output_item.done", {"output_index": 0, "item": item})]


def completions(handler, body):
    does = deed(text_of(body["prompt"]), None, [], False)
    if does.status != 200:
        return handler.whole(does.status, openai_error(does.status))
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        return handler.whole(200, {**head, "choices": [choice], "usage": usage})
    chunks = [{**head, "choices": [{**choice, "text": piece, "finish_reason": None}]} for piece in pieces(TEXT)]
    chunks.append({**head, "choices": [{**choice, "text": ""}]})
    chunks.append({**head, "choices": [], "usage": usage})
    return handler.events(chunks + ["[DONE]"])


def embeddings(handler, body):
    vector = [0.5, -0.25, 1.0]
    count = len(body["input"]) if isinstance(body["input"], list) else 1
    if body.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<3f", *vector)).decode()
    data = [{"object": "embedding", "index": at, "embedding": vector} for at in range(count)]
    usage = {"prompt_tokens": INPUT, "total_tokens": INPUT}
    handler.whole(200, {"object": "list", "data": data, "model": body["model"], "usage": usage})


# Anthropic


def messages(handler, body):
    said = body["messages"]
    last = said[-1]["content"]
    results = [part for part in last if part["type"] == "tool_result"] if isinstance(last, list) else []
    spoken = [text_of(message["content"]) for message in said if message["role"] == "user"]
    tools = [(tool["name"], tool.get("input_schema")) for tool in body.get("tools", [])]
    schema = (body.get("output_config") or {}).get("format")
    thinks = (body.get("thinking") or {}).get("type") in ("enabled", "adaptive")
    must = (body.get("tool_choice") or {}).get("type") in ("any", "tool")
    does = deed(spoken[-1], text_of(results[-1]) if results else None, tools, schema, thinks, must)
    if does.status != 200:
        error = {"type": "error", "error": {"type": "api_error", "message": f"the mock was asked to fail with {does.status}"}}
        return handler.whole(does.status, error)
    blocks = [{"type": "thinking", "thinking": THOUGHT, "signature": "c2lnbmVk"}] if does.thinks else []
    if does.call:
        blocks.append({"type": "tool_use", "id": "toolu_1", "name": does.call[0], "input": does.call[1]})
    else:
        blocks.append({"type": "text", "text": does.text})
    whole = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": blocks,
        "stop_reason": "tool_use" if does.call else "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": INPUT, "output_tokens": OUTPUT},
    }
    if not body.get("stream"):
        return handler.whole(200, whole)
    begun = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": INPUT, "output_tokens": 1}}
    told = [("message_start", {"message": begun})]
    for at, block in enumerate(blocks):
        told += block_events(at, block)
    ends = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    told += [("message_delta", {"delta": ends, "usage": {"output_tokens": OUTPUT}}), ("message_stop", {})]
    told = [(kind, {"type": kind, **data}) for kind, data in told]
    if does.slow:
        told.insert(4, None)
    return handler.events(told)


def block_events(at, block):
    empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}
    told = [("content_block_start", {"index": at, "content_block": {**block, **empty[block["type"]]}})]
    if block["type"] == "text":
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
    elif block["type"] == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    else:
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces(json.dumps(block["input"]))]
    told += [("content_block_delta", {"index": at, "delta": delta}) for delta in deltas]
    return told + [("content_block_stop", {"index": at})]


def count_tokens(handler, _):
    handler.whole(200, {"input_tokens": INPUT})


def openai():
    return Mock({
        "/v1/chat/completions": chat, "/v1/responses": responses, "/v1/completions": completions,
        "/v1/embeddings": embeddings,
    })


def anthropic():
    return Mock({"/v1/messages": messages, "/v1/messages/count_tokens": count_tokens})
