function show(place, data) {
  const make = (tag, options = {}, ...inside) => {
    const node = Object.assign(document.createElement(tag), options);
    node.append(...inside);
    return node;
  };
  const [rows, columns] = data.grid, cells = Uint8Array.from(atob(data.maps), c => c.charCodeAt(0));
  const box = make("div"), image = make("img", { src: data.picture, alt: data.alt }), canvas = make("canvas", { width: columns, height: rows });
  box.style.cssText = "position:relative;width:288px;max-width:100%";
  image.style.cssText = "display:block;width:100%;margin:0";
  canvas.style.cssText = "position:absolute;inset:0;width:100%;height:100%;image-rendering:pixelated";
  box.append(image, canvas);
  const slider = make("input", { type: "range", min: 0, max: data.tokens.length - 1, value: data.start });
  slider.setAttribute("aria-label", "token of the caption");
  slider.style.cssText = "width:288px;max-width:100%";
  const told = make("div"), line = make("p");
  told.setAttribute("role", "status");
  line.style.whiteSpace = "pre-wrap";
  const spans = data.tokens.map((token, i) => {
    const span = make("span", { textContent: token, title: `step ${i + 1}` });
    span.style.cursor = "pointer";
    span.addEventListener("click", () => choose(i));
    line.append(span);
    return span;
  });
  const choose = i => {
    const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
    for (let c = 0; c < rows * columns; c++) pixels.data[4 * c + 3] = .7 * (255 - cells[i * rows * columns + c]);
    context.putImageData(pixels, 0, 0);
    spans.forEach((span, j) => span.style.cssText = `cursor:pointer;${j === i ? "outline:2px solid #d55e00" : ""}`);
    slider.value = i;
    const shares = `${(100 * data.mass[i]).toFixed(0)} % of the attention is on the picture, at most ${(100 * data.most[i]).toFixed(1)} % in a cell`;
    told.textContent = `“${data.tokens[i].trim()}”, ${data.heads}: ${shares}`;
  };
  slider.addEventListener("input", () => choose(Number(slider.value)));
  place.replaceChildren(box, slider, told, line);
  choose(data.start);
}
