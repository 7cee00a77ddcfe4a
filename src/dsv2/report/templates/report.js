"use strict";
// Without this script all text, tables and figures are there; it sorts, filters, enlarges and says what is pointed at.
const root = document.documentElement, tip = document.getElementById("tip");
const all = (query, from = document) => [...from.querySelectorAll(query)];

document.getElementById("theme").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};

function reveal() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target && target.closest("details");
  if (folded) { folded.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", reveal);
reveal();
let folded = [];
addEventListener("beforeprint", () => { folded = all("details:not([open])"); folded.forEach(one => one.open = true); });
addEventListener("afterprint", () => folded.forEach(one => one.open = false));

const number = text => {
  const found = text.replace(/,/g, "").replace(/−/g, "-").match(/^[^\d+-]{0,2}([+-]?\d*\.?\d+(?:e[+-]?\d+)?)/i);
  return found ? Number(found[1]) : NaN;
};
for (const table of all("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    head.title = "sort";
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      const key = row => row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [number(key(a)), number(key(b))];
        if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;  // what is no number stays below
        const order = isNaN(x) ? key(a).localeCompare(key(b)) : x - y;
        return up ? order : -order;
      };
      body.append(...rows.sort(compare));
      [...head.parentNode.cells].forEach(cell => cell.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
    };
    head.onclick = sort;
    head.onkeydown = event => { if (event.key === "Enter") sort(); };
  });
  if (rows.length < 8) continue;
  const field = Object.assign(document.createElement("input"), { className: "filter", type: "search",
    placeholder: `filter ${rows.length} rows` });
  field.setAttribute("aria-label", "filter rows");
  field.oninput = () => {
    const words = field.value.toLowerCase().split(/\s+/);
    rows.forEach(row => row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word)));
  };
  table.parentNode.before(field);
}

all("figure").forEach(figure => figure.addEventListener("click", () => figure.classList.toggle("big")));

const cells = new Map();
function told(target, event) {
  const hint = target.closest("[data-hint]");
  if (hint) return hint.dataset.hint;
  const points = target.closest("[data-points]");
  if (points) {
    const drawn = all("use", points), marks = drawn.length ? drawn : all("path", points).filter(one => !one.closest("defs"));
    return JSON.parse(points.dataset.points)[marks.indexOf(target.closest("use, path"))];
  }
  const map = target.closest("[data-cells]");
  if (!map) return null;
  if (!cells.has(map)) cells.set(map, JSON.parse(map.dataset.cells));
  const { name, rows, columns, values } = cells.get(map), box = map.getBoundingClientRect();
  const at = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
  const row = at((event.clientY - box.top) / box.height, rows.length);
  const column = at((event.clientX - box.left) / box.width, columns.length), value = values[row][column];
  return `${name ? name + "\n" : ""}${rows[row]}, ${columns[column]}: ${value === null ? "none" : value}`;
}
addEventListener("pointermove", event => {
  const text = event.target instanceof Element && told(event.target, event);
  tip.style.display = text ? "block" : "none";
  if (!text) return;
  tip.textContent = text;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4))}px`;
  tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 8 : event.clientY + 18}px`;
});
