"""A real HTTP server on 127.0.0.1 that speaks the part of vLLM's protocol that the sampler uses.

Behind it stands the bundled policy in transformers, with the adapters that it is told to load: what comes back is
what the same policy would have sampled in the trainer. vLLM itself is tested in test_vllm_real.py.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from peft import PeftModel

from pact_lightning.policy.loading import PolicyConfig, load_policy
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.packing import Block, pack_blocks
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnRequest
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.rollout.samplers.vllm.server import VLLMServer


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Connections that a test breaks."""


class ProtocolServer:
    """Answers as vLLM does; ``disturb(path, body, number)`` may answer first, with a status and a body.

    Attributes:
        bodies: (path, body) of every request, in order of arrival.
        loaded: Folder of every adapter that is loaded now, by name.
        ever_loaded: (name, folder) of every adapter, in order.
        max_model_len: Tokens after which a turn is cut, as vLLM does.
    """

    def __init__(self, policy=None, disturb=None, *, loads_adapters=True, raw_logps=False, max_model_len=4096):
        self.policy = policy or PolicyConfig(adapter="full", dtype="float32")
        self.disturb = disturb or (lambda path, body, number: None)
        self.loads_adapters = loads_adapters
        self.raw_logps = raw_logps
        self.max_model_len = max_model_len
        self.bodies, self.loaded, self.ever_loaded, self.headers = [], {}, [], []
        self._models = {}
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.answer(self, None)

            def do_POST(self):
                server.answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *_):
                pass

        self._http = _HTTP(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def backend(self, **changes):
        return VLLMServer(self.url, **({"retries": 2, "timeout_s": 60.0} | changes))

    def prompts(self):
        return [body["prompt"] for path, body in self.bodies if path == "/v1/completions"]

    def answer(self, handler, body):
        with self._lock:
            self.bodies.append((handler.path, body))
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            number = sum(path == handler.path for path, _ in self.bodies) - 1
            status, answer = self.disturb(handler.path, body, number) or self._answer(handler.path, body)
        if status is None:  # the connection breaks before an answer
            handler.close_connection = True
            return
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json" if not isinstance(answer, str) else "text/plain")
        handler.send_header("retry-after-ms", "1")
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _answer(self, path, body):
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name} for name in ("base", *self.loaded)]}
        if path == "/v1/completions":
            return self._complete(body)
        if self.loads_adapters and path == "/v1/load_lora_adapter":
            return self._load(body)
        if self.loads_adapters and path == "/v1/unload_lora_adapter":
            if self.loaded.pop(body["lora_name"], None) is None:
                return 404, {"error": {"message": "cannot be found"}}
            return 200, "Success"
        return 404, {"detail": "Not Found"}

    def _load(self, body):
        if not body:
            return 400, {"error": {"message": "Field required"}}
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.loaded:
            return 400, {"error": {"message": "has already been loaded"}}
        if not (folder / "adapter_model.safetensors").is_file():
            return 404, {"error": {"message": f"No adapter found for {folder}"}}
        self.loaded[name] = folder
        self.ever_loaded.append((name, folder))
        self._models[name] = PeftModel.from_pretrained(load_policy(self.policy), folder).eval()
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _complete(self, body):
        if body["model"] not in self.loaded:
            return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
        model, prompt, greedy = self._models[body["model"]], body["prompt"], body["temperature"] == 0
        temperature = 1.0 if greedy else body["temperature"]
        limit = min(body["max_tokens"], self.max_model_len - len(prompt))
        sampler = TransformersSampler(model, body.get("stop_token_ids", []), SamplingConfig(temperature, greedy))
        sampler.submit([TurnRequest(0, prompt, limit, body["seed"])])
        outputs = []
        while not outputs:
            outputs = sampler.step()
        (output,) = outputs
        logprobs = {"token_logprobs": output.logps, "top_logprobs": [self._likeliest(model, body, temperature)]}
        return 200, {"choices": [{"index": 0, "token_ids": output.ids, "logprobs": logprobs}]}

    @torch.no_grad()
    def _likeliest(self, model, body, temperature):
        """The likeliest next tokens, by name, as the completions of an old OpenAI API have them."""
        if not body["logprobs"]:
            return {}
        every = [[token] for token in range(model.config.vocab_size)]
        (pack,) = pack_blocks([Block(body["prompt"], every)], 100_000)
        scores = token_logprobs(model, pack, temperature=1.0 if self.raw_logps else temperature)
        reported = {str(token): float(score.logp[0]) for token, score in enumerate(scores)}
        likeliest = sorted(reported, key=reported.get)[-body["logprobs"] :]
        return {token: reported[token] for token in likeliest}
