// The page: one query, its ranked hits, and what is said about them. Plain DOM; all state is in `state`.

const $ = (id) => document.getElementById(id);
const KIND_NAMES = { off: "Off", soft: "Heat", regions: "Regions", both: "Both" };
const PARTS = ["head and shoulders", "upper body", "upper legs", "lower legs"];
const TRIES = 4;
const FILTERED_AFTER_MS = 250;

const state = {
  overview: null,
  query: null, // {id} or {file, url}; beside it facts: {name, camid, time}
  answer: null, // of POST /search
  current: 0, // which card the keys act on
  attention: "off",
  level: 1,
};
const PAST = 50; // queries that Back can reach
const past = new Map(); // key in the browser's history -> query, so that Back works for uploaded images, too
let search = new AbortController();
let filterTimer = 0;
let queryOverlay = "";

// ---------------------------------------------------------------- talking to the service

class Failure extends Error {}

/** Fetches; waits and asks again when the service is busy; throws a Failure with a sentence for people. */
async function ask(path, options = {}) {
  for (let turn = 1; ; turn++) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The service does not answer. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 503 && turn < TRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      if (options.signal?.aborted) throw new DOMException("", "AbortError");
      continue;
    }
    const said = await response.json().catch(() => ({}));
    const reason = said.error || `status ${response.status}`;
    throw new Failure(reason[0].toUpperCase() + reason.slice(1) + ".");
  }
}

const askJson = async (path, options) => (await ask(path, options)).json();

function showError(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Failure)) console.error(error);
  $("error").textContent = error instanceof Failure ? error.message : `Something on this page went wrong: ${error.message}`;
}

function announce(text) {
  $("announce").textContent = text;
}

// ---------------------------------------------------------------- words

const clock = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const thisYear = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", ...clock });
const anyYear = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric", ...clock });
const count = (n, one, many = one + "s") => `${n.toLocaleString()} ${n === 1 ? one : many}`;
function timeText(time) {
  if (time === null) return "time unknown";
  const date = new Date(1000 * time);
  return (date.getFullYear() === new Date().getFullYear() ? thisYear : anyYear).format(date);
}
const cameraText = (camid) => (camid === null ? "camera unknown" : `camera ${camid}`);
const distanceText = (distance) => distance.toFixed(3);

