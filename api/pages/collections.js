// Collections and jobs: all collections, and the progress of index builds.
const LOOK_MS = 5000;  // interval of polling for new jobs
const RETRY_MS = 1000;  // after a lost connection
const MOST_FOLLOWED = 3;  // concurrent streams: a browser opens six connections to a server
let jobs = [], wake = () => {};

async function showCollections() {
  const [info, aliases] = await Promise.all([ask("/info"), ask("/v1/aliases").catch(() => ({ aliases: {} }))]);
  shown.info = info;
  const named = (name) => Object.entries(aliases.aliases).filter(([, target]) => target === name).map(([alias]) => alias).join(", ");
  const rows = await Promise.all(info.collections.map(async (item) => {
    const fields = await fieldsOf(item.name).catch(() => []);
    const count = make("td", "number", item.documents === null ? "–" : whole(item.documents));
    return [make("b", "", item.name), count, fields.join(", "), item.error || item.status, named(item.name)];
  }));
  at("collections-list").replaceChildren(make("h2", "", "collections"), rows.length
    ? table("list", ["name", "documents", "fields", "state", "aliases"], rows)
    : make("p", "tags", "No collections yet. Create one: embedserve index build python-docs"));
}

function jobRow(job) {
  const progress = job.progress || {}, bar = make("progress"), words = [];
  if (progress.total) { bar.max = progress.total; bar.value = progress.done || 0; } else if (job.state !== "running") { bar.max = 1; bar.value = job.state === "succeeded" ? 1 : 0; }
  if (progress.done !== undefined) words.push(`${whole(progress.done)}${progress.total ? ` of ${whole(progress.total)}` : ""}`);
  if (progress.rate) words.push(`${whole(progress.rate)}/s`);
  if (progress.eta_s) words.push(`${whole(progress.eta_s)} s left`);
  return [make("b", "", job.id), job.collection || "", job.state, make("td", "", bar, " ", words.join(" · ")), job.error ? (job.error.message || job.error) : ""];
}

const pause = (ms) => new Promise((resolve) => { wake = resolve; setTimeout(resolve, ms); });
const unended = (job) => job.state === "running" || job.state === "queued";

function showJobs() {
  at("jobs").replaceChildren(...(jobs.length
    ? [make("h2", "", "jobs"), table("list", ["job", "collection", "state", "progress", "problem"], jobs.map(jobRow))] : []));
}

// Show a job's progress until it ends; throw if the stream breaks before.
async function followJob(id, signal) {
  for await (const event of events(`/v1/jobs/${id}/events`, signal)) {
    jobs = jobs.map((job) => (job.id === id ? event.data : job));
    showJobs();
    if (event.name === "end") return;
  }
  throw new Error("the stream ended before the job");
}

onShow.collections = async () => {
  const signal = leaving.signal, followed = new Set();
  let known = false;  // whether the collections shown are current
  while (!signal.aborted) {
    let wait = LOOK_MS;
    try {
      if (!known) { known = true; details.clear(); await showCollections(); }
      jobs = (await ask("/v1/jobs", { signal })).jobs;
      showJobs();
      for (const { id } of jobs.filter(unended).reverse().slice(0, MOST_FOLLOWED)) {
        if (followed.has(id)) continue;
        followed.add(id);
        followJob(id, signal)
          .then(() => { known = false; wake(); }, (error) => { broke(error); setTimeout(() => wake(), RETRY_MS); })
          .finally(() => followed.delete(id));
      }
      say("collections", "");
    } catch (error) {
      if (error.status === 401 || error.status === 403) { failed("collections", error); return; }
      known = false;
      broke(error);
      wait = RETRY_MS;
    }
    await pause(wait);
  }
};

function broke(error) {
  if (error.name === "AbortError") return;
  const why = error instanceof RejectedError ? error.message : "the connection to the server was lost, this view may be outdated";
  say("collections", `${why}; reconnecting …`, true);
}
