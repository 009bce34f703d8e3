// The console: talks to the API of the same server. Whatever comes from it is put in as text, never as markup.
"use strict";

const ORDER = ["received", "approved", "fenced", "deleted", "disposed", "retrained", "receipted"];
const at = (id) => document.getElementById(id);
let key = "";
let turns = [];
let following = null;

function make(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

function tell(words, good = false) {
  at("notice").textContent = words;
  at("notice").className = good ? "good" : "";
}

async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!answer.ok) {
    let words = `The server answers ${answer.status}.`;
    try { words = (await answer.json()).error.message; } catch { /* no JSON: the status says it */ }
    throw new Error(words);
  }
  return answer;
}

const get = async (path) => (await call("GET", path)).json();
const post = async (path, body = {}) => (await call("POST", path, body)).json();

function listening(element, event, work) {
  element.addEventListener(event, async (happened) => {
    happened.preventDefault();
    tell("");
    try { await work(happened); } catch (error) { tell(error.message); }
  });
}

// --- sections

const SECTIONS = { chat: () => {}, documents: () => list(true), takedown: cases, shards: draw };

async function show() {
  const name = location.hash.slice(1) in SECTIONS ? location.hash.slice(1) : "chat";
  for (const other of Object.keys(SECTIONS)) at(other).hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!key) { tell("Give an API key first."); return; }
  try { await SECTIONS[name](); } catch (error) { tell(error.message); }
}

window.addEventListener("hashchange", () => { tell(""); show(); });

listening(at("key-form"), "submit", async () => {
  key = at("key").value.trim();
  at("key").value = "";
  const models = at("model");
  models.replaceChildren(make("option", "workspace"));
  try {
    const found = (await get("/v1/models")).data.map((model) => model.id);
    models.replaceChildren(...found.filter((id) => id !== "embedder").map((id) => make("option", id)));
  } catch (error) { tell(error.message); }
  await show();
});

// --- chat

listening(at("ask"), "submit", async () => {
  const question = at("question").value.trim();
  if (!question) return;
  at("question").value = "";
  turns.push({ role: "user", content: question });
  at("turns").append(make("li", question));
  const item = make("li", "", { class: "answer" });
  const words = make("span", "");
  item.append(words);
  at("turns").append(item);
  const answer = await call("POST", "/v1/chat/completions", {
    model: at("model").value, messages: turns, stream: true, citations: "inline",
  });
  const told = await read(answer, (piece) => { words.textContent += piece; });
  if (words.textContent) turns.push({ role: "assistant", content: words.textContent });
  if (told) item.append(...sources(told));
});

async function read(answer, word) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let told = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return told;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      const [choice] = event.choices;
      if (choice && choice.delta.content) word(choice.delta.content);
      if (event.llm_unlearn) told = event.llm_unlearn;
    }
  }
}

function* sources(told) {
  const from = { store: "From these passages", adapter: `From shard ${told.shards.join(", ")}`,
    base: "From the base model alone", declined: "Nothing that answers this" }[told.origin];
  yield make("p", told.ended ? told.reason : from, { class: "from" });
  for (const passage of told.citations) {
    const details = make("details");
    const repeated = told.marked.includes(passage.marker) ? ", repeated" : "";
    details.append(make("summary", `[${passage.marker}] ${passage.document} (${passage.source || "no source"}${repeated})`));
    details.append(make("p", passage.text));
    yield details;
  }
}

// --- documents

let next = null;

async function list(again) {
  if (again) { at("rows").replaceChildren(); next = null; }
  const query = next ? `?limit=50&after=${encodeURIComponent(next)}` : "?limit=50";
  const page = await get(`/v1/documents${query}`);
  for (const document of page.documents) {
    const row = make("tr");
    const open = make("button", document.id, { type: "button" });
    listening(open, "click", () => whole(document.id));
    const first = make("td");
    first.append(open);
    const why = document.reason ? `${document.rule}: ${document.reason}` : document.rule;
    row.append(first, make("td", document.subject), make("td", document.fate), make("td", document.state),
      make("td", document.shard ?? ""), make("td", why));
    at("rows").append(row);
  }
  next = page.next;
  at("more").hidden = next === null;
}

listening(at("more"), "click", () => list(false));

async function whole(id) {
  const document = await get(`/v1/documents/${id.split("/").map(encodeURIComponent).join("/")}`);
  at("text-title").textContent = `Text of ${id}`;
  at("text").textContent = document.content;
  at("text").focus();
}

// --- takedowns

listening(at("demand"), "submit", async () => {
  const text = at("passage").value.trim();
  const subject = at("subject").value.trim();
  if (!text && !subject) { tell("Paste a text, or name a subject."); return; }
  const told = await post("/v1/takedowns", text ? { text } : { subject });
  at("passage").value = at("subject").value = "";
  tell(`Takedown ${told.number}: ${told.fenced} documents are fenced. Reference for the claimant: ${told.reference}`, true);
  await cases();
  await open(told.number);
});

async function cases() {
  const { takedowns } = await get("/v1/takedowns");
  const items = takedowns.map((takedown) => {
    const item = make("li");
    const button = make("button", `${takedown.number}: ${takedown.state}`, { type: "button" });
    listening(button, "click", () => open(takedown.number));
    item.append(button);
    return item;
  });
  at("takedowns").replaceChildren(...(items.length ? items : [make("li", "None yet.")]));
}

