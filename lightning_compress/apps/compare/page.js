"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const jobs = data.jobs.filter((job) => job.status === "finished" && job.value !== null);
const plot = document.getElementById("plot");
const controls = document.getElementById("controls");
const more = data.mode === "max";
const minus = (text) => text.replace("-", "−");

function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  let unit = "B";
  for (const larger of ["kB", "MB", "GB"]) {
    if (bytes < 999.5) break;
    bytes /= 1000;
    unit = larger;
  }
  return unit === "B" ? `${bytes.toFixed(0)} B` : `${bytes.toFixed(1)} ${unit}`;
}
const time = (ms) => (ms === null ? "–" : `${ms > 0 ? ms.toFixed(Math.max(0, 1 - Math.floor(Math.log10(ms)))) : 0} ms`);
const metric = (value) => (data.is_share ? `${(100 * value).toFixed(2)} %` : value.toPrecision(4));
const change = (drop) => {
  if (drop === null) return "–";
  const lost = more ? -drop : drop;
  const number = data.is_share ? (100 * lost).toFixed(2) : lost.toPrecision(3);
  return minus(`${lost > 0 ? "+" : ""}${number}`) + (data.is_share ? " points" : "");
};

// What the horizontal axis may show.
const formats = [...new Set(jobs.flatMap((job) => Object.keys(job.files)))];
const chosenFormat = formats.includes(data.bytes_of) ? data.bytes_of : null;
const axes = formats.map((format) => ({
  key: format, name: `${format} size`, value: (job) => job.files[format] ?? null, text: size,
  limit: format === chosenFormat || (chosenFormat === null && format === deployedFormat()) ? data.limits.max_size : null,
}));
if (!axes.length) axes.push({ key: "bytes", name: "size", value: (job) => job.bytes, text: size, limit: data.limits.max_size });
if (jobs.some((job) => job.latency_ms !== null)) {
  axes.push({ key: "latency", name: "latency", value: (job) => job.latency_ms, text: time, limit: data.limits.max_latency_ms });
}
function deployedFormat() {
  const job = jobs[0];
  return formats.find((format) => job && job.files[format] === job.bytes) ?? null;
}

const groups = [...new Map(
  [...jobs].sort((a, b) => b.weight_bits - a.weight_bits || b.quantization.localeCompare(a.quantization))
    .map((job) => [job.quantization, job])).keys()];
const colour = (name) => {
  const place = groups.indexOf(name);
  return `var(--g${name === "none" ? 0 : 1 + (place - (groups[0] === "none" ? 1 : 0)) % 7})`;
};
const prunings = [...new Map([...jobs].sort((a, b) => a.sparsity - b.sparsity).map((job) => [job.pruning, 0])).keys()];
const quantizationName = (name) => (name === "none" ? "float" : name);
const pruningName = (name) => (name === "none" ? "unpruned" : name);

const state = {
  axis: axes.find((axis) => axis.key === (data.objective === "latency" ? "latency" : chosenFormat ?? deployedFormat())) ?? axes[0],
  quantizations: new Set(groups), prunings: new Set(prunings), kept: false, near: true, held: null,
};

