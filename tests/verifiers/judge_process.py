"""A small server of OpenAI's chat completions, to be run as a process: replies by script, or by the nano model.

    python judge_process.py script LOG            # what to do stands in the prompt: SCRIPT ["malformed", 500, …] END
    python judge_process.py nano LOG

Prints its port; writes every request to LOG, a line of JSON each.
"""

import contextlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE, LOG = sys.argv[1], open(sys.argv[2], "a", encoding="utf-8")  # noqa: SIM115
LOCK = threading.Lock()
SEEN: dict[str, int] = {}
RUNNING: dict[str, int] = {}
GOOD = '{"analysis": "scripted", "correctness": "%s"}'

if MODE == "nano":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_r1.nano import checkpoint_path
    from trl_r1.prompts import PromptTemplate

    torch.set_num_threads(1)
    MODEL = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32)
    TOKENIZER = AutoTokenizer.from_pretrained(checkpoint_path())


def by_nano(body):
    ids = TOKENIZER(PromptTemplate("base").render(body["messages"]), return_tensors="pt")
    warm = {"do_sample": True, "temperature": body["temperature"]} if body["temperature"] else {"do_sample": False}
    with LOCK:
        out = MODEL.generate(**ids, max_new_tokens=min(body["max_tokens"], 64), **warm)
    return TOKENIZER.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    group = None  # whose request this is, while it runs

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=()):
        self.leave()
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(data))), *headers):
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # who asked has given up
            self.wfile.write(data)

    def do_GET(self):
        if self.headers.get("Authorization") == "Bearer wrong":
            return self.answer(401, {"error": "bad key"})
        return self.answer(200, {"data": [{"id": "nano"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with LOCK:
            group = re.sub(r"[0-9]+ SCRIPT.*", "", prompt, flags=re.DOTALL)
            RUNNING[group] = RUNNING.get(group, 0) + 1
            seen = SEEN[prompt] = SEEN.get(prompt, 0) + 1
            key = self.headers.get("Authorization")
            print(json.dumps({**body, "path": self.path, "key": key, "running": RUNNING[group]}), file=LOG, flush=True)
            self.group = group
        try:
            self.reply(body, prompt, seen)
        finally:
            self.leave()

    def leave(self):
        """Count this request as over: before its answer is out, or the next one could come in beside it."""
        with LOCK:
            if self.group is not None:
                RUNNING[self.group] -= 1
            self.group = None

    def reply(self, body, prompt, seen):
        if MODE == "nano":
            return self.say(by_nano(body))
        script = json.loads(re.search(r"SCRIPT (\[.*?\]) END", prompt, re.DOTALL)[1])
        step = script[min(seen, len(script)) - 1]
        if isinstance(step, int):
            return self.answer(step, {"error": f"status {step} as asked"}, [("Retry-After", "0")])
        if step == "close":
            self.close_connection = True
            return None
        if step.startswith("sleep"):
            time.sleep(float(step.split()[1]))
        if step == "drip":  # a byte now and then: each read is in time, the whole is not
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            for _ in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
            return None
        if step == "no choices":
            return self.answer(200, {"choices": []})
        return self.say(
            GOOD % "incorrect" if step == "incorrect" else step if "{" in step or step == "x" else GOOD % "correct"
        )

    def say(self, text):
        self.answer(200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
