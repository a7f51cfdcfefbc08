// The document: controls, list, image, crops. Every change goes through the state and draws again.
"use strict";

const CROPS_AT_ONCE = 48;
const $ = (id) => document.getElementById(id);
let state = readState(location.hash);
let entries = [];
let cropsShown = {};
// What stands on the stage. The drawing stays while only boxes change, or the image would flicker under the slider.
let stage = { number: null, svg: null, boxes: null };

function go(change) {
  state = { ...state, ...change };
  // Another image is seen whole again.
  if ("image" in change && !("box" in change)) Object.assign(state, { box: "", zoom: 1 });
  history.replaceState(null, "", writeState(state));
  draw();
}

function draw() {
  entries = listed(state);
  drawControls();
  drawList();
  $("pictures").hidden = state.view !== "pictures";
  $("crops").hidden = state.view !== "crops";
  if (state.view === "crops") drawCrops();
  else drawPicture();
  document.body.dataset.ready = "true";
}

function currentPlace() {
  const place = entries.findIndex(({ picture }) => picture.id === state.image);
  return place < 0 ? 0 : place;
}

function percent(value) {
  return value === null ? "–" : `${(100 * value).toFixed(1)} %`;
}

function apText(value) {
  return value === null ? "–" : value >= 0.0001 ? value.toFixed(4) : value > 0 ? "below 0.0001" : "nothing";
}

function drawControls() {
  const total = countsOf(entries.flatMap(({ picture }) => boxesOf(picture, state)));
  for (const chip of document.querySelectorAll("#legend button")) {
    const { kind } = chip.dataset;
    chip.setAttribute("aria-pressed", state.show.includes(kind));
    chip.querySelector("b").textContent = total[kind].toLocaleString("en");
    chip.dataset.count = total[kind];
  }
  for (const tab of document.querySelectorAll("#tabs button")) tab.setAttribute("aria-pressed", tab.dataset.view === state.view);
  $("kind").value = state.kind;
  $("sort").value = state.sort;
  for (const { key } of FILTERS) $(`filter-${key}`).value = state[key];
  const last = RUN.thresholds.findIndex((own) => own <= state.threshold);
  $("threshold").value = RUN.thresholds.length - 1 - (last < 0 ? RUN.thresholds.length - 1 : last);
  $("threshold-value").textContent = score(state.threshold);
  const run = wholeRun(state.threshold);
  $("run").textContent =
    `whole run at this threshold: precision ${percent(run.precision)}, recall ${percent(run.recall)}, ` +
    `${(run.proposals - run.hits).toLocaleString("en")} false positives`;
  $("reset").hidden = writeState({ ...state, view: DEFAULTS.view, image: "", box: "", zoom: 1 }) === "#";
}

