// The page of `pact-lightning report` and `view`. Text from outside only ever becomes text nodes.
"use strict";
(() => {
  const LIVE = document.documentElement.dataset.live === "yes";
  const POLL_MS = 2000;
  const main = document.getElementById("main");
  const heats = ["plain", "advantage", "gap", "surprise"];
  const state = {
    index: null, rows: [], byId: new Map(), shown: [], selected: -1, heat: "plain", fold: null,
    filter: {}, open: new Set(), scroll: 0, version: "", metric: "", setting: "",
  };
  const FILTERS = ["q", "run", "set", "task", "kind", "stop", "tool", "solved", "score", "min", "max", "sort", "by"];

  // ---- Elements

  function put(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "tint") node.style.background = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...some(children));
    return node;
  }
  const some = (...children) => children.flat(9).filter((child) => child !== null && child !== undefined && child !== false);
  const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    put(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // Control characters become their pictures; those that turn the direction of writing become their numbers.
  const visible = (text) => String(text)
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => `\u27e8U+${c.charCodeAt(0).toString(16).toUpperCase()}\u27e9`);

  function rich(text) {
    const shown = visible(text), wanted = (state.filter.q || "").toLowerCase();
    if (wanted.length < 2) return [shown];
    const parts = [], low = shown.toLowerCase();
    let at = 0;
    if (low.length !== shown.length) return [shown];
    for (let hit = low.indexOf(wanted); hit >= 0; hit = low.indexOf(wanted, at)) {
      parts.push(shown.slice(at, hit), h("mark", {}, shown.slice(hit, hit + wanted.length)));
      at = hit + wanted.length;
    }
    return [...parts, shown.slice(at)];
  }

  const number = (value) => value === null || value === undefined ? "\u2013"
    : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
      : Number.isInteger(value) ? String(value) : Number(value.toPrecision(3)).toString();
  const signed = (value) => (value >= 0 ? "+" : "\u2212") + Math.abs(value).toFixed(2);
  const percent = (value) => `${(100 * value).toFixed(1)}%`;
  const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

  // ---- Data: embedded and compressed, or asked of the server

  const loaded = new Map();
  function block(key) {
    if (!loaded.has(key)) loaded.set(key, LIVE ? fetched(key) : unpacked(key));
    return loaded.get(key);
  }
  async function unpacked(key) {
    const text = document.querySelector(`script[data-key="${CSS.escape(key)}"]`).textContent;
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }
  async function fetched(key) {
    const response = await fetch(`block/${encodeURIComponent(key)}`);
    if (!response.ok) { loaded.delete(key); throw new Error(`${response.status}`); }
    return response.json();
  }
  const bodyOf = async (row) => (await block(row.block))[row.at];

  function setLabel(name) {
    const found = /^(phase|validation|test|predict)(?:-(\d+))?(?:-step-(\d+))?$/.exec(name);
    if (!found) return name;
    const [, kind, count, step] = found;
    if (kind === "phase") return `phase ${+count}`;
    if (count === undefined) return `${kind}, after the fit`;
    if (step !== undefined) return `${kind}, phase ${+count} step ${+step}`;
    return +count === 0 ? `${kind}, before` : `${kind}, after ${+count}`;
  }

  function take(index) {
    state.index = index;
    const sets = [];
    index.rollouts.forEach((row, order) => {
      row.order = order;
      row.id = `${row.run}.${row.file}.${row.line}`;
      row.score = row.reward !== null ? row.reward : firstOf(row.scores, "solve_f1", "answer_correct");
      row.label = setLabel(row.set);
      row.training = row.phase !== null;
      if (!sets.includes(row.set)) sets.push(row.set);
    });
    state.rows = index.rollouts;
    state.sets = sets;
    state.byId = new Map(state.rows.map((row) => [row.id, row]));
    state.metrics = [...new Set(state.rows.flatMap((row) => Object.keys(row.scores)))];
    state.range = new Map();
    state.span = null;
    // A sum of several turns' rewards says little of a colour: rollouts are of different lengths.
    const summed = state.rows.some((row) => row.reward !== null && row.reward > 1.01);
    for (const row of state.rows) row.shade = row.score !== null && row.reward !== null && summed ? row.score / row.turns : row.score;
    for (const kind of [true, false]) {
      const values = state.rows.filter((row) => row.training === kind && row.shade !== null).map((row) => row.shade);
      state.range.set(kind, values.length ? [Math.min(0, values.reduce((a, b) => Math.min(a, b))), Math.max(1, values.reduce((a, b) => Math.max(a, b)))] : [0, 1]);
    }
  }
  // The score that the list shows: the one chosen, or the reward of a training rollout and the main score of another.
  const scoreOf = (row) => !state.filter.score ? row.score : state.filter.score === "reward" ? row.reward : row.scores[state.filter.score] ?? null;
  const firstOf = (scores, ...names) => {
    const name = names.find((each) => each in scores);
    return name === undefined ? null : scores[name];
  };

  // ---- Colours

  const mix = (colour, share) => `color-mix(in srgb, var(${colour}) calc(${Math.round(100 * share)}% * var(--tint)), transparent)`;
  const scale = (share) => share < 0.5 ? mix("--low", 0.12 + 0.66 * (0.5 - share)) : mix("--high", 0.1 + 0.66 * (share - 0.5));
  function chosenTint(row) {
    if (!state.filter.score) return scoreTint(row);
    const value = scoreOf(row);
    if (value === null) return "transparent";
    if (state.span?.[0] !== state.filter.score) {
      const values = state.rows.map(scoreOf).filter((each) => each !== null);
      state.span = [state.filter.score, values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    }
    const [, low, high] = state.span;
    return scale(high > low ? (value - low) / (high - low) : 0.5);
  }
  function scoreTint(row) {
    if (row.shade === null) return row.solved === null ? "transparent" : scale(row.solved ? 1 : 0);
    const [low, high] = state.range.get(row.training);
    return scale(high > low ? (row.shade - low) / (high - low) : 0.5);
  }
  const tint = (value, most) => {
    const share = Math.max(-1, Math.min(1, most ? value / most : 0));
    return share === 0 ? "transparent" : mix(share > 0 ? "--high" : "--low", 0.08 + 0.55 * Math.abs(share));
  };
  const hue = (place) => place < 8 ? `var(--c${place})` : `color-mix(in srgb, var(--c${place % 8}) 55%, var(--panel))`;

  // ---- Charts

  const W = 420, H = 210, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 30;

  function ticks(low, high, most) {
    const raw = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
    return found;
  }

  function chartCard(chart) {
    const many = state.index.runs.length > 1 && !chart.stacked;
    const lines = chart.series.map((line, place) => ({
      ...line, colour: many ? hue(line.run) : hue(line.place ?? place),
      name: many ? state.index.runs[line.run].title : line.label,
    }));
    const card = h("figure", { class: "card chart", "data-chart": chart.key });
    const format = chart.percent ? (v) => `${number(Number((100 * v).toPrecision(4)))}%` : number;
    card.append(h("figcaption", {}, h("h3", {}, chart.title), chart.about && h("p", { class: "about" }, chart.about)));
    const picture = chart.stacked ? bars(chart, lines, format) : curves(chart, lines, format);
    card.append(picture);
    if (lines.length > 1) {
      card.append(h("ul", { class: "legend" }, lines.map((line) =>
        h("li", {}, svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { width: 10, height: 10, rx: 3, fill: line.colour })), visible(line.name)))));
    }
    card.append(remember(`table ${chart.key}`, h("details", { class: "numbers" }, h("summary", {}, "Numbers")), (details) => {
      const xs = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
      const at = lines.map((line) => new Map(line.points.map((point) => [point[0], point])));
      details.append(h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": `Numbers of ${chart.title}` }, h("table", {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, chart.axis), lines.map((line) => h("th", { scope: "col" }, visible(line.name))))),
        h("tbody", {}, xs.map((x) => h("tr", {}, h("th", { scope: "row" }, number(x)), at.map((of) => h("td", {}, of.has(x) ? format(of.get(x)[1]) : ""))))))));
    }));
    return card;
  }

  function frame(chart, lines, low, high, [first, last], format) {
    const x = (value) => LEFT + (W - LEFT - RIGHT) * (last > first ? (value - first) / (last - first) : 0.5);
    const y = (value) => H - BOTTOM - (H - TOP - BOTTOM) * (high > low ? (value - low) / (high - low) : 0.5);
    const said = lines.map((line) => {
      const begin = line.points[0], end = line.points[line.points.length - 1];
      return `${visible(line.name)} from ${format(begin[1])} to ${format(end[1])}`;
    }).join("; ");
    const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${chart.title}: ${said}` });
    for (const at of ticks(low, high, 5)) {
      picture.append(svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(at), y2: y(at) }),
        svg("text", { x: LEFT - 6, y: y(at) + 3.5, "text-anchor": "end" }, format(at)));
    }
    const whole = ticks(first, last, 6).filter((at) => Number.isInteger(at) || last - first < 1);
    for (const at of whole.length ? whole : [first]) picture.append(svg("text", { x: x(at), y: H - BOTTOM + 15, "text-anchor": "middle" }, number(at)));
    picture.append(svg("text", { class: "axis", x: W - RIGHT, y: H - 3, "text-anchor": "end" }, chart.axis));
    return { picture, x, y };
  }

  function curves(chart, lines, format) {
    const points = lines.flatMap((line) => line.points);
    const values = points.flatMap((point) => point.slice(1));
    let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    if (chart.percent) { low = Math.min(0, low); high = high > 0.5 ? Math.max(1, high) : high * 1.15 || 0.01; }
    else {
      if (low > 0 && low < 0.6 * high) low = 0;
      const room = (high - low || Math.abs(high) || 1) * 0.06;
      if (low !== 0) low -= room;
      high += room;
    }
    const xs = points.map((point) => point[0]);
    const span = [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))];
    const { picture, x, y } = frame(chart, lines, low, high, span, format);
    for (const line of lines) {
      const d = line.points.map((point, n) => `${n ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
      if (line.points[0].length > 3) {
        const upper = line.points.map((point) => `${x(point[0]).toFixed(1)} ${y(point[3]).toFixed(1)}`);
        const lower = line.points.map((point) => `${x(point[0]).toFixed(1)} ${y(point[2]).toFixed(1)}`).reverse();
        picture.append(svg("path", { class: "band", fill: line.colour, d: `M${[...upper, ...lower].join("L")}Z` }));
        for (const [at, , under, over] of line.points) {
          picture.append(svg("line", { class: "whisker", stroke: line.colour, x1: x(at), x2: x(at), y1: y(under), y2: y(over) }));
        }
      }
      picture.append(svg("path", { class: "curve", stroke: line.colour, d }));
      if (line.points.length <= 30) {
        for (const point of line.points) picture.append(svg("circle", { cx: x(point[0]), cy: y(point[1]), r: 2.6, fill: line.colour }));
      }
    }
    return pointed(picture, chart, lines, x, format);
  }

  function bars(chart, lines, format) {
    const totals = new Map(), done = new Map();
    for (const line of lines) for (const [at, value] of line.points) totals.set(at, (totals.get(at) || 0) + value);
    const xs = [...totals.keys()].sort((a, b) => a - b), gap = xs.length > 1 ? Math.min(...xs.slice(1).map((at, n) => at - xs[n])) : 1;
    const high = chart.percent ? 1 : [...totals.values()].reduce((a, b) => Math.max(a, b)) * 1.05;
    const { picture, x, y } = frame(chart, lines, 0, high, [xs[0] - gap / 2, xs[xs.length - 1] + gap / 2], format);
    const width = Math.max(1, (x(xs[0] + gap) - x(xs[0])) * 0.78);
    for (const line of lines) {
      for (const [at, value] of line.points) {
        const under = done.get(at) || 0;
        done.set(at, under + value);
        if (value > 0) picture.append(svg("rect", { x: x(at) - width / 2, width, y: y(under + value), height: y(under) - y(under + value), fill: line.colour }));
      }
    }
    return pointed(picture, chart, lines, x, format);
  }

  function pointed(picture, chart, lines, x, format) {
    const tip = h("div", { class: "tip", hidden: true }), rule = svg("line", { class: "rule", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
    picture.append(rule);
    const xs = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))];
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect(), at = (event.clientX - box.left) * W / box.width;
      const near = xs.reduce((a, b) => Math.abs(x(b) - at) < Math.abs(x(a) - at) ? b : a);
      rule.setAttribute("x1", x(near)); rule.setAttribute("x2", x(near)); rule.setAttribute("visibility", "visible");
      tip.replaceChildren(h("b", {}, `${chart.axis} ${number(near)}`), ...lines.flatMap((line) => {
        const point = line.points.find((each) => each[0] === near);
        if (!point) return [];
        const range = point.length > 3 ? ` [${format(point[2])}, ${format(point[3])}]` : "";
        const dot = svg("svg", { viewBox: "0 0 10 10" }, svg("rect", { width: 10, height: 10, rx: 3, fill: line.colour }));
        return [h("div", {}, dot, `${visible(line.name)} `, h("b", {}, format(point[1])), range)];
      }));
      tip.hidden = false;
      const share = x(near) / W;
      tip.style.left = `${100 * share}%`;
      tip.style.transform = `translateX(${share > 0.5 ? "-105%" : "5%"})`;
    });
    picture.addEventListener("pointerleave", () => { tip.hidden = true; rule.setAttribute("visibility", "hidden"); });
    return h("div", { class: "picture" }, picture, tip);
  }

  // A details element that stays open over a redraw; its content is made when it first opens.
  function remember(key, details, fill) {
    const full = () => { if (!details.dataset.full) { details.dataset.full = "yes"; fill(details); } };
    if (state.open.has(key)) { details.open = true; full(); }
    details.addEventListener("toggle", () => {
      if (details.open) { state.open.add(key); full(); } else state.open.delete(key);
    });
    return details;
  }

  // ---- Overview

  function overview() {
    const { runs, charts, scores, differences } = state.index;
    const page = h("div", { class: "overview" });
    page.append(h("h1", { class: "quiet" }, runs.length === 1 ? "Run" : `${runs.length} runs`));
    page.append(h("div", { class: "runs" }, runs.map(runCard)));
    if (scores.length) page.append(scoreSection(scores, runs));
    const main_ = charts.filter((chart) => !chart.further), further = charts.filter((chart) => chart.further);
    if (main_.length) page.append(h("section", {}, h("h2", {}, "Curves"), h("div", { class: "charts" }, main_.flatMap(split).map(chartCard))));
    if (further.length) {
      page.append(remember("further", h("details", { class: "further" }, h("summary", {}, `All other logged figures (${further.length})`)), (details) => {
        details.append(h("div", { class: "charts" }, further.flatMap(split).map(chartCard)));
      }));
    }
    page.append(setupSection(runs, differences));
    return page;
  }

  // Of several runs each term has a chart of its own, in which every run has its colour; each whole has one for each run.
  function split(chart) {
    if (state.index.runs.length < 2) return [chart];
    const labels = [...new Set(chart.series.map((line) => line.label))];
    if (chart.stacked) {
      return state.index.runs.map((run, number_) => ({
        ...chart, key: `${chart.key} ${number_}`, title: `${chart.title}: ${visible(run.title)}`,
        series: chart.series.filter((line) => line.run === number_).map((line) => ({ ...line, place: labels.indexOf(line.label) })),
      })).filter((each) => each.series.length);
    }
    return labels.map((label) => ({
      ...chart, key: `${chart.key} ${label}`, title: labels.length > 1 ? `${chart.title}: ${label}` : chart.title,
      series: chart.series.filter((line) => line.label === label),
    }));
  }

  function runCard(run, place) {
    const row = run.score, shown = row && row.percent ? percent : number, alone = state.index.runs.length === 1;
    const whole = h("section", { class: `card run${alone ? " alone" : ""}` }), card = h("div");
    whole.append(card);
    card.append(h("h2", {}, state.index.runs.length > 1 && h("span", { class: `dot c${place % 8}` }), visible(run.title)));
    if (row) {
      card.append(h("p", { class: "headline" }, row.before && [h("span", { class: "from" }, shown(row.before[0])), h("span", { class: "arrow", "aria-label": "to" }, "\u2192")], h("strong", {}, shown(row.after[0]))));
      card.append(h("p", { class: "about" }, `${row.metric}, ${row.setting}, ${counted(row.tasks, "task")}`,
        row.change && h("span", { class: `change ${row.change[0] >= 0 ? "up" : "down"}` }, change(row.change, row.percent))));
    } else card.append(h("p", { class: "about" }, "No scores from the prompt alone yet."));
    const facts = [["trajectories", run.count], ["optimiser steps", run.steps], ["tokens sampled", run.tokens], ["minutes", run.seconds / 60]];
    card.append(h("dl", { class: "facts" }, facts.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, label === "minutes" ? value.toFixed(1) : value.toLocaleString("en"))))));
    if (run.shown < run.count) card.append(h("p", { class: "about" }, `${run.shown.toLocaleString("en")} of them are in this page; --rollouts N takes more.`));
    if (run.notes.length) {
      card.append(remember(`notes ${place}`, h("details", { class: "notes" }, h("summary", {}, `Left out (${run.notes.length})`)), (details) => {
        details.append(h("ul", {}, run.notes.map((note) => h("li", {}, visible(note)))));
      }));
    }
    if (alone && run.facts.length) whole.append(h("dl", { class: "facts recipe" }, run.facts.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, visible(value))))));
    return whole;
  }

  const change = (found, share) => share
    ? `${signed(100 * found[0]).replace(/\d$/, "")} points [${(100 * found[1]).toFixed(1)}, ${(100 * found[2]).toFixed(1)}]`
    : `${signed(found[0])} [${number(found[1])}, ${number(found[2])}]`;

  function scoreSection(scores, runs) {
    const settings = [...new Set(scores.map((table) => table.setting))];
    if (!settings.includes(state.setting)) state.setting = settings[0];
    const within = scores.filter((table) => table.setting === state.setting && table.rows.length);
    const several = new Set(runs.map((run) => run.name)).size > 1;
    if (!within.some((table) => table.metric === state.metric)) state.metric = within[0].metric;
    const section = h("section", { class: "scores" });
    const picks = h("div", { class: "picks" });
    if (settings.length > 1) picks.append(picked("Evaluation", settings, state.setting, (value) => { state.setting = value; section.replaceWith(scoreSection(scores, runs)); }));
    if (several) picks.append(picked("Metric", within.map((table) => table.metric), state.metric, (value) => { state.metric = value; section.replaceWith(scoreSection(scores, runs)); }));
    const head = (...names) => h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name))));
    const tables = several ? within.filter((table) => table.metric === state.metric) : within;
    const begun = tables.some((table) => table.rows.some((row) => row.before));
    const cells = (row, table) => {
      const shown = table.percent ? percent : number;
      const whole = (found) => found ? [h("b", {}, shown(found[0])), h("small", {}, ` ${shown(found[1])} to ${shown(found[2])}`)] : "\u2013";
      return [begun && h("td", {}, whole(row.before)), h("td", {}, whole(row.after)),
        begun && h("td", { class: "mini" }, table.percent && span(row)),
        begun && h("td", {}, row.change ? change(row.change, table.percent) : "\u2013")];
    };
    const names = [...(begun ? ["before"] : []), "after", ...(begun ? ["before to after", "change"] : [])];
    section.append(h("div", { class: "line" }, h("h2", {}, several ? "Runs compared" : begun ? "Before and after" : "Scores"), picks),
      h("p", { class: "about" }, `From the prompt alone (${state.setting}); means over tasks with 95 % intervals`, several && `, differences task by task from ${visible(runs[0].name)}`, "."),
      h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Scores" }, h("table", { class: "table" },
        head(several ? "run" : "metric", ...names, ...(several ? ["difference"] : [])),
        h("tbody", {}, several
          ? tables[0].rows.map((row) => h("tr", {}, h("th", { scope: "row" }, visible(row.method)), cells(row, tables[0]), h("td", {}, row.difference ? change(row.difference, tables[0].percent) : "\u2013")))
          : tables.map((table) => h("tr", {}, h("th", { scope: "row" }, table.metric), cells(table.rows[0], table)))))));
    return section;
  }

  // Before and after as a line from one to the other, with their intervals.
  function span(row) {
    const x = (value) => 6 + 148 * value, picture = svg("svg", { viewBox: "0 0 160 20", "aria-hidden": "true", class: "span" });
    picture.append(svg("line", { class: "base", x1: x(0), x2: x(1), y1: 10, y2: 10 }));
    if (row.before) picture.append(svg("line", { class: "link", x1: x(row.before[0]), x2: x(row.after[0]), y1: 10, y2: 10 }));
    for (const [found, name] of [[row.before, "was"], [row.after, "is"]]) {
      if (!found) continue;
      picture.append(svg("line", { class: `reach ${name}`, x1: x(found[1]), x2: x(found[2]), y1: 10, y2: 10 }), svg("circle", { class: name, cx: x(found[0]), cy: 10, r: 4 }));
    }
    return picture;
  }

  function picked(label, values, chosen, then) {
    return h("label", { class: "pick" }, h("span", {}, label), h("select", { onchange: (event) => then(event.target.value) },
      values.map((value) => h("option", { value, selected: value === chosen }, visible(value)))));
  }

  function setupSection(runs, differences) {
    const labels = [...new Set(runs.flatMap((run) => run.facts.map((fact) => fact[0])))];
    if (!labels.length || runs.length === 1) return h("span");
    const values = runs.map((run) => new Map(run.facts));
    const table = (name, rows) => h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": name }, h("table", { class: "table setup" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "field"), runs.map((run) => h("th", { scope: "col" }, visible(run.title))))),
      h("tbody", {}, rows.map(([label, ...of]) => h("tr", {}, h("th", { scope: "row" }, label), of.map((value) => h("td", {}, visible(value))))))));
    return h("section", {}, h("h2", {}, "Setup"), table("Setup", labels.map((label) => [label, ...values.map((of) => of.get(label) ?? "\u2013")])),
      differences.length > 0 && [h("h2", {}, "Where the recipes differ"), table("Where the recipes differ", differences)]);
  }

  // ---- Trajectories: filters and a virtual list

  const SORTS = {
    "": ["as they came", (row) => row.order],
    low: ["score, lowest first", (row) => scoreOf(row) ?? Infinity],
    high: ["score, highest first", (row) => -(scoreOf(row) ?? -Infinity)],
    turns: ["most turns", (row) => -row.turns],
    calls: ["most calls", (row) => -row.calls],
    tokens: ["most tokens", (row) => -(row.tokens ?? 0)],
    errors: ["most failed calls", (row) => -(row.errors + row.malformed)],
    advantage: ["largest advantage", (row) => -row.advantages.reduce((a, b) => Math.max(a, Math.abs(b)), 0)],
    task: ["task", (row) => row.task],
  };

  function matches(row, filter) {
    if (filter.run && String(row.run) !== filter.run) return false;
    if (filter.set && row.set !== filter.set) return false;
    if (filter.kind && row.kind !== filter.kind) return false;
    if (filter.stop && row.stop !== filter.stop) return false;
    if (filter.tool && !row.tools.includes(filter.tool)) return false;
    if (filter.solved && String(row.solved) !== filter.solved) return false;
    const score = scoreOf(row);
    if (filter.min && !(score !== null && score >= +filter.min)) return false;
    if (filter.max && !(score !== null && score <= +filter.max)) return false;
    return !filter.task || row.task.toLowerCase().includes(filter.task.toLowerCase());
  }

  const texts = new WeakMap();
  function textOf(body) {
    if (!texts.has(body)) {
      const parts = body.prompt.map((message) => message.text);
      for (const turn of body.turns) {
        parts.push(turn.reasoning, turn.text, turn.written, ...turn.malformed, ...turn.calls.flatMap((call) => [call.name, call.arguments]),
          ...turn.responses.map((response) => response.text), ...turn.users.map((user) => user.text));
      }
      texts.set(body, parts.join("\n").toLowerCase());
    }
    return texts.get(body);
  }

  let asked = 0;
  async function choose() {
    const mine = ++asked, filter = state.filter, wanted = (filter.q || "").toLowerCase();
    let rows = state.rows.filter((row) => matches(row, filter));
    if (wanted) {
      const bodies = new Map();
      for (const key of new Set(rows.map((row) => row.block))) bodies.set(key, await block(key).catch(() => []));
      if (mine !== asked) return false;
      rows = rows.filter((row) => row.task.toLowerCase().includes(wanted)
        || (bodies.get(row.block)[row.at] && textOf(bodies.get(row.block)[row.at]).includes(wanted)));
    }
    const by = (SORTS[filter.sort] || SORTS[""])[1];
    const keyed = rows.map((row) => [by(row), row]);
    keyed.sort(([a, first], [b, second]) => (a < b ? -1 : a > b ? 1 : first.order - second.order));
    state.shown = keyed.map((pair) => pair[1]);
    return true;
  }

  function rollouts() {
    const filter = state.filter, rows = state.rows;
    const page = h("div", { class: "browse" });
    const distinct = (name) => [...new Set(rows.map((row) => row[name]))].filter((value) => value !== "" && value !== null);
    const pick = (name, label, values, shown = visible) => values.length > 1 && h("label", { class: "pick" }, h("span", {}, label),
      h("select", { name, onchange: changed }, h("option", { value: "" }, "all"), values.map((value) => h("option", { value, selected: filter[name] === String(value) }, shown(value)))));
    const tools = [...new Set(rows.flatMap((row) => row.tools))].sort();
    const form = h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      h("label", { class: "pick search" }, h("span", {}, "Text"), h("input", { type: "search", name: "q", id: "search", value: filter.q || "", placeholder: "Any text   /", oninput: later, autocomplete: "off" })),
      pick("run", "Run", distinct("run"), (value) => visible(state.index.runs[value].title)),
      pick("set", "Phase", state.sets, setLabel),
      h("label", { class: "pick" }, h("span", {}, "Task"), h("input", { name: "task", value: filter.task || "", oninput: later, autocomplete: "off", size: 12 })),
      pick("kind", "Kind", distinct("kind").sort()),
      pick("solved", "Solved", distinct("solved").map(String), (value) => value === "true" ? "solved" : "not solved"),
      pick("stop", "Stop reason", distinct("stop").sort()),
      pick("tool", "Tool", tools),
      h("label", { class: "pick" }, h("span", {}, "Score"), h("select", { name: "score", onchange: changed }, h("option", { value: "" }, "reward, main score"),
        ["reward", ...state.metrics].map((value) => h("option", { value, selected: filter.score === value }, visible(value))))),
      [["min", "From"], ["max", "To"]].map(([name, label]) => h("label", { class: "pick" }, h("span", {}, label),
        h("input", { name, type: "number", step: "any", value: filter[name] || "", oninput: later, class: "bound" }))),
      h("label", { class: "pick" }, h("span", {}, "Sort"), h("select", { name: "sort", onchange: changed }, Object.entries(SORTS).map(([value, [label]]) => h("option", { value, selected: (filter.sort || "") === value }, label)))),
      h("label", { class: "pick" }, h("span", {}, "Show"), h("select", { name: "by", onchange: changed }, [["", "rollouts"], ["task", "tasks as a grid"]].map(([value, label]) => h("option", { value, selected: (filter.by || "") === value }, label)))),
      h("button", { type: "button", class: "more", "aria-expanded": "false", onclick: (event) => {
        form.classList.toggle("opened");
        event.target.setAttribute("aria-expanded", String(form.classList.contains("opened")));
      } }, "Filters"),
      h("button", { type: "button", class: "clear", onclick: () => { location.hash = "#/rollouts"; } }, "Clear"));
    const status = h("p", { class: "status", role: "status" }), list = h("div");
    page.append(h("h1", { class: "quiet" }, "Trajectories"), form, status, list);
    let timer = 0;
    function later() { clearTimeout(timer); timer = setTimeout(changed, 180); }
    function changed() {
      state.filter = {};
      for (const name of FILTERS) if (form.elements[name] && form.elements[name].value) state.filter[name] = form.elements[name].value;
      const query = new URLSearchParams(state.filter).toString();
      history.replaceState(null, "", `#/rollouts${query ? `?${query}` : ""}`);
      state.selected = -1; state.scroll = 0;
      fill();
    }
    async function fill() {
      status.textContent = "Searching ...";
      if (!await choose()) return;
      const found = state.shown, known = found.filter((row) => row.solved !== null), good = known.filter((row) => row.solved).length;
      const scored = found.filter((row) => row.reward !== null);
      const mean = scored.reduce((sum, row) => sum + row.reward, 0) / scored.length;
      status.replaceChildren(...some(h("b", {}, found.length.toLocaleString("en")), ` of ${counted(rows.length, "trajectory").replace("ys", "ies")}`,
        known.length > 0 && `, ${percent(good / known.length)} solved`, scored.length > 0 && `, mean reward ${mean.toFixed(2)}`));
      list.replaceChildren(state.filter.by === "task" ? taskGrid(found) : rowList(found));
    }
    fill();
    return page;
  }

  const narrow = () => matchMedia("(max-width: 760px)").matches;

  // Only the rows in view are in the document.
  function virtual(count, height, label, head, make) {
    const spacer = h("div", { role: "rowgroup", class: "spacer" });
    const scroller = h("div", { class: "scroller list", tabindex: 0, role: "table", "aria-label": label, "aria-rowcount": count + 1 }, h("div", { role: "rowgroup", class: "heads" }, head), spacer);
    spacer.style.height = `${count * height}px`;
    const present = new Map();
    function draw() {
      const first = Math.max(0, Math.floor(scroller.scrollTop / height) - 8);
      const last = Math.min(count, Math.ceil((scroller.scrollTop + (scroller.clientHeight || 800)) / height) + 8);
      for (const [at, node] of present) if (at < first || at >= last) { node.remove(); present.delete(at); }
      for (let at = first; at < last; at++) {
        if (present.has(at)) continue;
        const node = make(at);
        node.style.top = `${at * height}px`;
        node.style.height = `${height}px`;
        node.setAttribute("aria-rowindex", at + 2);
        present.set(at, node);
        spacer.append(node);
      }
    }
    scroller.addEventListener("scroll", () => { state.scroll = scroller.scrollTop; draw(); }, { passive: true });
    new ResizeObserver(draw).observe(scroller);
    requestAnimationFrame(() => { scroller.scrollTop = state.scroll; draw(); });
    return { scroller, draw, present, height };
  }

  let current = null;

  function rowList(found) {
    const height = narrow() ? 84 : 46, several = state.index.runs.length > 1;
    const head = h("div", { role: "row", class: `row head${several ? " several" : ""}` },
      [several && "run", "phase", "task", "solved", state.filter.score || "score", "reward by turn", "turns", "calls", "tokens", "stop reason"].filter(Boolean).map((name) => h("span", { role: "columnheader" }, name)));
    const view = virtual(found.length, height, "Trajectories", head, (at) => {
      const row = found[at], cell = (name, ...children) => h("span", { role: "cell", class: name }, ...children);
      return h("div", { role: "row", class: `row${several ? " several" : ""}${at === state.selected ? " selected" : ""}`, "aria-current": at === state.selected ? "true" : null },
        several && cell("runname", h("span", { class: `dot c${row.run % 8}` }), visible(state.index.runs[row.run].title)),
        cell("phase", row.label),
        cell("task", h("a", { href: link(row), tabindex: -1 }, visible(row.task), h("small", {}, ` #${row.sample}`)), h("span", { class: "question" }, visible(row.question))),
        cell("solved", row.solved === null ? "\u2013" : h("span", { class: row.solved ? "yes" : "no" }, row.solved ? "\u2713 yes" : "\u2717 no")),
        cell("score", h("span", { class: "chip", tint: chosenTint(row) }, scoreOf(row) === null ? "\u2013" : scoreOf(row).toFixed(2))),
        cell("cells", strip(row)),
        cell("count", h("span", { class: "unit" }, "turns "), number(row.turns)),
        cell("count", h("span", { class: "unit" }, "calls "), number(row.calls), row.errors + row.malformed > 0 && h("em", { title: "failed or malformed" }, ` ${row.errors + row.malformed}!`)),
        cell("count", h("span", { class: "unit" }, "tokens "), number(row.tokens)),
        cell("stop", visible(row.stop.replaceAll("_", " "))));
    });
    current = { ...view, count: found.length, open: (at) => { location.hash = link(found[at]); } };
    return view.scroller;
  }

  const strip = (row) => row.rewards.length > 0 && h("span", { class: "strip", role: "img", "aria-label": `rewards ${row.rewards.join(", ")}` },
    row.rewards.slice(0, 16).map((value) => h("i", { tint: scale(Math.max(0, Math.min(1, value))), title: value })));

  function taskGrid(found) {
    const tasks = new Map();
    for (const row of found) {
      if (!tasks.has(row.task)) tasks.set(row.task, []);
      tasks.get(row.task).push(row);
    }
    const listed = [...tasks], height = narrow() ? 84 : 46;
    const head = h("div", { role: "row", class: "row head tasks" }, h("span", { role: "columnheader" }, "task"), h("span", { role: "columnheader" }, "rollouts by phase: colour is the score, a tick is solved"));
    const view = virtual(listed.length, height, "Tasks", head, (at) => {
      const [task, rows] = listed[at], groups = new Map();
      for (const row of rows) {
        const key = `${row.run} ${row.set}`;
        if (!groups.has(key)) groups.set(key, []);
        groups.get(key).push(row);
      }
      return h("div", { role: "row", class: `row tasks${at === state.selected ? " selected" : ""}` },
        h("span", { role: "cell", class: "task" }, h("a", { href: link(rows[0]), tabindex: -1 }, visible(task)), h("span", { class: "question" }, visible(rows[0].question))),
        h("span", { role: "cell", class: "squares" }, [...groups.values()].map((group) => h("span", { class: "group" },
          h("small", {}, group[0].label.replace("validation", "val.")),
          group.map((row) => h("a", { class: `square${row.solved ? " good" : ""}`, href: link(row), tabindex: -1, tint: scoreTint(row), title: `${row.label}, #${row.sample}: ${row.score ?? ""}`, "aria-label": `${row.label}, sample ${row.sample}, score ${row.score ?? "unknown"}` }, row.solved ? "\u2713" : ""))))));
    });
    current = { ...view, count: listed.length, open: (at) => { location.hash = link(listed[at][1][0]); } };
    return view.scroller;
  }

  const link = (row) => `#/rollout/${encodeURIComponent(row.id)}`;

  function move(step) {
    if (!current || !current.count) return;
    state.selected = Math.max(0, Math.min(current.count - 1, state.selected + step));
    const { scroller, height, present } = current, top = state.selected * height;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    const room = scroller.clientHeight - scroller.firstChild.offsetHeight;
    if (top + height > scroller.scrollTop + room) scroller.scrollTop = top + height - room;
    current.draw();
    for (const [at, node] of present) {
      node.classList.toggle("selected", at === state.selected);
      if (at === state.selected) node.setAttribute("aria-current", "true"); else node.removeAttribute("aria-current");
    }
  }

  // ---- One trajectory

  const runLabel = (row) => state.index.runs.length > 1 ? `${visible(state.index.runs[row.run].title)}, ` : "";
  const shortScore = (row) => row.score === null ? "" : `, ${row.score.toFixed(2)}`;

  async function one(id) {
    const row = state.byId.get(id);
    if (!row) return h("p", { class: "empty" }, "This trajectory is not in the page. ", h("a", { href: "#/rollouts" }, "All trajectories"));
    const body = await bodyOf(row);
    if (!state.shown.length) await choose();
    const at = state.shown.indexOf(row);
    if (at >= 0) state.selected = at;
    const page = h("article", { class: "one" });
    const others = state.rows.filter((other) => other.task === row.task && other !== row);
    const group = state.rows.filter((other) => other.task === row.task && other.set === row.set && other.run === row.run);
    page.append(h("div", { class: "line" }, h("a", { class: "back", href: backLink() }, "\u2190 All trajectories"), h("span", { class: "grow" }),
      at > 0 && h("a", { class: "button", href: link(state.shown[at - 1]), title: "Previous (k)" }, "\u2191 Previous"),
      at >= 0 && at < state.shown.length - 1 && h("a", { class: "button", href: link(state.shown[at + 1]), title: "Next (j)" }, "\u2193 Next")));
    page.append(title(row, "h1"));
    if (group.length > 1) {
      page.append(h("p", { class: "group-line" }, h("span", {}, "Rollouts of this prompt"), group.map((other) => h("a", {
        class: `square${other === row ? " here" : ""}`, href: link(other), tint: scoreTint(other), "aria-current": other === row ? "page" : null,
        "aria-label": `sample ${other.sample}${shortScore(other)}${other.solved ? ", solved" : ""}`, title: `#${other.sample}${shortScore(other)}`,
      }, other.solved ? "\u2713" : ""))));
    }
    const conversation = h("div", { class: "conversation" });
    const redraw = () => conversation.replaceChildren(...turns(row, body));
    const tools = h("div", { class: "tools" }, heatPick(row, body, redraw),
      h("button", { type: "button", id: "fold", onclick: () => foldAll(conversation) }, "Fold all"),
      h("button", { type: "button", id: "copy", onclick: (event) => copied(event.target, row, body) }, "Copy JSON"),
      others.length > 0 && h("label", { class: "pick" }, h("span", {}, "Beside it"), h("select", { id: "beside", onchange: (event) => { location.hash = `#/compare/${encodeURIComponent(row.id)}/${encodeURIComponent(event.target.value)}`; } },
        h("option", { value: "" }, `one of ${others.length} others of this task`), others.map((other) => h("option", { value: other.id }, `${runLabel(other)}${other.label} #${other.sample}${shortScore(other)}`)))));
    page.append(tools, legend());
    redraw();
    const run = state.index.runs[row.run];
    const aside = h("aside", { class: "expert", "aria-label": "Reference and expert trace" });
    if (run.experts && run.traced.includes(row.task)) aside.append(...expert((await block(run.experts))[row.task], row, run));
    else aside.append(h("h2", {}, "Expert trace"), h("p", { class: "about" }, "This page has neither reference nor trace of this task. --tasks FILE names the tasks whose solutions are shown."));
    page.append(h("div", { class: "beside" }, conversation, aside));
    return page;
  }

  async function copied(button, row, body) {
    const { task, sample, phase, stop, tokens, rewards, advantages, scores, solved } = row;
    const text = JSON.stringify({ task, sample, phase, stop, tokens, rewards, advantages, scores, solved, ...body }, null, 2);
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch { // a browser that forbids it for a page from a file
      h("a", { href: URL.createObjectURL(new Blob([text])), download: `${row.file}-line-${row.line}.json` }).click();
      button.textContent = "Saved";
    }
    setTimeout(() => { button.textContent = "Copy JSON"; }, 1500);
  }

  function backLink() {
    const query = new URLSearchParams(state.filter).toString();
    return `#/rollouts${query ? `?${query}` : ""}`;
  }

  function title(row, tag) {
    const chips = [[row.stop.replaceAll("_", " "), null], row.solved !== null && [row.solved ? "solved" : "not solved", scale(row.solved ? 1 : 0)],
      row.reward !== null && [`reward ${row.reward.toFixed(2)}`, scoreTint(row)], [counted(row.turns, "turn"), null], [counted(row.calls, "call"), null],
      row.tokens !== null && [counted(row.tokens, "token"), null], [`${row.file}.jsonl, line ${row.line}`, null]].filter(Boolean);
    const scores = Object.entries(row.scores);
    return h("div", { class: "title" }, h(tag, {}, visible(row.task), h("small", {}, ` ${runLabel(row)}${row.label}, sample ${row.sample}${row.kind ? `, ${visible(row.kind)}` : ""}`)),
      h("p", { class: "chips" }, chips.map(([text, colour]) => h("span", { class: "chip", tint: colour }, visible(text)))),
      scores.length > 0 && remember("scores", h("details", {}, h("summary", {}, "Scores")), (details) => {
        details.append(h("dl", { class: "facts" }, scores.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, number(value))))));
      }));
  }

  const legend = () => h("ul", { class: "legend parts" }, ["reasoning", "call", "response", "answer", "prompt"].map((name) => h("li", {}, h("span", { class: `key ${name}` }), name)));

  function heatPick(row, body, redraw) {
    const able = { plain: true, advantage: row.advantages.length > 0, gap: Boolean(body.heat), surprise: Boolean(body.heat) };
    const names = { plain: "none", advantage: "advantage by turn", gap: "privilege gap by token", surprise: "surprise by token" };
    const values = heats.filter((each) => able[each]);
    if (values.length < 2) return null;
    return h("label", { class: "pick" }, h("span", {}, "Colour"), h("select", { id: "heat", onchange: (event) => { state.heat = event.target.value; redraw(); } },
      values.map((value) => h("option", { value, selected: value === state.heat }, names[value]))));
  }

  function foldAll(within) {
    const all = [...within.querySelectorAll("details.part")], opening = all.every((each) => !each.open);
    state.fold = !opening;
    all.forEach((each) => { each.open = opening; });
  }

  function part(kind, label, text, { open = true, mono = false } = {}) {
    const shown = state.fold === null ? open : !state.fold;
    const brief = visible(text).replace(/\s+/g, " ").slice(0, 90);
    return h("details", { class: `part ${kind}`, open: shown }, h("summary", {}, h("b", {}, label), h("span", { class: "brief" }, brief)), h("pre", { class: mono ? "mono" : "" }, rich(text)));
  }

  function pretty(text) {
    try {
      const value = JSON.parse(text);
      return typeof value === "object" && value !== null && text.length > 72 ? JSON.stringify(value, null, 2) : text;
    } catch { return text; }
  }

  function callLine(call) {
    let given = call.arguments;
    try {
      const value = JSON.parse(call.arguments);
      if (value && typeof value === "object" && !Array.isArray(value)) given = Object.entries(value).map(([name, each]) => `${name}: ${JSON.stringify(each)}`).join(", ");
    } catch { /* shown as it was written */ }
    return given.length > 140 ? null : given;
  }

  function callPart(call) {
    const line = callLine(call);
    if (line !== null) return h("div", { class: "part call" }, h("p", { class: "mono" }, h("b", {}, rich(call.name)), "(", rich(line), ")"));
    return part("call", visible(call.name), pretty(call.arguments), { mono: true });
  }

  function responsePart(response) {
    const text = pretty(response.text), kind = `response${response.error ? " failed" : ""}`;
    if (text.length < 200 && !text.includes("\n")) return h("div", { class: `part ${kind}` }, h("p", { class: "mono" }, response.error && h("b", {}, "failed "), rich(text)));
    return part(kind, response.error ? "failed response" : "response", text, { mono: true, open: text.length < 2500 });
  }

  function turns(row, body) {
    const found = body.prompt.map((message) => part("prompt", visible(message.role), message.text, { open: message.role !== "system" || message.text.length < 400 }));
    const heat = state.heat, most = row.advantages.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    body.turns.forEach((turn, number_) => {
      const reward = row.rewards[number_], advantage = row.advantages[number_];
      const box = h("div", { class: "turn", role: "group", "aria-label": `Turn ${number_ + 1}` });
      box.append(h("h2", {}, `Turn ${number_ + 1}`,
        reward !== undefined && h("span", { class: "chip", tint: scale(Math.max(0, Math.min(1, reward))) }, `reward ${reward.toFixed(2)}`),
        advantage !== undefined && h("span", { class: "chip", tint: tint(advantage, most) }, `advantage ${signed(advantage)}`)));
      if (heat === "advantage" && advantage !== undefined) box.style.background = tint(advantage, most);
      if ((heat === "gap" || heat === "surprise") && body.heat) box.append(tokens(body.heat, number_, heat), ...turn.responses.map(responsePart));
      else {
        if (turn.reasoning.trim()) box.append(part("reasoning", "reasoning", turn.reasoning));
        const ends = !turn.calls.length && !turn.malformed.length;
        if (turn.text.trim()) box.append(part("answer", ends ? "answer" : "text", turn.text));
        turn.calls.forEach((call, place) => box.append(callPart(call), ...turn.responses.filter((response) => response.of === place).map(responsePart)));
        for (const error of turn.malformed) box.append(part("call failed", "malformed call", error, { mono: true }));
        if (turn.written) box.append(part("call failed", "as written", turn.written, { mono: true, open: false }));
        box.append(...turn.responses.filter((response) => response.of === null).map(responsePart));
      }
      found.push(box, ...turn.users.map((user) => part("prompt", "user", user.text)));
    });
    return found;
  }

  function tokens(heat, turn, kind) {
    const places = heat.turns.map((of, place) => of === turn ? place : -1).filter((place) => place >= 0);
    const value = (place) => kind === "gap" ? heat.gap[place] : heat.logp[place];
    const most = kind === "gap" ? 2 : 4;
    return h("pre", { class: "tokens", "data-heat": kind }, places.map((place) => {
      const said = `${kind === "gap" ? `gap ${signed(heat.gap[place])} nats` : `probability ${Math.exp(heat.logp[place]).toFixed(3)}`}, ${heat.components[place]}`;
      return h("span", { class: `tok ${heat.components[place]}`, title: said, tint: tint(value(place), most) }, visible(heat.texts[place]));
    }));
  }

  function expert(trace, row, run) {
    const level = row.phase === null ? undefined : run.levels[row.phase];
    const found = trace.answer ? [h("h2", {}, "Reference answer"), part("answer reference", "right answer", trace.answer)] : [];
    if (!trace.turns.length) return [...found, trace.calls.length > 0 && h("h2", {}, "Reference calls"), trace.calls.map(callPart), h("p", { class: "about" }, "This task has no expert trace.")].flat().filter(Boolean);
    found.push(h("h2", {}, "Expert trace"), h("p", { class: "about" }, level === undefined
      ? "Each piece of reasoning says from which level it is supervised."
      : `In phase ${row.phase} the level was L${level}: what is marked was supervised, unless the prompt was anchored.`));
    trace.turns.forEach((turn, place) => {
      const box = h("section", { class: "turn" }, h("h3", {}, `Turn ${place + 1}`, h("small", {}, ` ${turn.pattern.replaceAll("_", " ")}`)));
      for (const chunk of turn.chunks) {
        const active = level !== undefined && chunk.level !== null && chunk.level <= level;
        box.append(h("div", { class: `chunk${active ? " active" : ""}` }, h("span", { class: "level", title: chunk.type }, chunk.level === null ? "never" : `L${chunk.level}`), h("span", {}, visible(chunk.text.trim()), h("small", {}, ` ${chunk.type.replaceAll("_", " ")}`))));
      }
      turn.calls.forEach((call, n) => box.append(...some(callPart(call), turn.responses[n] !== undefined && responsePart({ text: turn.responses[n], error: false }))));
      if (turn.answer) box.append(part("answer", "answer", turn.answer));
      found.push(box);
    });
    return found;
  }

  async function compare(first, second) {
    const rows = [first, second].map((id) => state.byId.get(id));
    if (rows.some((row) => !row)) return h("p", { class: "empty" }, "One of these trajectories is not in the page. ", h("a", { href: "#/rollouts" }, "All trajectories"));
    const bodies = await Promise.all(rows.map(bodyOf));
    const page = h("article", { class: "one" }), same = state.rows.filter((row) => row.task === rows[0].task);
    page.append(h("div", { class: "line" }, h("a", { class: "back", href: link(rows[0]) }, "\u2190 Back to one"), h("span", { class: "grow" }),
      h("a", { class: "button", href: `#/compare/${encodeURIComponent(second)}/${encodeURIComponent(first)}` }, "Swap")), h("h1", { class: "quiet" }, `Two rollouts of ${visible(rows[0].task)}`));
    const columns = h("div", { class: "two" }, rows.map((row, place) => {
      const pick = h("select", { "aria-label": place ? "Right" : "Left", onchange: (event) => {
        const ids = [first, second];
        ids[place] = event.target.value;
        location.hash = `#/compare/${ids.map(encodeURIComponent).join("/")}`;
      } }, same.map((other) => h("option", { value: other.id, selected: other === row }, `${runLabel(other)}${other.label} #${other.sample}${shortScore(other)}`)));
      return h("section", { class: "conversation" }, pick, title(row, "h2"), turns(row, bodies[place]));
    }));
    page.append(columns);
    return page;
  }

  // ---- Routes, keys, theme

  let drawn = 0;
  async function draw() {
    const mine = ++drawn, [path, query] = location.hash.replace(/^#/, "").split("?");
    const [view, ...ids] = path.split("/").filter(Boolean).map(decodeURIComponent);
    if (view === "rollouts") {
      state.filter = {};
      for (const [name, value] of new URLSearchParams(query || "")) if (FILTERS.includes(name)) state.filter[name] = value;
    }
    if (view !== "rollouts") current = null;
    let page;
    try {
      if (view === "rollouts") page = rollouts();
      else if (view === "rollout") page = await one(ids[0]);
      else if (view === "compare") page = await compare(ids[0], ids[1]);
      else page = overview();
    } catch (error) {
      page = h("p", { class: "empty" }, `This could not be read (${error.message}). Reload the page; `, h("code", {}, "pact-lightning view"), " may have ended.");
    }
    if (mine !== drawn) return;
    main.replaceChildren(page);
    const name = view === "rollouts" || view === "rollout" || view === "compare" ? "rollouts" : "overview";
    for (const each of document.querySelectorAll("[data-view]")) {
      if (each.dataset.view === name) each.setAttribute("aria-current", "page"); else each.removeAttribute("aria-current");
    }
    document.documentElement.dataset.drawn = location.hash || "#/";
  }

  const KEYS = [["j, \u2193", "next row or trajectory"], ["k, \u2191", "the one before"], ["Enter", "open the row"], ["/", "search"], ["h", "next colouring"], ["f", "fold or unfold all"], ["c", "choose one to put beside"], ["Esc, u", "back to the list"], ["t", "light, dark, system"], ["?", "these keys"]];

  function setTheme(name) {
    if (name === "system") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
    document.getElementById("theme").textContent = { system: "Theme", light: "Light", dark: "Dark" }[name];
    try { localStorage.setItem("pact-theme", name); } catch { /* a page from a file may have no storage */ }
  }
  function nextTheme() {
    const names = ["system", "light", "dark"];
    setTheme(names[(names.indexOf(document.documentElement.dataset.theme || "system") + 1) % 3]);
  }

  const dialog = document.getElementById("keys");
  dialog.append(h("h2", { id: "keys-title" }, "Keys"), h("dl", { class: "keys" }, KEYS.map(([key, does]) => h("div", {}, h("dt", {}, key), h("dd", {}, does)))), h("button", { type: "button", onclick: () => dialog.close() }, "Close"));

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, dialog");
    if (event.key === "Escape" && event.target.id === "search") { event.target.blur(); return; }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const detail = location.hash.startsWith("#/rollout/"), step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    const press = (id) => { const found = document.getElementById(id); if (found) { found.focus(); return found; } return null; };
    if (step && current) { move(step); event.preventDefault(); }
    else if (step && detail && (event.key === "j" || event.key === "k")) {
      const next = state.shown[state.selected + step];
      if (next) location.hash = link(next);
    } else if (event.key === "Enter" && current && state.selected >= 0 && !event.target.closest("a, button, summary")) current.open(state.selected);
    else if (event.key === "/") {
      event.preventDefault();
      if (!press("search")) { location.hash = "#/rollouts"; setTimeout(() => press("search"), 60); }
    } else if (event.key === "h") {
      const pick = document.getElementById("heat");
      if (pick) { pick.selectedIndex = (pick.selectedIndex + 1) % pick.options.length; pick.dispatchEvent(new Event("change")); }
    } else if (event.key === "f") document.getElementById("fold")?.click();
    else if (event.key === "c") press("beside");
    else if ((event.key === "Escape" || event.key === "u") && !dialog.open && (detail || location.hash.startsWith("#/compare"))) location.hash = backLink();
    else if (event.key === "t") nextTheme();
    else if (event.key === "?") dialog.showModal();
  });
  document.getElementById("theme").addEventListener("click", nextTheme);
  document.getElementById("help").addEventListener("click", () => dialog.showModal());
  addEventListener("hashchange", () => { draw().then(() => { if (!location.hash.startsWith("#/rollouts")) scrollTo(0, 0); }); });
  matchMedia("(max-width: 760px)").addEventListener("change", () => { if (current) draw(); });

  // ---- Start, and new phases of a run that goes on

  function accept(index) {
    const names = index.runs.map((run) => run.name);
    for (const run of index.runs) {
      const folder = run.name.split("/").filter((part) => part && !/^\.+$/.test(part));
      run.title = names.filter((name) => name === run.name).length > 1 ? `${run.name} (${run.seed})` : folder.slice(-2).join("/") || run.folder;
    }
    take(index);
  }

  async function ask() {
    const pill = document.getElementById("live");
    try {
      const response = await fetch("index.json", { headers: state.version ? { "If-None-Match": state.version } : {}, cache: "no-store" });
      if (response.status === 200) {
        state.version = response.headers.get("ETag");
        accept(await response.json());
        state.shown = [];
        const opened = /^#\/(rollout|compare)\//.test(location.hash);
        if (!opened || !main.querySelector(".one")) await draw(); else await choose();
      }
      pill.textContent = `live, ${counted(state.rows.length, "trajectory").replace("ys", "ies")}`;
      pill.classList.add("on");
    } catch {
      pill.textContent = "not connected";
      pill.classList.remove("on");
    }
    setTimeout(ask, POLL_MS);
  }

  async function start() {
    let theme = "system";
    try { theme = localStorage.getItem("pact-theme") || "system"; } catch { /* none */ }
    setTheme(["light", "dark"].includes(theme) ? theme : "system");
    if (LIVE) { await ask(); return; }
    accept(await block("index"));
    await draw();
  }
  start();
})();
