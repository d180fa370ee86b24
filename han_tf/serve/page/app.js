// The search page: a query, its ranked hits, and verdicts on them. Plain DOM; the state is in `state`.

const $ = (id) => document.getElementById(id);
const KIND_NAMES = { off: "Off", soft: "Heat", regions: "Regions", both: "Both" };
const PARTS = ["head and shoulders", "upper body", "upper legs", "lower legs"];
const TRIES = 4; // requests before a busy service is given up
const FILTERED_AFTER_MS = 250; // between the last change of a filter and the search

const state = {
  overview: { cameras: [], attention: [], levels: 0, verdicts: 0, max_k: 200, upload_bytes: Infinity, threshold: null }, // GET /overview
  loaded: false, // whether the overview is that of the service
  query: null, // {id, facts: an entry} or {file, url}
  answer: null, // POST /search
  current: 0, // index of the card that the keys act on
  attention: "off",
  level: 1,
};
const PAST = 50; // queries that Back can return to
const past = new Map(); // key in the browser's history -> query, so that Back also works for uploaded images
let view = 0; // increases when something else is to be shown; late answers for an earlier view are dropped
let search = new AbortController();
let filterTimer = 0;
let queryOverlay = "";

// ---------------------------------------------------------------- talking to the service

class Failure extends Error {}

/** Returns a response; retries while the service is busy; throws a Failure with a sentence for the user. */
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
    // Without Retry-After, an image may have been added although the answer came too late.
    if (response.status === 503 && turn < TRIES && response.headers.has("Retry-After")) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      if (options.signal?.aborted) throw new DOMException("", "AbortError");
      continue;
    }
    if (response.status === 401 && (await signIn())) continue;
    const said = await response.json().catch(() => ({}));
    const reason = said.error || `status ${response.status}`;
    throw new Failure(reason[0].toUpperCase() + reason.slice(1) + ".");
  }
}

/** Asks the user for the token, once for all requests that need it; resolves to true when the service accepts it. */
let signingIn = null;
function signIn() {
  signingIn ||= new Promise((done) => {
    const dialog = $("sign-in");
    const given = async (event) => {
      event.preventDefault();
      const body = JSON.stringify({ token: $("token").value });
      const answer = await fetch("/login", { method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => null);
      if (!answer?.ok) {
        $("sign-in-error").textContent = answer ? "This is not the service's token." : "The service does not answer.";
        return;
      }
      dialog.querySelector("form").removeEventListener("submit", given);
      $("token").value = $("sign-in-error").textContent = "";
      dialog.close();
      signingIn = null;
      done(true);
    };
    dialog.querySelector("form").addEventListener("submit", given);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.showModal();
  });
  return signingIn;
}

const STRING_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g;
/** Reads JSON; integers whose digits a number does not hold, as of a person beyond 2^53, become strings. */
const readJson = (text) =>
  JSON.parse(text.replace(STRING_OR_NUMBER, (part) => (/^-?\d+$/.test(part) && !Number.isSafeInteger(Number(part)) ? `"${part}"` : part)));
const askJson = async (path, options) => readJson(await (await ask(path, options)).text());

const errorText = (error) => (error instanceof Failure ? error.message : `Something on this page went wrong: ${error.message}`);

function showError(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Failure)) console.error(error);
  $("error").textContent = errorText(error);
}

function announce(text) {
  $("announce").textContent = text;
}

// ---------------------------------------------------------------- words

const count = (n, one, many = one + "s") => `${n.toLocaleString()} ${n === 1 ? one : many}`;
/** Returns a time in UTC, in the format of the command line. */
function timeText(time) {
  if (time === null) return "time unknown";
  const date = new Date(1000 * time);
  return Number.isNaN(date.getTime()) ? `${time} s` : `${date.toISOString().replace("T", " ").replace(/\.\d+Z$/, "")} UTC`;
}
const personText = (pid) => (pid === null ? "person unknown" : `person ${pid}`);
const cameraText = (camid) => (camid === null ? "camera unknown" : `camera ${camid}`);
const distanceText = (distance) => distance.toFixed(3);
const nameOf = (entry) => entry.name || `entry ${entry.id}`;
const labelsOf = (entry) => [personText(entry.pid), cameraText(entry.camid), timeText(entry.time)];