function hitText(hit, rank) {
  const parts = [`Rank ${rank}`, `distance ${distanceText(hit.distance)}`, cameraText(hit.camid), timeText(hit.time)];
  if (hit.beyond) parts.push("beyond the threshold");
  if (hit.verdict) parts.push(`marked ${hit.verdict}`);
  return parts.join(", ");
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// ---------------------------------------------------------------- the query

function setQuery(query, remember = true) {
  $("error").textContent = "";
  if (remember) {
    const key = crypto.getRandomValues(new Uint32Array(2)).join("-");
    past.set(key, query);
    if (past.size > PAST) {
      const [oldest, forgotten] = past.entries().next().value;
      past.delete(oldest);
      if (forgotten?.url) URL.revokeObjectURL(forgotten.url);
    }
    history.pushState({ key }, "", query && query.id !== undefined ? `#id=${query.id}` : location.pathname);
  }
  state.query = query;
  state.answer = null;
  $("pick").classList.toggle("chosen", query !== null);
  $("pick-text").textContent = query ? "Choose another image" : "Choose an image of a person";
  $("query-none").toggleAttribute("hidden", query !== null);
  $("query-facts").hidden = query === null;
  $("others-box").hidden = !(query && query.facts && query.facts.camid !== null);
  if ($("others-box").hidden) $("others").checked = false;
  queryOverlay = "";
  showQueryImage();
  if (query === null) {
    document.title = "Search the gallery · han-tf";
    return browse();
  }
  const facts = query.facts;
  $("query-facts").textContent =
    query.id === undefined
      ? query.file.name
      : [facts.name || `entry ${query.id}`, cameraText(facts.camid), timeText(facts.time)].join(" · ");
  return find();
}

const queryUrl = (query) => (query.id === undefined ? query.url : `/gallery/${query.id}/image`);

async function showQueryImage() {
  const image = $("query-image");
  const query = state.query;
  image.hidden = query === null;
  if (query === null) return;
  image.alt = query.id === undefined ? `Query: ${query.file.name}` : `Query: ${query.facts.name || `entry ${query.id}`}`;
  let url = queryUrl(query);
  if (state.attention !== "off") {
    if (query.id !== undefined) url = overlayUrl(query.id);
    else url = (await uploadedOverlay(query)) || url;
  }
  if (query === state.query) image.src = url;
}

/** Returns the address of the overlay of an uploaded query, which only a POST can ask for. */
async function uploadedOverlay(query) {
  const wanted = `${state.attention} ${state.level}`;
  try {
    const body = new FormData();
    body.set("image", query.file, "query");
    const response = await ask(`/attention?kind=${state.attention}&level=${state.level}`, { method: "POST", body });
    const blob = await response.blob();
    if (wanted !== `${state.attention} ${state.level}` || query !== state.query) return "";
    if (queryOverlay) URL.revokeObjectURL(queryOverlay);
    queryOverlay = URL.createObjectURL(blob);
    return queryOverlay;
  } catch (error) {
    showError(error);
    return "";
  }
}

function useFile(file) {
  const most = state.overview ? state.overview.upload_bytes : Infinity;
  if (file.type && !file.type.startsWith("image/")) {
    showError(new Failure(`${file.name || "This"} is not an image. JPEG, PNG, WebP and BMP can be searched for.`));
  } else if (file.size > most) {
    const [size, limit] = [file.size, most].map((bytes) => (bytes / 2 ** 20).toFixed(1));
    showError(new Failure(`${file.name} has ${size} MiB; this service takes at most ${limit}.`));
  } else {
    setQuery({ file, url: URL.createObjectURL(file) });
  }
}

function useEntry(entry) {
  setQuery({ id: entry.id, facts: entry });
  window.scrollTo({ top: 0 });
}

async function useExample(example) {
  try {
    const blob = await (await ask(`/examples/${example.number}/image`)).blob();
    useFile(new File([blob], example.title, { type: blob.type }));
  } catch (error) {
    showError(error);
  }
}

// ---------------------------------------------------------------- filters

const toSeconds = (input) => (input.value ? new Date(input.value).getTime() / 1000 : null);
const chosenCameras = () => [...$("cameras").querySelectorAll("input:checked")].map((box) => Number(box.value));

function showCameras(cameras) {
  const chosen = new Set(chosenCameras());
  $("cameras-box").hidden = cameras.length === 0;
  $("cameras").replaceChildren(
    ...cameras.map((camera) => {
      const label = element("label");
      const box = element("input");
      Object.assign(box, { type: "checkbox", value: camera, checked: chosen.has(camera), ariaLabel: `camera ${camera}` });
      label.append(box, element("span", String(camera)));
      return label;
    }),
  );
}

function describeFilters() {
  const active = [chosenCameras().length || $("others").checked, $("after").value || $("before").value].filter(Boolean);
  $("filters-on").textContent = active.length ? `${active.length} on` : "";
}

function filtersChanged() {
  describeFilters();
  clearTimeout(filterTimer);
  if (state.query) filterTimer = setTimeout(find, FILTERED_AFTER_MS);
}

function searchForm(query) {
  const form = new FormData();
  if (query.id !== undefined) form.set("id", query.id);
  else form.set("image", query.file, "query");
  form.set("k", $("k").value);
  for (const camera of chosenCameras()) form.append("cameras", camera);
  if ($("others").checked) form.append("not_cameras", query.facts.camid);
  for (const name of ["after", "before"]) {
    const seconds = toSeconds($(name));
    if (seconds !== null) form.set(name, seconds);
  }
  if ($("threshold").value) form.set("threshold", $("threshold").value);
  if ($("rerank").checked) form.set("rerank", "true");
  return form;
}

// ---------------------------------------------------------------- searching and showing

async function find() {
  const query = state.query;
  search.abort();
  search = new AbortController();
  $("error").textContent = "";
  if (!$("filters").checkValidity()) {
    const wrong = $("filters").querySelector(":invalid");
    showError(new Failure(`${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}`));
    return;
  }
  $("found").setAttribute("aria-busy", "true");
  try {
    const answer = await askJson("/search", { method: "POST", body: searchForm(query), signal: search.signal });
    state.answer = answer;
    state.current = 0;
    document.title = "Results · han-tf";
    showAnswer();
    announce(`${$("verdict").textContent}. ${count(answer.hits.length, "result")}.`);
  } catch (error) {
    if (error.name === "AbortError") return;
    showError(error);
    if (!state.answer) {
      $("found").replaceChildren();
      $("verdict").hidden = true;
    }
  }
  $("found").setAttribute("aria-busy", "false");
}

function showAnswer() {
  const { hits, known, threshold, reranked } = state.answer;
  const near = hits.filter((hit) => !hit.beyond);
  const far = hits.filter((hit) => hit.beyond);
  const verdict = $("verdict");
  verdict.hidden = false;
  verdict.className = known === null || !hits.length ? "" : known ? "known" : "unknown";
  $("results-title").textContent = "Results";
  const found = $("found");
  found.className = "";
  found.replaceChildren();
  const filtered = chosenCameras().length || $("others").checked || $("after").value || $("before").value;
  if (!hits.length) {
    verdict.textContent = "Nothing found";
    found.append(
      filtered
        ? nothing("No image passes the filters", "Clear them, or choose other cameras or times.")
        : nothing("The gallery holds no other image", "Add some with python -m han_tf.index or POST /gallery."),
    );
    return;
  }
  const smallest = Math.min(...hits.map((hit) => hit.distance));
  if (known === null) verdict.textContent = `Nearest at ${distanceText(smallest)}; no threshold is set`;
  else if (known) verdict.textContent = `${near.length} of ${hits.length} within the threshold ${distanceText(threshold)}`;
  else {
    // Of a query that is in the gallery itself, or with filters, no more can be said than that nobody else was found.
    const who = state.query.id !== undefined || filtered ? "Nobody else found" : "Not in the gallery";
    verdict.textContent = `${who}: nearest at ${distanceText(smallest)}, threshold ${distanceText(threshold)}`;
  }
  const order = reranked ? ", re-ranked" : "";
  if (near.length) found.append(element("h3", known === null ? `Nearest first${order}` : `Within the threshold${order}`), tiles(near));
  if (far.length) found.append(element("h3", `Beyond the threshold: shown, not claimed${order}`, "beyond"), tiles(far));
  setCurrent(0);
  // Cameras of images that were added meanwhile come into view with them.
  const met = new Set(state.overview.cameras);
  const more = hits.map((hit) => hit.camid).filter((camid) => camid !== null && !met.has(camid));
  if (more.length) {
    state.overview.cameras = [...new Set([...state.overview.cameras, ...more])].sort((a, b) => a - b);
    showCameras(state.overview.cameras);
  }
}

function nothing(title, text) {
  const box = element("div", undefined, "nothing");
  box.append(element("strong", title), element("span", text, "faint"));
  return box;
}

function tiles(entries) {
  const list = element("ol");
  list.append(...entries.map(tile));
  return list;
}

function tile(entry) {
  const item = $("tile").content.firstElementChild.cloneNode(true);
  const card = item.querySelector(".card");
  const image = item.querySelector("img");
  const isHit = "distance" in entry;
  const rank = isHit ? state.answer.hits.indexOf(entry) + 1 : 0;
  card.entry = entry;
  card.classList.toggle("far", Boolean(entry.beyond));
  image.addEventListener("error", () => {
    image.classList.add("gone");
    image.parentElement.classList.add("empty");
  });
  image.addEventListener("load", () => {
    image.classList.remove("gone");
    image.parentElement.classList.remove("empty");
  });
  const set = (name, text) => (item.querySelector(`.${name} dd`).textContent = text);
  set("camera", cameraText(entry.camid));
  set("time", timeText(entry.time));
  set("name", entry.name || `entry ${entry.id}`);
  item.querySelector(".name").title = entry.name;
  if (isHit) set("distance", distanceText(entry.distance));
  item.querySelector(".rank").textContent = isHit ? rank : "";
  item.querySelector(".rank").hidden = !isHit;
  item.querySelector(".yes").addEventListener("click", () => mark(card, "right"));
  item.querySelector(".no").addEventListener("click", () => mark(card, "wrong"));
  item.querySelector(".again").addEventListener("click", () => activate(card));
  image.addEventListener("click", () => activate(card));
  card.addEventListener("focusin", () => setCurrent(cards().indexOf(card)));
  showMark(card);
  showTileImage(card);
  return item;
}

function showTileImage(card) {
  const image = card.querySelector("img");
  const { entry } = card;
  image.src = entry.example ? `/examples/${entry.example.number}/image` : state.attention === "off" ? `/gallery/${entry.id}/image` : overlayUrl(entry.id);
}

function showMark(card) {
  const { entry } = card;
  const isHit = "distance" in entry;
  card.classList.toggle("right", entry.verdict === "right");
  card.classList.toggle("wrong", entry.verdict === "wrong");
  card.querySelector(".yes").setAttribute("aria-pressed", entry.verdict === "right");
  card.querySelector(".no").setAttribute("aria-pressed", entry.verdict === "wrong");
  card.querySelector(".mark").textContent = entry.verdict || "";
  const rank = isHit ? state.answer.hits.indexOf(entry) + 1 : 0;
  const text = entry.example ? entry.example.title : [entry.name || `entry ${entry.id}`, cameraText(entry.camid), timeText(entry.time)].join(", ");
  card.ariaLabel = isHit ? hitText(entry, rank) : text;
}

function activate(card) {
  if (card.entry.example) useExample(card.entry.example);
  else useEntry(card.entry);
}

/** Before a search: queries to try, where there are any, and some of the gallery. */
async function browse() {
  const found = $("found");
  $("verdict").hidden = true;
  found.className = "browse";
  try {
    const [examples, { entries }] = await Promise.all([askJson("/examples"), askJson("/gallery?limit=60")]);
    if (state.query) return;
    found.replaceChildren();
    $("results-title").textContent = "Where else was this person?";
    if (examples.length) {
      const shown = examples.map((example) => ({ example, id: -1, name: example.title, camid: null, time: null }));
      const list = tiles(shown);
      list.querySelectorAll(".camera, .time").forEach((part) => part.remove());
      found.append(element("h3", "Queries to try"), list);
    }
    if (entries.length) found.append(element("h3", `${examples.length ? "Or search" : "Search"} with an image of the gallery`), tiles(entries));
    else found.append(nothing("The gallery is empty", "Add images with python -m han_tf.index or POST /gallery."));
    setCurrent(0);
  } catch (error) {
    showError(error);
  }
}

// ---------------------------------------------------------------- verdicts

async function mark(card, verdict) {
  const { entry } = card;
  if (!("distance" in entry)) return;
  const before = entry.verdict;
  const said = before === verdict ? null : verdict;
  entry.verdict = said; // shown at once, taken back if it could not be kept
  showMark(card);
  try {
    const body = JSON.stringify({ query: state.answer.query, hit: entry.id, verdict: said, distance: entry.distance });
    await ask("/feedback", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    announce(said ? `Marked ${said}` : "Mark taken back");
    state.overview.verdicts += (said !== null) - (before !== null);
    $("verdicts").textContent = state.overview.verdicts.toLocaleString();
  } catch (error) {
    entry.verdict = before;
    showMark(card);
    showError(error);
  }
}

// ---------------------------------------------------------------- attention

const overlayUrl = (id) => `/gallery/${id}/attention?kind=${state.attention}&level=${state.level}`;

function setAttention(kind, level) {
  state.attention = kind;
  state.level = level;
  const radio = $("kinds").querySelector(`input[value="${kind}"]`);
  if (radio) radio.checked = true;
  $("level").value = level;
  $("level").disabled = kind === "off";
  const legend = $("legend");
  legend.hidden = kind === "off";
  legend.replaceChildren(`Level ${level} of the network.`);
  if (kind !== "regions") legend.append(" Heat, least to most attended: ", element("i", undefined, "heat"));
  if (kind !== "soft") {
    const parts = PARTS.map((part, n) => {
      const shown = element("span", part);
      shown.prepend(element("i", undefined, `part-${n}`));
      return shown;
    });
    legend.append(" Regions: ", ...parts.flatMap((part) => [part, " "]));
  }
  cards().forEach(showTileImage);
  showQueryImage();
}

function showAttentionChoice({ attention, levels }) {
  $("attention").hidden = attention.length === 0;
  $("kinds").replaceChildren(
    ...["off", ...attention].map((kind) => {
      const label = element("label");
      const radio = element("input");
      Object.assign(radio, { type: "radio", name: "kind", value: kind, checked: kind === "off" });
      radio.addEventListener("change", () => setAttention(kind, state.level));
      label.append(radio, element("span", KIND_NAMES[kind]));
      return label;
    }),
  );
  $("level").replaceChildren(...Array.from({ length: levels }, (_, n) => new Option(n + 1, n + 1)));
  state.level = levels; // the last one knows most of what it looks at
  $("level").value = levels;
  $("level").disabled = true;
}

// ---------------------------------------------------------------- keys

const cards = () => [...$("found").querySelectorAll(".card")];

/** Makes one card the one the keys act on and Tab reaches. */
function setCurrent(index) {
  state.current = index;
  cards().forEach((card, n) => {
    card.tabIndex = n === index ? 0 : -1;
    for (const button of card.querySelectorAll("button")) button.tabIndex = n === index ? 0 : -1;
  });
}

function go(index) {
  const all = cards();
  if (!all.length) return;
  const target = all[Math.max(0, Math.min(all.length - 1, index))];
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "nearest" });
}

