// Search: hits with the words of the query marked, timings, and explanations.
const EXAMPLES = ["join arrays along a new axis", "read a csv file", "wait until several threads are done",
  "most common elements of a list", "turn a date into text", "copy a folder", "gradient of a function", "hash a password"];
const WORD = /[\p{L}\p{N}]+/gu;
const STAGES = ["embed", "retrieve", "fuse", "rerank", "fetch"];  // of a search, in order
const MARKED = 3;  // minimum letters of a marked word
let running = null, serial = 0;

function wordsOf(text) {
  return new Set((text.toLowerCase().match(WORD) || []).filter((word) => word.length >= MARKED));
}

function marked(text, words) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(WORD)) {
    if (!words.has(match[0].toLowerCase())) continue;
    parts.push(text.slice(end, match.index), make("mark", "", match[0]));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

function snippet(text, words) {
  const first = [...text.matchAll(WORD)].find((match) => words.has(match[0].toLowerCase()));
  const start = first && first.index > 220 ? text.lastIndexOf(" ", first.index - 80) + 1 : 0;
  return (start ? "… " : "") + text.slice(start, start + 600);
}

function why(hit) {
  const line = make("p", "why");
  for (const [name, match] of Object.entries(hit.explain.retrievers || {})) line.append(make("span", "", `${name} #${match.rank} ${match.score.toFixed(3)}`));
  for (const pairs of Object.values(hit.explain.tokens || {})) {
    for (const pair of pairs) line.append(heat(make("span", "", `${(pair.query_token ?? pair.query)} → ${(pair.document_token ?? pair.document)} ${pair.similarity.toFixed(2)}`), pair.similarity));
  }
  return line;
}

function showHit(hit, words, highest) {
  const title = hit.metadata.title || hit.id, top = make("div", "top", make("span", "name", title));
  const tags = ["kind", "package"].map((key) => hit.metadata[key]).filter((tag) => typeof tag === "string");
  if (tags.length) top.append(make("span", "tags", tags.join(" · ")));
  const bar = make("meter", "bar");
  bar.min = 0; bar.max = Math.max(highest, 1e-9); bar.value = Math.max(0, hit.score);
  bar.setAttribute("aria-hidden", "true");
  top.append(make("span", "score", bar, hit.score.toFixed(3)));
  const summary = make("summary", "", top, make("p", "snippet", ...marked(snippet(hit.text, words), words)));
  if (hit.explain) summary.append(why(hit));
  const element = make("details", "hit", summary, make("pre", "", ...marked(hit.text, words)));
  const link = make("a", "", "compare with the query, token by token");
  link.href = address("texts", { texts: `${at("query").value}\n${hit.text.replace(/\s+/g, " ").slice(0, 600)}`, first: "query" });
  element.append(make("p", "why", link));
  return make("li", "", element);
}

async function chooseModes(requested) {
  const modes = at("collection").value ? await modesOf(at("collection").value).catch(() => []) : [];
  at("mode").replaceChildren(...modes.map((mode) => option(mode)));
  at("mode").classList.toggle("hidden", modes.length < 2);
  if (modes.includes(requested)) at("mode").value = requested;
}

async function search(remember = true) {
  const text = at("query").value.trim();
  if (running) running.abort();
  at("times").classList.add("hidden");
  if (!text) { at("hits").replaceChildren(); say("search", ""); return; }
  running = new AbortController();
  const mine = ++serial, started = performance.now(), waiting = setTimeout(() => say("search", "searching …"), 250);
  try {
    const body = { query: text, top_k: Number(at("top-k").value) || 10 };
    if (at("collection").value) body.collection = at("collection").value;
    if (at("mode").value) body.mode = at("mode").value;
    if (at("filter").value.trim()) {
      try { body.filter = JSON.parse(at("filter").value); } catch (error) { throw new RejectedError(`the filter is not valid JSON: ${error.message}`); }
    }
    if (at("explain").checked) body.explain = true;
    const answer = await ask("/search", { body, signal: running.signal });
    if (mine !== serial) return;
    const hits = answer.results[0].hits, words = wordsOf(text), highest = hits.length ? hits[0].score : 1;
    at("hits").replaceChildren(...hits.map((hit) => showHit(hit, words, highest)));
    const elapsed = performance.now() - started, server = answer.timing_ms;
    const stages = STAGES.filter((stage) => server[stage]), timings = stages.map((stage) => `${stage} ${server[stage].toFixed(1)}`);
    say("search", hits.length ? `${hits.length} ${hits.length === 1 ? "hit" : "hits"} from ${answer.collection} · ` +
      `${timings.join(", ")}, total ${elapsed.toFixed(0)} ms` : "No hits.");
    at("times").replaceChildren(...stages.map((stage) => {
      const bar = make("span");
      bar.style.width = `${100 * server[stage] / elapsed}%`;
      bar.title = `${stage} ${server[stage].toFixed(1)} ms`;
      return bar;
    }));
    at("times").title = "Stages in the server, as shares of the total response time";
    at("times").classList.toggle("hidden", !hits.length);
    document.title = `${text} – embedserve`;
    if (remember) history.pushState(null, "", address("search", { q: text, c: at("collection").value, m: at("mode").value, why: at("explain").checked && "1" }));
  } catch (error) {
    if (mine === serial && error.name !== "AbortError") { at("hits").replaceChildren(); failed("search", error); }
  } finally {
    clearTimeout(waiting);
  }
}

async function searchFromAddress() {
  const given = params();
  if ([...at("collection").options].some((one) => one.value === given.get("c"))) at("collection").value = given.get("c");
  await chooseModes(given.get("m"));
  at("explain").checked = given.get("why") === "1";
  at("query").value = given.get("q") || "";
  await search(false);
}

for (const example of EXAMPLES) {
  const chip = make("button", "", example);
  chip.type = "button";
  chip.addEventListener("click", () => { at("query").value = example; search(); });
  at("chips").append(chip);
}
at("search-form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
at("collection").addEventListener("change", async () => { await chooseModes(); search(); });
at("mode").addEventListener("change", () => search());
at("explain").addEventListener("change", () => search());