function hitText(hit, rank) {
  const parts = [`Rank ${rank}`, `distance ${distanceText(hit.distance)}`, ...labelsOf(hit)];
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
  view += 1;
  search.abort();
  clearTimeout(filterTimer);
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
    query.id === undefined ? query.file.name : [nameOf(facts), cameraText(facts.camid), timeText(facts.time)].join(" · ");
  return find();
}

async function showQueryImage() {
  const image = $("query-image");
  const query = state.query;
  image.hidden = query === null;
  if (query === null) return;
  image.alt = `Query: ${query.id === undefined ? query.file.name : nameOf(query.facts)}`;
  let url = query.id === undefined ? query.url : imageUrl(query.id);
  if (query.id === undefined && state.attention !== "off") url = (await uploadedOverlay(query)) || url;
  if (query === state.query) image.src = url;
}

/** Returns a URL of the overlay of an uploaded query, which is requested with POST; "" if it is no longer wanted. */
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
  const most = state.overview.upload_bytes;
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
  const here = ++view;
  try {
    const blob = await (await ask(`/examples/${example.number}/image`)).blob();
    if (here === view) useFile(new File([blob], example.title, { type: blob.type }));
  } catch (error) {
    if (here === view) showError(error);
  }
}

// ---------------------------------------------------------------- filters

const toSeconds = (input) => (input.value ? new Date(`${input.value}Z`).getTime() / 1000 : null);
const chosenCameras = () => [...$("cameras").querySelectorAll("input:checked")].map((box) => box.value);
/** Returns how many kinds of filters are set, cameras and times: 0 to 2. */
const activeFilters = () =>
  [chosenCameras().length || $("others").checked, $("after").value || $("before").value].filter(Boolean).length;

function showCameras(cameras) {
  const chosen = new Set(chosenCameras());
  $("cameras-box").hidden = cameras.length === 0;
  $("cameras").replaceChildren(
    ...cameras.map((camera) => {
      const label = element("label");
      const box = element("input");
      Object.assign(box, { type: "checkbox", value: camera, checked: chosen.has(String(camera)), ariaLabel: `camera ${camera}` });
      label.append(box, element("span", String(camera)));
      return label;
    }),
  );
}

function describeFilters() {
  $("filters-on").textContent = activeFilters() ? `${activeFilters()} on` : "";
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
  const { signal } = search;
  $("error").textContent = "";
  if (!$("filters").checkValidity()) {
    $("found").setAttribute("aria-busy", "false");
    const wrong = $("filters").querySelector(":invalid");
    return noAnswer(new Failure(`${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}`));
  }
  $("found").setAttribute("aria-busy", "true");
  try {
    if (!state.loaded) learn().catch(() => {}); // a search works without the overview
    const answer = await askJson("/search", { method: "POST", body: searchForm(query), signal });
    if (signal.aborted) return;
    state.answer = answer;
    state.current = 0;
    document.title = "Results · han-tf";
    showAnswer();
    announce(`${$("verdict").textContent}. ${count(answer.hits.length, "result")}.`);
  } catch (error) {
    if (signal.aborted) return;
    noAnswer(error);
  }
  $("found").setAttribute("aria-busy", "false");
}

/** Shows why a search failed, and removes the results of another query. */
function noAnswer(error) {
  showError(error);
  if (!state.answer) clear();
}

