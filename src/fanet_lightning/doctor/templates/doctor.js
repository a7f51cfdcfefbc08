// The list of all findings: filtered, sorted, and drawn a piece at a time. Everything else stands in the page already.
"use strict";

document.documentElement.classList.add("js");

for (const button of document.querySelectorAll("#worst-filter button")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("#worst-filter button")) other.setAttribute("aria-pressed", other === button);
    const { severity } = button.dataset;
    for (const section of document.querySelectorAll("section.kind")) section.hidden = severity !== "" && section.dataset.severity !== severity;
  });
}

// A link to a kind that the filter hides shows everything again.
for (const link of document.querySelectorAll("#kinds a")) {
  link.addEventListener("click", () => document.querySelector("#worst-filter button").click());
}

if (document.getElementById("data")) {
  const AT_ONCE = 50;
  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);
  const [kinds, severities, rows] = ["kinds-data", "severity-data", "data"].map(read);
  const body = document.querySelector("#list tbody");
  let sorting = { column: 0, descending: false };
  let matching = [];
  let drawn = 0;

  for (const option of $("filter-kind").options) if (option.dataset.name) option.value = kinds.indexOf(option.dataset.name);
  for (const part of [...new Set(rows.map((row) => row[1]))].sort()) $("filter-part").append(new Option(part, part));

  const compare = (a, b) => {
    // Without a value comes last, either way round.
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return sorting.descending ? -order : order;
  };

  const cells = (row) => [kinds[row[0]].replaceAll("_", " "), row[1], row[2], row[3], row[4], row[5] === null || row[5] === 0 ? "" : String(Number(row[5].toPrecision(4)))];

  function drawMore() {
    const piece = document.createDocumentFragment();
    for (const row of matching.slice(drawn, drawn + AT_ONCE)) {
      const line = document.createElement("tr");
      cells(row).forEach((text, column) => {
        const cell = document.createElement("td");
        if (column === 0) {
          const chip = document.createElement("span");
          chip.className = `chip ${severities[row[0]]}`;
          chip.textContent = text;
          cell.append(chip);
        } else {
          cell.textContent = text;
        }
        line.append(cell);
      });
      piece.append(line);
    }
    body.append(piece);
    drawn = Math.min(drawn + AT_ONCE, matching.length);
    $("more").hidden = drawn === matching.length;
    const shown = drawn < matching.length ? `, the first ${drawn.toLocaleString("en")} shown` : "";
    $("matching").textContent = `${matching.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}${shown}`;
  }

  function draw() {
    const kind = $("filter-kind").value;
    const severity = $("filter-severity").value;
    const part = $("filter-part").value;
    const words = $("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    matching = rows.filter((row) => {
      if (kind !== "" && row[0] !== Number(kind)) return false;
      if (severity && severities[row[0]] !== severity) return false;
      if (part && row[1] !== part) return false;
      const text = `${row[2]} ${row[3]} ${row[4]}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    matching.sort((a, b) => compare(a[sorting.column], b[sorting.column]));
    body.replaceChildren();
    drawn = 0;
    drawMore();
  }

  for (const head of document.querySelectorAll("#list th.sort")) {
    head.querySelector("button").addEventListener("click", () => {
      const column = Number(head.dataset.column);
      // Of the badness the worst is what one looks for first.
      const descending = sorting.column === column ? !sorting.descending : column === 5;
      sorting = { column, descending };
      for (const other of document.querySelectorAll("#list th.sort")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      draw();
    });
  }
  for (const id of ["filter-kind", "filter-severity", "filter-part"]) $(id).addEventListener("change", draw);
  $("filter-text").addEventListener("input", draw);
  $("more").addEventListener("click", drawMore);
  draw();
}
document.body.dataset.ready = "true";
