"use strict";
// Shared by all views: creating elements, requests to the server, the tabs.
const VIEWS = ["search", "compare", "texts", "collections", "status"];
const at = (id) => document.getElementById(id);
const params = () => new URLSearchParams(location.search);
const whole = (number) => Math.round(number).toLocaleString("en");
const shown = { info: null, models: [], view: "search" };
const onShow = {};  // by view: called when the view opens
const SILENT_MS = 30000;  // a stream sends at least every ten seconds
let leaving = new AbortController();  // aborted when the current view closes

function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content.map((part) => (part instanceof Node ? part : String(part))));  // text, never markup
  return element;
}

function svg(tag, attributes, ...content) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...content);
  return element;
}

function table(className, heads, rows) {
  const head = make("tr", "", ...heads.map((text) => make("th", "", text)));
  const body = rows.map((cells) => make("tr", "", ...cells.map((cell) => (cell instanceof Node && cell.tagName === "TD" ? cell : make("td", "", cell)))));
  return make("table", className, make("thead", "", head), make("tbody", "", ...body));
}

function say(view, text, bad = false) {
  const line = at(`${view}-status`);
  line.className = bad ? "status bad" : "status";
  line.textContent = text;
}

class RejectedError extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

// Return the response; throw the server's error message if it rejects the request.
async function send(path, { body, signal } = {}) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body), signal });
  if (response.status === 401 || response.status === 403) at("key-form").classList.remove("hidden");
  if (response.ok) return response;
  let message = `${path} returned ${response.status}`;
  try { message = (await response.json()).error.message; } catch { /* not JSON: report the status */ }
  throw new RejectedError(message, response.status);
}

async function ask(path, { text = false, ...how } = {}) {
  const response = await send(path, how);
  return text ? response.text() : response.json();
}

// Yield the server-sent events of a path until the stream ends or is silent for SILENT_MS. EventSource cannot send a key.
async function* events(path, signal) {
  const reader = (await send(path, { signal })).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", silence = null;
  try {
    for (;;) {
      silence = setTimeout(() => reader.cancel(), SILENT_MS);
      const { done, value } = await reader.read();
      clearTimeout(silence);
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries([...block.matchAll(/^(event|data): ?(.*)$/gm)].map((match) => [match[1], match[2]]));
        if (fields.data) yield { name: fields.event, data: JSON.parse(fields.data) };
      }
    }
  } finally { clearTimeout(silence); }
}

function failed(view, error) {
  if (error.name === "AbortError") return;
  say(view, error instanceof RejectedError ? error.message : "The server did not respond. Is it still running?", true);
}

function option(value, label = value) {
  const element = make("option", "", label);
  element.value = value;
  return element;
}

function address(view, values) {
  const next = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
  return `/?${next}#${view}`;
}

function show(view, fill = true) {
  shown.view = view;
  leaving.abort();
  leaving = new AbortController();
  for (const name of VIEWS) {
    at(`view-${name}`).classList.toggle("hidden", name !== view);
    at(`tab-${name}`).setAttribute("aria-selected", String(name === view));
    at(`tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
  if (fill && onShow[view]) onShow[view]();
}

function heat(cell, value) {
  const strength = Math.max(0, Math.min(1, value));
  cell.style.backgroundColor = `rgba(var(--heat), ${(0.85 * strength * strength).toFixed(3)})`;
  return cell;
}

const details = new Map();  // responses of /v1/collections/NAME by name

async function fieldsOf(name) {
  if (!details.has(name)) details.set(name, ask(`/v1/collections/${encodeURIComponent(name)}`).catch((error) => { details.delete(name); throw error; }));
  const known = (await details.get(name)).fields;
  return Object.keys(known);
}

async function modesOf(name) {
  const fields = await fieldsOf(name);
  return fields.length > 1 ? [...fields, "hybrid"] : fields;
}