function clear() {
  const found = $("found");
  const focused = found.contains(document.activeElement);
  found.replaceChildren();
  $("verdict").hidden = true;
  if (focused) $("results").focus({ preventScroll: true });
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
  const focused = found.contains(document.activeElement);
  found.className = "";
  found.replaceChildren();
  if (!hits.length) {
    verdict.textContent = "Nothing found";
    found.append(
      activeFilters()
        ? nothing("No image passes the filters", "Clear them, or choose other cameras or times.")
        : nothing("The gallery holds no other image", "Add some, here or with python -m han_tf.index."),
    );
    if (focused) $("results").focus({ preventScroll: true });
    return;
  }
  const smallest = Math.min(...hits.map((hit) => hit.distance));
  if (known === null) verdict.textContent = `Nearest at ${distanceText(smallest)}; no threshold is set`;
  else if (known) verdict.textContent = `${near.length} of ${hits.length} within the threshold ${distanceText(threshold)}`;
  else {
    // The person may be in the gallery: as the query itself, or in entries that the filters exclude.
    const who = state.query.id !== undefined || activeFilters() ? "Nobody else found" : "Not in the gallery";
    verdict.textContent = `${who}: nearest at ${distanceText(smallest)}, threshold ${distanceText(threshold)}`;
  }
  const order = reranked ? ", re-ranked" : "";
  if (near.length) found.append(element("h3", known === null ? `Nearest first${order}` : `Within the threshold${order}`), tiles(near));
  if (far.length) found.append(element("h3", `Beyond the threshold: shown, not claimed${order}`, "beyond"), tiles(far));
  setCurrent(0);
  if (focused) cards()[0].focus({ preventScroll: true });
  // Cameras of images that were added since the overview was loaded.
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
  card.query = isHit ? state.answer.query : null; // verdicts belong to this query, even if another search has begun
  card.rank = rank;
  card.classList.toggle("far", Boolean(entry.beyond));
  noteMissing(image);
  showLabels(card);
  setFact(card, "name", nameOf(entry));
  item.querySelector(".name").title = entry.name;
  if (isHit) setFact(card, "distance", distanceText(entry.distance));
  item.querySelector(".rank").textContent = isHit ? rank : "";
  item.querySelector(".rank").hidden = !isHit;
  item.querySelector(".yes").addEventListener("click", () => mark(card, "right"));
  item.querySelector(".no").addEventListener("click", () => mark(card, "wrong"));
  item.querySelector(".again").addEventListener("click", () => activate(card));
  if (entry.example) item.querySelector(".more").remove();
  else item.querySelector(".more").addEventListener("click", () => showEntry(card));
  image.addEventListener("click", () => activate(card));
  card.addEventListener("focusin", () => setCurrent(cards().indexOf(card)));
  showMark(card);
  showTileImage(card);
  return item;
}

/** Marks an image that cannot be loaded, so that the page shows "no image" in its place. */
function noteMissing(image) {
  for (const [event, missing] of [["error", true], ["load", false]])
    image.addEventListener(event, () => {
      image.classList.toggle("gone", missing);
      image.parentElement.classList.toggle("empty", missing);
    });
}

function setFact(card, name, text) {
  card.querySelector(`.${name} dd`).textContent = text;
}

function showLabels(card) {
  const [person, camera, time] = labelsOf(card.entry);
  setFact(card, "person", person);
  setFact(card, "camera", camera);
  setFact(card, "time", time);
}

function showTileImage(card) {
  const { example, id } = card.entry;
  card.querySelector("img").src = example ? `/examples/${example.number}/image` : imageUrl(id);
}

function showMark(card) {
  const { entry } = card;
  const isHit = "distance" in entry;
  card.classList.toggle("right", entry.verdict === "right");
  card.classList.toggle("wrong", entry.verdict === "wrong");
  card.querySelector(".yes").setAttribute("aria-pressed", entry.verdict === "right");
  card.querySelector(".no").setAttribute("aria-pressed", entry.verdict === "wrong");
  card.querySelector(".mark").textContent = entry.verdict || "";
  const text = entry.example ? entry.example.title : [nameOf(entry), ...labelsOf(entry)].join(", ");
  card.ariaLabel = isHit ? hitText(entry, card.rank) : text;
}

function activate(card) {
  if (card.entry.example) useExample(card.entry.example);
  else useEntry(card.entry);
}