function element(name, attributes = {}, text = null) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}
function svg(name, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function field(legend, type, options, changed) {
  const set = element("fieldset", { class: "control" });
  set.append(element("legend", {}, legend));
  for (const option of options) {
    const label = element("label");
    const input = element("input", { type, name: legend, value: option.text });
    input.checked = option.on;
    input.addEventListener("change", () => { changed(option, input.checked); draw(); });
    label.append(input);
    if (option.colour) label.append(element("span", { class: "swatch", style: `background: ${option.colour}` }));
    label.append(option.text);
    set.append(label);
  }
  controls.append(set);
}
const toggle = (set) => (option, on) => (on ? set.add(option.value) : set.delete(option.value));
field("Across", "radio", axes.map((axis) => ({ text: axis.name, value: axis, on: axis === state.axis })),
  (option) => { state.axis = option.value; });
if (groups.length > 1) {
  field("Bits", "checkbox", groups.map((name) => ({ text: quantizationName(name), value: name, on: true, colour: colour(name) })),
    toggle(state.quantizations));
}
if (prunings.length > 1) {
  field("Pruning", "checkbox", prunings.map((name) => ({ text: pruningName(name), value: name, on: true })), toggle(state.prunings));
}
const views = [{ text: "within limits only", value: "kept", on: false }];
if (range(jobs.map((job) => job.value), true).cut) views.unshift({ text: "close up", value: "near", on: true });
field("Show", "checkbox", views, (option, on) => { state[option.value] = on; });

// The vertical range. Close up leaves out what is far worse than the rest, so that the rest can be told apart.
function range(values, near) {
  if (!values.length) return { low: 0, high: 1, cut: false };
  const high = Math.max(...values);
  const low = Math.min(...values);
  const best = more ? high : low;
  const distance = values.map((value) => Math.abs(value - best)).sort((a, b) => a - b);
  const dense = jobs.flatMap((job) => (data.metric in job.dense_metrics ? [job.dense_metrics[data.metric]] : []));
  const allowed = dense.length && data.limits.max_drop !== null
    ? data.limits.max_drop * (data.limits.max_drop_is_relative ? Math.abs(dense[0]) : 1) : 0;
  const close = Math.max(3 * distance[Math.floor(distance.length * 0.5)], 2.5 * allowed);
  const reach = near && close > 0 && distance[distance.length - 1] > 1.8 * close ? close : distance[distance.length - 1];
  const cut = reach < distance[distance.length - 1];
  const margin = 0.08 * (reach || Math.abs(best) || 1);
  return more ? { low: best - reach - margin, high: best + margin, cut } : { low: best - margin, high: best + reach + margin, cut };
}

function front(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x || (more ? b.job.value - a.job.value : a.job.value - b.job.value));
  const kept = [];
  for (const point of sorted) {
    const last = kept[kept.length - 1];
    if (!last || (more ? point.job.value > last.job.value : point.job.value < last.job.value)) kept.push(point);
  }
  return kept;
}

function steps(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return { found, step };
}
function logarithmic(low, high, most) {
  for (const factors of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const factor of factors) {
        const at = factor * 10 ** power;
        if (at >= low && at <= high) found.push(at);
      }
    }
    if (found.length <= most) return found.length > 1 ? found : steps(low, high, most).found.filter((at) => at > 0);
  }
  return [low, high];
}
const plain = (text) => text.replace(/\.0+(?= )/, "");

const tip = element("div", { class: "tip", role: "status" });
let places = new Map();

