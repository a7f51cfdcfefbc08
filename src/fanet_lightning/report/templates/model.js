// What the page knows and what is asked of it; nothing here touches the document.
"use strict";

const RUN = window.FANET_ERRORS;

// Every box on the page is of one of these kinds. Errors first; the order is that of the legend.
const KINDS = {
  missed: { label: "missed", many: "missed faces, nothing near", face: true, error: true },
  near: { label: "nearly found", many: "missed faces with a detection that nearly fits", face: true, error: true },
  localisation: { label: "badly placed", many: "detections with an overlap of 0.1 to 0.5", error: true },
  duplicate: { label: "duplicate", many: "second detections of a face", error: true },
  background: { label: "background", many: "detections where no face is", error: true },
  hit: { label: "hit", many: "detections that find a face" },
  found: { label: "found face", many: "labels of the faces that are found", face: true },
  ignored: { label: "not counted", many: "faces that do not count, and detections of them" },
};
const ERRORS = Object.keys(KINDS).filter((kind) => KINDS[kind].error);
const SHOWN = [...ERRORS, "hit"];
// The numbers of Kind in score/analysis/error_types.py.
const ROW_KINDS = ["hit", "duplicate", "localisation", "background", "ignored"];

// Those of attributes.json; null where a group has no end.
const HEIGHTS = RUN.heights.map(([value, label, low, high]) =>
  ({ value, label, low: low ?? -Infinity, high: high ?? Infinity }));

const PICTURES = RUN.pictures.map((own, number) => {
  const faces = own.faces.map(([x, y, w, h, counts, found, near, ...labels], index) =>
    ({ x, y, w, h, index, counts: counts === 1, found, near, labels, face: true }));
  const rows = own.rows.map(([x, y, w, h, score, kind, nearest, overlap], index) =>
    ({ x, y, w, h, index, score, kind: ROW_KINDS[kind], nearest: nearest < 0 ? null : faces[nearest], overlap }));
  const slash = own.id.indexOf("/");
  return { ...own, number, faces, rows, event: own.id.slice(0, Math.max(slash, 0)) };
});

const FILTERS = [
  { key: "event", label: "event", options: [...new Set(PICTURES.map((p) => p.event))].sort(byNumber).map((value) => ({ value, label: eventName(value) })) },
  { key: "height", label: "face height", options: HEIGHTS },
  ...RUN.attributes
    .map(([key, names], place) => ({ key, label: key, place, options: names.map((value) => ({ value, label: value })) }))
    .filter(({ place }) => new Set(PICTURES.flatMap((p) => p.faces.filter((f) => f.counts).map((f) => f.labels[place]))).size > 1),
];

const DEFAULTS = {
  view: "pictures", image: "", threshold: RUN.start, kind: "", sort: "ap", show: SHOWN, box: "", zoom: 1,
  ...Object.fromEntries(FILTERS.map(({ key }) => [key, ""])),
};

function eventName(event) {
  return event.replace(/^\d+--/, "").replaceAll("_", " ");
}

function byNumber(a, b) {
  return a.localeCompare(b, "en", { numeric: true });
}

// The state lives behind the # of the address, so that a link leads to what its sender saw.
function readState(hash) {
  const state = { ...DEFAULTS, show: [...SHOWN] };
  for (const [key, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (key === "threshold" || key === "zoom") {
      const value = Number(text);
      if (text.trim() !== "" && Number.isFinite(value)) state[key] = value;
    } else if (key === "show") {
      state.show = text.split(",").filter((kind) => kind in KINDS);
    } else if (key === "kind") {
      if (ERRORS.includes(text)) state.kind = text;
    } else if (key === "view" || key === "sort") {
      if (["pictures", "crops", "ap", "errors"].includes(text)) state[key] = text;
    } else if (key === "image" || key === "box") {
      state[key] = text;
    } else {
      const filter = FILTERS.find((own) => own.key === key);
      if (filter?.options.some((option) => option.value === text)) state[key] = text;
    }
  }
  state.zoom = Math.min(Math.max(state.zoom, 1), 32);
  return state;
}

function writeState(state) {
  const words = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) {
    const text = String(value);
    if (text !== String(DEFAULTS[key])) words.set(key, text);
  }
  return `#${words}`;
}

function faceKind(face, threshold) {
  if (!face.counts) return "ignored";
  if (face.found !== null && face.found >= threshold) return "found";
  return face.near !== null && face.near >= threshold ? "near" : "missed";
}

// A filter speaks of faces. A row stands for the face next to it; one on the background has a height and an event alone.
function passes(box, state) {
  const face = box.face ? box : box.nearest;
  for (const filter of FILTERS) {
    const wanted = state[filter.key];
    if (!wanted || filter.key === "event") continue;
    if (filter.key === "height") {
      const { low, high } = HEIGHTS.find((option) => option.value === wanted);
      const height = (face ?? box).h;
      if (height < low || height >= high) return false;
    } else if (!face || filter.options[face.labels[filter.place]].value !== wanted) {
      return false;
    }
  }
  return true;
}

// The boxes of an image at the state's threshold, as { kind, box }, those of the filters alone.
function boxesOf(picture, state) {
  if (state.event && picture.event !== state.event) return [];
  const boxes = [];
  for (const box of picture.rows) {
    if (box.score < state.threshold) break; // rows come by descending score
    if (passes(box, state)) boxes.push({ kind: box.kind, box });
  }
  for (const box of picture.faces) {
    if (passes(box, state)) boxes.push({ kind: faceKind(box, state.threshold), box });
  }
  return boxes;
}

function countsOf(boxes) {
  const counts = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, 0]));
  for (const { kind } of boxes) counts[kind] += 1;
  return counts;
}

function errorsIn(counts, kind) {
  return kind ? counts[kind] : ERRORS.reduce((sum, own) => sum + counts[own], 0);
}

// The images that the state lists, each with its counts. Without a filter even those without an error are there.
function listed(state) {
  const filtered = state.kind || FILTERS.some(({ key }) => state[key]);
  const entries = PICTURES.map((picture) => ({ picture, counts: countsOf(boxesOf(picture, state)) }))
    .filter(({ counts }) => !filtered || errorsIn(counts, state.kind) > 0);
  if (state.sort === "errors") {
    entries.sort((a, b) => errorsIn(b.counts, state.kind) - errorsIn(a.counts, state.kind) || a.picture.number - b.picture.number);
  }
  return entries;
}

// Errors of one kind over all listed images: faces by height, rows by score, the worst first.
function worst(entries, state, kind) {
  const found = entries.flatMap(({ picture }) =>
    boxesOf(picture, state).filter((own) => own.kind === kind).map(({ box }) => ({ picture, kind, box })));
  const weight = KINDS[kind].face ? ({ box }) => box.h : ({ box }) => box.score;
  return found.sort((a, b) => weight(b) - weight(a));
}

// Rows, hits and faces of the whole run at the last of the 1,000 thresholds that is not below this one.
function wholeRun(threshold) {
  let last = RUN.thresholds.findIndex((own) => own < threshold);
  last = (last < 0 ? RUN.thresholds.length : last) - 1;
  const [proposals, hits] = last < 0 ? [0, 0] : [RUN.proposals[last], RUN.hits[last]];
  return { proposals, hits, precision: proposals ? hits / proposals : null, recall: RUN.faces ? hits / RUN.faces : null };
}