/** Moves from the current card to the nearest one in the row above (-1) or below (1). */
function goRow(direction) {
  const all = cards();
  const here = all[state.current]?.getBoundingClientRect();
  if (!here) return;
  const rows = all
    .map((card, index) => ({ index, box: card.getBoundingClientRect() }))
    .filter(({ box }) => direction * (box.top - here.top) > 4)
    .sort((a, b) => direction * (a.box.top - b.box.top) || Math.abs(a.box.left - here.left) - Math.abs(b.box.left - here.left));
  if (rows.length) go(rows[0].index);
}

const isCard = (target) => target.classList?.contains("card");
const started = () => $("found").contains(document.activeElement);
const step = (by) => go(started() ? state.current + by : state.current);
const current = () => cards()[state.current];

const KEYS = {
  "/": () => $("pick").focus(),
  "?": () => $("keys").showModal(),
  j: () => step(1),
  k: () => step(-1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  ArrowDown: () => (started() ? goRow(1) : false),
  ArrowUp: () => (started() ? goRow(-1) : false),
  Home: () => (started() ? go(0) : false),
  End: () => (started() ? go(Infinity) : false),
  y: () => state.answer && current() && mark(current(), "right"),
  n: () => state.answer && current() && mark(current(), "wrong"),
  a: () => {
    const kinds = ["off", ...state.overview.attention];
    if (kinds.length > 1) setAttention(kinds[(kinds.indexOf(state.attention) + 1) % kinds.length], state.level);
  },
  l: () => state.attention !== "off" && setAttention(state.attention, (state.level % state.overview.levels) + 1),
  f: () => {
    $("filters-box").open = true;
    $("filters").querySelector("input:not([hidden])").focus();
  },
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const { target } = event;
  // Letters typed into a field are text, and arrows there move within it.
  if (target.matches("input:not([type=checkbox], [type=radio]), select, textarea")) return;
  if (target.matches("[type=radio]") && event.key.startsWith("Arrow")) return;
  if (event.key === "Enter" && isCard(target)) {
    event.preventDefault();
    activate(target);
    return;
  }
  const act = KEYS[event.key];
  if (!act || !state.overview) return;
  if (act() !== false) event.preventDefault();
});

