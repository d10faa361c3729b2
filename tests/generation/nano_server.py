"""A small OpenAI-compatible server of the nano model, one process per port, each with a fault of its own.

    python nano_server.py good flaky …      # prints one line {"good": port, …} and serves until it is killed

- `good`: vLLM's protocol (token ids); `plain`: without vLLM's extensions;
- `flaky`: every third reply is a 500; `hanging`: every third request gets no reply;
- `mortal-a`, `mortal-b`: the process ends itself after 3 completions; `strict`: refuses everything with 400.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trl_r1.nano import checkpoint_path

FAULTS = ("good", "plain", "flaky", "hanging", "mortal-a", "mortal-b", "strict")


def complete(model, tokenizer, body):
    prompt = body.get("prompt") or tokenizer.apply_chat_template(
        body["messages"], tokenize=False, add_generation_prompt=True
    )
    ids = prompt if isinstance(prompt, list) else tokenizer(prompt)["input_ids"]
    if body.get("seed") is not None:
        torch.manual_seed(body["seed"])
    drawn = body["temperature"] > 0
    config = GenerationConfig(
        do_sample=drawn,
        temperature=body["temperature"] or 1.0,
        top_p=1.0,
        top_k=0 if drawn else 50,
        max_new_tokens=body["max_tokens"],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    out = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), generation_config=config
    )
    return ids, out[0, len(ids) :].tolist()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = tokenizer = fault = None
    lock = threading.Lock()
    seen = answered = 0

    def log_message(self, *args):
        pass

    def reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        owner = "someone" if self.fault == "plain" else "vllm"
        listed = [{"id": "nano-served", "root": str(checkpoint_path()), "owned_by": owner}]
        self.reply(200, {"object": "list", "data": listed})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Handler.lock:
            Handler.seen += 1
            turn = Handler.seen
        if self.fault == "strict":
            return self.reply(400, {"error": {"message": "the prompt is longer than the context"}})
        if self.fault == "flaky" and turn % 3 == 0:
            return self.reply(500, {"error": {"message": "out of luck"}})
        if self.fault == "hanging" and turn % 3 == 0:
            time.sleep(60)
        with Handler.lock:
            prompt_ids, ids = complete(self.model, self.tokenizer, body)
            Handler.answered += 1
            if self.fault.startswith("mortal") and Handler.answered > 3:
                os._exit(1)
        reason = "stop" if ids[-1] == self.tokenizer.eos_token_id else "length"
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        choice = {"index": 0, "finish_reason": reason}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        if body.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": prompt_ids}
        self.reply(200, {"choices": [choice], "usage": {"completion_tokens": len(ids)}})


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing: clients that hang up are part of the tests."""


def main(faults):
    torch.set_num_threads(1)
    Handler.model = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32).eval()
    Handler.tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    servers = {fault: Server(("127.0.0.1", 0), Handler) for fault in faults}
    children = {}
    for fault, server in servers.items():
        if (child := os.fork()) == 0:
            for other in servers.values():
                if other is not server:
                    other.socket.close()
            Handler.fault = fault
            server.serve_forever()
            os._exit(0)
        children[fault] = child
    for server in servers.values():
        server.socket.close()
    signal.signal(
        signal.SIGTERM, lambda *_: ([os.kill(child, signal.SIGKILL) for child in children.values()], os._exit(0))
    )
    print(json.dumps({fault: server.server_address[1] for fault, server in servers.items()}), flush=True)
    for child in children.values():
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1:] or FAULTS)
