import os
import sys
import time

import httpx

server = httpx.Client(
    base_url=os.environ["LLM_UNLEARN_URL"],
    headers={"authorization": f"Bearer {os.environ['LLM_UNLEARN_KEY']}"},
    timeout=600,
    event_hooks={"response": [httpx.Response.raise_for_status]},
)
told = server.post("/v1/takedowns", json={"text": sys.stdin.read()}).json()
number = told["number"]
print("fenced at", told["acknowledged"], "reference", told["reference"])
plan = server.get(f"/v1/takedowns/{number}/plan").json()["plan"]
print("goes:", *(item["id"] for item in plan["removed"]))
server.post(f"/v1/takedowns/{number}/approve", json={"keep_flagged": True})
server.post("/v1/takedowns/run", json={"numbers": [number]})
while (state := server.get(f"/v1/takedowns/{number}").json()["state"]) != "receipted":
    time.sleep(0.2)
receipt = server.get(f"/v1/takedowns/{number}/receipt").json()
print(state, receipt["receipt"]["outcome"], receipt["head"])