// ---------------------------------------------------------------- wiring

$("pick").addEventListener("click", () => $("file").click());
for (const [event, missing] of [["error", true], ["load", false]])
  $("query-image").addEventListener(event, ({ target }) => {
    target.classList.toggle("gone", missing);
    target.parentElement.classList.toggle("empty", missing);
  });
$("file").addEventListener("change", () => {
  if ($("file").files.length) useFile($("file").files[0]);
  $("file").value = ""; // the same file can be chosen again
});
$("help").addEventListener("click", () => $("keys").showModal());
$("filters").addEventListener("input", filtersChanged);
$("filters").addEventListener("reset", () => setTimeout(filtersChanged));
$("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.query) find();
});
$("level").addEventListener("change", () => setAttention(state.attention, Number($("level").value)));
$("attention").addEventListener("submit", (event) => event.preventDefault());

addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) useFile(file);
});
let dragged = 0;
addEventListener("dragenter", (event) => {
  if (event.dataTransfer.types.includes("Files")) $("drop").hidden = ++dragged === 0;
});
addEventListener("dragleave", () => {
  dragged = Math.max(0, dragged - 1);
  if (!dragged) $("drop").hidden = true;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragged = 0;
  $("drop").hidden = true;
  if (event.dataTransfer.files.length) useFile(event.dataTransfer.files[0]);
});
addEventListener("popstate", (event) => {
  const key = event.state?.key;
  if (past.has(key)) setQuery(past.get(key), false);
  else openAddress();
});

/** Begins with the entry that the address names, or with a look at the gallery. */
async function openAddress() {
  const id = new URLSearchParams(location.hash.slice(1)).get("id");
  if (id === null || !/^\d+$/.test(id)) return setQuery(null, false);
  try {
    const facts = await askJson(`/gallery/${id}`);
    await setQuery({ id: facts.id, facts }, false);
  } catch (error) {
    await setQuery(null, false);
    showError(error);
  }
}

async function begin() {
  try {
    const overview = await askJson("/overview");
    state.overview = overview;
    $("facts").textContent = `${count(overview.entries, "image")}${overview.cameras.length ? `, ${count(overview.cameras.length, "camera")}` : ""}`;
    $("verdicts").textContent = overview.verdicts.toLocaleString();
    $("k").max = overview.max_k;
    $("k").value = $("k").defaultValue = Math.min($("k").value, overview.max_k);
    $("threshold").placeholder = overview.threshold === null ? "none" : distanceText(overview.threshold);
    if (matchMedia("(max-width: 820px)").matches) $("filters-box").open = false;
    showCameras(overview.cameras);
    showAttentionChoice(overview);
    await openAddress();
  } catch (error) {
    showError(error);
  }
}

begin();
