// Status: /metrics as rates and curves of the last minutes.
const STATUS_MS = 2000, KEPT = 60;
const samples = [];  // of /metrics, newest last

function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.match(/^(\w+)(?:\{(.*)\})? (\S+)$/);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] || "").matchAll(/(\w+)="([^"]*)"/g)].map((pair) => [pair[1], pair[2]]));
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return found;
}

const total = (metrics, name) => (metrics.get(name) || []).reduce((sum, one) => sum + one.value, 0);

// Latency quantile of the requests between two samples, from the buckets of a histogram.
function quantile(before, after, name, share) {
  const bounds = new Map();
  const add = (metrics, sign) => {
    for (const one of metrics.get(`${name}_bucket`) || []) {
      if (["/metrics", "/info", "/livez", "/readyz", "/"].includes(one.labels.route)) continue;
      const edge = one.labels.le === "+Inf" ? Infinity : Number(one.labels.le);
      bounds.set(edge, (bounds.get(edge) || 0) + sign * one.value);
    }
  };
  add(after, 1); add(before, -1);
  const edges = [...bounds.keys()].sort((one, other) => one - other), all = bounds.get(Infinity) || 0;
  if (!all) return null;
  let low = 0, under = 0;
  for (const edge of edges) {
    const count = bounds.get(edge);
    if (count >= share * all) return edge === Infinity ? low : low + (edge - low) * (share * all - under) / Math.max(count - under, 1);
    low = edge; under = count;
  }
  return low;
}

function curve(values) {
  const known = values.filter((value) => value !== null), most = Math.max(...known, 1e-9);
  const points = values.map((value, place) => `${(100 * place / Math.max(values.length - 1, 1)).toFixed(1)},${(28 - 26 * (value || 0) / most).toFixed(1)}`);
  return svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("polyline", { class: "curve", points: points.join(" "), "vector-effect": "non-scaling-stroke" }));
}

function tile(label, text, values) {
  return make("div", "tile", make("b", "", text), make("span", "", label), ...(values ? [curve(values)] : []));
}

function rates(name) {
  return samples.slice(1).map((sample, place) => (total(sample.metrics, name) - total(samples[place].metrics, name)) / ((sample.time - samples[place].time) / 1000));
}

function drawStatus() {
  const now = samples.at(-1).metrics, tokens = rates("es_tokens_total"), requests = rates("es_requests_total");
  const p99 = samples.slice(1).map((sample, place) => quantile(samples[place].metrics, sample.metrics, "es_request_duration_seconds", 0.99));
  const since = samples[Math.max(0, samples.length - 16)].metrics, name = "es_request_duration_seconds";
  const ms = (share) => { const value = quantile(since, now, name, share); return value === null ? "–" : `${(1000 * value).toFixed(value < 0.1 ? 1 : 0)} ms`; };
  const queued = samples.map((sample) => total(sample.metrics, "es_queue_tokens"));
  const padding = total(now, "es_batch_padding_ratio_count") ? `${(100 * total(now, "es_batch_padding_ratio_sum") / total(now, "es_batch_padding_ratio_count")).toFixed(0)} %` : "–";
  at("tiles").replaceChildren(
    tile("tokens in the queue", whole(queued.at(-1)), queued), tile("tokens per second", whole(tokens.at(-1) || 0), tokens),
    tile("requests per second", (requests.at(-1) || 0).toFixed(1), requests), tile("p50, last 30 s", ms(0.5)),
    tile("p99, last 30 s", ms(0.99), p99), tile("padding in batches", padding),
    tile("rejected since start", whole(total(now, "es_rejected_total"))));
}

async function showModels() {
  const list = (await ask("/v1/models")).data;
  shown.models = list;
  at("models").replaceChildren(make("h2", "", "models"), table("list", ["model", "state", "dimensions", "outputs", "device", "queued tokens"],
    list.map((model) => [make("b", "", model.id), model.error || model.state, model.dim ?? "–", model.outputs.join(", "), model.device, whole(model.pending)])));
}

onShow.status = async () => {
  try {
    while (shown.view === "status") {
      samples.push({ time: performance.now(), metrics: parseMetrics(await ask("/metrics", { text: true })) });
      if (samples.length > KEPT) samples.shift();
      drawStatus();
      await showModels();
      say("status", "");
      await new Promise((resolve) => setTimeout(resolve, STATUS_MS));
    }
  } catch (error) { failed("status", error); }
};
