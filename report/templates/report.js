"use strict";
// Builds the page from its data. Text enters the document as textContent only, never as HTML.
(() => {
  const json = (id) => JSON.parse(document.getElementById(id).textContent);
  const $ = (id) => document.getElementById(id);
  const TEXTS = json("texts"), DATA = json("data");
  const PAGE = 48, BLOCK = 64, SVG = "http://www.w3.org/2000/svg";
  const wanted = document.documentElement.dataset.language;
  let language = wanted === "auto" ? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en") : wanted;

  // ---- texts and numbers ----

  const say = (key, values = {}) =>
    TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name])).replace(/(\d) %/g, "$1\u00a0%");
  const number = (value, digits = 0) =>
    value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${number(100 * value, digits)}\u00a0%`);
  // Characters that would turn the text around, or that cannot be seen, are shown by their code.
  const visible = (name) =>
    name.replace(/[\p{Cc}\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/gu,
      (c) => `‹U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`);
  const className = (label) => visible(DATA.classes[label].display || DATA.classes[label].name);
  const folded = (text) => text.normalize("NFKC").toLowerCase();

  // ---- elements ----

  function el(tag, options = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (value === undefined || value === null || value === false) continue;
      if (key === "class") made.className = value;
      else if (key === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return made;
  }

  function svg(tag, attributes, ...children) {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  const name = (text) => el("bdi", { class: "name", title: visible(text) }, visible(text));
  // the name of a photograph: the file whole, of the folder what there is room for, its end
  function file(text) {
    const at = text.lastIndexOf("/") + 1, folder = text.slice(0, at);
    return el("span", { class: "file", title: visible(text) },
      folder ? el("span", { class: "folder" }, el("bdi", { dir: "ltr" }, visible(folder))) : null, el("bdi", { class: "base" }, visible(text.slice(at))));
  }
  const quiet = (text) => el("p", { class: "quiet" }, text);

  function bar(value, kind = "") {
    const fill = el("span", { class: `fill ${kind}` });
    fill.style.width = `${Math.max(0, Math.min(1, value || 0)) * 100}%`;
    return el("span", { class: "bar-track", "aria-hidden": "true" }, fill);
  }

  // ---- pictures, decoded a block at a time ----

  const places = new Map(), blocks = new Map();
  let position = 0;
  for (const set of Object.keys(DATA.pictures)) for (const row of DATA.pictures[set]) places.set(`${set}:${row}`, position++);

  function uri(set, row) {
    const place = places.get(`${set}:${row}`);
    if (place === undefined) return "";
    const block = Math.floor(place / BLOCK);
    if (!blocks.has(block)) blocks.set(block, $(`pictures-${block}`) ? json(`pictures-${block}`) : []);
    return blocks.get(block)[place % BLOCK] || "";
  }

  function picture(set, row, photo, alt) {
    const source = uri(set, row);
    if (!source) return el("span", { class: "picture empty" }, places.size ? say("no_picture") : "");
    const image = el("img", { class: "picture", alt: alt ?? say("photo_alt", { name: visible(photo) }), width: 160, height: 160, decoding: "async" });
    image.src = source;
    return image;
  }

  // ---- tables that sort ----

  // columns: {key, text, number, cell(row) -> nodes, value(row) -> what is sorted by}
  function table(columns, rows, caption, options = {}) {
    let sorted = options.sorted ?? null, descending = options.descending ?? false;
    const body = el("tbody"), heads = columns.map((column) => {
      const head = el("th", { scope: "col", class: column.number ? "number" : "" });
      if (column.value) head.append(el("button", { type: "button", on: { click: () => sortBy(column) } }, column.text, el("span", { class: "arrow", "aria-hidden": "true" })));
      else head.append(column.text);
      return head;
    });
    function sortBy(column) {
      descending = sorted === column.key ? !descending : Boolean(column.number);
      sorted = column.key;
      fill();
    }
    function fill() {
      const by = columns.find((column) => column.key === sorted);
      const order = [...rows];
      if (by) {
        const compare = (a, b) => {
          const [x, y] = [by.value(a), by.value(b)];
          if (x === null || y === null) return (x === null) - (y === null); // without a figure: always last
          return (typeof x === "string" ? x.localeCompare(y, language, { numeric: true }) : x - y) * (descending ? -1 : 1);
        };
        order.sort(compare);
      }
      heads.forEach((head, i) => {
        if (columns[i].value) head.setAttribute("aria-sort", columns[i].key === sorted ? (descending ? "descending" : "ascending") : "none");
      });
      body.replaceChildren(...order.map((row) => el("tr", {}, columns.map((column, i) =>
        el(i ? "td" : "th", { scope: i ? null : "row", class: column.number ? "number" : "" }, column.cell(row))))));
      filter();
    }
    const made = el("table", {}, el("caption", { class: options.caption ? "" : "hidden" }, caption), el("thead", {}, el("tr", {}, heads)), body);
    let wanted = "";
    function filter(text = wanted) {
      wanted = folded(text);
      for (const row of body.rows) row.hidden = Boolean(wanted) && !folded(row.cells[0].textContent).includes(wanted);
    }
    fill();
    const scroller = el("div", { class: `scroll${options.tall ? " tall" : ""}`, tabindex: "0", role: "region", "aria-label": caption }, made);
    return { element: hinted(scroller), filter };
  }

  // a frame that shows when there is more to the right
  function hinted(scroller) {
    const hint = el("span", { class: "more-hint", "aria-hidden": "true" }, "›"), frame = el("div", { class: "frame" }, scroller, hint);
    const look = () => frame.classList.toggle("more-right", scroller.scrollLeft + scroller.clientWidth < scroller.scrollWidth - 2);
    scroller.addEventListener("scroll", look, { passive: true });
    new ResizeObserver(look).observe(scroller);
    return frame;
  }

  const rateCell = (value, kind) => [bar(value, kind), el("span", { class: "figure" }, percent(value))];

  // ---- 1: how good ----

  let split = Object.keys(DATA.splits)[0];

  function good() {
    const scores = DATA.splits[split];
    const choice = $("split-choice");
    choice.hidden = Object.keys(DATA.splits).length < 2;
    choice.replaceChildren(...Object.keys(DATA.splits).map((key) =>
      el("button", { type: "button", "aria-pressed": String(key === split), on: { click: () => { split = key; good(); choice.querySelector("[aria-pressed=true]").focus(); } } }, say(`split_${key}`))));
    const varied = DATA.confidence;
    const tile = (key, value, note) => el("div", { class: "tile" }, el("span", { class: "label" }, say(key)), el("strong", {}, value), el("span", { class: "quiet" }, note));
    const tiles = scores
      ? [tile("top1", percent(scores.top1), say("top1_note")), tile("top5", percent(scores.top5), say("top5_note")),
        tile("ece", percent(scores.calibration_error), say("ece_note")), tile("n", number(scores.n), say("n_note"))]
      : [tile("mean_confidence", percent(varied.mean), say("mean_confidence_note")),
        tile("answered", number(varied.classes_answered), say("answered_note", { n: number(DATA.classes.length), m: number(varied.effective_classes) }))];
    $("tiles").replaceChildren(...tiles);
    $("good-note").textContent = !scores ? say("nolabels_note")
      : split === "val" ? (DATA.splits.test ? "" : `${say("nolabels_test_note")} `) + say("val_note") : "";
    for (const [id, make] of [["beside", besideTable], ["reliability", reliability], ["groups", groupTable], ["often", often], ["pairs", pairs], ["classes", classTable]]) {
      const made = make(scores);
      $(id).hidden = !made;
      $(id).replaceChildren(...(made || []));
    }
  }

  function besideTable(scores) {
    if (!scores) return null;
    const rows = [[DATA.about.method, scores, true], ...Object.entries(scores.beside).map(([method, row]) => [method, row, false])];
    return [el("h3", {}, say("beside")), table([
      { key: "method", text: say("method"), cell: (row) => [visible(row[0]), row[2] ? el("span", { class: "tag" }, say("this_one")) : null], value: (row) => row[0] },
      { key: "top1", text: say("top1"), number: true, cell: (row) => rateCell(row[1].top1), value: (row) => row[1].top1 },
      { key: "top5", text: say("top5"), number: true, cell: (row) => percent(row[1].top5), value: (row) => row[1].top5 },
      { key: "ece", text: say("ece"), number: true, cell: (row) => percent(row[1].calibration_error), value: (row) => row[1].calibration_error },
    ], rows, say("beside")).element];
  }

  function groupTable(scores) {
    const rows = scores && Object.entries(scores.groups).filter(([, row]) => row.n);
    if (!rows || rows.length < 2) return null;
    return [el("h3", {}, say("groups")), table([
      { key: "group", text: say("group"), cell: (row) => visible(row[0]), value: (row) => row[0] },
      { key: "n", text: say("n"), number: true, cell: (row) => number(row[1].n), value: (row) => row[1].n },
      { key: "top1", text: say("top1"), number: true, cell: (row) => rateCell(row[1].top1), value: (row) => row[1].top1 },
      { key: "top5", text: say("top5"), number: true, cell: (row) => percent(row[1].top5), value: (row) => row[1].top5 },
    ], rows, say("groups")).element];
  }

  function axes(size, pad) {
    const parts = [];
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      const at = pad + tick * size, up = pad / 2 + (1 - tick) * size;
      parts.push(svg("line", { class: "grid-line", x1: pad, x2: pad + size, y1: up, y2: up }));
      const x = svg("text", { x: at, y: pad / 2 + size + 16, "text-anchor": "middle" }), y = svg("text", { x: pad - 6, y: up + 4, "text-anchor": "end" });
      x.textContent = y.textContent = number(100 * tick);
      parts.push(x, y);
    }
    return parts;
  }

  function reliability(scores) {
    const size = 220, pad = 36;
    if (!scores) return histogram(size, pad);
    const width = size / 15, most = Math.max(...scores.reliability.map((bin) => bin.n));
    const shapes = scores.reliability.map((bin) => {
      const x = pad + Math.min(14, Math.floor(bin.confidence * 15)) * width, height = bin.accuracy * size;
      const tip = svg("title", {});
      tip.textContent = say("bin_tip", { c: percent(bin.confidence), a: number(Math.round(bin.accuracy * bin.n)), n: number(bin.n) });
      // the fewer photographs in a bin, the paler
      return svg("rect", { class: "column", x: x + 1, y: pad / 2 + size - height, width: width - 2, height: Math.max(height, 1), "fill-opacity": 0.35 + 0.65 * Math.sqrt(bin.n / most) }, tip);
    });
    const line = svg("line", { class: "diagonal", x1: pad, y1: pad / 2 + size, x2: pad + size, y2: pad / 2 });
    return [el("h3", {}, say("reliability")), chart(size, pad, [...axes(size, pad), ...shapes, line], say("reliability_alt", { n: scores.reliability.length, e: percent(scores.calibration_error) }), say("accuracy")), trust(scores.trust), quiet(say("reliability_note"))];
  }

  // whether to believe the confidence, in words
  function trust({ n, confidence, right, noise, sure, unsure }) {
    const gap = confidence - right, kind = Math.abs(gap) <= Math.max(0.03, 2 * noise) ? "trust_fits" : gap > 0 ? "trust_over" : "trust_under";
    const part = (key, some) => (some.n ? say(key, { a: percent(some.right / some.n, 0), n: number(some.n) }) : "");
    return el("p", { class: "trust" }, [say(kind, { c: percent(confidence, 0), a: percent(right, 0), n: number(n) }), part("trust_sure", sure), part("trust_unsure", unsure)].filter(Boolean).join(" "));
  }

  function histogram(size, pad) {
    const counts = DATA.confidence.histogram, most = Math.max(1, ...counts), width = size / counts.length;
    const shapes = counts.map((n, i) => {
      const tip = svg("title", {});
      tip.textContent = `${number(100 * i / counts.length)}–${number(100 * (i + 1) / counts.length)} %: ${number(n)}`;
      return svg("rect", { class: "column", x: pad + i * width + 1, width: width - 2, y: pad / 2 + size * (1 - n / most), height: size * n / most }, tip);
    });
    const ticks = axes(size, pad).filter((part) => part.tagName === "text" && part.getAttribute("text-anchor") === "middle");
    return [el("h3", {}, say("confidence")), chart(size, pad, [...ticks, ...shapes], say("histogram_alt"), say("n"))];
  }

  function chart(size, pad, shapes, alt, up) {
    const across = svg("text", { class: "axis", x: pad + size / 2, y: pad / 2 + size + 32, "text-anchor": "middle" });
    across.textContent = `${say("confidence")}, %`;
    const upward = svg("text", { class: "axis", x: 0, y: 10 });
    upward.textContent = up;
    return svg("svg", { class: "chart", viewBox: `0 0 ${size + pad + 14} ${size + pad + 18}`, role: "img", "aria-label": alt }, ...shapes, across, upward);
  }

  function often(scores) {
    if (scores) return null;
    return [el("h3", {}, say("often")), table([
      { key: "class", text: say("class"), cell: (row) => name(className(row[0])), value: (row) => className(row[0]) },
      { key: "n", text: say("answers"), number: true, cell: (row) => number(row[1]), value: (row) => row[1] },
    ], DATA.confidence.often, say("often")).element];
  }

  function pairs(scores) {
    if (!scores) return null;
    const { pairs: total, ties } = scores.confused_of, shownPairs = scores.confused.length;
    const cut = shownPairs < total ? quiet([say("pairs_cut", { n: number(shownPairs), total: number(total) }), ties ? say("pairs_ties", { n: number(ties) }) : ""].join(" ")) : null;
    const list = scores.confused.map((pair) => {
      const of = scores.per_class[pair.is].n, share = say("pair_of", { n: number(of), p: percent(pair.n / of, 0) });
      const strip = el("div", { class: "strip" });
      const details = el("details", { class: "pair", on: { toggle: () => { if (details.open && !strip.childNodes.length) strip.append(...pairPhotos(pair)); } } },
        el("summary", { "aria-label": `${say("pair", { is: className(pair.is), as: className(pair.taken_for) })}: ${number(pair.n)} ${share}` }, el("span", { class: "badge" }, number(pair.n)), el("span", {}, name(className(pair.is)), el("span", { class: "quiet arrow-right" }, " → "), name(className(pair.taken_for)), el("span", { class: "quiet share" }, share))), strip);
      return el("li", {}, details);
    });
    return [el("h3", {}, say("pairs")), quiet(list.length ? say("pairs_note") : say("no_pairs")), el("ol", { class: "pairs" }, list), ...(cut ? [cut] : [])];
  }

  const pairPhotos = (pair) => pair.photographs.map((photo) => {
    const full = split === "test" && byRow.get(photo.row);
    const inside = [picture(split, photo.row, photo.name), el("span", { class: "caption" }, file(photo.name))];
    return full ? el("button", { type: "button", class: "small-card", on: { click: () => open(full, pair.photographs.map((other) => byRow.get(other.row)).filter(Boolean)) } }, inside)
      : el("span", { class: "small-card" }, inside);
  });

  function classTable(scores) {
    const rows = DATA.classes.map((entry, label) => ({ ...entry, label, ...(scores ? scores.per_class[label] : {}) }));
    // the figures that matter come first, for narrow windows
    const columns = [{ key: "class", text: say("class"), cell: (row) => name(className(row.label)), value: (row) => className(row.label) }];
    if (scores) columns.push(
      { key: "top1", text: say("top1"), number: true, cell: (row) => (row.n ? rateCell(row.top1, row.top1 < 0.5 ? "low" : "") : "–"), value: (row) => row.top1 },
      { key: "top5", text: say("top5"), number: true, cell: (row) => percent(row.top5), value: (row) => row.top5 },
      { key: "zero", text: say("zero_shot"), number: true, cell: (row) => percent(row.zero_shot), value: (row) => row.zero_shot },
      { key: "n", text: say("n"), number: true, cell: (row) => number(row.n), value: (row) => row.n });
    columns.push({ key: "shots", text: say("shots"), number: true, cell: (row) => number(row.shots), value: (row) => row.shots });
    const grouped = new Set(DATA.classes.map((entry) => entry.group)).size > 1;
    if (grouped) columns.push({ key: "group", text: say("group"), cell: (row) => visible(row.group), value: (row) => row.group });
    columns.push({ key: "show", text: say("show"), cell: (row) => el("button", { type: "button", class: "link", "aria-label": say("photographs_of", { class: className(row.label) }), on: { click: () => showClass(row.label) } }, say("show")) });
    const made = table(columns, rows, say("classes"), { sorted: scores ? "top1" : "class", tall: true });
    const search = el("input", { type: "search", id: "class-search", autocomplete: "off", spellcheck: "false", on: { input: () => made.filter(search.value) } });
    return [el("div", { class: "heading" }, el("h3", {}, say("classes")), el("label", {}, say("class_search"), search)), made.element];
  }

  function showClass(label) {
    reset();
    $("class-filter").value = String(label);
    $("role-filter").value = split === "test" ? "is" : ""; // as many as the table says
    apply();
    $("photos").scrollIntoView();
    $("class-filter").focus({ preventScroll: true });
  }

  // ---- 2: photographs ----

  const verdict = (photo) => (photo.label < 0 ? "unknown" : photo.label === photo.top[0][0] ? "right" : "wrong");
  const byRow = new Map(DATA.photographs.map((photo) => [photo.row, photo]));
  const margin = (photo) => photo.top[0][1] - (photo.top[1] ? photo.top[1][1] : 0);
  const LEVELS = [0, 0.5, 0.8, 0.95];
  let found = [], shown = 0, flowing = false;

  function fillSelect(id, options) {
    const select = $(id), kept = select.value;
    select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    select.value = options.some(([value]) => value === kept) ? kept : options[0][0];
  }

  function filters() {
    const classes = DATA.classes.map((_, label) => [String(label), className(label)]).sort((a, b) => a[1].localeCompare(b[1], language, { numeric: true }));
    const kinds = ["right", "wrong", "unknown"].filter((kind) => DATA.photographs.some((photo) => verdict(photo) === kind));
    fillSelect("class-filter", [["", say("any_class")], ...classes]);
    fillSelect("role-filter", ["", "is", "answered"].map((role) => [role, say(`role_${role || "either"}`)]));
    $("role-filter").parentElement.hidden = !kinds.includes("right") && !kinds.includes("wrong"); // without labels there is one choice
    fillSelect("verdict-filter", [["", say("any")], ...kinds.map((kind) => [kind, say(kind === "wrong" ? "wrong_one" : kind)])]);
    fillSelect("confidence-filter", [["", say("any")], ...LEVELS.map((low, i) => [String(i),
      i === 0 ? say("below", { a: percent(LEVELS[1], 0) }) : i + 1 === LEVELS.length ? say("above", { a: percent(low, 0) })
        : say("between", { a: percent(low, 0), b: percent(LEVELS[i + 1], 0) })])]);
    fillSelect("sort", [["name", say("sort_name")], ["unsure", say("sort_unsure")], ["sure", say("sort_sure")], ...(kinds.includes("wrong") ? [["wrong", say("sort_wrong")]] : [])]);
    const total = DATA.about.test, limited = DATA.photographs.length < total;
    $("photos-note").textContent = [say(`photos_note_${DATA.evidence.kind}`), limited ? say("photos_limited", { shown: number(DATA.photographs.length), total: number(total) }) : "", places.size ? "" : say("photos_without")].filter(Boolean).join(" ");
  }

  function reset() {
    for (const id of ["search", "class-filter", "role-filter", "verdict-filter", "confidence-filter"]) $(id).value = "";
    $("sort").value = "name";
  }

  const collator = new Intl.Collator("en", { numeric: true });
  const ORDERS = {
    name: (a, b) => collator.compare(a.name, b.name),
    unsure: (a, b) => margin(a) - margin(b),
    sure: (a, b) => margin(b) - margin(a),
    wrong: (a, b) => (verdict(b) === "wrong") - (verdict(a) === "wrong") || b.top[0][1] - a.top[0][1],
  };

  function apply() {
    const text = folded($("search").value.trim()), label = $("class-filter").value, role = $("role-filter").value, kind = $("verdict-filter").value, level = $("confidence-filter").value;
    found = DATA.photographs.filter((photo) => {
      const p = photo.top[0][1];
      return (!text || folded(photo.name).includes(text))
        && (label === "" || (role !== "answered" && photo.label === Number(label)) || (role !== "is" && photo.top[0][0] === Number(label)))
        && (!kind || verdict(photo) === kind)
        && (level === "" || (p >= LEVELS[Number(level)] && (Number(level) + 1 === LEVELS.length || p < LEVELS[Number(level) + 1])));
    }).sort(ORDERS[$("sort").value]);
    $("count").textContent = found.length ? say("count", { n: number(found.length), total: number(DATA.photographs.length) }) : say("count_none");
    $("grid").replaceChildren();
    shown = 0;
    flowing = false;
    more();
  }

  function more() {
    const next = found.slice(shown, shown + PAGE);
    $("grid").append(...next.map((photo) => card(photo, found)));
    shown += next.length;
    $("more").hidden = shown >= found.length;
  }

  function mark(photo) {
    const kind = verdict(photo);
    const text = kind === "right" ? say("right_mark") : kind === "wrong" ? say("wrong_mark", { class: className(photo.label) }) : say("unknown_mark");
    return el("span", { class: `mark ${kind}` }, el("span", { "aria-hidden": "true" }, { right: "✓", wrong: "✕", unknown: "?" }[kind]), " ", text);
  }

  function card(photo, list, head) {
    const guesses = photo.top.map(([label, p], i) => el("span", { class: `guess${i ? "" : " first"}${label === photo.label ? " true" : ""}` },
      bar(p, label === photo.label ? "true" : ""), el("span", { class: "guess-name" }, className(label)), el("span", { class: "figure" }, percent(p, 0))));
    return el("button", { type: "button", class: `card ${verdict(photo)}`, "data-row": photo.row, on: { click: () => open(photo, list) } },
      picture("test", photo.row, photo.name), el("span", { class: "caption" }, head ?? null, file(photo.name)), photo.label < 0 ? null : mark(photo), el("span", { class: "guesses" }, guesses));
  }

  function unreadable() {
    if (!DATA.unreadable.length) return $("unreadable").replaceChildren();
    $("unreadable").replaceChildren(el("h3", {}, say("unreadable"), el("span", { class: "tag" }, number(DATA.unreadable.length))), quiet(say("unreadable_note")), table([
      { key: "name", text: say("name"), cell: (row) => name(row[0]), value: (row) => row[0] },
      { key: "cause", text: say("cause"), cell: (row) => visible(row[1]), value: (row) => row[1] },
    ], DATA.unreadable, say("unreadable")).element);
  }

  // ---- a photograph opened ----

  let opened = [], at = 0;

  function open(photo, list) {
    opened = list;
    at = list.indexOf(photo);
    detail();
    if (!$("dialog").open) $("dialog").showModal();
  }

  function step(by) {
    if (at + by < 0 || at + by >= opened.length) return;
    at += by;
    detail();
  }

  const doubted = new Set(DATA.suspects.labels.filter((entry) => entry.set === "shots").map((entry) => entry.row));

  function shotList(shots) {
    return el("div", { class: "strip" }, shots.map(([shot, strength]) => el("span", { class: "small-card" },
      picture("shots", shot, DATA.shots[shot][0]), el("span", { class: "caption" }, el("strong", {}, number(strength, 3)), " ", el("span", {}, className(DATA.shots[shot][1]))), el("span", { class: "caption quiet" }, doubted.has(shot) ? el("span", { class: "tag alert" }, say("in_doubt")) : null, file(DATA.shots[shot][0])))));
  }

  function guessTable(guesses, title, photo) {
    return table([
      { key: "class", text: say("class"), cell: (row) => [className(row[0]), row[0] === photo.label ? el("span", { class: "tag right" }, say("right_mark")) : null] },
      { key: "p", text: say("probability"), number: true, cell: (row) => rateCell(row[1], row[0] === photo.label ? "true" : "") },
    ], guesses, title).element;
  }

  function detail() {
    $("dialog-position").textContent = say("position", { i: number(at + 1), n: number(opened.length) });
    $("previous").disabled = at === 0;
    $("following").disabled = at + 1 === opened.length;
    const item = opened[at];
    $("dialog-body").replaceChildren(...(item.pair ? pairDetail(item) : item.predicted === undefined ? photoDetail(item) : labelDetail(item)));
    $("dialog").scrollTop = 0;
  }

  // two near copies beside each other
  const pairDetail = ({ pair }) => [el("h2", { id: "dialog-title" }, say("copies")), el("p", { class: "quiet" }, copyNote(pair)),
    el("div", { class: "two" }, [pair.first, pair.second].map((entry) => el("div", {}, picture(entry.set, entry.row, entry.name), el("p", {}, el("span", { class: "tag" }, say(`set_${entry.set}`)), " ", name(entry.name)), labelLine(entry))))];

  // a training photograph whose label the others contradict
  function labelDetail(entry) {
    const part = (title, label, shots) => [el("h3", {}, say(title, { class: className(label) })), shots.length ? shotList(shots) : quiet(say("no_other_shots"))];
    return [el("h2", { id: "dialog-title" }, name(entry.name)),
      el("p", {}, el("span", { class: "tag" }, say(`set_${entry.set}`)), " ", labelLine(entry), " ", el("strong", {}, say("looks_like", { class: className(entry.predicted) }))),
      el("div", { class: "detail" }, el("div", {}, picture(entry.set, entry.row, entry.name)), el("div", {}, quiet(say("odds_long", { a: percent(entry.p_predicted), predicted: className(entry.predicted), b: percent(entry.p_label, 2), label: className(entry.label) })))),
      ...part("nearest_shots", entry.predicted, entry.near_predicted), ...part("nearest_shots", entry.label, entry.near_label), quiet(say("cosine_note"))];
  }

  function photoDetail(photo) {
    const { kind, alpha, beta } = DATA.evidence;
    const sections = photo.shots.map((shots, i) => [
      el("h3", {}, say(`${i ? "spoke_other" : "spoke_answer"}_${kind}`, { class: className(photo.top[i][0]) })),
      shots.length ? shotList(shots) : quiet(say("no_shots"))]);
    return [
      el("h2", { id: "dialog-title" }, name(photo.name)), el("p", {}, mark(photo)),
      el("div", { class: "detail" }, el("div", {}, picture("test", photo.row, photo.name)),
        el("div", {}, el("h3", {}, say("five")), guessTable(photo.top, say("five"), photo)),
        el("div", {}, el("h3", {}, say("text_alone")), guessTable(photo.text, say("text_alone"), photo), quiet(say("text_alone_note")))),
      ...sections.flat(),
      photo.lead ? quiet(say("lead", { text: number(photo.lead[0], 2), cache: number(photo.lead[1], 2) })) : "",
      DATA.shots.length ? quiet(say(`evidence_${kind}`, { alpha: number(alpha, 2), beta: number(beta, 2) })) : ""];
  }

  // ---- 3: what looks wrong ----

  const photoOf = (entry, extra, item, list) => {
    const inside = [picture(entry.set, entry.row, entry.name), el("span", { class: "caption" }, el("span", { class: "tag" }, say(`set_${entry.set}`)), file(entry.name)), ...extra];
    return el("button", { type: "button", class: "card", on: { click: () => open(item, list) } }, inside);
  };
  const labelLine = (entry) => el("span", { class: "line" }, entry.label < 0 ? say("unknown_mark") : say("label_says", { class: className(entry.label) }));

  function finding(id, title, note, items, made) {
    const head = [el("h3", {}, say(title), el("span", { class: `tag${items.length ? " alert" : ""}` }, number(items.length))), quiet(say(note))];
    $(id).replaceChildren(...head, ...(items.length ? made(items) : [el("p", { class: "nothing" }, DATA.about.shots + DATA.about.val ? say("nothing") : say("needs_training"))]));
  }

  const copyNote = (pair) => [pair.pixels === undefined ? "" : say("similarity_pixels", { s: number(pair.pixels, 3) }), say("similarity", { s: number(pair.similarity, 3) }),
    pair.found_by.length ? say(`found_by_${pair.found_by.join("_")}`) : ""].filter(Boolean).join(" · ");
  const couple = (item, list) => el("div", { class: "couple" }, [item.pair.first, item.pair.second].map((entry) => photoOf(entry, [labelLine(entry)], item, list)),
    el("span", { class: "quiet couple-note" }, copyNote(item.pair)));

  // what was compared, and the nearest pair where nothing was found
  function compared({ compared: n, nearest }) {
    const text = say("compared", { train: number(n.train), test: number(n.test) }) + " "
      + (n.opened_train ? say("compared_pixels", { train: number(n.opened_train), test: number(n.opened_test) }) : say("compared_features"));
    const pairs = Object.entries(nearest).filter(([, pair]) => pair).map(([key, pair]) => ({ key, pair }));
    return [quiet(text), ...(pairs.length ? [el("details", {}, el("summary", {}, say("nearest_pairs")), ...pairs.flatMap((item) => [el("h4", {}, say(`copies_${item.key}`)), el("div", { class: "couples" }, couple(item, [item]))]))] : [])];
  }

  // at first a row or two; the others when asked for
  function folding(items, first, make, kind) {
    const list = el("div", { class: kind }, items.slice(0, first).map(make));
    if (items.length <= first) return [list];
    const button = el("button", { type: "button", class: "wide-button", on: { click: () => { list.append(...items.slice(first).map(make)); button.remove(); } } }, say("more"));
    return [list, button];
  }

  function wrong() {
    const { labels, copies, classes, names } = DATA.suspects;
    finding("suspect-labels", "labels", "labels_note", labels, (items) => folding(items, 12, (entry) => photoOf(entry, [labelLine(entry),
      el("span", { class: "line strong" }, say("looks_like", { class: className(entry.predicted) })),
      el("span", { class: "quiet line" }, say("odds", { a: percent(entry.p_predicted), b: percent(entry.p_label, 2) }))], entry, labels), "grid"));
    const all = [...copies.train_and_test, ...copies.across_classes];
    const kind = (key) => {
      const list = copies[key].map((pair) => ({ pair }));
      return list.length ? [el("h4", {}, say(`copies_${key}`)), ...folding(list, 6, (item) => couple(item, list), "couples")] : [];
    };
    finding("suspect-copies", "copies", "copies_note", all, () => [...kind("train_and_test"), ...kind("across_classes")]);
    if (DATA.about.shots + DATA.about.val) $("suspect-copies").append(...compared(copies));
    const odd = classes.filter((entry) => entry.odd);
    finding("suspect-classes", "incoherent", "incoherent_note", odd, () => []);
    if (classes.length) $("suspect-classes").append(table([
      { key: "class", text: say("class"), cell: (row) => [name(className(row.class)), row.odd ? el("span", { class: "tag alert" }, say("odd")) : null], value: (row) => className(row.class) },
      { key: "n", text: say("n"), number: true, cell: (row) => number(row.n), value: (row) => row.n },
      { key: "cohesion", text: say("cohesion"), number: true, cell: (row) => [bar(row.cohesion), el("span", { class: "figure" }, number(row.cohesion, 2))], value: (row) => row.cohesion },
      { key: "nearest", text: say("nearest_class"), cell: (row) => (row.nearest === null ? "–" : name(className(row.nearest))), value: (row) => (row.nearest === null ? null : className(row.nearest)) },
      { key: "similarity", text: say("its_similarity"), number: true, cell: (row) => (row.similarity === null ? "–" : number(row.similarity, 2)), value: (row) => row.similarity },
      { key: "photos", text: say("show"), cell: (row) => shotsOf(row.class) },
    ], [...odd, ...classes.filter((entry) => !entry.odd).slice(0, Math.max(0, 10 - odd.length))], say("incoherent")).element);
    if (classes.length) $("suspect-classes").append(quiet(say(odd.length < classes.length && odd.length < 10 ? "incoherent_others" : "incoherent_all")));
    finding("suspect-names", "unknown_names", "unknown_names_note", names, (items) => [table([
      { key: "class", text: say("class"), cell: (row) => name(className(row.class)), value: (row) => className(row.class) },
      { key: "n", text: say("n"), number: true, cell: (row) => number(row.n), value: (row) => row.n },
      { key: "top1", text: say("zero_shot"), number: true, cell: (row) => percent(row.top1), value: (row) => row.top1 },
      { key: "rank", text: say("median_rank"), number: true, cell: (row) => number(row.rank, row.rank % 1 ? 1 : 0), value: (row) => row.rank },
      { key: "taken", text: say("mostly_taken"), cell: (row) => name(className(row.taken_for)), value: (row) => className(row.taken_for) },
    ], items, say("unknown_names")).element]);
    $("count-wrong").textContent = number(labels.length + all.length + odd.length + names.length);
  }

  function shotsOf(label) {
    const rows = DATA.shots.map((shot, row) => [shot, row]).filter(([shot]) => shot[1] === label).slice(0, 4);
    return el("span", { class: "mini-strip" }, rows.map(([shot, row]) => picture("shots", row, shot[0])));
  }

  // ---- 4: what to label next ----

  let suggested = 0;

  function next() {
    const { photographs, all_labelled: known } = DATA.label_next;
    $("next-note").textContent = known ? say("next_note_all") : say("next_note", { n: number(photographs.length) });
    $("next-grid").replaceChildren();
    suggested = 0;
    moreNext();
  }

  function moreNext() {
    const list = DATA.label_next.photographs, add = list.slice(suggested, suggested + PAGE / 2);
    $("next-grid").append(...add.map((entry, i) => {
      const rank = el("span", { class: "tag" }, say("rank", { n: number(suggested + i + 1) }));
      const full = byRow.get(entry.row);
      if (full) return el("button", { type: "button", class: "card", on: { click: () => open(full, list.map((other) => byRow.get(other.row)).filter(Boolean)) } },
        picture("test", entry.row, entry.name), el("span", { class: "caption" }, rank, file(entry.name)), full.label < 0 ? null : mark(full),
        entry.top.length > 1 ? el("span", { class: "quiet line" }, say("torn", { a: className(entry.top[0][0]), b: className(entry.top[1][0]) })) : null, el("span", { class: "guesses" }, entry.top.map(([label, p]) =>
          el("span", { class: "guess" }, bar(p), el("span", { class: "guess-name" }, className(label)), el("span", { class: "figure" }, percent(p, 0))))));
      return el("div", { class: "card" }, el("span", { class: "caption" }, rank, file(entry.name)));
    }));
    suggested += add.length;
    $("next-more").hidden = suggested >= list.length;
  }

  // ---- what made it ----

  const plain = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : Array.isArray(value) ? value.map(plain).join(", ")
    : value && typeof value === "object" ? Object.entries(value).map(([key, inner]) => `${visible(key)}: ${plain(inner)}`).join(" · ") : visible(String(value)));

  function about() {
    const { method, program, versions, shots, val, test, labelled, made_by: made, transductive = {} } = DATA.about;
    const { training = {}, ...rest } = made, { chosen = {}, ...options } = training;
    const { weights_sha256: weights, ...extraction } = rest;
    const facts = [["fact_method", method], ["fact_weights", weights], ["fact_training", plain(options)], ["fact_chosen", plain(chosen)],
      ["fact_transductive", plain(transductive)],
      ["fact_shots", number(shots)], ["fact_val", number(val)], ["fact_test", say("labelled", { n: number(test), m: number(labelled) })],
      ["fact_extraction", plain(Object.fromEntries(Object.entries(extraction).filter(([key]) => !key.endsWith("_sha256"))))],
      ["fact_program", program], ["fact_versions", plain(versions)]];
    $("facts").replaceChildren(...facts.filter(([, value]) => value).flatMap(([key, value]) => [el("dt", {}, say(key)), el("dd", {}, visible(String(value)))]));
  }

  // ---- language, and the start ----

  function render() {
    document.documentElement.lang = language;
    document.title = say("title");
    document.body.classList.toggle("without-pictures", !places.size);
    for (const part of document.querySelectorAll("[data-t]")) part.textContent = say(part.dataset.t);
    for (const part of document.querySelectorAll("[data-label]")) part.setAttribute("aria-label", say(part.dataset.label));
    $("language").textContent = say("other_language");
    $("language").lang = language === "zh" ? "en" : "zh";
    const { method, shots, test } = DATA.about;
    $("made").textContent = say("made", { method: visible(method), classes: number(DATA.classes.length), shots: number(shots), test: number(test) });
    good();
    filters();
    apply();
    unreadable();
    wrong();
    next();
    about();
  }

  $("language").addEventListener("click", () => { language = language === "zh" ? "en" : "zh"; render(); });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", apply);
  $("reset").addEventListener("click", () => { reset(); apply(); });
  $("more").addEventListener("click", () => { flowing = true; more(); });
  $("next-more").addEventListener("click", moreNext);
  $("close").addEventListener("click", () => $("dialog").close());
  $("previous").addEventListener("click", () => step(-1));
  $("following").addEventListener("click", () => step(1));
  $("dialog").addEventListener("click", (event) => { if (event.target === $("dialog")) $("dialog").close(); });
  $("dialog").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  // Once more photographs are asked for, further ones follow as the end of the list comes near; not before, because the
  // sections below would run away from who scrolls to them.
  new IntersectionObserver((entries) => { if (flowing && entries.some((entry) => entry.isIntersecting) && !$("more").hidden) more(); }, { rootMargin: "600px" }).observe($("more"));
  for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => { flowing = false; });
  render();
})();
