// Compare: one query searched in two to four ways, side by side, with their overlap.
const MOST_COLUMNS = 4, COMPARED = 10;

function chosenColumns() {
  return [...at("columns-chosen").querySelectorAll("select")].map((select) => select.value).filter(Boolean);
}

async function columnChoices() {
  const choices = [];
  for (const item of shown.info.collections.filter((one) => one.status !== "failed")) {
    for (const mode of await modesOf(item.name).catch(() => [])) choices.push(`${item.name} · ${mode}`);
  }
  return choices;
}

async function fillColumns(wanted) {
  const choices = await columnChoices();
  const start = wanted.length ? wanted : choices.slice(0, Math.min(3, choices.length));
  const selects = [];
  for (let place = 0; place < Math.min(MOST_COLUMNS, choices.length); place++) {
    const select = make("select", "", option("", place < 2 ? "choose" : "none"), ...choices.map((choice) => option(choice)));
    select.setAttribute("aria-label", `Way ${place + 1}`);
    if (choices.includes(start[place])) select.value = start[place];
    select.addEventListener("change", () => compare());
    selects.push(select);
  }
  at("columns-chosen").replaceChildren(...selects);
  if (choices.length < 2) say("compare", "This server has one way to search. A collection with several fields, or a second collection, adds more.", true);
}

function shareOf(one, other) {
  const ids = new Set(other.map((hit) => hit.id));
  return one.filter((hit) => ids.has(hit.id)).length / Math.max(1, Math.min(one.length, other.length));
}

function showColumn(way, answer, counts) {
  const list = make("ol", "");
  answer.hits.forEach((hit, place) => {
    const item = make("li", counts.get(hit.id) > 1 ? "shared" : "", make("span", "rank", place + 1), make("b", "", hit.metadata.title || hit.id), make("span", "score", hit.score.toFixed(3)));
    item.title = hit.text.slice(0, 400);
    item.dataset.id = hit.id;
    item.addEventListener("mouseenter", () => point(hit.id));
    item.addEventListener("mouseleave", () => point(null));
    list.append(item);
  });
  return make("div", "column", make("h3", "", way), make("p", "tags", `${answer.ms.toFixed(1)} ms in the server`), list);
}

function point(id) {
  for (const item of at("columns").querySelectorAll("li")) item.classList.toggle("here", id !== null && item.dataset.id === id);
}

async function compare(remember = true) {
  const text = at("compare-query").value.trim(), ways = [...new Set(chosenColumns())];
  at("overlap").replaceChildren();
  at("columns").replaceChildren();
  if (!text) { say("compare", ""); return; }
  if (ways.length < 2) { say("compare", "Choose at least two ways to search.", true); return; }
  say("compare", "searching …");
  try {
    const answers = await Promise.all(ways.map(async (way) => {
      const [collection, mode] = way.split(" · ");
      const answer = await ask("/search", { body: { query: text, top_k: COMPARED, collection, mode } });
      return { hits: answer.results[0].hits, ms: answer.timing_ms.total };
    }));
    const counts = new Map();
    for (const answer of answers) for (const hit of answer.hits) counts.set(hit.id, (counts.get(hit.id) || 0) + 1);
    at("columns").replaceChildren(...ways.map((way, place) => showColumn(way, answers[place], counts)));
    const rows = ways.map((way, row) => [make("b", "", way), ...ways.map((_, column) => {
      const share = shareOf(answers[row].hits, answers[column].hits);
      return row === column ? make("td", "", "·") : heat(make("td", "", share.toFixed(1)), share);
    })]);
    at("overlap").replaceChildren(make("h2", "", `overlap@${COMPARED}`), table("heat", ["", ...ways], rows));
    say("compare", "Shaded documents are in more than one result list.");
    if (remember) history.pushState(null, "", address("compare", { q: text, ways: ways.join("|") }));
  } catch (error) { failed("compare", error); }
}

onShow.compare = async () => {
  const given = params(), wanted = (given.get("ways") || "").split("|").filter(Boolean);
  if (!at("columns-chosen").children.length || wanted.length) await fillColumns(wanted);
  const text = given.get("q") || at("query").value;
  if (text && text !== at("compare-query").value) { at("compare-query").value = text; compare(false); }
};
at("compare-form").addEventListener("submit", (event) => { event.preventDefault(); compare(); });
