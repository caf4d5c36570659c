// Script of a report: draws the figures, the table of candidates and the structure of the chosen one.
"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Figures hold names of colours (--accent); they are drawn again when the colours of the page change.
function coloured(value) {
  if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
  if (Array.isArray(value)) return value.map(coloured);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one)]));
  }
  return value;
}

function drawFigures() {
  for (const place of document.querySelectorAll(".figure")) {
    const { data, layout } = coloured(read(`${place.id}-data`));
    Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
  }
}

function drawHull() {
  const chooser = document.getElementById("system");
  if (!chooser) return;
  const { data, layout } = coloured(read("hulls-data")[chooser.value]);
  Plotly.react("hulls", data, layout, { displayModeBar: false, responsive: true });
}

function drawAll() {
  drawFigures();
  drawHull();
}

function candidates() {
  const { columns, values, parents, details } = read("candidates-data");
  const size = columns.length ? values[columns[0].name].length : 0;
  const rows = [];
  for (let place = 0; place < size; place += 1) {
    const row = { place, rank: place + 1 };
    for (const { name } of columns) row[name] = values[name][place];
    rows.push(row);
  }
  let roots = rows;
  if (parents) {
    roots = rows.filter((row) => parents[row.place] === row.place);
    for (const row of rows) {
      if (parents[row.place] !== row.place) (rows[parents[row.place]]._children ??= []).push(row);
    }
  }
  return { columns, rows, roots, details, folded: Boolean(parents) };
}

// "Li O -F": formulas with Li and O and without F. Other text is searched for in every column.
function filterOf(text) {
  const words = text.trim().split(/\s+/).filter(Boolean);
  const isElement = (word) => /^-?[A-Z][a-z]?$/.test(word);
  return (row) => words.every((word) => {
    if (isElement(word)) {
      const symbols = String(row.formula).match(/[A-Z][a-z]?/g) ?? [];
      return word.startsWith("-") ? !symbols.includes(word.slice(1)) : symbols.includes(word);
    }
    return Object.values(row).some((value) => String(value).toLowerCase().includes(word.toLowerCase()));
  });
}

const shown = (column, value) => {
  if (value === null || value === undefined || value === "") return "";
  return column.decimals === null ? String(value) : value.toFixed(column.decimals);
};

function tableColumn(column) {
  const isNumber = column.decimals !== null;
  return {
    field: column.name,
    title: column.heading,
    titleFormatter: (cell, _, rendered) => {
      const title = document.createElement("span");
      title.textContent = column.heading;
      if (column.unit) {
        const unit = document.createElement("span");
        unit.className = "unit";
        unit.textContent = ` ${column.unit}`;
        title.append(unit);
      }
      rendered(() => { title.title = column.description; });
      return title;
    },
    formatter: (cell) => document.createTextNode(shown(column, cell.getValue())),
    sorter: isNumber ? "number" : "string",
    sorterParams: { alignEmptyValues: "bottom" },
    hozAlign: isNumber ? "right" : "left",
    headerFilter: "input",
    headerFilterPlaceholder: isNumber ? "at most" : "contains",
    headerFilterFunc: isNumber ? "<=" : "like",
    frozen: column.name === "formula" && window.innerWidth > 700,
    headerWordWrap: true,
    width: isNumber ? 118 : undefined,
    maxWidth: 300,
  };
}

function makeTable({ columns, roots, folded }, show) {
  const table = new Tabulator("#candidates", {
    data: roots,
    columns: [
      { field: "rank", title: "rank", sorter: "number", hozAlign: "right", frozen: window.innerWidth > 700 },
      ...columns.map(tableColumn),
    ],
    dataTree: folded,
    dataTreeElementColumn: "formula",
    dataTreeFilter: false,
    height: roots.length > 14 ? 560 : false,
    layout: "fitDataFill",
    selectableRows: 1,
    placeholder: "no candidate matches the filter",
    printAsHtml: true,
    printRowRange: () => table.getRows("active").slice(0, 50),
  });
  const box = document.getElementById("filter");
  box.addEventListener("input", () => table.setFilter(filterOf(box.value)));
  table.on("rowClick", (_, row) => show(row.getData()));
  return table;
}

function csv(columns, rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const head = ["rank", ...columns.map((column) => column.name)];
  const lines = rows.map((row) => [row.rank, ...columns.map((column) => row[column.name])].map(cell).join(","));
  return `${[head.join(","), ...lines].join("\n")}\n`;
}

function drawStructure(place, detail) {
  place.replaceChildren();
  try {
    const viewer = $3Dmol.createViewer(place, { backgroundColor: colour("--page") });
    const model = viewer.addModel(detail.text, detail.format);
    viewer.setStyle({}, { sphere: { scale: 0.32, colorscheme: "Jmol" }, stick: { radius: 0.09, colorscheme: "Jmol" } });
    if (detail.format === "cif") {
      viewer.addUnitCell(model, { box: { color: colour("--soft") } });
      viewer.replicateUnitCell(1, 1, 1, model, true, true);
    }
    viewer.zoomTo();
    viewer.rotate(20, "y");
    viewer.rotate(12, "x");
    viewer.render();
  } catch {
    const text = document.createElement("p");
    text.textContent = "This browser cannot draw in three dimensions (WebGL is off). Download the structure instead.";
    place.replaceChildren(text);
  }
}

function detailPanel({ columns, details }) {
  const panel = document.getElementById("detail");
  return (row) => {
    const detail = details[row.place];
    panel.hidden = false;
    panel.parentElement.classList.add("open");
    panel.querySelector("h3").textContent = `${row.rank}. ${row.formula}`;
    const body = panel.querySelector("tbody");
    body.replaceChildren();
    const facts = columns.filter((column) => column.name !== "formula")
      .map((column) => [column.heading, [shown(column, row[column.name]), column.unit], column.description]);
    if (detail && detail.decomposition) {
      facts.push(["competing phases, by fraction of the atoms", [detail.decomposition, ""], ""]);
    }
    for (const [heading, [text, unit], description] of facts) {
      if (text === "") continue;
      const line = body.insertRow();
      const head = document.createElement("th");
      head.textContent = heading;
      head.title = description;
      line.append(head);
      line.insertCell().textContent = unit ? `${text} ${unit}` : text;
    }
    const viewer = panel.querySelector(".viewer");
    const download = panel.querySelector("button.structure");
    viewer.hidden = download.hidden = !detail;
    if (!detail) return;
    drawStructure(viewer, detail);
    download.textContent = `Download ${detail.format.toUpperCase()}`;
    download.onclick = () => save(`${row.rank}-${row.formula}.${detail.format}`, "chemical/x-cif", detail.text);
  };
}

function explore() {
  if (!document.getElementById("candidates")) return;
  const found = candidates();
  const show = detailPanel(found);
  makeTable(found, show);
  document.getElementById("csv").addEventListener("click", () => save("candidates.csv", "text/csv", csv(found.columns, found.rows)));
  document.getElementById("close").addEventListener("click", () => {
    document.getElementById("detail").hidden = true;
    document.querySelector(".explorer").classList.remove("open");
  });
  for (const card of document.querySelectorAll(".card")) {
    card.addEventListener("click", () => {
      show(found.rows[Number(card.dataset.place)]);
      document.getElementById("detail").scrollIntoView({ behavior: "smooth", block: "nearest" });
    });
  }
}

drawAll();
explore();
document.getElementById("system")?.addEventListener("change", drawHull);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
matchMedia("print").addEventListener("change", drawAll);
