import os
import sys
import time

import httpx

url, key = os.environ["LLM_UNLEARN_URL"], os.environ["LLM_UNLEARN_KEY"]
auth = {"authorization": f"Bearer {key}"}
checked = {"response": [httpx.Response.raise_for_status]}
server = httpx.Client(base_url=url, headers=auth, event_hooks=checked, timeout=600)
told = server.post("/v1/takedowns", json={"text": sys.stdin.read()}).json()
print("fenced at", told["acknowledged"], "reference", told["reference"])
case = f"/v1/takedowns/{told['number']}"
print("goes:", *(item["id"] for item in server.get(f"{case}/plan").json()["plan"]["removed"]))
server.post(f"{case}/approve", json={"keep_flagged": True})
server.post("/v1/takedowns/run", json={"numbers": [told["number"]]})
while (state := server.get(case).json()["state"]) != "receipted":
    time.sleep(0.2)
receipt = server.get(f"{case}/receipt").json()
print(state, receipt["receipt"]["outcome"], receipt["head"])
