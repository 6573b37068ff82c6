// Collections and jobs: what there is, and how far builds are.
const EVERY_MS = 1500;

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
    : make("p", "tags", "There is none yet. embedserve index build python-docs makes one."));
}

function jobRow(job) {
  const progress = job.progress || {}, bar = make("progress"), words = [];
  if (progress.total) { bar.max = progress.total; bar.value = progress.done || 0; } else if (job.state !== "running") { bar.max = 1; bar.value = job.state === "succeeded" ? 1 : 0; }
  if (progress.done !== undefined) words.push(`${whole(progress.done)}${progress.total ? ` of ${whole(progress.total)}` : ""}`);
  if (progress.rate) words.push(`${whole(progress.rate)}/s`);
  if (progress.eta_s) words.push(`${whole(progress.eta_s)} s left`);
  return [make("b", "", job.id), job.collection || "", job.state, make("td", "", bar, " ", words.join(" · ")), job.error ? (job.error.message || job.error) : ""];
}

async function showJobs() {
  const answer = await ask("/v1/jobs").catch((error) => { if (error instanceof Refused) return { jobs: [] }; throw error; });
  at("jobs").replaceChildren(...(answer.jobs.length
    ? [make("h2", "", "jobs"), table("list", ["job", "collection", "state", "progress", "problem"], answer.jobs.map(jobRow))] : []));
  return answer.jobs.some((job) => job.state === "running" || job.state === "queued");
}

onShow.collections = async () => {
  try {
    await showCollections();
    let before = false;
    while (shown.view === "collections") {
      const busy = await showJobs();
      if (before && !busy) { details.clear(); await showCollections(); }  // a job has ended
      before = busy;
      say("collections", "");
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  } catch (error) { failed("collections", error); }
};