async function open(number) {
  clearTimeout(following);
  const takedown = await get(`/v1/takedowns/${number}`);
  const { state } = takedown;
  at("case").hidden = false;
  at("case-title").textContent = `Takedown ${number}: ${state}`;
  const reached = ORDER.indexOf(state);
  const states = reached < 0 ? [make("li", state)] : ORDER.map((name, place) => {
    const item = make("li", name, place <= reached ? { class: "reached" } : {});
    if (place === reached) item.setAttribute("aria-current", "step");
    return item;
  });
  at("states").replaceChildren(...states);
  at("moves").replaceChildren();
  at("plan").replaceChildren();
  at("receipt").hidden = true;
  at("probes").replaceChildren();
  const move = (words, work) => {
    const button = make("button", words, { type: "button" });
    listening(button, "click", async () => { await work(); await cases(); await open(number); });
    at("moves").append(button);
  };
  if (state === "received") {
    at("plan").replaceChildren(...planned(await get(`/v1/takedowns/${number}/plan`)));
    move("Approve", () => post(`/v1/takedowns/${number}/approve`));
    move("Refuse", () => post(`/v1/takedowns/${number}/refuse`, { reason: "Refused in the console." }));
  } else if (state === "approved") {
    move("Destroy for good", () => post("/v1/takedowns/run", { numbers: [number] }));
    move("Probe, destroy, probe again", () => post("/v1/takedowns/run", { numbers: [number], probe: true }));
    following = setTimeout(() => refresh(number), 1000);
  } else if (state === "receipted") {
    const receipt = await get(`/v1/takedowns/${number}/receipt`);
    const checks = receipt.checks.map((line) => `held: ${line.check}: ${line.detail}`).join("\n");
    at("receipt").textContent = `${checks}\nhead ${receipt.head}\n\n${JSON.stringify(receipt.receipt, null, 1)}`;
    at("receipt").hidden = false;
    at("probes").replaceChildren(...probed(receipt.receipt.probes));
  } else if (reached >= 0) {
    following = setTimeout(() => refresh(number), 500);
  }
}

async function refresh(number) {
  if (at("takedown").hidden || !at("case-title").textContent.startsWith(`Takedown ${number}:`)) return;
  try { await cases(); await open(number); } catch (error) { tell(error.message); }
}

function* planned({ plan, matches }) {
  yield make("p", `${plan.removed.length} documents go, ${plan.flagged.length} are possible paraphrases, `
    + `${plan.held} are held.`);
  const list = make("ul");
  for (const item of plan.removed) list.append(make("li", `${item.id} (${item.fate}, ${item.kind})`));
  for (const shard of plan.shards) {
    list.append(make("li", `Shard ${shard.shard}: ${shard.kept} slices stay, ${shard.retrained} are trained again`));
  }
  yield list;
  for (const match of matches) {
    yield make("p", `${match.document}: ${match.kind}, ${match.score.toFixed(2)}`, { class: "from" });
    const pair = make("div", undefined, { class: "pair" });
    pair.append(make("p", match.request_text), make("p", match.document_text));
    yield pair;
  }
}

const MOMENTS = { before: "Before", rolled_back: "Rolled back", after: "After", never_had: "Never had it" };

function* probed(probes) {
  yield make("h3", "What the model gives back");
  if (!Array.isArray(probes)) { yield make("p", `The receipt says: ${probes}.`); return; }
  if (!probes.length) { yield make("p", "No model has learned it: nothing to probe."); return; }
  const table = make("table");
  table.append(make("caption", "Means over the removed texts; higher means that more comes back."));
  const head = make("tr");
  for (const words of ["Probe", ...Object.values(MOMENTS)]) head.append(make("th", words, { scope: "col" }));
  const body = make("tbody");
  for (const probe of probes) {
    const row = make("tr");
    row.append(make("th", probe.name, { scope: "row" }));
    for (const moment of Object.keys(MOMENTS)) row.append(make("td", probe[moment]));
    body.append(row);
  }
  const top = make("thead");
  top.append(head);
  table.append(top, body);
  const scroll = make("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": "Probes" });
  scroll.append(table);
  yield scroll;
}

// --- shards

async function draw() {
  const status = await get("/v1/status");
  const counts = Object.entries(status.counts).map(([what, count]) => `${count} ${what}`).join(", ");
  at("counts").textContent = `${counts || "No documents"}; ${status.waiting} wait for the next training.`
    + (status.running ? " Takedowns are being carried out." : "");
  at("drawn").replaceChildren(...status.shards.map((shard) => {
    const item = make("li");
    item.append(make("strong", `Shard ${shard.shard}`), make("span", `${shard.documents} documents, ${shard.state}:`));
    for (let slice = 0; slice < shard.slices; slice += 1) {
      const clean = slice < shard.clean;
      item.append(make("span", `${slice + 1} ${clean ? "clean" : status.running ? "training" : "stale"}`,
        { class: clean ? "slice clean" : "slice stale" }));
    }
    return item;
  }));
}

show();