function drawList() {
  const place = currentPlace();
  $("shown").textContent = entries.length === PICTURES.length ? `${PICTURES.length} images` : `${entries.length} of ${PICTURES.length} images`;
  const items = entries.map(({ picture, counts }, i) => {
    const item = element("a", { href: writeState({ ...state, view: "pictures", image: picture.id, box: "", zoom: 1 }), class: "item", "data-image": picture.id });
    if (i === place) item.setAttribute("aria-current", "true");
    const lost = errorsIn(counts, state.kind);
    item.append(
      picture.file ? element("img", { src: `thumbnails/${picture.file}`, alt: "", loading: "lazy" }) : element("i", { class: "blank" }),
      element("span", {}, element("b", {}, `${picture.number + 1}. ${eventName(picture.event)}`),
        element("span", { class: "soft" }, state.kind ? `${lost} ${KINDS[state.kind].label}` : `${counts.missed + counts.near} lost, ${counts.localisation + counts.duplicate + counts.background} false`),
        element("span", { class: "soft" }, picture.gain === null ? "" : `costs ${apText(picture.gain)}${picture.gain > 0 ? " AP" : ""}`)),
    );
    item.addEventListener("click", (event) => { event.preventDefault(); go({ view: "pictures", image: picture.id }); });
    return item;
  });
  $("list").replaceChildren(...items);
  const current = $("list").querySelector("[aria-current]");
  if (current) {
    // Not scrollIntoView, which would move the whole page.
    const { offsetTop, offsetHeight } = current;
    const list = $("list");
    if (offsetTop < list.scrollTop || offsetTop + offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = offsetTop - list.clientHeight / 3;
  }
}

function drawPicture() {
  const entry = entries[currentPlace()];
  $("nothing").hidden = Boolean(entry);
  $("stage").hidden = $("facts").hidden = !entry;
  if (!entry) return;
  const { picture, counts } = entry;
  const moved = stage.number !== picture.number || stage.zoom !== state.zoom || stage.box !== state.box;
  if (stage.number !== picture.number) {
    stage = { number: picture.number, svg: drawing(picture), boxes: null };
    $("stage").replaceChildren(stage.svg);
  }
  const boxes = boxesView(picture, state);
  stage.boxes?.remove();
  stage.svg.append(boxes);
  Object.assign(stage, { boxes, zoom: state.zoom, box: state.box });
  const falsePositives = counts.localisation + counts.duplicate + counts.background;
  const faces = counts.found + counts.near + counts.missed;
  $("name").textContent = picture.id;
  $("numbers").textContent =
    `Number ${picture.number + 1} of ${RUN.images.toLocaleString("en")}: its errors cost ${apText(picture.gain)} AP. ` +
    `Of ${faces} faces ${counts.found} are found, ${counts.near} nearly, ${counts.missed} missed; ` +
    `${falsePositives} false positives: ${counts.localisation} badly placed, ${counts.duplicate} duplicates, ${counts.background} on the background.` +
    (picture.file && Math.max(...picture.size) > 1024 ? ` Shown smaller than the original of ${picture.size.join(" × ")} pixels.` : "");
  const notes = [];
  if (picture.reason) notes.push(`No image: ${picture.reason}. The boxes stand on blank ground of their extent.`);
  if (picture.rows_left_out) notes.push(`${picture.rows_left_out.toLocaleString("en")} detections with lower scores are left out.`);
  $("notes").textContent = notes.join(" ");
  $("place").textContent = `${currentPlace() + 1} / ${entries.length}`;
  $("zoom").textContent = state.zoom === 1 ? "fit" : `${Number(state.zoom.toFixed(1))} ×`;
  // After the texts, whose height decides how much is left for the image.
  fit(picture, moved);
}

// The whole image at zoom 1; where the zoom or the image is new, the box asked for or the centre in the middle.
function fit(picture, moved) {
  const frame = $("stage");
  const [width, height] = picture.size;
  stage.svg.setAttribute("width", 0);
  stage.svg.setAttribute("height", 0);
  const scale = Math.min(frame.clientWidth / width, frame.clientHeight / height) * state.zoom;
  const { scrollLeft, scrollTop } = frame;
  stage.svg.setAttribute("width", Math.floor(width * scale));
  stage.svg.setAttribute("height", Math.floor(height * scale));
  const box = focusOf(picture, state) ?? { x: 0, y: 0, w: width, h: height };
  frame.scrollLeft = moved ? (box.x + box.w / 2) * scale - frame.clientWidth / 2 : scrollLeft;
  frame.scrollTop = moved ? (box.y + box.h / 2) * scale - frame.clientHeight / 2 : scrollTop;
}

function drawCrops() {
  const kinds = state.kind ? [state.kind] : ["missed", "background", "near", "localisation", "duplicate"];
  const sections = kinds.map((kind) => {
    const own = worst(entries, state, kind);
    const most = cropsShown[kind] ?? (state.kind ? 2 * CROPS_AT_ONCE : CROPS_AT_ONCE / 2);
    const grid = element("div", { class: "grid" });
    for (const error of own.slice(0, most)) {
      const link = crop(error, state.threshold);
      const zoom = Math.min(Math.max(0.12 * Math.min(...error.picture.size) / Math.max(error.box.w, error.box.h, 1), 1), 8);
      const target = { view: "pictures", image: error.picture.id, box: `${error.box.face ? "f" : "r"}${error.box.index}`, zoom: Number(zoom.toFixed(1)) };
      link.setAttribute("href", writeState({ ...state, ...target }));
      link.addEventListener("click", (event) => { event.preventDefault(); go({ ...target, show: [...new Set([...state.show, kind])] }); });
      grid.append(link);
    }
    const order = KINDS[kind].face ? "the largest first" : "the most confident first";
    const section = element("section", { "data-kind": kind, "data-count": own.length },
      element("h2", {}, `${own.length.toLocaleString("en")} ${KINDS[kind].many}`, element("span", { class: "soft" }, own.length ? `, ${order}` : "")), grid);
    if (own.length > most) {
      const more = element("button", { type: "button" }, `show more (${(own.length - most).toLocaleString("en")} left)`);
      more.addEventListener("click", () => { cropsShown[kind] = most + 2 * CROPS_AT_ONCE; drawCrops(); });
      section.append(more);
    }
    return section;
  });
  $("crops").replaceChildren(...sections);
}

function step(by) {
  const next = entries[currentPlace() + by];
  if (next) go({ view: "pictures", image: next.picture.id });
}

function zoomTo(zoom) {
  go({ zoom: Math.min(Math.max(zoom, 1), 32) });
}

function choice(id, label, options, key) {
  const select = element("select", { id }, ...options.map(({ value, label: text }) => element("option", { value }, text)));
  select.addEventListener("change", () => { cropsShown = {}; go({ [key]: select.value }); });
  return element("label", {}, element("span", {}, label), select);
}

function build() {
  for (const [kind, { label, many }] of Object.entries(KINDS)) {
    const swatch = element("svg", { viewBox: "0 0 22 14", width: 22, height: 14, "aria-hidden": "true" }, drawnSwatch(kind));
    const chip = element("button", { type: "button", "data-kind": kind, title: many }, swatch, ` ${label} `, element("b", {}, ""));
    chip.addEventListener("click", () => go({ show: state.show.includes(kind) ? state.show.filter((own) => own !== kind) : [...state.show, kind] }));
    $("legend").append(chip);
  }
  const all = (label) => ({ value: "", label });
  $("filters").append(
    choice("kind", "kind of error", [all("all errors"), ...ERRORS.map((value) => ({ value, label: KINDS[value].label }))], "kind"),
    ...FILTERS.map(({ key, label, options }) => choice(`filter-${key}`, label, [all("all"), ...options], key)),
    choice("sort", "order", [{ value: "ap", label: "AP lost" }, { value: "errors", label: "number of errors" }], "sort"),
  );
  $("threshold").max = RUN.thresholds.length - 1;
  $("threshold").addEventListener("input", (event) => go({ threshold: RUN.thresholds[RUN.thresholds.length - 1 - Number(event.target.value)] }));
  for (const tab of document.querySelectorAll("#tabs button")) tab.addEventListener("click", () => go({ view: tab.dataset.view }));
  $("reset").addEventListener("click", () => { cropsShown = {}; go({ ...DEFAULTS, show: [...SHOWN], view: state.view }); });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("larger").addEventListener("click", () => zoomTo(state.zoom * 1.5));
  $("smaller").addEventListener("click", () => zoomTo(state.zoom / 1.5));
  addEventListener("hashchange", () => { state = readState(location.hash); draw(); });
  addEventListener("resize", () => { if (state.view === "pictures") drawPicture(); });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select")) return;
    const act = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), "+": () => zoomTo(state.zoom * 1.5), "-": () => zoomTo(state.zoom / 1.5),
      0: () => zoomTo(1), c: () => go({ view: state.view === "crops" ? "pictures" : "crops" }) }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
}

function drawnSwatch(kind) {
  const box = { x: 3, y: 2.5, w: 16, h: 9 };
  return element("g", { class: `box ${kind}` }, rectangle(box, "halo"), rectangle(box, "line"));
}

build();
draw();