/** Shows, before a search, example queries, if any, and a sample of the gallery. */
async function browse() {
  const here = ++view;
  const found = $("found");
  $("verdict").hidden = true;
  found.className = "browse";
  found.setAttribute("aria-busy", "false");
  try {
    const [examples, { entries }] = await Promise.all([askJson("/examples"), askJson("/gallery?limit=60")]);
    if (here !== view) return;
    const focused = found.contains(document.activeElement);
    found.replaceChildren();
    $("results-title").textContent = "Where else was this person?";
    if (examples.length) {
      const shown = examples.map((example) => ({ example, id: -1, name: example.title, pid: null, camid: null, time: null }));
      const list = tiles(shown);
      list.querySelectorAll(".person, .camera, .time").forEach((part) => part.remove());
      found.append(element("h3", "Queries to try"), list);
    }
    if (entries.length) found.append(element("h3", `${examples.length ? "Or search" : "Search"} with an image of the gallery`), tiles(entries));
    if (entries.length && state.overview.entries > entries.length) found.append(more("Show all images, one after another", () => showAll(-1)));
    if (!entries.length) found.append(nothing("The gallery is empty", "Add images, here or with python -m han_tf.index."));
    setCurrent(0);
    if (focused) (cards()[0] || $("results")).focus({ preventScroll: true });
  } catch (error) {
    if (here !== view) return;
    clear();
    showError(error);
  }
}

function more(text, act) {
  const line = element("p", undefined, "following");
  const button = element("button", text);
  button.type = "button";
  button.addEventListener("click", () => {
    button.disabled = true;
    act().catch(showError).finally(() => (button.disabled = false));
  });
  line.append(button);
  return line;
}

/** Shows the page of entries with ids above `after`: the first page (-1) replaces the sample, others are appended. */
async function showAll(after) {
  const here = view;
  const { entries, next } = await askJson(`/gallery?limit=60&after=${after}`);
  if (here !== view) return;
  const found = $("found");
  if (after < 0) {
    found.replaceChildren(element("h3", "All images of the gallery"), tiles(entries));
    window.scrollTo({ top: 0 });
  } else {
    found.querySelector(".following").remove();
    found.querySelector("ol:last-of-type").append(...entries.map(tile));
  }
  if (next !== null) found.append(more("Show more", () => showAll(next)));
  const first = Math.max(0, cards().findIndex((card) => card.entry.id > after));
  setCurrent(first);
  cards()[first]?.focus({ preventScroll: true });
}

// ---------------------------------------------------------------- the gallery's entries: enlarging, correcting, deleting, adding

/** The integer in a field, its text where a number does not hold its digits; null if the field is empty. */
function numberOf(input) {
  const number = Number(input.value);
  return input.value === "" ? null : Number.isSafeInteger(number) ? number : input.value;
}
/** Returns the value of a field for a time, to the millisecond; empty if the time is not known or not a valid date. */
function timeOf(time) {
  const date = new Date(time === null ? NaN : 1000 * time);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString().slice(0, -1);
}
let shownCard = null;
let shownTime = ""; // the field's value for the entry's time, which it may have rounded

function showEntry(card) {
  const { entry } = card;
  shownCard = card;
  $("entry-title").textContent = [nameOf(entry), ...labelsOf(entry)].join(" · ");
  $("entry-image").src = imageUrl(entry.id);
  $("entry-image").alt = nameOf(entry);
  $("entry-pid").value = entry.pid ?? "";
  $("entry-camid").value = entry.camid ?? "";
  $("entry-time").value = timeOf(entry.time);
  shownTime = $("entry-time").value;
  $("entry-error").textContent = "";
  askTwice(false);
  if (!$("entry").open) $("entry").showModal();
}

/** Makes the button ask for confirmation, or resets it: a deleted entry cannot be restored. */
function askTwice(asked) {
  $("entry-delete").dataset.asked = asked ? "yes" : "";
  $("entry-delete").textContent = asked ? "Really delete?" : "Delete";
}

