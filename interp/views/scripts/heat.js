function show(place, data) {
  const ns = "http://www.w3.org/2000/svg", cell = Math.max(6, Math.min(30, Math.floor(520 / data.values[0].length)));
  const rows = data.values.length, columns = data.values[0].length, left = 46, top = 22;
  const put = (parent, tag, attributes, text) => {
    const node = document.createElementNS(ns, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };
  const title = document.createElement("div"), told = document.createElement("div");
  title.textContent = data.title;
  title.style.fontWeight = "600";
  told.setAttribute("role", "status");
  told.textContent = "Point at a head, or use the arrow keys.";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("width", left + columns * cell + 4);
  svg.setAttribute("height", top + rows * cell + 20);
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", data.title);
  const small = { "font-size": 11, fill: "currentColor", "text-anchor": "middle" };
  const every = Math.max(1, Math.ceil(24 / cell));
  for (let h = 0; h < columns; h += every) put(svg, "text", { ...small, x: left + (h + .5) * cell, y: top - 6 }, h);
  for (let l = 0; l < rows; l += every) put(svg, "text", { ...small, "text-anchor": "end", x: left - 6, y: top + (l + .7) * cell }, l);
  put(svg, "text", { ...small, x: left + columns * cell / 2, y: top + rows * cell + 15 }, "head (across), layer (down)");
  data.values.forEach((row, l) => row.forEach((value, h) => {
    const at = { x: left + h * cell, y: top + l * cell, width: cell - 1, height: cell - 1, fill: data.colours[l][h] };
    const box = put(svg, "rect", at);
    put(box, "title", {}, `layer ${l}, head ${h}: ${value === null ? "not measured" : value}`);
    box.addEventListener("pointerenter", () => choose(l, h));
  }));
  const ring = put(svg, "rect", { width: cell, height: cell, fill: "none", stroke: "#d55e00", "stroke-width": 2, visibility: "hidden", "pointer-events": "none" });
  let at = [0, -1];
  const choose = (l, h) => {
    at = [l, h];
    ring.setAttribute("x", left + h * cell - .5);
    ring.setAttribute("y", top + l * cell - .5);
    ring.setAttribute("visibility", "visible");
    const value = data.values[l][h];
    told.textContent = `layer ${l}, head ${h}: ${value === null ? "not measured" : `${data.label} ${value}`}`;
  };
  svg.addEventListener("keydown", event => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    choose(Math.min(rows - 1, Math.max(0, at[0] + step[0])), Math.min(columns - 1, Math.max(0, at[1] + step[1])));
  });
  place.replaceChildren(title, svg, told);
}