function draw() {
  const width = Math.max(280, plot.clientWidth);
  const narrow = width < 560;
  const height = narrow ? 340 : 440;
  const box = { left: narrow ? 46 : 56, right: width - (narrow ? 8 : 14), top: 26, bottom: height - 44 };
  const shown = jobs.filter((job) => state.axis.value(job) !== null && state.quantizations.has(job.quantization)
    && state.prunings.has(job.pruning) && (!state.kept || job.keeps_limits));
  hide();
  for (const row of document.querySelectorAll("#table tbody tr")) {
    row.hidden = !shown.some((job) => job.name === row.dataset.name);
  }
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${data.metric} against ${state.axis.name}` });
  places = new Map();
  plot.replaceChildren(picture, tip);
  if (!shown.length) {
    picture.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "No job is left by these filters."));
    return;
  }

  const values = shown.map((job) => state.axis.value(job));
  const least = Math.min(...values), largest = Math.max(...values);
  const spread = Math.max(Math.log(largest / least), 0.1);
  const [x0, x1] = [Math.log(least) - 0.07 * spread, Math.log(largest) + 0.07 * spread];
  const x = (value) => box.left + (box.right - box.left) * (Math.log(value) - x0) / (x1 - x0);
  const { low, high } = range(shown.map((job) => job.value), state.near);
  const inside = (value) => Math.min(Math.max(value, low), high);
  const y = (value) => box.bottom - (box.bottom - box.top) * (inside(value) - low) / (high - low);
  const beyondRange = (job) => job.value < low || job.value > high;

  const vertical = steps(low, high, narrow ? 5 : 7);
  const digits = Math.max(0, -Math.floor(Math.log10(vertical.step * (data.is_share ? 100 : 1)) + 1e-9));
  for (const at of vertical.found) {
    picture.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(at), y2: y(at) }));
    const label = data.is_share ? `${(100 * at).toFixed(digits)} %` : at.toFixed(Math.min(digits, 6));
    picture.append(svg("text", { x: box.left - 8, y: y(at) + 4, "text-anchor": "end" }, label));
  }
  for (const at of logarithmic(Math.exp(x0), Math.exp(x1), narrow ? 5 : 9)) {
    picture.append(svg("line", { class: "grid", x1: x(at), x2: x(at), y1: box.bottom, y2: box.bottom + 4 }));
    picture.append(svg("text", { x: x(at), y: box.bottom + 19, "text-anchor": "middle" }, plain(state.axis.text(at))));
  }
  picture.append(svg("text", { class: "axis", x: 0, y: 12 }, data.metric));
  picture.append(svg("text", { class: "axis", x: box.right, y: height - 4, "text-anchor": "end" }, `${state.axis.name} →`));

  limits(picture, box, x, y, Math.exp(x0), Math.exp(x1), low, high);

  const points = shown.map((job) => ({ job, x: state.axis.value(job) }));
  for (const name of groups) {
    const line = points.filter((point) => point.job.quantization === name).sort((a, b) => a.job.sparsity - b.job.sparsity);
    const kinds = new Set(line.map((point) => point.job.pruning.replace(/^[\d.]+ % /, "")).filter((kind) => kind !== "none"));
    if (line.length > 1 && kinds.size <= 1 && state.axis.key !== "latency") {
      picture.append(svg("polyline", { class: "group", stroke: colour(name), points: line.map((point) => `${x(point.x)},${y(point.job.value)}`).join(" ") }));
    }
  }
  const best = front(points);
  let path = "";
  best.forEach((point, index) => {
    const [px, py] = [x(point.x), y(point.job.value)];
    path += index ? `H${px}V${py}` : `M${px},${py}`;
  });
  picture.append(svg("path", { class: "front", d: `${path}H${box.right}` }));

  const chosen = points.find((point) => point.job.name === data.choice);
  for (const point of [...points].sort((a, b) => Number(a.job === chosen?.job) - Number(b.job === chosen?.job))) {
    const { job } = point;
    const [px, py] = [x(point.x), y(job.value)];
    places.set(job.name, { px, py });
    const link = svg("a", { class: job.keeps_limits ? "" : "out", tabindex: 0, "data-name": job.name,
      "aria-label": `${job.method}: ${metric(job.value)}, ${state.axis.text(point.x)}` });
    if (job.report) link.setAttribute("href", job.report.split("/").map(encodeURIComponent).join("/"));
    link.append(svg("circle", { class: "hit", cx: px, cy: py, r: 13 }));
    if (beyondRange(job)) {
      const d = more ? `M${px - 7},${py - 12}h14l-7,11z` : `M${px - 7},${py + 12}h14l-7,-11z`;
      link.append(svg("path", { class: "dot", d, fill: colour(job.quantization) }));
    } else {
      link.append(svg("circle", { class: "dot", cx: px, cy: py, r: narrow ? 5.5 : 6, fill: colour(job.quantization) }));
    }
    if (job === chosen?.job) link.append(svg("circle", { class: "ring", cx: px, cy: py, r: 10.5 }));
    listen(link, job);
    picture.append(link);
  }
  if (chosen) {
    const [px, py] = [x(chosen.x), y(chosen.job.value)];
    const right = px < (box.left + box.right) * 0.6;
    picture.append(svg("text", { class: "chosen-text", x: px + (right ? 16 : -16), y: py < box.top + 30 ? py + 24 : py - 12,
      "text-anchor": right ? "start" : "end", "pointer-events": "none" }, chosen.job.method));
  }
}

// Lines at the limits, with what lies beyond them shaded.
function limits(picture, box, x, y, left, right, low, high) {
  const asked = state.axis.limit;
  if (asked !== null && asked !== undefined && asked > left && asked < right) {
    picture.append(svg("rect", { class: "beyond", x: x(asked), y: box.top, width: box.right - x(asked), height: box.bottom - box.top }));
    picture.append(svg("line", { class: "limit", x1: x(asked), x2: x(asked), y1: box.top, y2: box.bottom }));
    picture.append(svg("text", { class: "limit-text", x: x(asked), y: box.top - 6, "text-anchor": "middle" }, `at most ${plain(state.axis.text(asked))}`));
  }
  const dense = [...new Set(jobs.map((job) => job.dense_metrics[data.metric]))];
  if (data.limits.max_drop === null || dense.length !== 1 || dense[0] === undefined) return;
  const drop = data.limits.max_drop * (data.limits.max_drop_is_relative ? Math.abs(dense[0]) : 1);
  const worst = more ? dense[0] - drop : dense[0] + drop;
  if (worst <= low || worst >= high) return;
  const [from, to] = more ? [y(worst), box.bottom] : [box.top, y(worst)];
  picture.append(svg("rect", { class: "beyond", x: box.left, y: from, width: box.right - box.left, height: to - from }));
  picture.append(svg("line", { class: "limit", x1: box.left, x2: box.right, y1: y(worst), y2: y(worst) }));
  const text = data.is_share ? `${Number((100 * drop).toFixed(2))} point${drop === 0.01 ? "" : "s"} below dense` : `limit ${worst.toPrecision(3)}`;
  picture.append(svg("text", { class: "limit-text", x: box.right, y: y(worst) + 15, "text-anchor": "end" }, text));
}

function listen(link, job) {
  let touched = false;
  link.addEventListener("pointerdown", (event) => { touched = event.pointerType === "touch"; });
  link.addEventListener("pointerenter", (event) => { if (event.pointerType !== "touch") show(job); });
  link.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hide(); });
  link.addEventListener("focus", () => { if (!touched) show(job); });
  link.addEventListener("blur", () => { if (state.held === null) hide(); });
  // A finger cannot hover: its first touch shows the numbers, with a link to the report.
  link.addEventListener("click", (event) => {
    if (!touched) return;
    event.preventDefault();
    show(job, true);
  });
}

function show(job, hold = false) {
  hide();
  state.held = hold ? job.name : null;
  const list = element("dl");
  const line = (name, value) => list.append(element("dt", {}, name), element("dd", {}, value));
  line(data.metric, metric(job.value));
  line("against dense", change(job.drop));
  for (const [format, bytes] of Object.entries(job.files)) line(`${format} size`, size(bytes));
  line("latency", time(job.latency_ms));
  if (job.dense_latency_ms !== null) line("dense latency", time(job.dense_latency_ms));
  if (job.seconds !== null) line("training", `${job.seconds.toFixed(0)} s`);
  tip.replaceChildren(element("b", {}, job.method), list);
  if (job.name === data.choice) tip.append(element("p", {}, "The choice."));
  else if (!job.keeps_limits) tip.append(element("p", {}, "Beyond a limit."));
  if (hold && job.report) {
    const paragraph = element("p");
    paragraph.append(element("a", { href: job.report.split("/").map(encodeURIComponent).join("/") }, "Open its report"));
    tip.append(paragraph);
  }
  tip.className = hold ? "tip shown held" : "tip shown";
  const place = places.get(job.name);
  if (place) {
    const scale = plot.clientWidth / Math.max(280, plot.clientWidth);
    const [px, py] = [place.px * scale, place.py * scale];
    const left = px + 18 + tip.offsetWidth > plot.clientWidth ? px - 18 - tip.offsetWidth : px + 18;
    tip.style.left = `${Math.max(0, Math.min(left, plot.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, py - tip.offsetHeight / 2)}px`;
  } else {
    tip.className = "tip";
  }
  mark(job.name, true);
}
function hide() {
  tip.className = "tip";
  state.held = null;
  for (const marked of document.querySelectorAll(".on")) marked.classList.remove("on");
}
function mark(name, on) {
  for (const found of document.querySelectorAll("[data-name]")) {
    if (found.dataset.name === name) found.classList.toggle("on", on);
  }
}

// The table: its rows light up their points, its heads sort.
const body = document.querySelector("#table tbody");
const byName = new Map(jobs.map((job) => [job.name, job]));
for (const row of body.rows) {
  const job = byName.get(row.dataset.name);
  if (!job) continue;
  row.querySelector(".swatch").style.background = colour(job.quantization);
  row.addEventListener("pointerenter", () => mark(job.name, true));
  row.addEventListener("pointerleave", () => mark(job.name, false));
}
const keys = [(job) => job.sparsity, (job) => -job.weight_bits, (job) => job.value, (job) => (job.drop === null ? -Infinity : more ? -job.drop : job.drop),
  (job) => job.bytes, (job) => (job.dense_bytes ?? 0) / job.bytes, (job) => job.latency_ms ?? Infinity, (job) => job.seconds ?? Infinity];
document.querySelectorAll("#table thead button").forEach((button, index) => {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of document.querySelectorAll("#table th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => {
      const [one, other] = [byName.get(a.dataset.name), byName.get(b.dataset.name)].map((job) => keys[index](job));
      return (one - other) * (down ? -1 : 1);
    });
    body.append(...rows);
  });
});

document.addEventListener("pointerdown", (event) => { if (state.held !== null && !plot.contains(event.target)) hide(); });
new ResizeObserver(() => draw()).observe(plot);
draw();