async function saveEntry() {
  const card = shownCard;
  const { entry } = card;
  const body = {};
  if (numberOf($("entry-pid")) !== entry.pid) body.pid = numberOf($("entry-pid"));
  if (numberOf($("entry-camid")) !== entry.camid) body.camid = numberOf($("entry-camid"));
  if ($("entry-time").value !== shownTime) body.time = toSeconds($("entry-time"));
  if (Object.keys(body).length) {
    const options = { method: "PATCH", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const { pid, camid, time } = await askJson(`/gallery/${entry.id}`, options);
    Object.assign(entry, { pid, camid, time });
    showLabels(card);
    showMark(card);
    announce("Saved");
  }
  $("entry").close();
}

async function deleteEntry() {
  if (!$("entry-delete").dataset.asked) return askTwice(true);
  const card = shownCard;
  await ask(`/gallery/${card.entry.id}`, { method: "DELETE" });
  const place = cards().indexOf(card);
  card.closest("li").remove();
  state.overview.entries -= 1;
  showFacts();
  $("entry").close();
  announce("Deleted");
  if (cards().length) go(Math.min(place, cards().length - 1));
  else $("results").focus({ preventScroll: true });
}

/** Runs an action of a dialog; shows its error in the dialog. */
async function within(problem, act) {
  problem.textContent = "";
  try {
    await act();
  } catch (error) {
    problem.textContent = errorText(error);
  }
}

async function addFiles() {
  const files = [...$("adding-files").files];
  const problems = [];
  let added = 0;
  const progress = () => {
    $("adding-progress").textContent = `${added} of ${files.length} added${problems.length ? `, ${problems.length} refused` : ""}`;
    $("adding-error").textContent = problems.slice(0, 5).join(" ");
  };
  $("adding-go").disabled = true;
  // Read once: the fields may be changed for the next images meanwhile.
  const labels = ["pid", "camid"].map((name) => [name, $(`adding-${name}`).value]).filter(([, value]) => value !== "");
  const time = toSeconds($("adding-time"));
  if (time !== null) labels.push(["time", time]);
  const waiting = [...files];
  const work = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      const body = new FormData();
      body.set("image", file);
      for (const [name, value] of labels) body.set(name, value);
      try {
        await ask("/gallery", { method: "POST", body });
        added += 1;
      } catch (error) {
        problems.push(`${file.name}: ${error.message}`);
      }
      progress();
    }
  };
  progress();
  await Promise.all([work(), work(), work(), work()]);
  $("adding-go").disabled = false;
  // So that the same images are not added twice by mistake; others may have been chosen meanwhile.
  if ($("adding-files").files[0] === files[0]) $("adding-files").value = "";
  await learn();
  if (!state.query) await browse();
}

// ---------------------------------------------------------------- verdicts

function mark(card, verdict) {
  const { entry } = card;
  if (!("distance" in entry)) return;
  if (!("kept" in entry)) entry.kept = entry.verdict; // the verdict that the service has stored
  const said = entry.verdict === verdict ? null : verdict;
  entry.verdict = said; // shown at once; reset if it cannot be stored
  showMark(card);
  const sent = Promise.resolve(card.sent).then(send); // one after the other, so that the last one counts
  card.sent = sent;

  async function send() {
    try {
      const body = JSON.stringify({ query: card.query, hit: entry.id, verdict: said, distance: entry.distance });
      await ask("/feedback", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      announce(said ? `Marked ${said}` : "Mark taken back");
      state.overview.verdicts += (said !== null) - (entry.kept !== null);
      $("verdicts").textContent = state.overview.verdicts.toLocaleString();
      entry.kept = said;
      // Another search may have found the same hit meanwhile.
      const others = cards().filter((other) => other !== card && !other.sent && other.query === card.query);
      for (const other of others.filter((one) => one.entry.id === entry.id)) {
        other.entry.verdict = said;
        showMark(other);
      }
    } catch (error) {
      if (card.sent === sent) {
        entry.verdict = entry.kept;
        showMark(card);
      }
      showError(error);
    }
  }
}

// ---------------------------------------------------------------- attention

/** Returns the URL of an entry's image, with the attention that is switched on. */
const imageUrl = (id) =>
  `/gallery/${id}/${state.attention === "off" ? "image" : `attention?kind=${state.attention}&level=${state.level}`}`;

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
  state.level = levels; // attention on the last level is the most specific
  $("level").value = levels;
  $("level").disabled = true;
}

// ---------------------------------------------------------------- keys

