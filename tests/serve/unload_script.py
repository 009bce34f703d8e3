import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from llm_unlearn.serve.webhooks import key_of, verify

SECRET = key_of(os.environ["LLM_UNLEARN_WEBHOOK_SECRET"])
ADAPTERS = os.environ["ADAPTERS"].split()  # their names in vLLM
vllm = httpx.Client(base_url=os.environ["VLLM_URL"], timeout=2)  # webhooks wait ten seconds
seen: set[str] = set()


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), 65536))
        if not verify(SECRET, {k.lower(): v for k, v in self.headers.items()}, body):
            return self.answer(401)
        takedown, state = self.headers["webhook-id"].rsplit(".", 1)
        if takedown in seen or state in ("refused", "withdrawn", "restored"):
            return self.answer(204)  # a clean adapter that was loaded meanwhile stays
        try:
            for name in ADAPTERS:
                gone = vllm.post("/v1/unload_lora_adapter", json={"lora_name": name})
                if gone.status_code != 404:  # 404: it was not loaded
                    gone.raise_for_status()
            served = {
                model["id"] for model in vllm.get("/v1/models").raise_for_status().json()["data"]
            }
        except httpx.HTTPError:
            return self.answer(503)  # told again, until it works
        if served & set(ADAPTERS):
            return self.answer(503)
        seen.add(takedown)
        return self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver)
print("listening on", server.server_port, flush=True)
server.serve_forever()
