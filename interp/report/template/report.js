"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const PER_PAGE = 10, RAMP = [[255, 255, 255], [205, 226, 244], [150, 196, 232], [104, 165, 217]];
  const at = id => document.getElementById(id);
  const base = DATA.methods.indexOf(DATA.baseline);
  let found = [], page = 0;

  // everything from the run is put in as text, never as markup
  const make = (tag, options = {}, ...inside) => {
    const node = Object.assign(document.createElement(tag), options);
    node.append(...inside);
    return node;
  };
  const wrong = caption => caption !== null && caption.objects.some(o => o[2]);
  const digits = x => Math.abs(x) >= 10 ? x.toFixed(1) : x.toFixed(2);
  const percent = x => (100 * x).toFixed(x < 0.1 ? 1 : 0) + " %";

  const colour = value => {
    const [low, high] = DATA.limits;
    const x = Math.min(1, Math.max(0, (value - low) / (high - low || 1))) * (RAMP.length - 1);
    const i = Math.min(RAMP.length - 2, Math.floor(x));
    const mixed = RAMP[i].map((c, n) => Math.round(c + (x - i) * (RAMP[i + 1][n] - c)));
    return `rgb(${mixed.join(",")})`;
  };

  const fits = image => {
    const show = at("show").value, m = Number(at("method").value);
    if (show === "all") return true;
    if (show === "hallucinated") return wrong(image.captions[m]);
    const before = image.captions[base], now = image.captions[m];
    if (!before || !now || m === base) return false;
    return show === "fixed" ? wrong(before) && !wrong(now) : !wrong(before) && wrong(now);
  };

  const maps = new WeakMap();
  const bytes = look => {
    if (!maps.has(look)) maps.set(look, Uint8Array.from(atob(look.maps), c => c.charCodeAt(0)));
    return maps.get(look);
  };

  // cells that get little attention are darkened; the most looked-at cell is left as it is
  const draw = (canvas, look, entry) => {
    const [rows, columns] = look.grid, cells = bytes(look), context = canvas.getContext("2d");
    canvas.width = columns;
    canvas.height = rows;
    const pixels = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) pixels.data[4 * i + 3] = 0.7 * (255 - cells[entry * rows * columns + i]);
    context.putImageData(pixels, 0, 0);
  };

  const clear = card => {
    const canvas = card.querySelector("canvas");
    if (canvas) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    card.querySelector(".detail").replaceChildren();
    card.querySelectorAll("[aria-pressed=true]").forEach(b => b.setAttribute("aria-pressed", "false"));
  };

  const heads = (card, caption, token) => {
    const look = caption.look, top = look.top;
    const list = make("ul", { className: "heads" }), canvas = card.querySelector("canvas");
    const choose = (button, entry) => {
      list.querySelectorAll("button").forEach(b => b.setAttribute("aria-pressed", String(b === button)));
      if (look.maps && canvas) draw(canvas, look, entry);
    };
    for (let k = 0; k < top; k++) {
      const entry = token * top + k;
      const name = `L${look.heads[2 * entry]}H${look.heads[2 * entry + 1]}`;
      const most = look.most ? `, at most ${percent(look.most[entry])} in a cell` : "";
      const text = `${name}: VHD ${digits(look.vhd[entry])}, ${percent(look.mass[entry])} of its attention on the picture${most}`;
      const button = make("button", { type: "button", textContent: text });
      button.addEventListener("click", () => choose(button, entry));
      list.append(make("li", {}, button));
    }
    choose(list.querySelector("button"), token * top);
    return list;
  };

  const select = (card, caption, method, button, token, words) => {
    const was = button.getAttribute("aria-pressed") === "true";
    clear(card);
    if (was) return;
    button.setAttribute("aria-pressed", "true");
    const detail = card.querySelector(".detail"), told = [`“${words.trim()}” in the caption by ${method}`];
    if (caption.t) told.push(`T-VHD ${digits(caption.t[token])}` + (DATA.k ? ` (k = ${DATA.k})` : ""));
    if (caption.p) told.push(`probability ${caption.p[token].toFixed(3)}`);
    detail.append(make("div", { textContent: told.join(" · ") }));
    if (!caption.look) {
      detail.append(make("div", { textContent: "The heads were not looked into here: interp report RUN --look N does." }));
      return;
    }
    if (method !== DATA.baseline) detail.append(make("div", { textContent: "Read by the model without the method." }));
    detail.append(heads(card, caption, token));
  };

  const tokens = (card, caption, method) => {
    const line = make("p", { className: "caption" });
    line.setAttribute("role", "group");
    line.setAttribute("aria-label", `caption by ${method}`);
    for (const [start, end, token] of caption.parts) {
      const text = caption.text.slice(start, end), object = caption.objects.find(o => o[0] < end && start < o[1]);
      const node = make("span", { className: "token", textContent: text });  // buttons would break lines inside words
      const said = [text.trim()];
      if (object) {
        node.classList.add(object[2] ? "wrong" : "right");
        if (end >= object[1]) node.classList.add("last");
        said.push(object[2] ? `${object[3]}, hallucinated` : `${object[3]}, in the picture`);
      }
      if (token >= 0) {
        node.setAttribute("role", "button");
        node.tabIndex = line.querySelector("[role=button]") ? -1 : 0;
        node.setAttribute("aria-pressed", "false");
        if (caption.t && caption.t[token] !== undefined) {
          node.style.backgroundColor = colour(caption.t[token]);
          node.classList.add("scored");
          said.push(`T-VHD ${digits(caption.t[token])}`);
        }
        if (said.length > 1) node.setAttribute("aria-label", said.join(", "));
        node.title = said.slice(1).join(", ");
        node.addEventListener("click", () => select(card, caption, method, node, token, text));
      }
      line.append(node);
    }
    line.addEventListener("keydown", event => {
      const all = [...line.querySelectorAll("[role=button]")], i = all.indexOf(document.activeElement);
      if (i >= 0 && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        all[i].click();
        return;
      }
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[event.key];
      if (i < 0 || to === undefined || !all[to]) return;
      event.preventDefault();
      all[i].tabIndex = -1;
      all[to].tabIndex = 0;
      all[to].focus();
    });
    return line;
  };

  const card = image => {
    const node = make("article", { className: "card" }), side = make("div", { className: "side" });
    const objects = image.truth.join(", ") || "nothing known";
    if (image.picture) {
      const picture = make("img", { src: image.picture, alt: `image ${image.id}: ${objects}` });
      side.append(make("div", { className: "picture" }, picture, make("canvas", { width: 0, height: 0 })));
    }
    side.append(make("div", {}, make("h3", { textContent: `Image ${image.id}` }), `In the picture: ${objects}`));
    const captions = make("div", { className: "captions" });
    image.captions.forEach((caption, m) => {
      if (!caption) return;
      const n = new Set(caption.objects.filter(o => o[2]).map(o => o[3])).size;
      const badge = make("span", { className: "badge", textContent: n ? ` ✗ ${n} hallucinated` : " ✓ none hallucinated" });
      const head = make("h3", { textContent: DATA.methods[m] }, badge);
      const text = caption.text ? tokens(node, caption, DATA.methods[m]) : make("p", { textContent: "(empty)" });
      captions.append(make("section", {}, head, text));
    });
    const detail = make("div", { className: "detail" });
    detail.setAttribute("role", "status");
    node.append(side, captions, detail);
    node.addEventListener("keydown", event => { if (event.key === "Escape") clear(node); });
    return node;
  };

  const render = () => {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(pages - 1, Math.max(0, page));
    at("cards").replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(card));
    at("page").textContent = `page ${page + 1} of ${pages}`;
    at("before").disabled = page === 0;
    at("after").disabled = page === pages - 1;
  };
  const filter = () => {
    const show = at("show").value;
    at("method").disabled = show === "all";
    if ((show === "fixed" || show === "broken") && Number(at("method").value) === base && DATA.methods.length > 1)
      at("method").value = String(DATA.methods.findIndex((_, m) => m !== base));
    found = DATA.images.filter(fits);
    page = 0;
    at("count").textContent = `${found.length} of ${DATA.images.length} images`;
    render();
  };
  const turn = by => {
    page += by;
    render();
    at("captions").scrollIntoView();
  };

  DATA.methods.forEach((name, m) => at("method").append(make("option", { value: String(m), textContent: name })));
  if (DATA.limits) {
    const [low, high] = DATA.limits, steps = [0, 0.25, 0.5, 0.75, 1].map(x => low + x * (high - low));
    at("ramp").append(`T-VHD ${digits(low)} `);
    steps.forEach(v => {
      const swatch = make("i");
      swatch.style.backgroundColor = colour(v);
      at("ramp").append(swatch);
    });
    at("ramp").append(` ${digits(high)}`);
  }
  at("filters").addEventListener("submit", event => event.preventDefault());
  at("filters").addEventListener("change", filter);
  at("before").addEventListener("click", () => turn(-1));
  at("after").addEventListener("click", () => turn(1));
  filter();
})();
