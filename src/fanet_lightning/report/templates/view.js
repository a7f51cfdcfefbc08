// Boxes on images, drawn as SVG in the pixels of the original image.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
// The order of drawing: what matters most comes last.
const LAYERS = ["ignored", "found", "hit", "duplicate", "background", "localisation", "near", "missed"];

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "image", "title", "g"].includes(name);
  const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function score(value) {
  return value === 0 ? "0" : Math.abs(value) >= 0.0005 && Math.abs(value) < 1e5 ? value.toFixed(3) : value.toExponential(2);
}

function labelsOf(face) {
  return RUN.attributes.map(([key, names], place) => [key, names[face.labels[place]], face.labels[place]])
    .filter(([, , label]) => label > 0).map(([key, name]) => `${key}: ${name}`);
}

function describe({ kind, box }) {
  const size = `${Math.round(box.w)} × ${Math.round(box.h)} px`;
  const lines = box.face
    ? [`${kind === "ignored" ? "face that does not count" : KINDS[kind].label + (kind === "found" ? "" : " face")}, ${size}`, ...labelsOf(box)]
    : [`${KINDS[kind].label}, score ${score(box.score)}, ${size}`, `overlap with the nearest face ${box.overlap.toFixed(2)}`];
  if (box.face && box.found !== null) lines.push(`found at score ${score(box.found)}`);
  else if (box.face && box.near !== null) lines.push(`nearly found at score ${score(box.near)}`);
  return lines.join("\n");
}

function rectangle(box, name) {
  return element("rect", { x: box.x, y: box.y, width: Math.max(box.w, 0.5), height: Math.max(box.h, 0.5), class: name });
}

// A dark line under each colored one keeps it visible on any image.
function drawn(own, focus = false) {
  const group = element("g", { class: `box ${own.kind}`, "data-kind": own.kind });
  if (focus) group.append(rectangle(own.box, "focus"));
  group.append(rectangle(own.box, "halo"), rectangle(own.box, "line"), element("title", {}, describe(own)));
  return group;
}

function drawing(picture, viewBox) {
  const [width, height] = picture.size;
  const svg = element("svg", { viewBox: viewBox ?? `0 0 ${width} ${height}`, role: "img", "aria-label": picture.id });
  svg.append(element("rect", { x: 0, y: 0, width, height, class: "blank" }));
  if (picture.file) {
    svg.append(element("image", { href: `pictures/${picture.file}`, x: 0, y: 0, width, height, preserveAspectRatio: "none" }));
  }
  return svg;
}

function boxesView(picture, state) {
  const group = element("g");
  const boxes = boxesOf(picture, state).filter(({ kind }) => state.show.includes(kind));
  const wanted = focusOf(picture, state);
  // The box that is asked for above all others.
  const layer = ({ kind, box }) => (box === wanted ? LAYERS.length : LAYERS.indexOf(kind));
  boxes.sort((a, b) => layer(a) - layer(b));
  group.append(...boxes.map((own) => drawn(own, own.box === wanted)));
  return group;
}

// A box belongs to the image that the state names, which a filter may have taken out of the list.
function focusOf(picture, state) {
  const match = picture.id === state.image && /^([fr])(\d+)$/.exec(state.box);
  return match ? (match[1] === "f" ? picture.faces : picture.rows)[Number(match[2])] ?? null : null;
}

function crop({ picture, kind, box }, threshold) {
  const side = Math.max(2.4 * Math.max(box.w, box.h), 36);
  const view = [box.x + box.w / 2 - side / 2, box.y + box.h / 2 - side / 2, side, side];
  const svg = drawing(picture, view.map((value) => value.toFixed(1)).join(" "));
  const other = kind === "localisation" || kind === "duplicate" ? box.nearest : null;
  if (other) svg.append(drawn({ kind: faceKind(other, threshold), box: other }));
  svg.append(drawn({ kind, box }));
  const link = element("a", { class: "crop", href: "#", "data-kind": kind });
  const facts = box.face ? [`${Math.round(box.h)} px high`, ...labelsOf(box).map((text) => text.replace(": ", " "))] : [`score ${score(box.score)}`];
  link.append(svg, element("span", {}, facts[0]), element("span", { class: "soft" }, facts.slice(1).join(", ") || eventName(picture.event)));
  return link;
}