const cards = () => [...$("found").querySelectorAll(".card")];

/** Makes one card the current one, which the keys act on and Tab reaches. */
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
  // These letters act only if a result has the focus.
  y: () => (started() ? mark(current(), "right") : false),
  n: () => (started() ? mark(current(), "wrong") : false),
  e: () => (started() && !current().entry.example ? showEntry(current()) : false),
  a: () => {
    const kinds = ["off", ...state.overview.attention];
    if (kinds.length > 1) setAttention(kinds[(kinds.indexOf(state.attention) + 1) % kinds.length], state.level);
  },
  l: () => state.attention !== "off" && setAttention(state.attention, (state.level % state.overview.levels) + 1),
  f: () => {
    $("filters-box").open = true;
    [...$("filters").querySelectorAll("input")].find((input) => input.offsetParent)?.focus();
  },
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const { target } = event;
  // In a field, letters are text and arrows move the cursor.
  if (target.matches("input:not([type=checkbox], [type=radio]), select, textarea")) return;
  if (target.matches("[type=radio]") && event.key.startsWith("Arrow")) return;
  if (event.key === "Enter" && isCard(target)) {
    event.preventDefault();
    activate(target);
    return;
  }
  const act = KEYS[event.key];
  if (!act || (event.key.length === 1 && !$("letters").checked)) return;
  if (act() !== false) event.preventDefault();
});

// ---------------------------------------------------------------- wiring

$("pick").addEventListener("click", () => $("file").click());
noteMissing($("query-image"));
$("file").addEventListener("change", () => {
  if ($("file").files.length) useFile($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
$("help").addEventListener("click", () => $("keys").showModal());
$("add").addEventListener("click", () => {
  $("adding-progress").textContent = $("adding-error").textContent = "";
  $("adding").showModal();
});
for (const [form, problem, act] of [["entry-form", "entry-error", saveEntry], ["adding-form", "adding-error", addFiles]])
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    within($(problem), act);
  });
$("entry-delete").addEventListener("click", () => within($("entry-error"), deleteEntry));
const LETTERS = "han_tf.letters";
try {
  $("letters").checked = localStorage.getItem(LETTERS) !== "off";
} catch {} // the browser may not allow localStorage
$("letters").addEventListener("change", () => {
  try {
    localStorage.setItem(LETTERS, $("letters").checked ? "on" : "off");
  } catch {}
});
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

/** Searches for the entry in the page's address, or shows a sample of the gallery. */
async function openAddress() {
  const here = ++view;
  const id = new URLSearchParams(location.hash.slice(1)).get("id");
  if (id === null || !/^\d+$/.test(id)) return setQuery(null, false);
  try {
    const facts = await askJson(`/gallery/${id}`);
    if (here === view) await setQuery({ id: facts.id, facts }, false);
  } catch (error) {
    if (here !== view) return;
    await setQuery(null, false);
    showError(error);
  }
}

/** Loads the overview and updates the page with it. */
async function learn() {
  const overview = await askJson("/overview");
  state.overview = overview;
  state.loaded = true;
  showFacts();
  $("k").max = overview.max_k;
  for (const name of ["value", "defaultValue"]) $("k")[name] = $("k")[name] && Math.min($("k")[name], overview.max_k);
  $("threshold").placeholder = overview.threshold === null ? "none" : distanceText(overview.threshold);
  document.body.classList.toggle("read-only", overview.read_only);
  showCameras(overview.cameras);
  if (!$("kinds").children.length) showAttentionChoice(overview);
}

function showFacts() {
  const { entries, cameras, verdicts } = state.overview;
  $("facts").textContent = `${count(entries, "image")}${cameras.length ? `, ${count(cameras.length, "camera")}` : ""}`;
  $("verdicts").textContent = verdicts.toLocaleString();
}

async function begin() {
  if (matchMedia("(max-width: 820px)").matches) $("filters-box").open = false;
  const failure = await learn().catch((error) => error);
  if (!view) await openAddress(); // unless the user has chosen an image already
  if (failure && !state.loaded) showError(failure);
}

begin();
