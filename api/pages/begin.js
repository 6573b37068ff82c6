// Start: ask the server what it offers, then open the view in the address.
async function about() {
  const info = shown.info = await ask("/info");
  if (info.status === "loading") { say("search", "The model is loading …"); setTimeout(begin, 1000); return false; }
  shown.models = await ask("/v1/models").then((answer) => answer.data).catch(() => []);
  const open = info.collections.filter((item) => item.status !== "failed");
  at("collection").replaceChildren(...open.map((item) => option(item.name, `${item.name} (${whole(item.documents ?? 0)})`)));
  const names = open.map((item) => item.name);
  if (names.includes(info.default_collection)) at("collection").value = info.default_collection;
  at("collection").classList.toggle("hidden", names.length < 2);
  at("about").textContent = `embedserve ${info.version} · model ${info.model}, ${info.dim ?? "?"} dimensions.`;
  at("chips").classList.toggle("hidden", names.length > 0 && !names.includes("python-docs"));
  const broken = info.collections.find((item) => item.status === "failed");
  if (!names.length) say("search", broken ? broken.error : "There is no collection yet. Build one: embedserve index build python-docs", true);
  return true;
}

function viewOfAddress() {
  const view = location.hash.slice(1);
  return VIEWS.includes(view) ? view : "search";
}

async function fromAddress() {
  const view = viewOfAddress();
  show(view);
  if (view === "search") await searchFromAddress();
}

async function begin() {
  say("search", "");
  show(viewOfAddress(), false);
  try { if (await about()) await fromAddress(); } catch (error) { failed("search", error); }
}

for (const view of VIEWS) {
  at(`tab-${view}`).addEventListener("click", () => { if (location.hash !== `#${view}`) history.pushState(null, "", address(view, view === "compare" ? { q: at("query").value } : {})); show(view); });
}
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value.trim());
  at("key-form").classList.add("hidden");
  begin();
});
window.addEventListener("popstate", fromAddress);
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(document.activeElement.tagName), here = document.activeElement;
  const items = [...at("hits").querySelectorAll("summary")], place = items.indexOf(here), tab = VIEWS.findIndex((view) => here.id === `tab-${view}`);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (tab >= 0 && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const next = VIEWS[(tab + (event.key === "ArrowRight" ? 1 : VIEWS.length - 1)) % VIEWS.length];
    at(`tab-${next}`).focus(); at(`tab-${next}`).click();
  } else if (!typing && event.key >= "1" && event.key <= String(VIEWS.length)) at(`tab-${VIEWS[event.key - 1]}`).click();
  else if (!typing && event.key === "/") {
    event.preventDefault();
    const field = { compare: "compare-query", texts: "pasted" }[shown.view] || "query";
    if (field === "query") show("search");
    at(field).focus(); at(field).select();
  } else if (event.key === "Escape" && place >= 0) at("query").focus();
  else if (["ArrowDown", "ArrowUp"].includes(event.key) && items.length && (place >= 0 || here === at("query"))) {
    event.preventDefault();
    const next = place + (event.key === "ArrowDown" ? 1 : -1);
    if (next < 0) at("query").focus(); else items[Math.min(next, items.length - 1)].focus();
  }
});
begin();
