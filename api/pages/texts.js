// Texts: similarity of pasted texts, a map of them, and token matches for token vectors.
const MOST_TEXTS = 40;
const dot = (one, other) => one.reduce((sum, value, place) => sum + value * other[place], 0);

function maxsim(one, other) {
  return one.reduce((sum, row) => sum + Math.max(...other.map((column) => dot(row, column))), 0) / one.length;
}

// The two directions of most variance, by power iteration on centred vectors.
function plane(vectors) {
  const dim = vectors[0].length, middle = new Array(dim).fill(0);
  for (const vector of vectors) vector.forEach((value, place) => { middle[place] += value / vectors.length; });
  const centred = vectors.map((vector) => vector.map((value, place) => value - middle[place]));
  const axes = [];
  for (let number = 0; number < 2; number++) {
    let axis = centred[0].map((_, place) => Math.sin(place * (number + 1) + 1));
    for (let step = 0; step < 60; step++) {
      for (const found of axes) { const part = dot(axis, found); axis = axis.map((value, place) => value - part * found[place]); }
      const next = new Array(dim).fill(0);
      for (const row of centred) { const part = dot(row, axis); row.forEach((value, place) => { next[place] += part * value; }); }
      for (const found of axes) { const part = dot(next, found); next.forEach((value, place) => { next[place] = value - part * found[place]; }); }
      const length = Math.sqrt(dot(next, next));
      if (length < 1e-12) break;
      axis = next.map((value) => value / length);
    }
    axes.push(axis);
  }
  return centred.map((row) => axes.map((axis) => dot(row, axis)));
}

function drawMap(texts, vectors) {
  if (texts.length < 3) return [];
  const points = plane(vectors), size = { width: 640, height: 400, edge: 40 };
  const range = [0, 1].map((axis) => { const values = points.map((point) => point[axis]); return [Math.min(...values), Math.max(...values)]; });
  const place = (value, axis, length) => size.edge + (length - 2 * size.edge) * (value - range[axis][0]) / (range[axis][1] - range[axis][0] || 1);
  const drawing = svg("svg", { viewBox: `0 0 ${size.width} ${size.height}`, class: "map", role: "img", "aria-label": "map of the texts" });
  const labels = [];  // positions of labels, to avoid overlap
  points.forEach((point, number) => {
    const x = place(point[0], 0, size.width), y = size.height - place(point[1], 1, size.height), left = x > size.width * 0.6;
    let line = y + 4;
    while (labels.some((other) => Math.abs(other.line - line) < 12 && Math.abs(other.x - x) < 220)) line += 12;
    labels.push({ line, x });
    const label = texts[number].length > 34 ? `${texts[number].slice(0, 33)}…` : texts[number];
    drawing.append(svg("circle", { cx: x, cy: y, r: 4, class: "dot" }),
      svg("text", { x: left ? x - 8 : x + 8, y: line, "text-anchor": left ? "end" : "start" }, label));
  });
  return [make("h2", "", "map"), drawing, make("p", "tags", "The two directions in which these texts differ most (principal components).")];
}

function drawMatrix(texts, near, pick) {
  const names = texts.map((text, place) => `${place + 1} ${text}`);
  const rows = names.map((name, row) => {
    const head = make("b", "", name.length > 40 ? `${name.slice(0, 39)}…` : name);
    return [head, ...near[row].map((value, column) => {
      const button = make("button", "", value.toFixed(2)), cell = heat(make("td", "", pick ? button : value.toFixed(2)), value);
      if (pick) button.addEventListener("click", () => pick(row, column));
      cell.title = `${names[row]}\n${names[column]}`;
      return cell;
    })];
  });
  return table("heat", ["", ...texts.map((_, place) => place + 1)], rows);
}

async function tokenNames(ids) {
  if (!ids || !ids.length) return [];
  try {
    return await ask("/decode", { body: { ids: ids.map((id) => [Math.max(0, id)]), skip_special_tokens: false } });
  } catch { return ids.map(String); }
}

async function drawTokens(items, row, column) {
  const [one, other] = [items[row], items[column]];
  const [rows, columns] = await Promise.all([tokenNames(one.multi_token_ids), tokenNames(other.multi_token_ids)]);
  const body = one.multi.map((vector, place) => {
    const values = other.multi.map((candidate) => dot(vector, candidate)), best = values.indexOf(Math.max(...values));
    const cells = values.map((value, number) => heat(make("td", number === best ? "best" : "", value.toFixed(2)), value));
    return [make("b", "", rows[place] ?? place), ...cells];
  });
  at("token-map").replaceChildren(make("h2", "", `MaxSim of text ${row + 1} with text ${column + 1}`),
    table("heat", ["", ...other.multi.map((_, place) => columns[place] ?? place)], body),
    make("p", "tags", "Framed: the best match of each token on the left among the tokens at the top. MaxSim is the sum of these."));
}

async function embedTexts(remember = true) {
  const texts = at("pasted").value.split("\n").map((line) => line.trim()).filter(Boolean).slice(0, MOST_TEXTS);
  at("matrix").replaceChildren(); at("token-map").replaceChildren(); at("map").replaceChildren();
  if (texts.length < 2) { say("texts", texts.length ? "Enter at least two texts, one per line." : ""); return; }
  say("texts", "embedding …");
  try {
    const model = at("texts-model").value, started = performance.now(), query = at("first-is-query").checked;
    const embed = (input, kind) => ask("/embed", { body: { model, input, input_type: kind } });
    const answers = query ? await Promise.all([embed(texts.slice(0, 1), "query"), embed(texts.slice(1), "document")]) : [await embed(texts, "document")];
    const items = answers.flatMap((answer) => answer.data), single = items[0].embedding !== undefined;
    const near = items.map((one) => items.map((other) => (single ? dot(one.embedding, other.embedding) : maxsim(one.multi, other.multi))));
    at("matrix").replaceChildren(make("h2", "", single ? "cosine similarity" : "MaxSim per token of the text on the left"),
      drawMatrix(texts, near, items[0].multi && ((row, column) => drawTokens(items, row, column))));
    if (items[0].multi) await drawTokens(items, 0, 1);
    if (single) at("map").replaceChildren(...drawMap(texts, items.map((item) => item.embedding)));
    const cut = items.filter((item) => item.truncated).length, tokens = items.reduce((sum, item) => sum + item.tokens, 0);
    say("texts", `${texts.length} texts, ${tokens} tokens, ${answers[0].dim} dimensions, ${(performance.now() - started).toFixed(0)} ms${cut ? `; ${cut} truncated` : ""}`);
    if (remember) history.pushState(null, "", address("texts", { texts: texts.join("\n"), model, first: query && "query" }));
  } catch (error) { failed("texts", error); }
}

onShow.texts = () => {
  const able = shown.models.filter((model) => model.outputs.includes("dense") || model.outputs.includes("multi") || !model.outputs.length);
  const given = params(), before = at("texts-model").value;
  at("texts-model").replaceChildren(...able.map((model) => option(model.id)));
  at("texts-model").classList.toggle("hidden", able.length < 2);
  const wanted = given.get("model") || before;
  if (able.some((model) => model.id === wanted)) at("texts-model").value = wanted;
  if (given.get("texts") && given.get("texts") !== at("pasted").value) {
    at("pasted").value = given.get("texts");
    at("first-is-query").checked = given.get("first") === "query";
    embedTexts(false);
  }
};
at("texts-form").addEventListener("submit", (event) => { event.preventDefault(); embedTexts(); });
at("texts-model").addEventListener("change", () => embedTexts());
